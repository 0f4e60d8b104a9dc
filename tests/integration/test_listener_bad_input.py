"""What the node is sent that it should not be: each gets the documented answer, and the next good instance is taken."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pydicom
import pytest
from instances import CT, DX, encode, make_instance, write_file
from listening import Listening, listening, make_files, until
from pynetdicom.association import Association
from rawscu import ABORT, P_DATA, RawSCU, find_command, fragment, pdu, store_command
from sqlalchemy.exc import OperationalError
from stepwedge.store import StoredInstance

# Short, so that a stalled sender is cut soon; long beside what a good sender on a slow machine needs within a PDU.
TIMEOUT_SECONDS = 3.0


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Listening]:
    with listening(tmp_path / "data", node={"network_timeout": TIMEOUT_SECONDS, "association_timeout": 5}) as running:
        yield running


# The connection


@pytest.mark.parametrize(
    "nonsense",
    {
        "text": b"GET / HTTP/1.1\r\nHost: stepwedge\r\n\r\n",
        "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(500),
        "zeros": bytes(10_000),
        "unknown type": pdu(0x42, b"x" * 100),
        "association request of nonsense": pdu(0x01, os.urandom(300)),
        "association request without contents": pdu(0x01, b""),
        "data before an association": pdu(P_DATA, fragment(b"x", command=True)),
    }.items(),
    ids=lambda case: case[0],
)
def test_nonsense_instead_of_an_association_ends_the_connection(node: Listening, nonsense: tuple[str, bytes]) -> None:
    with node.connect() as sender:
        sender.socket.sendall(nonsense[1])
        assert sender.has_ended()
    assert node.takes_the_next()


@pytest.mark.parametrize(
    "nonsense",
    {
        "unknown type": b"\x99" * 100_000,
        "fragment longer than its PDU": pdu(P_DATA, struct.pack(">LBB", 0xFFFFFFFF, 1, 3) + b"x" * 50),
        "fragment shorter than its head": pdu(P_DATA, b"\0\0\0\1"),
        "empty PDU": pdu(P_DATA, b""),
        "empty fragment": pdu(P_DATA, struct.pack(">LB", 1, 1)),
        "command of nonsense": pdu(P_DATA, fragment(os.urandom(200), command=True)),
        "command without contents": pdu(P_DATA, fragment(b"", command=True)),
        "command that is cut": pdu(P_DATA, fragment(store_command(DX, "1.2.3")[:-5], command=True)),
        "command without end": pdu(P_DATA, fragment(bytes(1000), command=True, last=False)) * 100,
        "command that is not ours": pdu(P_DATA, fragment(find_command(), command=True)),
        "data without a command": pdu(P_DATA, fragment(b"data", command=False)),
        "a second association request": pdu(0x01, bytes(68)),
    }.items(),
    ids=lambda case: case[0],
)
def test_nonsense_within_an_association_ends_it(node: Listening, nonsense: tuple[str, bytes]) -> None:
    with node.connect() as sender:
        sender.established()
        with contextlib.suppress(ConnectionError):  # it may be cut before it is all sent
            sender.socket.sendall(nonsense[1])
        assert sender.has_ended()
    assert node.takes_the_next()


def test_an_abort_from_the_connections_own_thread_does_not_wait_for_itself(
    node: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another thread of the association leaves it when it ends an event of its own at that moment.
    monkeypatch.setattr(Association, "_abort_nonblocking", Association._abort_blocking)
    with node.connect() as sender:
        sender.established().socket.sendall(pdu(P_DATA, struct.pack(">LB", 1, 1)))
        assert sender.has_ended()
    assert node.takes_the_next()


@pytest.mark.parametrize("associated", [False, True])
def test_a_pdu_that_announces_4_gib_is_aborted_at_its_head(node: Listening, associated: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with node.connect() as sender:
        if associated:
            sender.established()
        sender.socket.sendall(pdu(P_DATA if associated else 0x01, b"", length=0xFFFFFFFF))
        kind, _ = sender.receive()
        assert kind == ABORT
        with pytest.raises(ConnectionError):
            sender.socket.sendall(bytes(400_000_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"
    assert node.takes_the_next()


def test_a_sender_that_stalls_within_a_pdu_harms_nobody_and_is_cut(node: Listening) -> None:
    with ExitStack() as connections:
        stalled = [connections.enter_context(node.connect()) for _ in range(5)]
        for sender in stalled:
            sender.established()
            sender.socket.sendall(pdu(P_DATA, b"half of it", length=1000))
        assert node.takes_the_next()
        for sender in stalled:
            assert sender.has_ended()
    assert node.takes_the_next()


def test_a_sender_that_drips_is_cut_too(node: Listening) -> None:
    with node.connect() as sender:
        sender.established()
        sender.socket.sendall(pdu(P_DATA, b"", length=10_000))
        with pytest.raises(ConnectionError):
            _drip(sender)
    assert node.takes_the_next()


def _drip(sender: RawSCU) -> None:
    for _ in range(400):
        sender.socket.sendall(b"x")
        time.sleep(TIMEOUT_SECONDS / 20)


def test_a_sender_that_stops_within_an_instance_leaves_nothing(node: Listening) -> None:
    dataset = make_instance(rows=256, columns=256)
    with node.connect() as sender:
        sender.established()
        command = store_command(dataset.SOPClassUID, dataset.SOPInstanceUID)
        sender.socket.sendall(pdu(P_DATA, fragment(command, command=True)))
        sender.socket.sendall(pdu(P_DATA, fragment(encode(dataset)[:50_000], command=False, last=False)))
        sender.socket.shutdown(socket.SHUT_RDWR)
    assert node.takes_the_next()
    assert len(node.node.files("**/*.dcm")) == 1
    assert node.node.files("incoming/*") == []


def test_idle_associations_do_not_keep_another_sender_from_its_work(tmp_path: Path) -> None:
    with listening(tmp_path / "data") as node, ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(node.connect()).established()
        datasets, files = make_files(tmp_path, 10)
        assert node.send(*files).returncode == 0
        assert all(node.stored(dataset) for dataset in datasets)


def test_connections_that_never_say_anything_do_not_keep_another_sender_from_its_work(node: Listening) -> None:
    with ExitStack() as connections:
        silent = [connections.enter_context(node.connect()) for _ in range(20)]
        assert node.takes_the_next()
        assert all(sender.has_ended() for sender in silent), "cut after node.association_timeout"


def test_probes_that_only_connect_use_up_no_association(tmp_path: Path) -> None:
    with listening(tmp_path, node={"maximum_associations": 2}) as node:
        for _ in range(40):
            node.connect().socket.close()
        assert until(node.takes_the_next, 20)


# The object


def test_an_object_that_is_not_what_the_command_says_gets_a900(node: Listening) -> None:
    dataset = make_instance()
    with node.connect() as sender:
        sender.established([DX, CT])
        assert sender.store(dataset, sop="1.2.3") == 0xA900
        other = make_instance()
        other.SOPClassUID = CT
        assert sender.store(other, sop_class=DX) == 0xA900
        assert sender.store(dataset) == 0, "on the same association"
    assert {item.reason for item in node.node.store.quarantined()} == {"identity_mismatch"}
    assert node.takes_the_next()


def test_a_class_other_than_that_of_the_presentation_context_gets_0122(node: Listening) -> None:
    dataset = make_instance(modality="CT", sop_class=CT)
    with node.connect() as sender:
        assert sender.established([DX]).store(dataset) == 0x0122
        assert sender.store(make_instance()) == 0
    assert not node.stored(dataset)
    assert node.takes_the_next()


@pytest.mark.parametrize("evil", ["../../../../tmp/evil", "/etc/passwd", "1.2.3/../4", "..", "1.2\\3", "1.2\x003"])
def test_a_uid_with_path_characters_gets_c000_and_reaches_no_path(node: Listening, evil: str) -> None:
    dataset = make_instance()
    data = encode(dataset)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        length = len(dataset[keyword].value) + len(dataset[keyword].value) % 2
        sent = data.replace(dataset[keyword].value.encode().ljust(length, b"\0"), evil.encode().ljust(length, b"\0"))
        assert sent != data
        sop = evil if keyword == "SOPInstanceUID" else None
        with node.connect() as sender:
            assert sender.established().store(dataset, data=sent, sop=sop) == 0xC000
    assert {item.reason for item in node.node.store.quarantined()} == {"bad_uid"}
    assert node.node.files() == []
    assert all(path.is_relative_to(node.node.spool.root) for path in node.node.files("**/*"))
    assert node.takes_the_next()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_data_set_gets_c000_and_is_quarantined(node: Listening, part: float) -> None:
    dataset = make_instance()
    data = encode(dataset)
    with node.connect() as sender:
        assert sender.established().store(dataset, data=data[: int(part * len(data))]) == 0xC000
    (item,) = node.node.store.quarantined()
    assert item.reason == "not_dicom"
    assert node.takes_the_next()


def test_a_truncated_file_sent_by_a_real_sender_is_not_stored(node: Listening, tmp_path: Path) -> None:
    file = write_file(make_instance(rows=64, columns=64), tmp_path / "cut.dcm")
    file.write_bytes(file.read_bytes()[:-1000])
    assert node.send(file).returncode != 0
    assert node.node.files() == []
    assert node.takes_the_next()


def test_a_header_that_promises_more_pixels_than_there_are_is_left_to_the_gate(node: Listening) -> None:
    dataset = make_instance()
    dataset.Rows = dataset.Columns = 60_000
    with node.connect() as sender:
        assert sender.established().store(dataset) == 0
    assert node.stored(dataset)


def test_endless_retries_of_rubbish_fill_nothing(tmp_path: Path) -> None:
    caps = {"reserve_bytes": 0, "quarantine_files": 4}
    with listening(tmp_path, spool=caps) as node:
        dataset = make_instance()
        data = encode(dataset)[:-5]
        with node.connect() as sender:
            sender.established()
            assert {sender.store(dataset, data=data) for _ in range(10)} == {0xC000}
            assert [item.count for item in node.node.store.quarantined()] == [10]
            assert {sender.store(dataset, data=os.urandom(300)) for _ in range(30)} == {0xC000}
        assert len(node.node.files("quarantine/*.dcm")) == 4
        assert len(node.node.store.quarantined()) == 5
        assert node.takes_the_next()


def test_an_instance_larger_than_allowed_gets_a700_and_is_not_kept_in_memory(tmp_path: Path) -> None:
    with listening(tmp_path, node={"maximum_instance_bytes": 1_048_576}) as node:
        big = make_instance()
        data = encode(big) + bytes(3_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with node.connect() as sender:
            sender.established()
            assert sender.store(big, data=data + bytes(60_000_000)) == 0xA700
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000, "KiB"
            assert sender.store(make_instance()) == 0, "on the same association"
        assert not node.stored(big)
        assert node.node.store.quarantined() == []
        assert node.takes_the_next()


def test_the_same_instance_changed_again_and_again_is_kept_so_often_only(tmp_path: Path) -> None:
    with listening(tmp_path, spool={"reserve_bytes": 0, "instance_versions": 2}) as node:
        dataset = make_instance()
        answers = []
        with node.connect() as sender:
            sender.established()
            for number in range(4):
                dataset.StudyDescription = str(number)
                answers.append(sender.store(dataset))
        assert answers == [0, 0, 0xC000, 0xC000]
        assert node.takes_the_next()


# The volume and the index


def test_below_the_reserve_senders_get_a700_and_try_again_later(tmp_path: Path) -> None:
    datasets, files = make_files(tmp_path / "files", 1)
    with listening(tmp_path / "data", spool={"reserve_bytes": 10**15}) as node:
        result = node.send(*files)
        assert result.returncode != 0
        assert "OutOfResources" in result.stdout + result.stderr
        assert not node.stored(datasets[0])
    with listening(tmp_path / "data") as node:
        assert node.send(*files).returncode == 0
        assert node.stored(datasets[0])


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 4 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small volume cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_gets_a700_until_there_is_room(small_volume: Path) -> None:
    with listening(small_volume) as node:
        filler = small_volume / "filler"
        with filler.open("wb") as out:
            # Room for the index, not for an instance.
            out.write(bytes(shutil.disk_usage(small_volume).free - 400_000))
        big = make_instance(rows=512, columns=512)
        with node.connect() as sender:
            sender.established()
            assert sender.store(big) == 0xA700
            assert node.node.files("**/*.dcm") == []
            assert node.node.files("incoming/*") == []
            filler.unlink()
            assert sender.store(big) == 0, "on the same association"
        assert node.stored(big)
        assert node.takes_the_next()


def test_an_index_that_fails_gets_a700_and_the_instance_is_there_when_it_works_again(
    node: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: StoredInstance) -> bool:
        raise OperationalError("insert", {}, Exception("database is locked"))

    dataset = make_instance()
    with node.connect() as sender:
        sender.established()
        with monkeypatch.context() as broken:
            broken.setattr(node.node.store, "add_instance", locked)
            assert sender.store(dataset) == 0xA700
        assert not node.stored(dataset)
        assert sender.store(dataset) == 0
    assert node.stored(dataset)
    assert node.takes_the_next()


@pytest.mark.parametrize(("error", "status"), [(OSError(5, "Input/output error"), 0xA700), (KeyError("x"), 0x0110)])
def test_an_error_of_ours_is_a_failure_that_says_so(
    node: Listening, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(node.node.spool, "store", fail)
        with node.connect() as sender:
            assert sender.established().store(make_instance()) == status
    assert node.takes_the_next()


def test_what_was_quarantined_can_be_looked_at(node: Listening) -> None:
    dataset = make_instance()
    with node.connect() as sender:
        sender.established().store(dataset, sop="1.2.3")
    (file,) = node.node.files("quarantine/*.dcm")
    assert pydicom.dcmread(file).SOPInstanceUID == dataset.SOPInstanceUID


def test_many_bad_senders_at_once_leave_the_node_working(node: Listening) -> None:
    with ExitStack() as connections:
        senders = [connections.enter_context(RawSCU(node.port)) for _ in range(12)]
        for number, sender in enumerate(senders):
            if number % 4 == 1:
                sender.socket.sendall(os.urandom(1000))
            elif number % 4 == 2:
                sender.established().socket.sendall(pdu(P_DATA, b"", length=0xFFFFFFF0))
            elif number % 4 == 3:
                sender.established().socket.sendall(pdu(P_DATA, b"x" * 10, length=5000))
        assert node.takes_the_next()
    assert node.takes_the_next()
