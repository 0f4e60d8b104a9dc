"""The DICOM node as its peers meet it: dcmtk's tools, and a socket for what they cannot show."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import data_store
import pydicom
import pydicom.data
import pytest
from instances import CT, encode, make_instance
from listening import Listening, listening, make_files, until
from packages import write_package
from peers import dcmtk
from pydicom.uid import generate_uid
from rawscu import ASSOCIATE_AC, ASSOCIATE_RJ, RawSCU
from spooled import open_spool
from stepwedge import metrics
from stepwedge.dicom.studies import StudyCloser
from stepwedge.manifest import load_package
from stepwedge.settings import Completeness
from stepwedge.store import Unit

REAL = (Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent)
# pydicom's own files, and the option that makes storescu propose their transfer syntax.
BY_SYNTAX = {
    "implicit VR little endian": ("MR_small_implicit.dcm", "-xi"),
    "explicit VR little endian": ("CT_small.dcm", "-xe"),
    "explicit VR big endian": ("MR_small_bigendian.dcm", "-xb"),
    "deflated": ("image_dfl.dcm", "-xd"),
    "JPEG baseline": ("SC_rgb_jpeg_dcmtk.dcm", "-xy"),
    "JPEG extended": ("JPEG-lossy.dcm", "-xx"),
    "JPEG lossless": ("JPEG-LL.dcm", "-xs"),
    "JPEG-LS": ("MR_small_jpeg_ls_lossless.dcm", "-xt"),
    "JPEG 2000 lossless": ("MR_small_jp2klossless.dcm", "-xv"),
    "JPEG 2000": ("JPEG2000.dcm", "-xw"),
    "RLE": ("MR_small_RLE.dcm", "-xr"),
}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Listening]:
    with listening(tmp_path / "data") as running:
        yield running


def test_echo(node: Listening) -> None:
    command = [dcmtk("echoscu"), "-aec", "STEPWEDGE", "127.0.0.1", str(node.port)]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("syntax", BY_SYNTAX)
def test_every_transfer_syntax_that_can_be_decoded_is_taken_as_it_is(node: Listening, syntax: str) -> None:
    name, option = BY_SYNTAX[syntax]
    (real,) = [file for folder in REAL for file in folder.rglob(name)]
    result = node.send(real, options=(option,))
    assert result.returncode == 0, result.stderr + result.stdout
    (file,) = node.node.files()
    sent, stored = pydicom.dcmread(real), pydicom.dcmread(file)
    assert stored.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert stored.SOPInstanceUID == sent.SOPInstanceUID
    assert stored.PixelData == sent.PixelData


def test_four_senders_at_once_lose_nothing(node: Listening, tmp_path: Path) -> None:
    sets = [make_files(tmp_path / str(k), 10, modality="CT", sop_class=CT) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda item: node.send(*item[1]), sets))
    assert [result.returncode for result in results] == [0] * 4
    assert all(node.stored(dataset) for datasets, _ in sets for dataset in datasets)


def test_what_is_stored_is_bit_for_bit_what_was_sent_and_who_sent_it(node: Listening) -> None:
    dataset = make_instance(rows=512, columns=512)
    with node.connect() as sender:
        assert sender.established().store(dataset) == 0
    (file,) = node.node.files()
    assert file.read_bytes().endswith(encode(dataset))
    assert pydicom.dcmread(file).file_meta.SendingApplicationEntityTitle == "RAWSCU"


def test_another_called_title_is_rejected(node: Listening, tmp_path: Path) -> None:
    _, files = make_files(tmp_path, 1)
    result = node.send(*files, options=("-aec", "ELSEWHERE"))
    assert result.returncode != 0
    assert "Called AE Title Not Recognized" in result.stdout + result.stderr
    assert node.takes_the_next()


def test_only_listed_callers_may_send(tmp_path: Path) -> None:
    _, files = make_files(tmp_path, 1)
    with listening(tmp_path / "data", node={"allowed_callers": ["PACS", "RAWSCU"]}) as node:
        result = node.send(*files, options=("-aet", "STRANGER"))
        assert result.returncode != 0
        assert "Calling AE Title Not Recognized" in result.stdout + result.stderr
        assert node.send(*files, options=("-aet", "PACS")).returncode == 0
        assert node.takes_the_next()


def test_a_class_that_is_no_storage_class_is_not_negotiated(node: Listening) -> None:
    with node.connect() as sender:
        kind, answer = sender.associate(["1.2.826.0.1.3680043.9.9999.1"])
        assert kind == ASSOCIATE_AC
        assert (
            b"\x21\x00\x00\x19\x01\x00\x03\x00" in answer or b"\x01\x00\x03\x00" in answer
        )  # abstract syntax not supported
    assert node.takes_the_next()


def test_beyond_the_limit_associations_are_rejected_for_the_time_being(tmp_path: Path) -> None:
    with listening(tmp_path, node={"maximum_associations": 2}) as node:
        first, second, third = node.connect().established(), node.connect().established(), node.connect()
        kind, body = third.associate()
        assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, (2, 3, 2)), "rejected-transient, local-limit-exceeded"
        first.release()
        assert until(lambda: _accepted(node))
        for each in (first, second, third):
            each.socket.close()


def _accepted(node: Listening) -> bool:
    with node.connect() as sender:
        return sender.associate()[0] == ASSOCIATE_AC


def test_who_is_sending_a_study_is_known_until_the_association_ends(node: Listening) -> None:
    dataset = make_instance()
    study = node.node.site.hash(dataset.StudyInstanceUID)
    assert not node.listener.is_sending(study)
    with node.connect() as sender:
        assert sender.established().store(dataset) == 0
        assert node.listener.is_sending(study)
        assert not node.listener.is_sending(node.node.site.hash("1.2.3"))
        sender.release()
        assert until(lambda: not node.listener.is_sending(study))
    with node.connect() as sender:
        sender.established().store(dataset)
        assert node.listener.is_sending(study)
    assert until(lambda: not node.listener.is_sending(study)), "a connection that is cut ends it too"


def test_a_study_that_a_pacs_pushes_becomes_a_unit_of_work(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path / "package"))
    queued: list[Unit] = []
    datasets, files = make_files(tmp_path / "files", 3)
    with listening(tmp_path / "data", [package]) as node:
        closer = StudyCloser(
            settings=Completeness(quiet_seconds=0.5, poll_seconds=0.05),
            spool=node.node.spool,
            store=node.node.store,
            models=[package],
            is_sending=node.listener.is_sending,
            enqueue=queued.append,
        )
        closer.recover()
        stop = threading.Event()
        thread = threading.Thread(target=closer.run, args=(stop,))
        thread.start()
        try:
            assert node.send(*files).returncode == 0
            assert until(lambda: bool(queued))
        finally:
            stop.set()
            thread.join()
        study = node.node.site.hash(datasets[0].StudyInstanceUID)
        last = node.node.store.revision(study, queued[-1].revision)
        assert last is not None
        assert len(last.paths) == 3


# Stopping


def test_a_stop_lets_an_open_association_finish_and_takes_no_other(node: Listening) -> None:
    one, two = make_instance(), make_instance()
    port = node.port
    with node.connect() as sender:
        assert sender.established().store(one) == 0
        stopping = threading.Thread(target=node.listener.stop, args=(60,))
        stopping.start()
        assert until(lambda: _is_refused(port))
        assert sender.store(two) == 0
        sender.release()
        stopping.join(30)
        assert not stopping.is_alive()
    assert node.stored(one)
    assert node.stored(two)


def test_a_stop_aborts_what_does_not_finish(node: Listening) -> None:
    began = time.monotonic()
    idle, silent, stalled = node.connect().established(), node.connect(), node.connect().established()
    stalled.socket.sendall(b"\x04\x00\x00\x00\x10\x00half")
    node.listener.stop(0.2)
    assert time.monotonic() - began < 30
    for each in (idle, silent, stalled):
        assert each.has_ended()
        each.socket.close()


def _is_refused(port: int) -> bool:
    try:
        RawSCU(port).socket.close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True  # reset: the socket was closed while the connection waited to be accepted
    return False


def test_the_port_is_free_again_after_a_stop(tmp_path: Path) -> None:
    with listening(tmp_path) as node:
        port = node.port
        assert node.takes_the_next()
    with listening(tmp_path, node={"port": port}) as node:
        assert node.takes_the_next()


def test_a_port_that_is_taken_is_an_error_at_once(node: Listening, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"), listening(tmp_path / "other", node={"port": node.port}):
        pass


# What is shown


def test_neither_log_nor_metrics_hold_an_identifier(
    node: Listening, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    datasets, files = make_files(tmp_path / "files", 2)
    assert node.send(*files).returncode == 0
    with node.connect() as sender:
        sender.established()
        assert sender.store(datasets[0], sop="1.2.3.4.5.6.7.8") == 0xA900
        assert sender.store(datasets[0], data=encode(datasets[0])[:-7]) == 0xC000
    out, err = capfd.readouterr()
    shown = out + err + caplog.text
    assert "instance_stored" in shown
    assert node.node.site.hash(datasets[0].StudyInstanceUID) in shown
    for dataset in datasets:
        for secret in (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID):
            assert secret not in shown
    assert "secret" not in shown.lower()


def test_associations_and_answers_are_counted(node: Listening) -> None:
    def count(metric: object, *labels: str) -> float:
        child = metric.labels(*labels) if labels else metric  # type: ignore[attr-defined]
        return float(child._value.get())

    cases = [
        (metrics.ASSOCIATIONS, ("accepted",)),
        (metrics.ASSOCIATIONS, ("rejected_called",)),
        (metrics.INSTANCES, ("0000",)),
        (metrics.INSTANCES, ("A900",)),
        (metrics.QUARANTINED, ("identity_mismatch",)),
    ]
    before = [count(metric, *labels) for metric, labels in cases]
    bytes_before = count(metrics.INSTANCE_BYTES)
    dataset = make_instance()
    with node.connect() as sender:
        sender.established().store(dataset)
        sender.store(dataset, sop="1.2.3")
        sender.release()
    with node.connect() as sender:
        sender.associate(called="NOBODY")
    assert until(lambda: [count(metric, *labels) for metric, labels in cases] == [n + 1 for n in before])
    assert count(metrics.INSTANCE_BYTES) - bytes_before == len(encode(dataset))


# kill -9

LISTENER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from listening import listening
with listening(Path(sys.argv[1])) as node:
    print(node.port, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("seconds", [0.2, 0.5, 1.0])
def test_what_was_acknowledged_before_a_kill_is_there_afterwards(tmp_path: Path, seconds: float) -> None:
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(tmp_path), tests], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        # The log goes to the same place; the port is the first line.
        port = int(process.stdout.readline())
        threading.Thread(target=process.stdout.read, daemon=True).start()
        acknowledged: list[pydicom.Dataset] = []
        senders = [threading.Thread(target=_send_until_cut, args=(port, seed, acknowledged)) for seed in range(3)]
        for sender in senders:
            sender.start()
        assert until(lambda: len(acknowledged) > 3)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        for sender in senders:
            sender.join()
    with open_spool(tmp_path) as node:
        node.spool.reconcile()
        for dataset in acknowledged:
            rows = node.store.instances(node.site.hash(dataset.StudyInstanceUID))
            (row,) = [row for row in rows if row.sop_uid == dataset.SOPInstanceUID]
            assert (tmp_path / row.path).read_bytes().endswith(encode(dataset))
        for file in node.files():
            assert pydicom.dcmread(file).SOPInstanceUID


def _send_until_cut(port: int, seed: int, acknowledged: list[pydicom.Dataset]) -> None:
    study = generate_uid()
    try:
        with RawSCU(port) as sender:
            sender.established()
            for number in range(10_000):
                dataset = make_instance(study=study, rows=256, columns=256, seed=1000 * seed + number)
                if sender.store(dataset) == 0:
                    acknowledged.append(dataset)
    except (AssertionError, ConnectionError):
        return
