"""A real PostgreSQL on a loopback port of its own, in a temporary folder, by a user that is not root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from peers import free_ports, require_tool

USER, PASSWORD = "stepwedge", "invented-secret-7"


class PostgreSQL:
    """A running server. It takes connections with the password only."""

    def __init__(self, folder: Path, programs: Path, port: int) -> None:
        self._folder, self._programs, self.port = folder, programs, port
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[PostgreSQL]:
        """Make a cluster, start it, and take it away afterwards."""
        programs = _programs()
        folder = Path(tempfile.mkdtemp(prefix="stepwedge-pg-"))
        server = cls(folder, programs, free_ports(1)[0])
        try:
            (folder / "password").write_text(PASSWORD)
            if os.geteuid() == 0:
                shutil.chown(folder, "nobody")
                shutil.chown(folder / "password", "nobody")
            subprocess.run(
                [*_as_other(), str(programs / "initdb"), "-D", str(folder / "data"), "-U", USER, "-A", "scram-sha-256",
                 "--pwfile", str(folder / "password"), "-E", "UTF8", "--locale=C", "--no-sync"],
                check=True, capture_output=True, cwd=folder,
            )  # fmt: skip
            server.start()
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder)

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_other(), str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
                 "-h", "127.0.0.1", "-k", "", "-c", "fsync=off", "-c", "max_connections=200"],
                stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(psycopg.OperationalError), self._connect():
                return
            time.sleep(0.1)
        raise AssertionError((self._folder / "server.log").read_text(errors="replace")[-2000:])

    def stop(self) -> None:
        """Stop at once, as in an outage; every connection is cut."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)  # SIGINT: PostgreSQL's fast shutdown
            self._process.wait(60)

    def new_database(self) -> str:
        """The address, without the password, of a new and empty database."""
        self._made += 1
        name = f"test{self._made}"
        with self._connect() as db:
            db.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def dump(self, url: str) -> str:
        """A database as SQL, by pg_dump."""
        return self._run("pg_dump", "--no-owner", "--no-privileges", with_password(url, driver=""))

    def load(self, url: str, sql: str) -> None:
        """Put what ``dump`` gave into a new database."""
        options = ("--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction")
        self._run("psql", *options, with_password(url, driver=""), given=sql)

    def _run(self, program: str, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments], input=given, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", autocommit=True
        )


def with_password(url: str, *, driver: str = "+psycopg") -> str:
    """The address with the password, for what takes nothing else."""
    return url.replace(f"{USER}@", f"{USER}:{PASSWORD}@").replace("postgresql://", f"postgresql{driver}://")


def _programs() -> Path:
    """Debian keeps the server's programs beside the path."""
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return kept[-1].parent if kept else Path(require_tool("postgres")).parent


def _as_other() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
