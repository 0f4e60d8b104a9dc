"""Images that cannot be answered end in a visible state with their reason, and the next study goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from packages import write_package, write_policy
from pydicom.encaps import encapsulate
from pynetdicom import AE
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation
from sender import make_study, send
from stepwedge.analysis import read_published
from stepwedge.store import Unit

from service import Service, settings_for, until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    running = Service(folder, settings_for(package, policy, []))
    running.start()
    yield running
    assert running.stop() == 0


def _huge(dataset: pydicom.Dataset) -> None:
    dataset.Rows = dataset.Columns = 60_000


def _short(dataset: pydicom.Dataset) -> None:
    dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]


def _undecodable(dataset: pydicom.Dataset) -> None:
    dataset.PixelData = encapsulate([b"\xff\xd8 this is no lossless JPEG \xff\xd9"])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_huge, "pixel_data_too_large"), (_short, "pixel_data_truncated"), (_undecodable, "pixel_data_undecodable")],
)
def test_pixels_that_cannot_be_read_are_rejected_with_a_report(
    service: Service, tmp_path: Path, spoil: Callable[[pydicom.Dataset], None], reason: str
) -> None:
    bad = make_study(tmp_path, 1)
    dataset = pydicom.dcmread(bad.file)
    spoil(dataset)
    dataset.save_as(bad.file, enforce_file_format=True)
    send(service.settings.node.port, bad.file)
    unit = _ended(service, bad.study_uid)
    assert (str(unit.state), unit.reasons) == ("rejected", (reason,))
    published = read_published(service.settings, unit.unit)
    assert published is not None
    assert [item.kind for item in published.objects] == ["sr", "sc"]
    _next_goes_through(service, tmp_path)


def test_a_transfer_syntax_that_we_cannot_decode_is_not_negotiated(service: Service, tmp_path: Path) -> None:
    application = AE(ae_title="MODALITY")
    application.add_requested_context(DigitalXRayImageStorageForPresentation, pydicom.uid.MPEG2MPML)
    application.add_requested_context(DigitalXRayImageStorageForPresentation, pydicom.uid.JPEG2000Lossless)
    association = application.associate("127.0.0.1", service.settings.node.port, ae_title="STEPWEDGE")
    assert association.is_established
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[pydicom.uid.JPEG2000Lossless]]
    association.release()
    _next_goes_through(service, tmp_path)


def test_a_unit_fails_when_nobody_infers_and_one_command_tries_again(service: Service, tmp_path: Path) -> None:
    values: dict[str, Any] = settings_for(
        service.settings.models[0].package,
        service.settings.models[0].policy,
        [],
        worker={"analysis_attempts": 2, "analysis_backoff_seconds": 0.1, "drain_seconds": 20},
    )
    alone = Service(tmp_path / "alone", values | {"inference": {**values["inference"], "url": "http://127.0.0.1:9"}})
    alone.start(wait=False)
    try:
        sent = make_study(tmp_path, 2)
        send(alone.settings.node.port, sent.file)
        unit = _ended(alone, sent.study_uid)
        assert (str(unit.state), unit.reasons) == ("failed", ("inference_unavailable",))
    finally:
        assert alone.stop() == 0
    again = Service(tmp_path / "alone", values)
    assert again.command("retry", "--all") == "1 put back into the queue\n"
    again.start()
    try:
        until(lambda: str(_ended(again, sent.study_uid).state) == "reported", "it is reported", again)
    finally:
        assert again.stop() == 0


def _next_goes_through(service: Service, folder: Path) -> None:
    good = make_study(folder, 3)
    send(service.settings.node.port, good.file)
    assert str(_ended(service, good.study_uid).state) == "reported"


def _ended(service: Service, study_uid: str) -> Unit:
    def look() -> Unit | None:
        with service.store() as store:
            study = store.study_by_uid(study_uid)
            units = store.units(study=study.study) if study else []
            return next((unit for unit in units if unit.ended_at is not None), None)

    found: Unit = until(look, "the study has ended", service)
    return found
