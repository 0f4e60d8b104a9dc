"""What a destination does with our objects is what we say about it: stored, or not and why."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from pynetdicom import AE, evt
from results import result, written
from stepwedge.dicom.deliver import DicomSink
from stepwedge.errors import DeliveryError
from stepwedge.settings import Destination
from structlog.testing import capture_logs

SR, SC = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"
PATIENCE_SECONDS = 60.0
SECRETS = ("1.2.826", "2.25.", "Doe", "PID-4711")

Handler = Callable[[evt.Event], int]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [item.path for item in written(tmp_path / "files", result())]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every delivery ends its threads and closes its socket, however it ends."""
    before = set(threading.enumerate())
    yield
    gc.collect()  # a socket that is still open is a ResourceWarning, which fails the test
    deadline = time.monotonic() + PATIENCE_SECONDS
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


@contextmanager
def node(handler: Handler, *, classes: tuple[str, ...] = (SR, SC), called: bool = False) -> Iterator[int]:
    """A node that takes objects on a free port."""
    entity = AE(ae_title="PACS")
    entity.require_called_aet = called
    for sop_class in classes:
        entity.add_supported_context(sop_class)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handler)])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def destination(port: int, **values: object) -> Destination:
    return Destination(
        **({"name": "pacs", "host": "127.0.0.1", "port": port, "ae_title": "PACS", "timeout_seconds": 30} | values)
    )


def send(port: int, files: list[Path], **values: object) -> None:
    DicomSink(destination(port, **values), calling_ae="STEPWEDGE").send(files)


def refusal(port: int, files: list[Path], **values: object) -> str:
    """The message of the DeliveryError that sending raises. It names the destination, and no patient and no UID."""
    with pytest.raises(DeliveryError) as caught:
        send(port, files, **values)
    message = str(caught.value)
    assert "destination pacs" in message
    assert caught.value.__cause__ is None
    return message


def test_the_bytes_that_lie_on_disk_are_the_ones_that_arrive(files: list[Path]) -> None:
    arrived: list[bytes] = []

    def take(event: evt.Event) -> int:
        arrived.append(event.request.DataSet.getvalue())
        assert event.assoc.requestor.ae_title == "STEPWEDGE"
        return 0x0000

    with node(take) as port:
        send(port, files)
        send(port, files)
    on_disk = [_data_set(file) for file in files]
    assert arrived == on_disk * 2


def _data_set(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(132)
        pydicom.filereader.read_file_meta_info(file)
        pydicom.filereader._read_file_meta_info(stream)
        return stream.read()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0xB123])
def test_a_warning_counts_as_stored_and_is_logged_without_identifiers(status: int, files: list[Path]) -> None:
    with node(lambda event: status) as port, capture_logs() as lines:
        send(port, files)
    line = {"event": "stored_with_warning", "log_level": "warning", "destination": "pacs", "status": f"0x{status:04X}"}
    assert lines == [line, line]


@pytest.mark.parametrize("status", [0x0122, 0x0124, 0x0110, 0xA700, 0xA702, 0xA900, 0xC000, 0xC123, 0xFE00, 0x0001])
def test_any_other_status_is_a_failure_that_names_it(
    status: int, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with node(lambda event: status) as port:
        message = refusal(port, files)
    assert f"0x{status:04X} for object 1 of 2" in message
    assert not any(secret in message + caplog.text for secret in SECRETS)


def test_a_failure_of_the_second_object_is_a_failure(files: list[Path]) -> None:
    taken: list[str] = []

    def take(event: evt.Event) -> int:
        taken.append(event.request.AffectedSOPClassUID)
        return 0x0000 if len(taken) == 1 else 0xA700

    with node(take) as port:
        assert "0xA700 for object 2 of 2: out of resources" in refusal(port, files)
    assert taken == [SR, SC]


def test_an_association_that_is_refused(files: list[Path]) -> None:
    with node(lambda event: 0x0000, called=True) as port:
        message = refusal(port, files, ae_title="OTHER")
    assert "refused the association (result 1, source 1, reason 7)" in message
    assert "STEPWEDGE" in message


@pytest.mark.parametrize("classes", [(SC,), ("1.2.840.10008.5.1.4.1.1.2",)])
def test_a_class_that_the_node_does_not_take(classes: tuple[str, ...], files: list[Path]) -> None:
    taken: list[evt.Event] = []

    def take(event: evt.Event) -> int:
        taken.append(event)
        return 0x0000

    with node(take, classes=classes) as port:
        message = refusal(port, files)
    assert "does not take objects of SOP class" in message
    assert SR in message
    assert taken == []


def test_an_association_that_is_aborted_half_way(files: list[Path]) -> None:
    def break_off(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    with node(break_off) as port:
        assert "broke off" in refusal(port, files)


def test_a_node_that_never_answers_an_object(files: list[Path]) -> None:
    asked, release = threading.Event(), threading.Event()

    def wait(event: evt.Event) -> int:
        asked.set()
        release.wait(PATIENCE_SECONDS)
        return 0x0000

    with node(wait) as port:
        try:
            message = refusal(port, files, timeout_seconds=1)
        finally:
            release.set()
    assert asked.is_set()
    assert "no answer in time" in message


def test_a_node_that_never_answers_at_all(files: list[Path]) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        assert "did not answer in time" in refusal(deaf.getsockname()[1], files, timeout_seconds=1)


def test_a_node_that_is_no_dicom_node(files: list[Path]) -> None:
    with socket.socket() as web:
        web.bind(("127.0.0.1", 0))
        web.listen()

        def answer() -> None:
            peer, _ = web.accept()
            with peer:
                peer.recv(100_000)
                peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert "broke off" in refusal(web.getsockname()[1], files, timeout_seconds=5)
        thread.join(PATIENCE_SECONDS)


# pynetdicom drops a socket that never connected without closing it; Python closes it then.
@pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
def test_nobody_listens(files: list[Path]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "does not answer at its address and port" in refusal(unused.getsockname()[1], files)


def test_nobody_has_that_name(files: list[Path]) -> None:
    assert "destination pacs" in refusal(104, files, host="no-such-host.invalid", timeout_seconds=5)


def test_a_file_that_is_gone_or_no_dicom_file(files: list[Path], tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(104, [tmp_path / "gone.dcm"])
    (tmp_path / "text.dcm").write_text("not DICOM")
    assert "is not a DICOM file" in refusal(104, [tmp_path / "text.dcm"])


def test_nothing_to_send_needs_no_node() -> None:
    send(104, [], host="no-such-host.invalid")


def test_small_messages_are_not_held_back(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[tuple[object, ...]] = []
    plain = socket.socket.setsockopt
    monkeypatch.setattr(socket.socket, "setsockopt", lambda self, *args: (options.append(args), plain(self, *args))[1])
    with node(lambda event: 0x0000) as port:
        send(port, files)
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in options
