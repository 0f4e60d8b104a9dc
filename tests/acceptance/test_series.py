"""A model of whole series: a CT series in by C-STORE, one report for it in the PACS."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from instances import write_file
from packages import write_policy
from peers import Orthanc, dcmtk
from series import ct_series, write_series_package
from stepwedge.observation import Observation

from service import Service, destination, settings_for, until

SLICES = 7


@pytest.fixture(scope="module")
def service(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    package = write_series_package(folder / "tiny-series")
    policy = write_policy(folder / "policy.yaml", model="tiny-series")
    running = Service(folder, settings_for(package, policy, [destination(orthanc.dicom_port)]))
    running.start()
    yield running
    assert running.stop() == 0


def observations(service: Service) -> list[Observation]:
    with service.store() as store:
        return [Observation.from_json(body) for _, body in store.observations()]


def waiting(service: Service) -> bool:
    with service.store() as store:
        deliveries = store.deliveries()
    return not deliveries or any(delivery.state != "delivered" for delivery in deliveries)


def test_a_series_is_reported_once_and_the_observation_says_who_sent_it(
    service: Service, orthanc: Orthanc, tmp_path: Path
) -> None:
    slices = ct_series(0.75, SLICES)
    random.Random(1).shuffle(slices)
    files = [write_file(dataset, tmp_path / f"{number}.dcm") for number, dataset in enumerate(slices)]
    subprocess.run(
        [
            *(dcmtk("storescu"), "-aec", "STEPWEDGE", "-aet", "CT-ROOM-1"),
            *("127.0.0.1", str(service.settings.node.port), *map(str, files)),
        ],
        check=True,
    )
    study = str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)
    until(lambda: observations(service), "the series is analysed", service)
    until(lambda: not waiting(service), "the results are delivered", service)
    stored = [orthanc.tags(instance) for instance in orthanc.instances(study)]
    (report,) = [tags for tags in stored if tags["Modality"] == "SR"]
    evidence = report["CurrentRequestedProcedureEvidenceSequence"]
    assert len(evidence[0]["ReferencedSeriesSequence"][0]["ReferencedSOPSequence"]) == SLICES  # type: ignore[index]
    (row,) = observations(service)
    assert (row.state, row.images, row.decisions) == ("reported", SLICES, {"ill": "act"})
    assert row.senders == ("CT-ROOM-1",)
    assert len(row.content) > 0
