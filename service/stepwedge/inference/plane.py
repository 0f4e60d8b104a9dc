"""The data plane: requests that are read, checked and run one by one, a few at a time.

One malformed request never harms another, and what waits is bounded in number and in bytes. ``server`` says what the
routes are.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
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

from stepwedge import tracing
from stepwedge.errors import EngineError, InferenceRefusedError, InferenceUnavailableError
from stepwedge.inference.wire import (
    MEDIA_TYPE,
    MILLISECONDS_HEADER,
    PRIORITY_HEADER,
    PROVIDER_HEADER,
    WireError,
    decode,
    encode,
)
from stepwedge.records import ModelReference
from stepwedge.settings import Inference

# Request bodies held in memory at once, as a multiple of the largest one allowed: waiting requests hold theirs.
_HELD_REQUESTS = 4
_RETRY_AFTER_SECONDS = 1
_MODEL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


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
        """Answer one request, as a part of the trace that it names."""
        place = tracing.from_header(request.headers.get(tracing.HEADER))
        if place is None:
            return await self._answer(digest, request)
        with tracing.span("infer", under=place, kind="server") as span:
            response = await self._answer(digest, request)
            span.note(status=response.status_code)
            if response.status_code >= 400:
                span.failed("refused")
            return response

    async def _answer(self, digest: str, request: Request) -> Response:
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
        tracing.note(model=name, bytes=held, urgent=urgent, provider=provider, model_seconds=round(seconds, 6))
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
        began = time.perf_counter()
        try:
            # Whoever asked has given up after this time, and will ask again.
            async with asyncio.timeout(self._settings.timeout_seconds):
                has_turn = await self._turns.take(urgent=urgent)
        except TimeoutError:
            raise _RefusalError(503, "busy", "the request waited too long for a turn") from None
        if not has_turn:
            raise _RefusalError(503, "busy", "too many requests wait already")
        tracing.note(waited_seconds=round(time.perf_counter() - began, 6))
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
