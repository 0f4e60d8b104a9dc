"""Starts an image's program as a container engine would, with a stand-in for the engine.

The image is a real one of buildah's store. What runs it is not docker: `unshare` and `chroot`, with the image's own
entry point, environment and user, a read-only root, a `/tmp` and a data folder that may be written, a process tree of
its own, and nothing that gains rights. The network is the machine's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

USER = 10001
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PREPARE = """
root=$1; data=$2; config=$3; models=$4; shift 4
touch "$root/etc/hosts"
mount --bind "$root" "$root"
mount --bind /etc/hosts "$root/etc/hosts"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in {devices}; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
mkdir -m 1777 "$root/dev/shm"
mount --bind "$data" "$root/data"
[ -z "$config" ] || mount --bind "$config" "$root/etc/stepwedge"
mount --bind "$models" "$root/mnt"
exec env -i {environment} setpriv --no-new-privs chroot --userspec={user}:{user} "$root" \\
    sh -c 'cd /data && exec "$@"' - "$@"
"""


def require_image(reference: str) -> str:
    """The image, or a skip; with STEPWEDGE_REQUIRE_IMAGE=1, which says that it was built, a failure."""
    missing = None
    if os.geteuid() or not shutil.which("buildah"):
        missing = "buildah is not installed, or the tests do not run as root"
    elif subprocess.run(["buildah", "inspect", "--type", "image", reference], capture_output=True).returncode:
        missing = f"there is no image {reference}; `make image` builds it"
    if missing is not None:
        if os.environ.get("STEPWEDGE_REQUIRE_IMAGE") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return reference


class Container:
    """An image's file system, and the programs that run in it."""

    def __init__(self, reference: str, root: Path, data: Path, config: Path | None, models: Path) -> None:
        self.root, self.data = root, data
        told = json.loads(_output("buildah", "inspect", "--type", "image", reference))
        self.configuration: dict[str, Any] = told["Docker"]["config"]
        self.size_mb = _megabytes(_output("buildah", "images", "--format", "{{.Size}}", f"localhost/{reference}"))
        self._folders = (str(root), str(data), str(config or ""), str(models))
        self._running: list[subprocess.Popen[bytes]] = []

    @classmethod
    @contextmanager
    def of(
        cls, reference: str, folder: Path, models: Path, *, config: Mapping[str, str] | None = None
    ) -> Iterator[Container]:
        """``config`` are files, by name, mounted over the image's /etc/stepwedge; the models are at /mnt."""
        require_image(reference)
        name = _output("buildah", "from", "--pull-never", reference).strip()
        try:
            root = Path(_output("buildah", "mount", name).strip())
            data = folder / "data"
            data.mkdir(parents=True, exist_ok=True)
            os.chown(data, USER, USER)
            own = None
            if config is not None:
                own = folder / f"config-{name}"
                own.mkdir()
                own.chmod(0o755)
                for file, text in config.items():
                    (own / file).write_text(text, encoding="utf-8")
                    (own / file).chmod(0o644)
            container = cls(reference, root, data, own, models)
            try:
                yield container
            finally:
                container.end()
                subprocess.run(["buildah", "umount", name], capture_output=True, check=True)
        finally:
            subprocess.run(["buildah", "rm", name], capture_output=True, check=True)

    def start(self, log: Path, *arguments: str, entrypoint: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        """Start the entry point with arguments, as process 1."""
        environment = " ".join(f"'{pair}'" for pair in self.configuration["Env"])
        script = _PREPARE.format(devices=" ".join(_DEVICES), environment=environment, user=USER)
        command = list(self.configuration["Entrypoint"] if entrypoint is None else entrypoint)
        with log.open("ab") as out:
            process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", script, "-",
                 *self._folders, *command, *arguments],
                stdout=out, stderr=out,
            )  # fmt: skip
        self._running.append(process)
        return process

    def run(self, log: Path, *command: str) -> tuple[int, str]:
        """Run a program of the image to its end; status and what it said."""
        status = self.start(log, entrypoint=command).wait(280)
        return status, log.read_text(errors="replace")

    def healthy(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the image's own health check, run beside process 1, says so."""
        first = _first(process)
        check = self.configuration["Healthcheck"]["Test"]
        assert check[0] == "CMD"
        command = ["nsenter", "--target", str(first), "--mount", "--pid", "--root", "--", "env", "-i"]
        command += [*self.configuration["Env"], "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return subprocess.run([*command, *check[1:]], capture_output=True).returncode == 0

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM to process 1, as an engine does, and its status."""
        os.kill(_first(process), signal.SIGTERM)
        return process.wait(120)

    def user_of(self, process: subprocess.Popen[bytes]) -> int:
        """The user that process 1 runs as."""
        return Path(f"/proc/{_first(process)}").stat().st_uid

    def end(self) -> None:
        """Kill what still runs; with process 1 go all the others."""
        for process in self._running:
            if process.poll() is None:
                # Not by its parent's end: who has become another user is no longer told of that.
                for first in _children(process):
                    with suppress(ProcessLookupError):
                        os.kill(first, signal.SIGKILL)
                process.kill()
                process.wait()


def _first(process: subprocess.Popen[bytes]) -> int:
    """Process 1 of a container, by its id outside."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if children := _children(process):
            return children[0]
        time.sleep(0.05)
    raise AssertionError("the container has not started a process")


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _megabytes(said: str) -> float:
    number, unit = said.split()
    return float(number) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[unit]
