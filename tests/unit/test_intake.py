"""What is analysed is what was received, and the observation can say where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from instances import received
from packages import write_package, write_policy
from radiographs import radiograph
from spooled import Spooled, open_spool
from stepwedge.inference.engine import OnnxEngine
from stepwedge.intake import Intake, take_in
from stepwedge.manifest import load_package
from stepwedge.pipeline import Equipment, equip
from stepwedge.policy import load_policy

BRIGHT = 0.75


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    folder = tmp_path_factory.mktemp("tiny")
    package = load_package(write_package(folder / "tiny"))
    policy = load_policy(write_policy(folder / "policy.yaml"), package.manifest)
    return equip(package, OnnxEngine(package, "cpu", threads=1), policy)


def take(spooled: Spooled, equipment: Equipment) -> Intake:
    files = spooled.files()
    known = {
        spooled.settings.data_dir / item.path: item
        for file in files
        for item in spooled.store.instances(file.parent.name)
    }
    return take_in(files, known, site=spooled.site, equipment=equipment, maximum_bytes=2**28)


def test_what_was_received_is_analysed_and_its_senders_are_named(tmp_path: Path, equipment: Equipment) -> None:
    with open_spool(tmp_path) as spooled:
        for _ in range(2):
            spooled.spool.store(received(radiograph(BRIGHT)))
        intake = take(spooled, equipment)
    assert intake.failure is None
    assert len(intake.images) == len(intake.views) == len(intake.evidence) == 2
    assert intake.provenance.senders == ("MODALITY",)
    assert all("PixelData" not in header for header in intake.evidence)


def test_the_fingerprint_is_that_of_the_content_and_keyed(tmp_path: Path, equipment: Equipment) -> None:
    image = radiograph(BRIGHT)
    with open_spool(tmp_path / "a") as here, open_spool(tmp_path / "b") as elsewhere:
        here.spool.store(received(image))
        elsewhere.spool.store(received(image))
        fingerprint = take(here, equipment).provenance.content
        assert take(here, equipment).provenance.content == fingerprint
        assert take(elsewhere, equipment).provenance.content != fingerprint, "another site has another key"
        (item,) = here.store.instances(here.files()[0].parent.name)
        assert item.digest[:16] not in fingerprint


@pytest.mark.parametrize("where", [-1, 300])
def test_a_file_that_was_altered_after_its_receipt_is_not_analysed(
    tmp_path: Path, equipment: Equipment, where: int
) -> None:
    with open_spool(tmp_path) as spooled:
        spooled.spool.store(received(radiograph(BRIGHT)))
        (file,) = spooled.files()
        contents = bytearray(file.read_bytes())
        contents[where] ^= 1
        file.write_bytes(contents)
        intake = take(spooled, equipment)
    assert intake.failure is not None
    assert intake.failure.code == "altered_after_receipt"
    assert intake.images == []


def test_a_file_that_is_gone_fails_the_unit(tmp_path: Path, equipment: Equipment) -> None:
    with open_spool(tmp_path) as spooled:
        spooled.spool.store(received(radiograph(BRIGHT)))
        (file,) = spooled.files()
        file.unlink()
        intake = take_in([file], {}, site=spooled.site, equipment=equipment, maximum_bytes=2**28)
    assert intake.failure is not None
    assert intake.failure.code == "instance_missing"
