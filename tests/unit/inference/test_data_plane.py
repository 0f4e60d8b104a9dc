from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from packages import INPUT, LOGITS, expected_outputs
from prometheus_client import CollectorRegistry
from stepwedge.errors import EngineError, InferenceUnavailableError, SettingsError
from stepwedge.inference import server
from stepwedge.inference.engine import CPU, OnnxEngine
from stepwedge.inference.plane import DataPlane, Turns, data_plane
from stepwedge.inference.wire import MILLISECONDS_HEADER, PRIORITY_HEADER, PROVIDER_HEADER, decode, encode
from stepwedge.settings import Inference, Settings


class Held:
    """An engine whose runs wait until they are let go."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.golden_error, self.note, self.model, self.provider = engine.golden_error, "", engine.model, engine.provider
        self.go = threading.Event()
        self.order: list[float] = []
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.order.append(float(inputs[INPUT].max()))
        assert self.go.wait(60)
        with self._lock:
            self.running -= 1
        return self._engine.run(inputs)

    def check_golden(self) -> float:
        return self._engine.check_golden()


class Broken(Held):
    """An engine whose device fails."""

    lost = False

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
        raise InferenceUnavailableError("CUDA failure 700")

    def check_golden(self) -> float:
        if self.lost:
            raise EngineError("the golden inputs do not run")
        return 0.0


class Service:
    """The data plane without BentoML, and a client of it."""

    def __init__(self, engine: OnnxEngine | Held, **settings: Any) -> None:
        self.engine, self.registry, self.given_up = engine, CollectorRegistry(), list[str]()
        self.plane = DataPlane([engine], Inference(**settings), self.given_up.append, self.registry)
        app = data_plane()
        app.state.plane = self.plane
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plane")

    async def post(self, content: Any = None, digest: str = "", **headers: str) -> httpx.Response:
        return await self.http.post(
            f"/v1/models/{digest or self.engine.model.digest}/infer",
            content=encode({INPUT: image()}) if content is None else content,
            headers=headers,
        )

    def counted(self, outcome: str, model: str = "tiny") -> float:
        labels = {"model": model, "outcome": outcome}
        return self.registry.get_sample_value("stepwedge_inference_requests_total", labels) or 0.0

    @property
    def waiting(self) -> float | None:
        return self.registry.get_sample_value("stepwedge_inference_waiting")


def image(brightness: float = 0.5) -> np.ndarray:
    return np.full((1, 1, 32, 32), brightness, np.float32)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread; ``run`` bounds it."""
    while not condition():
        await asyncio.sleep(0.005)


def test_a_request_is_answered_with_outputs_provider_and_model_time(engine: OnnxEngine) -> None:
    async def test() -> None:
        service = Service(engine)
        response = await service.post(encode({INPUT: image(0.75)}))
        assert response.status_code == 200
        np.testing.assert_allclose(decode(response.content)[LOGITS], expected_outputs(image(0.75))[LOGITS], atol=1e-5)
        assert response.headers[PROVIDER_HEADER] == CPU
        assert float(response.headers[MILLISECONDS_HEADER]) > 0
        assert service.counted("ok") == 1
        assert service.registry.get_sample_value("stepwedge_inference_seconds_count", {"model": "tiny"}) == 1

    run(test())


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{}", 400, "malformed"),
        (encode({INPUT: image()})[:-1], 400, "malformed"),
        (encode({INPUT: image(np.nan)}), 422, "refused"),
        (encode({INPUT: image()[:, :, :8]}), 422, "refused"),
        (encode({"picture": image()}), 422, "refused"),
        (bytes(5000), 413, "too_large"),
    ],
)
def test_a_refusal_has_a_code_and_a_reason(engine: OnnxEngine, content: bytes, status: int, code: str) -> None:
    async def test() -> None:
        service = Service(engine, maximum_request_bytes=4900)
        response = await service.post(content)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.json()["message"]
        assert service.counted(code) == 1
        assert (await service.post()).status_code == 200

    run(test())


def test_an_unknown_model_is_told_which_are_served_and_never_becomes_a_label(engine: OnnxEngine) -> None:
    async def test() -> None:
        service = Service(engine)
        response = await service.post(digest="1.2.840.113619")
        assert response.status_code == 404
        assert response.json()["code"] == "unknown_model"
        assert f"tiny 1.0.0 ({engine.model.digest[:12]})" in response.json()["message"]
        assert service.counted("unknown_model", "unknown") == 1

    run(test())


def test_a_request_that_is_too_large_is_refused_before_it_has_all_arrived(engine: OnnxEngine) -> None:
    async def test() -> None:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 1024
                yield bytes(1024)

        service = Service(engine, maximum_request_bytes=8192)
        assert (await service.post(endless())).status_code == 413
        assert sent <= 8192 + 2 * 1024

    run(test())


def test_a_request_that_does_not_arrive_in_time_is_ended(engine: OnnxEngine) -> None:
    async def test() -> None:
        async def stuck() -> AsyncIterator[bytes]:
            yield b"SWT1"
            await asyncio.sleep(60)

        service = Service(engine, timeout_seconds=0.05)
        response = await service.post(stuck())
        assert (response.status_code, response.json()["code"]) == (408, "too_slow")

    run(test())


def test_so_many_run_at_once_the_next_wait_and_more_are_sent_away(engine: OnnxEngine) -> None:
    async def test() -> None:
        held = Held(engine)
        service = Service(held, concurrency=2, maximum_waiting=3)
        requests = [asyncio.create_task(service.post()) for _ in range(5)]
        await until(lambda: held.running == 2 and service.waiting == 3)
        refused = await service.post()
        assert (refused.status_code, refused.json()["code"]) == (503, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
        held.go.set()
        assert [response.status_code for response in await asyncio.gather(*requests)] == [200] * 5
        assert held.most == 2
        assert service.waiting == 0

    run(test())


def test_requests_that_hold_too_much_memory_together_are_sent_away(engine: OnnxEngine) -> None:
    async def test() -> None:
        held = Held(engine)
        # One request has 4096 bytes of pixels and a head; four of the largest size may be held.
        service = Service(held, concurrency=1, maximum_request_bytes=4200)
        requests = [asyncio.create_task(service.post()) for _ in range(4)]
        await until(lambda: held.running == 1 and service.waiting == 3)
        assert (await service.post()).json()["code"] == "busy"
        held.go.set()
        assert [response.status_code for response in await asyncio.gather(*requests)] == [200] * 4
        assert (await service.post()).status_code == 200

    run(test())


def test_an_urgent_request_goes_ahead_of_those_that_wait(engine: OnnxEngine) -> None:
    async def test() -> None:
        held = Held(engine)
        service = Service(held, concurrency=1)
        requests = []
        for number, (brightness, headers) in enumerate(
            [(0.1, {}), (0.2, {}), (0.3, {}), (0.9, {PRIORITY_HEADER: "stat"})]
        ):
            content = encode({INPUT: image(brightness)})
            requests.append(asyncio.create_task(service.post(content, **headers)))
            await until(lambda number=number: held.running == 1 and service.waiting == number)
        held.go.set()
        await asyncio.gather(*requests)
        np.testing.assert_allclose(held.order, [0.1, 0.9, 0.2, 0.3], atol=1e-6)

    run(test())


def test_a_request_that_waited_too_long_is_sent_away_and_its_place_is_free(engine: OnnxEngine) -> None:
    async def test() -> None:
        held = Held(engine)
        service = Service(held, concurrency=1, maximum_waiting=1, timeout_seconds=0.1)
        first = asyncio.create_task(service.post())
        await until(lambda: held.running == 1)
        for _ in range(3):
            assert (await service.post()).json()["code"] == "busy"
        held.go.set()
        assert (await first).status_code == 200
        assert (await service.post()).status_code == 200

    run(test())


def test_a_cancelled_request_keeps_its_turn_until_the_model_is_done(engine: OnnxEngine) -> None:
    async def test() -> None:
        held = Held(engine)
        service = Service(held, concurrency=1)
        first = asyncio.create_task(service.post())
        await until(lambda: held.running == 1)
        second = asyncio.create_task(service.post())
        await until(lambda: service.waiting == 1)
        first.cancel()
        await asyncio.sleep(0.05)
        assert len(held.order) == 1
        held.go.set()
        assert (await second).status_code == 200
        assert held.most == 1

    run(test())


def test_a_turn_that_comes_together_with_the_cancellation_is_passed_on() -> None:
    async def test() -> None:
        turns = Turns(1, 2, lambda _: None)
        assert await turns.take(urgent=False)
        waiting = asyncio.create_task(turns.take(urgent=False))
        await asyncio.sleep(0)
        turns.give_back()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await asyncio.wait_for(turns.take(urgent=False), 10)

    run(test())


def test_a_failing_device_is_the_servers_trouble_and_a_lost_one_ends_it(engine: OnnxEngine) -> None:
    async def test() -> None:
        broken = Broken(engine)
        service = Service(broken)
        response = await service.post()
        assert (response.status_code, response.json()["code"]) == (503, "failed")
        assert service.given_up == []
        broken.lost = True
        await service.post()
        assert service.given_up == ["the golden inputs do not run"]

    run(test())


def test_what_is_loaded_is_told_and_counted(engine: OnnxEngine) -> None:
    async def test() -> None:
        service = Service(engine, device="cpu")
        (model,) = (await service.http.get("/v1/models")).json()
        assert model["name"] == "tiny"
        assert (model["digest"], model["provider"], model["device"]) == (engine.model.digest, CPU, "cpu")
        assert 0 <= model["golden_error"] < 1e-4
        labels = {
            "model": "tiny",
            "version": "1.0.0",
            "digest": engine.model.digest[:12],
            "provider": CPU,
            "device": "cpu",
        }
        assert service.registry.get_sample_value("stepwedge_inference_provider", labels) == 1

    run(test())


def test_a_worker_that_keeps_dying_is_not_started_for_ever(tmp_path: Path) -> None:
    for _ in range(5):
        server._count_start(tmp_path)
    with pytest.raises(EngineError, match="died 5 times"):
        server._count_start(tmp_path)


def test_starts_of_long_ago_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "starts").write_text(f"{time.time() - 301}\n" * 9)
    server._count_start(tmp_path)


def test_nothing_to_serve_is_an_error_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="models is empty"):
        server.serve(Settings(data_dir=tmp_path))
