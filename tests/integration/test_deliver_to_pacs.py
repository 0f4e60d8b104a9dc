"""Real nodes take our objects: dcmtk's storescp and, as the PACS, Orthanc."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
from peers import Orthanc, dcmtk
from results import heat, picture, result, source, written
from stepwedge.dicom.deliver import DicomSink
from stepwedge.errors import DeliveryError
from stepwedge.records import State
from stepwedge.settings import Destination

PATIENCE_SECONDS = 60.0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [item.path for item in written(tmp_path / "files", result(), image=picture())]


def sink(port: int, ae_title: str = "PACS") -> DicomSink:
    to = Destination(name="pacs", host="127.0.0.1", port=port, ae_title=ae_title, timeout_seconds=60)
    return DicomSink(to, calling_ae="STEPWEDGE")


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """dcmtk's storescp, storing into a folder what it is sent."""
    program = dcmtk("storescp")
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen([program, "-od", str(folder), *options, str(port)], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "storescp does not listen"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("state", [State.REPORTED, State.DEFERRED, State.REJECTED])
def test_dcmtk_stores_what_we_send(state: State, tmp_path: Path) -> None:
    objects = written(tmp_path / "files", result(state), image=picture(), heat=heat())
    with storescp(tmp_path / "stored", "--bit-preserving") as port:
        sink(port).send([item.path for item in objects])
        sink(port).send([item.path for item in objects])
    stored = {pydicom.dcmread(file).SOPInstanceUID: file for file in (tmp_path / "stored").iterdir()}
    assert set(stored) == {item.sop_instance_uid for item in objects}
    for item in objects:
        assert pydicom.dcmread(stored[item.sop_instance_uid]) == pydicom.dcmread(item.path)


def test_dcmtk_refuses_the_association(files: list[Path], tmp_path: Path) -> None:
    with (
        storescp(tmp_path / "stored", "--refuse") as port,
        pytest.raises(DeliveryError, match=r"destination pacs .* refused the association"),
    ):
        sink(port).send(files)


@pytest.mark.parametrize("when", ["--abort-after", "--abort-during"])
def test_dcmtk_breaks_off(when: str, files: list[Path], tmp_path: Path) -> None:
    with (
        storescp(tmp_path / "stored", when) as port,
        pytest.raises(DeliveryError, match=r"destination pacs .* broke off"),
    ):
        sink(port).send(files)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc.started(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.mark.parametrize("state", [State.REPORTED, State.DEFERRED, State.REJECTED])
def test_a_pacs_files_our_objects_in_the_study(state: State, orthanc: Orthanc, tmp_path: Path) -> None:
    study = f"1.2.826.0.1.3680043.10.2.{list(State).index(state)}"
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    header = source(charset=["", "ISO 2022 IR 87"], name=name, StudyInstanceUID=study)
    objects = written(tmp_path / "files", result(state), [header], image=picture(), heat=heat(header))
    assert len(objects) == (4 if state is State.REPORTED else 2)
    for _ in range(2):
        sink(orthanc.dicom_port, "ORTHANC").send([item.path for item in objects])
    found = orthanc.instances(study)
    assert len(found) == len(objects)
    for instance in found:
        tags = orthanc.tags(instance)
        assert str(tags["PatientName"]).rstrip("=") == name
        assert tags["AccessionNumber"] == "ACC-1"
    kept = {}
    for instance in found:
        dataset = pydicom.dcmread(orthanc.download(instance, tmp_path))
        kept[dataset.SOPInstanceUID] = dataset
    for item in objects:
        assert kept[item.sop_instance_uid] == pydicom.dcmread(item.path)
