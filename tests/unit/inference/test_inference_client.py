from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from stepwedge.errors import InferenceRefusedError, InferenceUnavailableError
from stepwedge.inference.client import InferenceClient, ready
from stepwedge.inference.wire import PROVIDER_HEADER, decode, encode
from stepwedge.records import ModelReference
from stepwedge.seams import Engine

MODEL = ModelReference(name="tiny", version="1.0.0", digest="d" * 64)
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Peer:
    """A small HTTP server that answers as a test says."""

    def __init__(self) -> None:
        self.answer: Answer = lambda handler, body: reply(handler, 200, body)
        self.paths: list[str] = []
        self.connections: set[tuple[str, int]] = set()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Otherwise the answer waits for the caller's delayed acknowledgement.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                peer.paths.append(self.path)
                peer.connections.add(self.client_address)
                peer.answer(self, self.rfile.read(int(self.headers["Content-Length"])))

            def do_GET(self) -> None:
                peer.answer(self, b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, provider: str = "P") -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header(PROVIDER_HEADER, provider)
    handler.end_headers()
    handler.wfile.write(body)


def refusing(status: int, code: str = "some_code", message: str = "some message") -> Answer:
    content = json.dumps({"code": code, "message": message}).encode()
    return lambda handler, body: reply(handler, status, content)


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    thread = threading.Thread(target=peer.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield peer
    peer.server.shutdown()
    thread.join()
    peer.server.server_close()


@pytest.fixture
def client(peer: Peer) -> Iterator[InferenceClient]:
    with InferenceClient(peer.url, MODEL, timeout=20) as client:
        yield client


def x(value: float = 1.0) -> dict[str, np.ndarray]:
    return {"image": np.full((1, 1, 4, 4), value, np.float32)}


def test_it_is_an_engine(client: InferenceClient) -> None:
    engine: Engine = client
    assert engine.model == MODEL


def test_tensors_go_out_by_digest_and_come_back_with_their_provider(client: InferenceClient, peer: Peer) -> None:
    outputs, provider = client.run(x(0.25))
    assert np.array_equal(outputs["image"], x(0.25)["image"])
    assert provider == "P"
    assert peer.paths == [f"/v1/models/{MODEL.digest}/infer"]


def test_a_connection_is_used_again(client: InferenceClient, peer: Peer) -> None:
    for _ in range(5):
        client.run(x())
    assert len(peer.connections) == 1


def test_threads_get_their_own_answers(client: InferenceClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: client.run(x(value))[0]["image"].max(), range(64)))
    assert answers == list(range(64))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 404, 408, 429])
def test_what_may_be_answered_otherwise_later_can_be_tried_again(
    client: InferenceClient, peer: Peer, status: int
) -> None:
    peer.answer = refusing(status)
    with pytest.raises(InferenceUnavailableError, match=f"HTTP {status}, some_code: some message"):
        client.run(x())


@pytest.mark.parametrize("status", [400, 401, 413, 422])
def test_a_refusal_is_final(client: InferenceClient, peer: Peer, status: int) -> None:
    peer.answer = refusing(status)
    with pytest.raises(InferenceRefusedError, match=f"HTTP {status}, some_code: some message"):
        client.run(x())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 1}', b"\xff"])
def test_a_refusal_that_is_not_ours_is_told_by_its_status(client: InferenceClient, peer: Peer, body: bytes) -> None:
    peer.answer = lambda handler, _: reply(handler, 500, body)
    with pytest.raises(InferenceUnavailableError, match="HTTP 500, no reason given"):
        client.run(x())


def test_a_redirect_is_not_an_answer(client: InferenceClient, peer: Peer) -> None:
    peer.answer = refusing(302)
    with pytest.raises(InferenceUnavailableError, match="HTTP 302"):
        client.run(x())


def test_an_answer_that_is_not_of_an_inference_server_can_be_tried_again(client: InferenceClient, peer: Peer) -> None:
    peer.answer = lambda handler, _: reply(handler, 200, b"hello")
    with pytest.raises(InferenceUnavailableError, match="not one of an inference server"):
        client.run(x())


def test_a_connection_that_ends_within_the_answer_can_be_tried_again(client: InferenceClient, peer: Peer) -> None:
    def cut(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(body[:10])
        handler.close_connection = True

    peer.answer = cut
    with pytest.raises(InferenceUnavailableError, match="does not answer"):
        client.run(x())


def test_silence_ends_with_the_timeout(peer: Peer) -> None:
    over = threading.Event()
    peer.answer = lambda handler, body: (over.wait(20), reply(handler, 200, body))[1]
    with (
        InferenceClient(peer.url, MODEL, timeout=0.1) as client,
        pytest.raises(InferenceUnavailableError, match="Time"),
    ):
        client.run(x())
    over.set()


def test_nobody_there_can_be_tried_again() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with InferenceClient(url, MODEL, timeout=5) as client, pytest.raises(InferenceUnavailableError, match=url):
            client.run(x())
        assert not ready(url)


def test_what_cannot_be_sent_is_refused(client: InferenceClient, peer: Peer) -> None:
    with pytest.raises(InferenceRefusedError, match="float64"):
        client.run({"image": np.zeros((1, 1))})
    assert peer.paths == []


def test_a_proxy_of_the_environment_gets_no_pixels(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with InferenceClient(peer.url, MODEL, timeout=20) as client:
        assert decode(encode(client.run(x())[0])).keys() == {"image"}


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (500, False)])
def test_readiness_is_what_the_server_says(peer: Peer, status: int, expected: bool) -> None:
    peer.answer = refusing(status)
    assert ready(peer.url, timeout=20) is expected
