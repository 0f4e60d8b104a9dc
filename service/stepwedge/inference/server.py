"""The inference server: BentoML's lifecycle around a data plane of raw bytes.

BentoML starts, watches and stops the process and answers ``/livez`` and ``/readyz``. Tensors go past its own routes,
which cost several milliseconds a request, and past its adaptive batching, in which one malformed request fails its
neighbours: here every request is read, checked and run alone.

==================================  =================================================================================
``POST /v1/models/{digest}/infer``  tensors in, tensors out (`stepwedge.inference.wire`), with the provider that ran
                                    the model and its milliseconds as headers; ``X-Stepwedge-Priority: stat`` goes
                                    ahead of the requests that wait
``GET /v1/models``                  what is loaded, on which provider, and how far its golden outputs are off
``GET /metrics``                    Prometheus. BentoML's own is off: it labels its counts with the path as the
                                    caller wrote it
==================================  =================================================================================

A refusal is JSON, ``{"code": …, "message": …}``: 400 ``malformed``, 404 ``unknown_model``, 408 ``too_slow``,
413 ``too_large``, 422 ``refused``, 503 ``busy`` or ``failed``.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import heapq
import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, Protocol

import bentoml
import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stepwedge import logs
from stepwedge.errors import (
    EngineError,
    InferenceRefusedError,
    InferenceUnavailableError,
    SettingsError,
    StepwedgeError,
)
from stepwedge.inference.wire import (
    MEDIA_TYPE,
    MILLISECONDS_HEADER,
    PRIORITY_HEADER,
    PROVIDER_HEADER,
    WireError,
    decode,
    encode,
)
from stepwedge.manifest import load_package
from stepwedge.records import ModelReference
from stepwedge.settings import Inference, Settings, load_settings

# Request bodies held in memory at once, as a multiple of the largest one allowed: waiting requests hold theirs.
_HELD_REQUESTS = 4
_RETRY_AFTER_SECONDS = 1

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
_SCRATCH, _LOCK = "scratch", "lock"
_PR_SET_PDEATHSIG = 1
_MODEL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

log = structlog.get_logger()


class LoadedModel(Protocol):
    """What the data plane needs of an engine."""

    golden_error: float
    note: str

    @property
    def model(self) -> ModelReference: ...
    @property
    def provider(self) -> str: ...
    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> tuple[dict[str, NDArray[np.float32]], str]: ...
    def check_golden(self) -> float: ...


class _RefusalError(Exception):
    """Ends a request with a status, a code and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Turns:
    """At most ``at_once`` at once; up to ``maximum_waiting`` others wait, urgent ones in front, first come first."""

    def __init__(self, at_once: int, maximum_waiting: int, watch: Callable[[int], None]) -> None:
        """Let ``watch`` know how many wait, whenever that changes."""
        self._free = at_once
        self._maximum_waiting = maximum_waiting
        self._watch = watch
        self._count = 0
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def take(self, *, urgent: bool) -> bool:
        """Wait for a turn; False at once where too many wait already."""
        if self._free:
            self._free -= 1
            return True
        if self._count >= self._maximum_waiting:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not urgent, next(self._numbers), turn))
        self._changed(+1)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came together with the cancellation.
                self.give_back()
            raise
        finally:
            self._changed(-1)
        return True

    def give_back(self) -> None:
        """End a turn: the next in line has it."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _changed(self, by: int) -> None:
        self._count += by
        self._watch(self._count)


class DataPlane:
    """The loaded models, and the requests that wait for them."""

    def __init__(
        self,
        engines: Iterable[LoadedModel],
        settings: Inference,
        give_up: Callable[[str], None],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Serve these models.

        Parameters
        ----------
        give_up
            Called, in any thread, with the reason when a model no longer gives its golden outputs.
        """
        self._engines = {engine.model.digest: engine for engine in engines}
        self._settings = settings
        self._give_up = give_up
        self._threads = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="model")
        self._held_bytes = 0
        self._requests = Counter(
            "stepwedge_inference_requests", "Requests by outcome.", ["model", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "stepwedge_inference_seconds",
            "Time that the model took, without reading, waiting and answering.",
            ["model"],
            buckets=_MODEL_SECONDS,
            registry=registry,
        )
        waiting = Gauge(
            "stepwedge_inference_waiting",
            "Requests that wait for a turn.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        waiting.set(0)
        self._turns = Turns(settings.concurrency, settings.maximum_waiting, waiting.set)
        provider = Gauge(
            "stepwedge_inference_provider",
            "1 for the execution provider that a model runs on.",
            ["model", "version", "digest", "provider", "device"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        for engine in self._engines.values():
            model = engine.model
            provider.labels(model.name, model.version, model.digest[:12], engine.provider, settings.device).set(1)

    def models(self) -> list[dict[str, str | float]]:
        """What is loaded, as ``GET /v1/models`` shows it."""
        return [
            {
                "name": engine.model.name,
                "version": engine.model.version,
                "digest": engine.model.digest,
                "provider": engine.provider,
                "device": self._settings.device,
                "note": engine.note,
                "golden_error": engine.golden_error,
            }
            for engine in self._engines.values()
        ]

    async def infer(self, digest: str, request: Request) -> Response:
        """Answer one request."""
        engine = self._engines.get(digest)
        name = engine.model.name if engine else "unknown"
        held = 0
        try:
            if engine is None:
                served = ", ".join(f"{m['name']} {m['version']} ({str(m['digest'])[:12]})" for m in self.models())
                raise _RefusalError(404, "unknown_model", f"no model {digest[:12]} here; served are: {served}")
            body = await self._read(request)
            held = len(body)
            urgent = request.headers.get(PRIORITY_HEADER, "").lower() == "stat"
            answer, provider, seconds = await self._in_turn(engine, body, urgent=urgent)
        except _RefusalError as refusal:
            self._requests.labels(name, refusal.code).inc()
            headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if refusal.status == 503 else None
            content = {"code": refusal.code, "message": str(refusal)}
            return JSONResponse(content, status_code=refusal.status, headers=headers)
        finally:
            self._held_bytes -= held
        self._requests.labels(name, "ok").inc()
        self._seconds.labels(name).observe(seconds)
        headers = {PROVIDER_HEADER: provider, MILLISECONDS_HEADER: f"{seconds * 1e3:.3f}"}
        return Response(answer, media_type=MEDIA_TYPE, headers=headers)

    async def _read(self, request: Request) -> bytearray:
        """The body; its bytes stay counted as held. Raises _RefusalError as soon as it is too large."""
        largest = self._settings.maximum_request_bytes
        body = bytearray()
        kept = False
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > largest:
                        raise _RefusalError(413, "too_large", f"the request is larger than {largest} bytes")
                    if self._held_bytes + len(chunk) > _HELD_REQUESTS * largest:
                        raise _RefusalError(503, "busy", "too many bytes of requests wait already")
                    body += chunk
                    self._held_bytes += len(chunk)
            kept = True
        except TimeoutError:
            raise _RefusalError(408, "too_slow", "the request did not arrive in time") from None
        except ClientDisconnect:
            raise _RefusalError(400, "malformed", "the connection ended within the request") from None
        finally:
            if not kept:
                self._held_bytes -= len(body)
        return body

    async def _in_turn(self, engine: LoadedModel, body: bytearray, *, urgent: bool) -> tuple[bytes, str, float]:
        """Wait for a turn and run the model in a thread: the answer, the provider, the model's seconds."""
        try:
            # Whoever asked has given up after this time, and will ask again.
            async with asyncio.timeout(self._settings.timeout_seconds):
                has_turn = await self._turns.take(urgent=urgent)
        except TimeoutError:
            raise _RefusalError(503, "busy", "the request waited too long for a turn") from None
        if not has_turn:
            raise _RefusalError(503, "busy", "too many requests wait already")
        run = asyncio.get_running_loop().run_in_executor(self._threads, self._run, engine, body)
        # The turn ends with the thread's work, even if the request is cancelled before.
        run.add_done_callback(lambda _: self._turns.give_back())
        try:
            return await asyncio.shield(run)
        except WireError as error:
            raise _RefusalError(400, "malformed", str(error)) from None
        except InferenceRefusedError as error:
            raise _RefusalError(422, "refused", str(error)) from None
        except InferenceUnavailableError as error:
            raise _RefusalError(503, "failed", str(error)) from None

    def _run(self, engine: LoadedModel, body: bytearray) -> tuple[bytes, str, float]:
        inputs = decode(body)
        start = time.perf_counter()
        try:
            outputs, provider = engine.run(inputs)
        except InferenceUnavailableError:
            self._check(engine)
            raise
        seconds = time.perf_counter() - start
        return encode(outputs), provider, seconds

    def _check(self, engine: LoadedModel) -> None:
        """After a failure of the provider: a device can be lost for good, and only a new process gets it back."""
        try:
            engine.check_golden()
        except EngineError as error:
            self._give_up(str(error))


def data_plane() -> Starlette:
    """The routes. ``state.plane`` has to be a DataPlane before the first request."""
    return Starlette(
        routes=[
            Route("/v1/models/{digest}/infer", _infer, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
        ]
    )


async def _infer(request: Request) -> Response:
    plane: DataPlane = request.app.state.plane
    return await plane.infer(request.path_params["digest"], request)


async def _models(request: Request) -> Response:
    plane: DataPlane = request.app.state.plane
    return JSONResponse(plane.models())


def _metrics(_: Request) -> Response:
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        # The files of a worker that has died count on.
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


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
            _app.state.plane = DataPlane(_load(settings), settings.inference, _end_worker)
        except StepwedgeError as error:
            _end_server(home, str(error))


def _load(settings: Settings) -> list[LoadedModel]:
    # The parent process imports this module too, and has no use for ONNX Runtime's memory.
    from stepwedge.inference.engine import OnnxEngine

    engines: list[LoadedModel] = []
    for model in settings.models:
        engine = OnnxEngine(load_package(model.package), settings.inference.device, settings.inference.threads)
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
        load_package(model.package)
    home = settings.data_dir.absolute() / "run" / "bentoml"
    home.mkdir(parents=True, exist_ok=True)
    with (home / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Not a StepwedgeError: a server that is stopping lets go of it soon.
            log.error("data_folder_in_use", folder=str(home))
            return 1
        return _run_bentoml(settings.inference, home)


def _run_bentoml(settings: Inference, home: Path) -> int:
    from bentoml_cli.cli import cli

    shutil.rmtree(home / _SCRATCH, ignore_errors=True)
    (home / _SCRATCH).mkdir()
    for file in (_FAILURE, _STARTS):
        (home / file).unlink(missing_ok=True)
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
