"""20 real radiographs, four parallel senders, a real PACS at the end: every one is reported once, and validly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from peers import Orthanc, dcmtk, dicom_errors
from stepwedge.manifest import load_package
from stepwedge.simulate import wrap_image

from service import PATIENCE_SECONDS, Service, destination, settings_for, until

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"
SENDERS = 4
COUNT = 20


@pytest.fixture(scope="module")
def radiographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real paediatric radiographs as DX and CR, uncompressed and JPEG 2000."""
    folder = tmp_path_factory.mktemp("radiographs")
    images = sorted((shared / "data" / "pneumonia" / "images").glob("*.jpg"))
    chosen = images[:: len(images) // COUNT][:COUNT]
    files = []
    for number, image in enumerate(chosen):
        dataset = wrap_image(
            image,
            rng=np.random.default_rng(number),
            modality="DX" if number % 2 else "CR",
            age_years=1 + number % 5,
            patient_name=f"Radiograph^Child {number:02}",
        )
        if number % 4 >= 2:
            dataset.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
        file = folder / f"{number:02}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        files.append(file)
    return files


@pytest.fixture(scope="module")
def service(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    values = settings_for(MODELS / "1.1.0", MODELS / "policy.yaml", [destination(orthanc.dicom_port)])
    running = Service(tmp_path_factory.mktemp("service"), values)
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def sources(service: Service, orthanc: Orthanc, radiographs: list[Path]) -> dict[str, pydicom.Dataset]:
    """The headers of what was sent, by study, once every study has its report."""
    with ThreadPoolExecutor(SENDERS) as pool:
        batches = [radiographs[start::SENDERS] for start in range(SENDERS)]
        list(pool.map(lambda batch: _send(batch, service.settings.node.port), batches))
    headers = {str(header.StudyInstanceUID): header for header in map(_header, radiographs)}

    def all_delivered() -> bool:
        with service.store() as store:
            return sum(item.state == "delivered" for item in store.deliveries()) == COUNT

    until(all_delivered, "every study has its report", service)
    return headers


def test_every_real_radiograph_ends_in_the_pacs_with_a_valid_report(
    service: Service, orthanc: Orthanc, sources: dict[str, pydicom.Dataset], tmp_path: Path
) -> None:
    package = load_package(MODELS / "1.1.0")
    for uid, source in sources.items():
        objects = [orthanc.download(instance, tmp_path) for instance in orthanc.instances(uid)]
        headers = [pydicom.dcmread(file) for file in objects]
        assert sorted(str(header.Modality) for header in headers if header.Modality == "SR") == ["SR"]
        # What is acted upon, or deferred beside another finding, comes with a heat map and its contours.
        assert sorted(str(header.Modality) for header in headers) in (["OT", "SR"], ["OT", "OT", "PR", "SR"])
        for header in headers:
            assert header.PatientName == source.PatientName
            assert header.PatientID == source.PatientID
        report = next(file for file, header in zip(objects, headers, strict=True) if header.Modality == "SR")
        assert dicom_errors(report) == []
        assert package.digest.encode() in report.read_bytes()
    with service.store() as store:
        units = store.units()
        assert len(units) == COUNT
        assert {str(unit.state) for unit in units} <= {"reported", "deferred"}
        assert sum(str(unit.state) == "reported" for unit in units) > COUNT // 2
        assert {item.state for item in store.deliveries()} == {"delivered"}
        assert len(store.observations()) == COUNT


def test_our_own_report_sent_back_to_us_starts_nothing(
    service: Service, orthanc: Orthanc, sources: dict[str, pydicom.Dataset], tmp_path: Path
) -> None:
    uid = next(iter(sources))
    with service.store() as store:
        before = (len(store.units()), store.study_by_uid(uid))
    for instance in orthanc.instances(uid):
        file = orthanc.download(instance, tmp_path)
        subprocess.run(
            [dcmtk("storescu"), "-R", "-aec", "STEPWEDGE", "127.0.0.1", str(service.settings.node.port), str(file)],
            check=True, timeout=PATIENCE_SECONDS, capture_output=True,
        )  # fmt: skip
    with service.store() as store:
        study = store.study_by_uid(uid)
        assert study is not None
        assert len(store.instances(study.study)) == 3
        until(lambda: not store.open_studies(), "nothing waits to be complete", service)
        assert (len(store.units()), store.study_by_uid(uid)) == before


def test_metrics_and_log_tell_what_happened_and_name_nobody(
    service: Service, sources: dict[str, pydicom.Dataset]
) -> None:
    text = service.get("/metrics")
    assert 'stepwedge_instances_total{status="0000"}' in text
    assert 'stepwedge_units_in_state{state="reported"}' in text
    assert 'stepwedge_deliveries_total{destination="pacs",outcome="delivered"}' in text
    everything = text + service.log()
    for header in sources.values():
        for value in (header.StudyInstanceUID, header.SOPInstanceUID, header.PatientID, "Radiograph^Child"):
            assert str(value) not in everything


def _send(files: list[Path], port: int) -> None:
    node = ["-aec", "STEPWEDGE", "127.0.0.1", str(port)]
    compressed = [str(file) for file in files if _is_compressed(file)]
    uncompressed = [str(file) for file in files if not _is_compressed(file)]
    for batch, option in ((uncompressed, "-x="), (compressed, "-xv")):
        if batch:
            command = [dcmtk("storescu"), option, *node, *batch]
            subprocess.run(command, check=True, timeout=PATIENCE_SECONDS, capture_output=True)


def _header(file: Path) -> pydicom.Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True)


def _is_compressed(file: Path) -> bool:
    return bool(_header(file).file_meta.TransferSyntaxUID.is_compressed)
