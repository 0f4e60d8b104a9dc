"""The inference server: BentoML's lifecycle around a data plane of raw bytes.

BentoML starts, watches and stops the process and answers ``/livez`` and ``/readyz``. Tensors go past its own routes,
which cost several milliseconds a request, and past its adaptive batching, in which one malformed request fails its
neighbours: here every request is read, checked and run alone.

==================================  =================================================================================
``POST /v1/models/{digest}/infer``  tensors in, tensors out (`stepwedge.inference.wire`), with the provider that ran
                                    the model and its milliseconds as headers; ``X-Stepwedge-Priority: stat`` goes
                                    ahead of the requests that wait; ``traceparent`` makes it a part of a trace
``GET /v1/models``                  what is loaded, on which provider, and how far its golden outputs are off
``GET /metrics``                    Prometheus. BentoML's own is off: it labels its counts with the path as the
                                    caller wrote it
==================================  =================================================================================

A refusal is JSON, ``{"code": …, "message": …}``: 400 ``malformed``, 404 ``unknown_model``, 408 ``too_slow``,
413 ``too_large``, 422 ``refused``, 503 ``busy`` or ``failed``.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import bentoml
import structlog

from stepwedge import logs, tracing
from stepwedge.errors import EngineError, SettingsError, StepwedgeError
from stepwedge.inference.plane import DataPlane, LoadedModel, data_plane
from stepwedge.manifest import load_package
from stepwedge.rundir import scratch, take
from stepwedge.settings import Inference, Settings, load_settings
from stepwedge.signing import load_trust

# A worker that starts this often within this time is not going to recover by itself.
_MOST_STARTS, _STARTS_WITHIN_SECONDS = 5, 300.0

# Requests under way when the server is told to stop get this long; then their connections are closed.
_STOP_SECONDS = 20
# BentoML's own limit on a request. Ours (`inference.timeout_seconds` for reading and for waiting) come first, unless
# they are longer. It keeps a timer for each request until then, so it must not be very long.
_REQUEST_SECONDS = 300

_TARGET = "stepwedge.inference.server:InferenceServer"
# Files in BentoML's home by which its processes tell each other things.
_FAILURE, _STARTS, _PARENT = "failed", "starts", "parent"
_SCRATCH = "scratch"
_PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


_app = data_plane()


@bentoml.service(
    name="stepwedge",
    workers=1,
    traffic={"timeout": _REQUEST_SECONDS},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(_app)
class InferenceServer:
    """What a BentoML worker runs. It accepts connections once every model is loaded and gives its golden outputs."""

    def __init__(self) -> None:
        home = Path(os.environ["BENTOML_HOME"])
        _end_with_parent(home)
        try:
            _count_start(home)
            settings = load_settings()
            logs.configure(settings.log, "infer")
            tracing.start(settings.tracing, "infer")
            atexit.register(tracing.stop)
            _app.state.plane = DataPlane(_load(settings), settings.inference, _end_worker)
        except StepwedgeError as error:
            _end_server(home, str(error))


def _load(settings: Settings) -> list[LoadedModel]:
    # The parent process imports this module too, and has no use for ONNX Runtime's memory.
    from stepwedge.inference.engine import OnnxEngine

    engines: list[LoadedModel] = []
    for model in settings.models:
        engine = OnnxEngine(
            load_package(model.package, load_trust(settings.trust.keys)),
            settings.inference.device,
            settings.inference.threads,
        )
        log.info(
            "model_loaded",
            model=engine.model.name,
            version=engine.model.version,
            digest=engine.model.digest[:12],
            provider=engine.provider,
            note=engine.note,
            golden_error=engine.golden_error,
        )
        engines.append(engine)
    return engines


def _count_start(home: Path) -> None:
    """Raises EngineError where workers keep dying, so that this does not go on unseen."""
    file = home / _STARTS
    now = time.time()
    past = [float(line) for line in file.read_text().split()] if file.is_file() else []
    recent = [at for at in past if now - at < _STARTS_WITHIN_SECONDS]
    if len(recent) >= _MOST_STARTS:
        raise EngineError(
            f"the inference worker died {len(recent)} times within {_STARTS_WITHIN_SECONDS:.0f} seconds; the log and "
            "the system's log (memory, GPU) say why"
        )
    file.write_text("".join(f"{at}\n" for at in [*recent, now]))


def _end_with_parent(home: Path) -> None:
    """Let Linux stop this process when the one that watches it is killed, so that the port becomes free."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int((home / _PARENT).read_text()):
            # It was killed before we asked.
            os._exit(1)


def _end_worker(reason: str) -> None:
    """End this process: BentoML starts another one."""
    log.error("worker_ends", reason=reason)
    os._exit(1)


def _end_server(home: Path, reason: str) -> NoReturn:
    """End the worker and BentoML with it: starting again would not help."""
    (home / _FAILURE).write_text(reason, encoding="utf-8")
    os.kill(os.getppid(), signal.SIGTERM)
    # BentoML starts another worker where this one ends before it is told to stop.
    time.sleep(1)
    os._exit(1)


def serve(settings: Settings) -> int:
    """Run the inference server until SIGTERM or SIGINT; the exit status: 0, or 1 if the address or the folder is
    in use.

    The worker reads the settings again, from the file that STEPWEDGE_CONFIG names and from the environment.

    Raises
    ------
    SettingsError
        If there is no model to serve.
    PackageError
        If a package is incomplete or altered; nothing has been started then.
    EngineError
        If a model cannot be loaded on the device that is asked for, or no longer gives its golden outputs.
    """
    if not settings.models:
        raise SettingsError("models is empty: there is nothing to serve; name a package and a policy in the settings")
    for model in settings.models:
        load_package(model.package, load_trust(settings.trust.keys))
    try:
        lock = take(settings.data_dir / "run" / "infer.lock")
    except BlockingIOError:
        # Not a StepwedgeError: a server that is stopping lets go of it soon.
        log.error("data_folder_in_use", folder=str(settings.data_dir))
        return 1
    try:
        with scratch(settings.data_dir, "infer") as home:
            return _run_bentoml(settings.inference, home)
    finally:
        os.close(lock)


def _run_bentoml(settings: Inference, home: Path) -> int:
    from bentoml_cli.cli import cli

    (home / _SCRATCH).mkdir()
    (home / _PARENT).write_text(str(os.getpid()), encoding="ascii")
    os.environ.update(environment(home))
    try:
        cli.main(arguments(settings), standalone_mode=False)
    except OSError as error:
        # Not a StepwedgeError either: the port may become free.
        log.error("cannot_listen", host=settings.host, port=settings.port, error=str(error))
        return 1
    except bentoml.exceptions.BentoMLException as error:
        raise SettingsError(f"inference: BentoML does not start: {error}") from error
    failure = home / _FAILURE
    if failure.is_file():
        raise EngineError(failure.read_text(encoding="utf-8"))
    return 0


def arguments(settings: Inference) -> list[str]:
    """The arguments of the ``bentoml`` command."""
    return [
        *("serve", _TARGET, "--quiet"),
        *("--host", settings.host),
        *("--port", str(settings.port)),
        *("--timeout-graceful-shutdown", str(_STOP_SECONDS)),
    ]


def environment(home: Path) -> dict[str, str]:
    """The environment variables of BentoML's processes. ``home`` is theirs alone: they empty parts of it."""
    return {
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",  # any other value means no
        "BENTOML_QUIET": "True",
        "TMPDIR": str(home / _SCRATCH),  # a worker that is killed leaves folders behind
    }
