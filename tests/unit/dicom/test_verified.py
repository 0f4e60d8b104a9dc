"""Which structured reports are labels, and what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from instances import make_instance, write_file
from packages import write_package
from pydicom import Dataset
from pydicom.sequence import Sequence
from stepwedge.dicom.verified import finding_codes, labels_of
from stepwedge.identity import Site, load_site
from stepwedge.manifest import load_package

COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"
PNEUMONIA = ("233604007", "SCT")
PRESENT, ABSENT, INDETERMINATE = ("52101004", "SCT"), ("272519000", "SCT"), ("82334004", "SCT")
FINDING = ("121071", "DCM")
NAMES = {PNEUMONIA: "pneumonia"}


def code(value: tuple[str, str]) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = *value, "meaning"
    return Sequence([item])


def coded(name: tuple[str, str], value: tuple[str, str], *inner: Dataset) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = "CONTAINS", "CODE"
    item.ConceptNameCodeSequence, item.ConceptCodeSequence = code(name), code(value)
    if inner:
        item.ContentSequence = Sequence(inner)
    return item


def report(*content: Dataset, flag: str = "VERIFIED", reader: str = "Doe^Jane") -> Dataset:
    dataset = make_instance(modality="SR", sop_class=COMPREHENSIVE)
    dataset.VerificationFlag = flag
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerificationDateTime = reader, "20260301101500+0100"
    dataset.VerifyingObserverSequence = Sequence([observer])
    container = Dataset()
    container.ValueType, container.ContentSequence = "CONTAINER", Sequence(content)
    dataset.ContentSequence = Sequence([container])
    return dataset


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return load_site(tmp_path / "node")


def read(dataset: Dataset, site: Site, folder: Path) -> dict[str, float | None]:
    file = write_file(dataset, folder / "sr.dcm")
    return {label.finding: label.value for label in labels_of(file, "study", NAMES, site)}


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (coded(PNEUMONIA, PRESENT), 1.0),
        (coded(PNEUMONIA, ABSENT), 0.0),
        (coded(PNEUMONIA, INDETERMINATE), None),
        (coded(FINDING, PNEUMONIA), 1.0),
        (coded(("111", "99SITE"), ("222", "99SITE"), coded(PNEUMONIA, ABSENT)), 0.0),
    ],
    ids=["present", "absent", "indeterminate", "finding", "nested"],
)
def test_what_a_verified_report_says_is_a_label(item: Dataset, value: float | None, site: Site, tmp_path: Path) -> None:
    assert read(report(item), site, tmp_path) == {"pneumonia": value}


@pytest.mark.parametrize(
    "dataset",
    [
        report(coded(PNEUMONIA, PRESENT), flag="UNVERIFIED"),
        report(coded(("36118008", "SCT"), PRESENT)),
        report(coded(PNEUMONIA, ("1", "99SITE"))),
        report(),
    ],
    ids=["not verified", "another finding", "another answer", "nothing"],
)
def test_other_reports_are_none(dataset: Dataset, site: Site, tmp_path: Path) -> None:
    assert read(dataset, site, tmp_path) == {}


def test_a_file_that_cannot_be_read_is_none(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "sr.dcm"
    file.write_bytes(b"\0" * 132)
    assert labels_of(file, "study", NAMES, site) == []


def test_a_label_names_no_person_and_is_the_same_each_time(site: Site, tmp_path: Path) -> None:
    file = write_file(report(coded(PNEUMONIA, PRESENT)), tmp_path / "sr.dcm")
    (first,), (again,) = (labels_of(file, "study", NAMES, site) for _ in range(2))
    assert first == again
    assert "Doe" not in first.to_json()
    assert first.reader
    assert first.time.startswith("2026-03-01T")
    assert first.source == "sr"


def test_codes_are_those_of_the_package(tmp_path: Path) -> None:
    manifest = load_package(write_package(tmp_path / "package")).manifest
    spec = manifest.findings[0]
    assert finding_codes([manifest])[spec.code.value, spec.code.scheme] == spec.name
