"""Starts, watches and stops the roles on one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import yaml

from stepwedge import clock, metrics, rundir, workflow
from stepwedge.constancy.schedule import Schedule
from stepwedge.database import open_store, watch_variables
from stepwedge.errors import SettingsError
from stepwedge.identity import load_site
from stepwedge.inference.client import ready
from stepwedge.manifest import Package
from stepwedge.page.app import HttpServer, build_app
from stepwedge.page.desk import STATEMENT_SECONDS, open_desk
from stepwedge.page.gathered import Gathered
from stepwedge.page.routes import page_routes
from stepwedge.policy import Policy
from stepwedge.roles import described
from stepwedge.settings import Settings

log = structlog.get_logger()

# The order in which they stop: first nothing more comes in, then what is under way is finished.
ROLES = ("listen", "work", "infer", "watch")
_LONGEST_PAUSE_SECONDS = 30.0
# A role that has run this long is taken to be well: its next end starts with the shortest pause again.
_WELL_SECONDS = 60.0
_CHECK_SECONDS = 300.0  # for packages to verify, and again for the roles to be ready with them
_STOP_SECONDS = 15.0  # beyond the worker's own drain time
# Exit status of a role that cannot start as it is configured (see `cli`): starting it again would not help.
UNUSABLE = 2
# The monitor is a program of its own, which meets the service in the database; these come with its extra.
_MONITOR_NEEDS = ("stepwatch", "jinja2", "pyarrow", "cryptography")
# Becomes the role, which is asked to stop when the supervisor is killed (prctl(2), Linux). A program of its own: what
# runs in a forked process of several threads, before it becomes another program, may wait for a lock for ever.
_ENDING_WITH_PARENT = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it was killed before it could be said
    os.execv(sys.argv[2], sys.argv[2:])
"""
_WATCH_CONFIG = "STEPWATCH_CONFIG"


@dataclass
class _Role:
    name: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    failures: int = 0
    start_again_at: float | None = None


class Supervisor:
    """The roles of one machine, each a process that is started again when it ends by itself."""

    def __init__(self, settings: Settings, models: Sequence[tuple[Package, Policy]]) -> None:
        """``models`` are those that the roles load first."""
        self._settings = settings
        self._models = described(models)
        self._stop = threading.Event()
        self._again = threading.Event()
        self._had_terminal = os.isatty(0)
        self._roles: dict[str, _Role] = {}
        self._said_ready = False
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._gathered = Gathered(Path(folder)) if folder else None
        self._constancy = Schedule(settings, os.environ | {"STEPWEDGE_HTTP__PORT": "null"})

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; the exit status."""
        settings = self._settings
        site = load_site(settings.data_dir, settings.site_key_file)
        workflow.prepare_queue(settings)
        store = open_store(settings, statement_seconds=STATEMENT_SECONDS)
        watch = clock.ClockWatch(store, "serve")
        desk = open_desk(settings, site, store) if settings.http.port is not None else None
        if desk is not None:
            try:
                desk.access.check()
            except SettingsError as error:
                # The page says so too. The node receives and analyses all the same.
                log.error("nobody_can_sign_in", error=str(error))
        server: HttpServer | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGHUP, self._asked_to_load_again)
        self._say()
        try:
            clock.check(store)
            watch.start()
            if desk is not None:
                app = build_app(
                    {**self.checks(), "clock": watch.is_right},
                    store,
                    self._gathered,
                    settings.constancy,
                    information={"watch": lambda: self._runs("watch")},
                    routes=page_routes(desk),
                )
                server = HttpServer(settings.http, app)
                server.start()
            for name in ("infer", "listen", "work"):
                self._roles[name] = _Role(name, self._spawn(name))
            if settings.watch.enabled and _has_monitor():
                self._roles["watch"] = _Role("watch", self._spawn("watch"))
            return self._watch()
        finally:
            self._constancy.stop()
            self._stop_roles()
            if server is not None:
                server.stop()
            watch.stop()
            if desk is not None:
                desk.close()
            store.close()
            log.info("stopped")

    def checks(self) -> Mapping[str, Callable[[], bool]]:
        """What has to be true for the service to be ready."""
        settings = self._settings
        return {
            "listen": lambda: rundir.is_beating(settings.data_dir, "listen"),
            "work": lambda: rundir.is_beating(settings.data_dir, "work"),
            "infer": lambda: ready(settings.inference.base_url),
        }

    def _watch(self) -> int:
        while not self._stop.wait(0.2):
            for role in self._roles.values():
                status = role.process.poll()
                if status is None:
                    continue
                if status == UNUSABLE and role.name != "watch":
                    log.error("role_cannot_start", name=role.name)
                    return UNUSABLE
                self._start_again(role, status)
            if self._again.is_set():
                self._again.clear()
                self._load_again()
            self._constancy.poll(ready=self._said_ready)
            if not self._said_ready and all(check() for check in self.checks().values()):
                self._said_ready = True
                node = self._settings.node
                log.info(
                    "ready",
                    dicom=f"{node.ae_title}@{node.host}:{node.port}",
                    http=f"{self._settings.http.host}:{self._settings.http.port}",
                )
        return 0

    def _load_again(self) -> None:
        """Verify what the settings name in a process of its own, and if all of it is good, roll the roles."""
        settings = self._settings
        asked = rundir.told(settings.data_dir, "reload")
        rundir.tell(settings.data_dir, "reload", {})
        command = [sys.executable, "-m", "stepwedge", "reload", "--check"]
        command += ["--allow-demonstration"] if asked.get("allow_demonstration") else []
        try:
            checked = subprocess.run(  # noqa: S603 - our own command
                command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False, start_new_session=True
            )
            lines = checked.stderr.strip().splitlines()
            reason = lines[-1] if checked.returncode and lines else ""
            models = [] if checked.returncode else json.loads(checked.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            reason, models = f"the packages could not be verified ({type(error).__name__})", []
        if not models:
            self._end_reload(asked, "refused", f"nothing was changed: {reason}")
            return
        self._constancy.stop()
        for name in ("work", "infer", "watch"):
            self._stop_role(name)
        rundir.clear(settings.data_dir, "work")  # what the old one said last
        for name in ("infer", "work", "watch"):
            if name in self._roles:
                self._roles[name] = _Role(name, self._spawn(name))
        # The DICOM node takes them without a pause in receiving.
        self._roles["listen"].process.send_signal(signal.SIGHUP)
        self._models = models
        if self._all_follow(sorted(model["digest"] for model in models)):
            self._end_reload(asked, "done", "")
            self._constancy.run_now()
        else:
            self._end_reload(asked, "not_ready", "the roles were started anew and are not ready; the log says why")

    def _all_follow(self, digests: list[str]) -> bool:
        """Wait until every role is ready, and the DICOM node selects by these packages."""
        deadline = time.monotonic() + _CHECK_SECONDS
        while time.monotonic() < deadline and not self._stop.wait(0.2):
            listening = rundir.told(self._settings.data_dir, "listen").get("digests") == digests
            if listening and all(check() for check in self.checks().values()):
                return True
            if any(role.process.poll() == UNUSABLE for role in self._roles.values() if role.name != "watch"):
                return False
        return False

    def _end_reload(self, asked: Mapping[str, Any], outcome: str, reason: str) -> None:
        metrics.RELOADS.labels(outcome).inc()
        digests = [model["digest"] for model in self._models]
        (log.info if outcome == "done" else log.error)("reload", outcome=outcome, reason=reason, digests=digests)
        self._say({"token": asked.get("token", ""), "outcome": outcome, "reason": reason})

    def _say(self, reload: Mapping[str, Any] | None = None) -> None:
        rundir.tell(self._settings.data_dir, "serve", {"models": self._models, "reload": reload or {}})

    def _start_again(self, role: _Role, status: int) -> None:
        now = time.monotonic()
        if role.start_again_at is None:
            rundir.clear(self._settings.data_dir, role.name)
            if self._gathered is not None:
                self._gathered.put_away(role.process.pid)
            role.failures = 0 if now - role.started > _WELL_SECONDS else role.failures + 1
            pause = min(_LONGEST_PAUSE_SECONDS, 0.5 * 2.0 ** min(role.failures, 10))
            role.start_again_at = now + pause
            metrics.ROLE_RESTARTS.labels(role.name).inc()
            log.error("role_ended", name=role.name, status=status, again_in_seconds=pause)
        if now >= role.start_again_at:
            role.process, role.started, role.start_again_at = self._spawn(role.name), now, None

    def _runs(self, name: str) -> bool:
        role = self._roles.get(name)
        return role is not None and role.process.poll() is None

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stepwedge", name]
        environment = os.environ | {"STEPWEDGE_HTTP__PORT": "null"}
        if name == "watch":
            command = [sys.executable, "-m", "stepwatch", "serve"]
            environment = watch_environment(self._settings, os.environ)
        # A process group of its own: a Ctrl-C in the terminal reaches us, and we stop the roles in order.
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-S", "-c", _ENDING_WITH_PARENT, str(os.getpid()), *command],
            env=environment,
            start_new_session=True,
        )
        log.info("role_started", name=name, pid=process.pid)
        return process

    def _stop_roles(self) -> None:
        for name in ROLES:
            self._stop_role(name)

    def _stop_role(self, name: str) -> None:
        role = self._roles.get(name)
        if role is None or role.process.poll() is not None:
            return
        role.process.terminate()
        try:
            role.process.wait(self._settings.worker.drain_seconds + _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("role_killed", name=name)
            os.killpg(role.process.pid, signal.SIGKILL)
            role.process.wait()

    def _asked_to_load_again(self, _number: int, _frame: FrameType | None) -> None:
        # A terminal that has gone sends the same signal, and takes what was started from it with it.
        (self._stop if self._had_terminal and not os.isatty(0) else self._again).set()

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()


def watch_environment(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """What the monitor is told: where the service keeps its rows, and which models it runs.

    What the environment or the monitor's own settings file say of these comes first.
    """
    environment = {name: value for name, value in given.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    said: set[str] = set()
    if settings.watch.config is not None:
        environment[_WATCH_CONFIG] = str(settings.watch.config)
        try:
            # The monitor itself says what is wrong with its settings.
            said = set(yaml.safe_load(settings.watch.config.read_text(encoding="utf-8")) or {})
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError):
            log.error("watch_settings_not_read", file=settings.watch.config.name)
    models = [
        {"package": str(model.package.absolute()), "policy": str(model.policy.absolute())} for model in settings.models
    ]
    ours = {
        "data_dir": str((settings.data_dir / "watch").absolute()),
        "models": json.dumps(models),
    }
    for name, value in ours.items():
        if name not in said:
            environment.setdefault(f"STEPWATCH_{name.upper()}", value)
    if "database_url" not in said:
        for name, value in watch_variables(settings).items():
            environment.setdefault(name, value)
    if "log" not in said:
        environment.setdefault("STEPWATCH_LOG__LEVEL", settings.log.level)
        environment.setdefault("STEPWATCH_LOG__FORMAT", settings.log.format)
    return environment


def _has_monitor() -> bool:
    missing = [name for name in _MONITOR_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        log.warning("not_watched", missing=missing, install="stepwedge[monitor]")
    return not missing
