"""The inference server as it is run: BentoML's processes, a real port, a real model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import psutil
import pytest
import yaml
from packages import INPUT, LOGITS, seal, write_package, write_policy
from prometheus_client.parser import text_string_to_metric_families
from stepwedge.errors import InferenceRefusedError, InferenceUnavailableError
from stepwedge.inference.client import InferenceClient, ready
from stepwedge.inference.engine import CPU, cuda_obstacle
from stepwedge.inference.wire import encode
from stepwedge.manifest import GOLDEN, Package, load_package
from stepwedge.records import ModelReference
from stepwedge.rundir import scratch

# Generous: a machine under load is not a broken one. Nothing here waits longer than it has to.
PATIENCE_SECONDS = 120.0


class Server:
    """A ``stepwedge infer`` process with a package, settings and a folder of its own."""

    def __init__(self, folder: Path, **inference: object) -> None:
        self.package_folder = write_package(folder / "tiny")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        settings = {
            "data_dir": "data",
            "models": [{"package": "tiny", "policy": write_policy(folder / "policy.yaml").name}],
            "inference": {"port": self.port, "device": "cpu", "threads": 1, **inference},
        }
        self.settings = folder / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(settings))
        self._process: psutil.Popen | None = None

    @property
    def package(self) -> Package:
        return load_package(self.package_folder)

    @property
    def process(self) -> psutil.Popen:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("STEPWEDGE_", "BENTOML_", "PROMETHEUS"))
        }
        with (self.folder / "log").open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-m", "stepwedge", "infer", "--config", str(self.settings)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        until(lambda: ready(self.url) or self.process.poll() is not None, self.log)
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The process that has the models."""
        (worker,) = self.process.children()
        return worker

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self._process is None:
            return
        try:
            family = self.family()
        except psutil.NoSuchProcess:
            family = [self.process]
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
        with scratch(self.folder / "data", "infer"):
            pass  # what a killed one left in memory is removed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(condition: Callable[[], bool], explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.05)


def image(brightness: float) -> np.ndarray:
    texture = np.random.default_rng(3).random((1, 1, 32, 32), dtype=np.float32)
    return (np.float32(0.5) * texture + np.float32(brightness / 2)).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # No GPU is asked for, but taken where there is one: what is said of the provider must be true either way.
    server = Server(tmp_path_factory.mktemp("server"), device="auto", maximum_request_bytes=65_536, concurrency=2)
    try:
        server.start()
        server.wait_until_ready()
        yield server
    finally:
        server.end()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def client(server: Server) -> Iterator[InferenceClient]:
    with InferenceClient(server.url, server.package.reference, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def plain(server: Server) -> ort.InferenceSession:
    """ONNX Runtime with nothing of ours around it."""
    return ort.InferenceSession(str(server.package.model_file), providers=[CPU])


def metrics(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def infer(server: Server, content: bytes, digest: str | None = None) -> httpx.Response:
    url = f"{server.url}/v1/models/{digest or server.package.digest}/infer"
    return httpx.post(url, content=content, timeout=PATIENCE_SECONDS)


def test_outputs_are_those_of_plain_onnx_runtime(
    server: Server, client: InferenceClient, plain: ort.InferenceSession
) -> None:
    for brightness in (0.0, 0.3, 1.0):
        outputs, provider = client.run({INPUT: image(brightness)})
        want = plain.run(None, {INPUT: image(brightness)})
        for output, value in zip(plain.get_outputs(), want, strict=True):
            np.testing.assert_allclose(outputs[output.name], value, atol=1e-5)
        assert provider == (CPU if cuda_obstacle() else "CUDAExecutionProvider")


def test_the_provider_in_use_is_told_and_measured(server: Server, client: InferenceClient) -> None:
    _, provider = client.run({INPUT: image(0.5)})
    (model,) = httpx.get(f"{server.url}/v1/models", timeout=PATIENCE_SECONDS).json()
    package = server.package
    assert (model["name"], model["version"], model["digest"]) == ("tiny", "1.0.0", package.digest)
    assert (model["provider"], model["device"]) == (provider, "auto")
    assert model["golden_error"] <= package.manifest.golden_tolerance
    labels = {
        "model": "tiny",
        "version": "1.0.0",
        "digest": package.digest[:12],
        "provider": provider,
        "device": "auto",
    }
    seen = metrics(server)
    assert seen["stepwedge_inference_provider", tuple(sorted(labels.items()))] == 1
    assert seen["stepwedge_inference_requests_total", (("model", "tiny"), ("outcome", "ok"))] >= 1
    assert seen["stepwedge_inference_seconds_count", (("model", "tiny"),)] >= 1
    assert seen["stepwedge_inference_waiting", ()] == 0


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_probes_answer(server: Server, path: str) -> None:
    assert httpx.get(server.url + path, timeout=PATIENCE_SECONDS).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{}", 400, "malformed"),
        (encode({INPUT: image(0.5)})[:-3], 400, "malformed"),
        (encode({INPUT: image(np.nan)}), 422, "refused"),
        (encode({INPUT: image(0.5)[:, :, :16]}), 422, "refused"),
        (bytes(65_537), 413, "too_large"),
        (bytes(5_000_000), 413, "too_large"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_a_code(
    server: Server, content: bytes, status: int, code: str
) -> None:
    response = infer(server, content)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_another_version_of_the_package_is_told_what_is_served(server: Server) -> None:
    other = ModelReference(name="tiny", version="1.1.0", digest="0" * 64)
    assert infer(server, b"", other.digest).status_code == 404
    with (
        InferenceClient(server.url, other, timeout=PATIENCE_SECONDS) as client,
        pytest.raises(InferenceUnavailableError, match=server.package.digest[:12]),
    ):
        client.run({INPUT: image(0.5)})


def test_what_a_caller_writes_into_the_path_does_not_reach_the_metrics(server: Server) -> None:
    infer(server, b"", "1.2.840.113619")
    httpx.get(f"{server.url}/1.2.840.113619", timeout=PATIENCE_SECONDS)
    assert "1.2.840" not in httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text


def test_malformed_requests_do_their_neighbours_no_harm(
    server: Server, client: InferenceClient, plain: ort.InferenceSession
) -> None:
    bad = [{INPUT: image(np.nan)}, {INPUT: image(0.5)[:, :, :16]}, {"picture": image(0.5)}, {INPUT: image(0.5)[0]}]

    def ask(number: int) -> str:
        if number % 3 == 0:
            infer(server, b"SWT1" + bytes([number % 256]) * number)
            return "malformed"
        if number % 3 == 1:
            with pytest.raises(InferenceRefusedError):
                client.run(bad[number % len(bad)])
            return "refused"
        outputs, _ = client.run({INPUT: image(number / 120)})
        (want,) = plain.run([LOGITS], {INPUT: image(number / 120)})
        np.testing.assert_allclose(outputs[LOGITS], want, atol=1e-5)
        return "right"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    assert answers == ["malformed", "refused", "right"] * 40


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_counts_go_on(own_server: Server) -> None:
    own_server.start()
    own_server.wait_until_ready()
    with InferenceClient(own_server.url, own_server.package.reference, timeout=PATIENCE_SECONDS) as client:
        client.run({INPUT: image(0.5)})
        worker = own_server.worker()
        worker.kill()
        psutil.wait_procs([worker], timeout=PATIENCE_SECONDS)

        def answers() -> bool:
            try:
                client.run({INPUT: image(0.5)})
            except InferenceUnavailableError:
                return False
            return True

        until(answers, own_server.log)
    assert own_server.worker().pid != worker.pid
    assert metrics(own_server)["stepwedge_inference_requests_total", (("model", "tiny"), ("outcome", "ok"))] == 2

    family = own_server.family()
    own_server.process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert alive == []
    assert own_server.process.returncode == 0, own_server.log()
    with socket.socket() as again:
        # Closed connections keep an address for a minute against those who do not ask for it.
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", own_server.port))


def test_when_the_server_is_killed_its_worker_ends_too(own_server: Server) -> None:
    own_server.start()
    own_server.wait_until_ready()
    family = own_server.family()
    assert len(family) == 2
    own_server.process.kill()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert alive == []


def end_of(server: Server) -> str:
    """The last line that a server says before it ends by itself with exit status 2."""
    server.start()
    status = server.process.wait(PATIENCE_SECONDS)
    assert status == 2, server.log()
    assert not ready(server.url)
    return server.log().splitlines()[-1]


def test_an_altered_package_is_refused_before_anything_is_started(own_server: Server) -> None:
    model = own_server.package_folder / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    message = end_of(own_server)
    assert "model.onnx is not the file that the package was built with" in message
    assert len(own_server.log().splitlines()) == 1


def test_a_model_that_does_not_give_its_golden_outputs_ends_the_server_with_the_reason(
    own_server: Server,
) -> None:
    golden = own_server.package_folder / GOLDEN
    with np.load(golden) as cases:
        values = {name: cases[name] for name in cases.files}
    values[f"output.{LOGITS}"] = values[f"output.{LOGITS}"] + np.float32(1)
    np.savez(golden, allow_pickle=False, **values)
    seal(own_server.package_folder)
    assert "the golden inputs give outputs that differ by 1" in end_of(own_server)


@pytest.mark.skipif(cuda_obstacle() is None, reason="this machine has a working GPU")
def test_cuda_without_a_gpu_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    server = Server(tmp_path, device="cuda")
    try:
        assert "inference.device is cuda, but CUDA cannot run the model" in end_of(server)
    finally:
        server.end()
