"""Which structured reports are labels, and what they say. What is not understood in full is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from instances import make_instance, write_file
from packages import write_package
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from stepwedge.dicom.verified import (
    CONTRADICTORY,
    NOT_A_READER,
    NOT_UNDERSTOOD,
    Reading,
    finding_codes,
    labels_of,
    replaced,
)
from stepwedge.identity import Site, load_site
from stepwedge.manifest import load_package
from verified_reports import ABSENCE as SR_ABSENCE
from verified_reports import ABSENT as SR_ABSENT
from verified_reports import CHEST, LUNG_LEFT, evaluation, group, measurement_report, size
from verified_reports import INDETERMINATE as SR_INDETERMINATE
from verified_reports import PRESENT as SR_PRESENT

COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.33"
PNEUMONIA, EFFUSION = ("233604007", "SCT"), ("60046008", "SCT")
SR_PNEUMONIA = Code(*PNEUMONIA, "Pneumonia")
SR_EFFUSION = Code(*EFFUSION, "Pleural effusion")
PRESENT, ABSENT, ABSENCE = ("52101004", "SCT"), ("2667000", "SCT"), ("272519000", "SCT")
INDETERMINATE = ("82334004", "SCT")
FINDING, PRESENCE = ("121071", "DCM"), ("705057003", "SCT")
FINDINGS, HISTORY, PREVIOUS, INDICATIONS = ((value, "DCM") for value in ("121070", "121060", "121068", "121109"))
NAMES = {PNEUMONIA: "pneumonia"}


def code(value: tuple[str, str]) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = *value, "meaning"
    return Sequence([item])


def item_of(kind: str, name: tuple[str, str] | None, *inner: Dataset, relation: str = "CONTAINS") -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relation, kind
    if name is not None:
        item.ConceptNameCodeSequence = code(name)
    if inner:
        item.ContentSequence = Sequence(inner)
    return item


def coded(name: tuple[str, str], value: tuple[str, str], *inner: Dataset, relation: str = "CONTAINS") -> Dataset:
    item = item_of("CODE", name, *inner, relation=relation)
    item.ConceptCodeSequence = code(value)
    return item


def text(value: str, relation: str = "CONTAINS") -> Dataset:
    item = item_of("TEXT", ("121106", "DCM"), relation=relation)
    item.TextValue = value
    return item


def number(value: str, unit: str, name: tuple[str, str] = ("410668003", "SCT")) -> Dataset:
    item, measured = item_of("NUM", name), Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = value, code((unit, "UCUM"))
    item.MeasuredValueSequence = Sequence([measured])
    return item


def section(heading: tuple[str, str] | None, *content: Dataset) -> Dataset:
    return item_of("CONTAINER", heading, *content)


def report(*content: Dataset, flag: str = "VERIFIED", reader: str = "Doe^Jane") -> Dataset:
    dataset = make_instance(modality="SR", sop_class=COMPREHENSIVE)
    dataset.VerificationFlag = flag
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerificationDateTime = reader, "20260301101500+0100"
    dataset.VerifyingObserverSequence = Sequence([observer])
    dataset.ContentSequence = Sequence([section(FINDINGS, *content)])
    return dataset


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return load_site(tmp_path / "node")


def reading(dataset: Dataset, site: Site, folder: Path) -> Reading:
    return labels_of(write_file(dataset, folder / "sr.dcm"), "study", NAMES, site)


def read(dataset: Dataset, site: Site, folder: Path) -> dict[str, float | None]:
    return {label.finding: label.value for label in reading(dataset, site, folder).labels}


# --- The Measurement Report, as highdicom writes it ------------------------------------------------------------------

UNDERSTOOD: dict[str, tuple[Callable[[], Dataset], float | None]] = {
    "present": (lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_PRESENT))), 1.0),
    "absent": (lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_ABSENT))), 0.0),
    "absence": (lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_ABSENCE))), 0.0),
    "indeterminate": (lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_INDETERMINATE))), None),
    "absent from all of the chest": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_ABSENT), site=CHEST)),
        0.0,
    ),
    "present in a part": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_PRESENT), site=LUNG_LEFT)),
        1.0,
    ),
    "nothing beside it": (lambda: measurement_report(group(SR_PNEUMONIA)), 1.0),
    "measured": (lambda: measurement_report(group(SR_PNEUMONIA, measurements=[size(12.0)])), 1.0),
    "named by the finding": (
        lambda: measurement_report(group(SR_EFFUSION, evaluation(SR_ABSENT, name=SR_PNEUMONIA))),
        0.0,
    ),
    "another finding in another group": (
        lambda: measurement_report(
            group(SR_EFFUSION, evaluation(SR_PRESENT)), group(SR_PNEUMONIA, evaluation(SR_ABSENT))
        ),
        0.0,
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_what_a_measurement_group_evaluates_its_finding_as_is_the_label(name: str, site: Site, tmp_path: Path) -> None:
    make, value = UNDERSTOOD[name]
    assert read(make(), site, tmp_path) == {"pneumonia": value}


REFUSED: dict[str, tuple[Callable[[], Dataset], str]] = {
    "two evaluations that disagree": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_PRESENT), evaluation(SR_ABSENT))),
        CONTRADICTORY,
    ),
    "two groups that disagree": (
        lambda: measurement_report(
            group(SR_PNEUMONIA, evaluation(SR_PRESENT)), group(SR_PNEUMONIA, evaluation(SR_ABSENT))
        ),
        CONTRADICTORY,
    ),
    "its own name and presence disagree": (
        lambda: measurement_report(
            group(SR_PNEUMONIA, evaluation(SR_PRESENT, name=SR_PNEUMONIA), evaluation(SR_ABSENT))
        ),
        CONTRADICTORY,
    ),
    "absent from a part": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_ABSENT), site=LUNG_LEFT)),
        NOT_UNDERSTOOD,
    ),
    "an evaluation of another kind": (
        lambda: measurement_report(
            group(SR_PNEUMONIA, evaluation(Code("1", "99SITE", "Low"), Code("2", "99SITE", "P")))
        ),
        NOT_UNDERSTOOD,
    ),
    "absent under a name of the site's own": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_ABSENT, Code("2", "99SITE", "Seen")))),
        NOT_UNDERSTOOD,
    ),
    "present, but something more is said of it": (
        lambda: measurement_report(
            group(
                SR_PNEUMONIA, evaluation(SR_PRESENT), evaluation(Code("1", "99SITE", "Gone"), Code("2", "99SITE", "P"))
            )
        ),
        NOT_UNDERSTOOD,
    ),
    "another value of presence": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(Code("385432009", "SCT", "Not applicable")))),
        NOT_UNDERSTOOD,
    ),
    "a number that may be a probability": (
        lambda: measurement_report(group(SR_PNEUMONIA, measurements=[size(0.01, codes.UCUM.NoUnits)])),
        NOT_UNDERSTOOD,
    ),
    "a size of nothing": (
        lambda: measurement_report(group(SR_PNEUMONIA, measurements=[size(0.0)])),
        NOT_UNDERSTOOD,
    ),
    "what an algorithm found": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_PRESENT), algorithm=True)),
        NOT_A_READER,
    ),
    "what a device observed": (
        lambda: measurement_report(group(SR_PNEUMONIA, evaluation(SR_PRESENT)), device=True),
        NOT_A_READER,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_in_full_is_no_label(name: str, site: Site, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    found = reading(make(), site, tmp_path)
    assert found.labels == []
    assert found.refused == {"pneumonia": reason}


# --- Other reports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "value"),
    [
        ([coded(PNEUMONIA, PRESENT)], 1.0),
        ([coded(PNEUMONIA, ABSENT)], 0.0),
        ([coded(PNEUMONIA, ABSENCE)], 0.0),
        ([coded(PNEUMONIA, INDETERMINATE)], None),
        ([coded(FINDING, PNEUMONIA)], 1.0),
        ([coded(FINDING, PNEUMONIA), coded(FINDING, EFFUSION)], 1.0),
        ([coded(FINDING, PNEUMONIA, coded(PRESENCE, ABSENT, relation="HAS PROPERTIES"))], 0.0),
        ([coded(FINDING, PNEUMONIA, coded(PRESENCE, ABSENT, relation="HAS CONCEPT MOD"))], 0.0),
        ([coded(FINDING, PNEUMONIA), coded(PNEUMONIA, ABSENT)], 0.0),
        ([coded(PNEUMONIA, ABSENT), text("No pneumonia.")], 0.0),
        ([section(None, coded(PNEUMONIA, ABSENT))], 0.0),
        ([coded(PNEUMONIA, ABSENT), section(HISTORY, coded(FINDING, PNEUMONIA))], 0.0),
    ],
    ids=[
        *("present", "absent", "absence", "indeterminate", "finding", "several findings", "property", "modifier"),
        *("finding and evaluation", "text beside an evaluation", "nested", "history besides"),
    ],
)
def test_what_a_verified_report_says_is_a_label(
    items: list[Dataset], value: float | None, site: Site, tmp_path: Path
) -> None:
    assert read(report(*items), site, tmp_path) == {"pneumonia": value}


@pytest.mark.parametrize(
    "items",
    [
        [coded(PNEUMONIA, ("1", "99SITE"))],
        [coded(PNEUMONIA, PRESENT, coded(("2", "99SITE"), ("3", "99SITE"), relation="HAS CONCEPT MOD"))],
        [coded(PNEUMONIA, PRESENT, text("Resolved.", relation="HAS PROPERTIES"))],
        [number("0.9", "1", PNEUMONIA)],
        [coded(FINDING, PNEUMONIA, coded(("2", "99SITE"), ("3", "99SITE"), relation="HAS PROPERTIES"))],
        [coded(FINDING, PNEUMONIA, text("None seen.", relation="INFERRED FROM"))],
        [coded(FINDING, PNEUMONIA), text("No pneumonia.")],
        [coded(FINDING, PNEUMONIA), number("0.2", "%")],
        [coded(FINDING, PNEUMONIA), coded(("246112005", "SCT"), ("260413007", "SCT"))],
        [coded(FINDING, PNEUMONIA), coded(FINDING, EFFUSION), coded(PRESENCE, ABSENT)],
        [coded(FINDING, PNEUMONIA), section(None, coded(PRESENCE, ABSENT))],
        [coded(PRESENCE, ABSENT, relation="HAS CONCEPT MOD"), section(None, coded(FINDING, PNEUMONIA))],
        [coded(("408731000", "SCT"), ("410513005", "SCT"), relation="HAS CONCEPT MOD"), coded(FINDING, PNEUMONIA)],
        [coded(("439401001", "SCT"), PNEUMONIA)],
        [coded(("439401001", "SCT"), PNEUMONIA), coded(PNEUMONIA, ABSENT)],
        [coded(("111", "99SITE"), ("222", "99SITE"), coded(PNEUMONIA, PRESENT))],
        [section(("111", "99SITE"), coded(PNEUMONIA, PRESENT))],
        [section((("121078", "DCM")), coded(FINDING, PNEUMONIA))],
    ],
    ids=[
        *(
            "another answer",
            "a modifier",
            "a text below",
            "a number",
            "a property of the finding",
            "a text inferred from",
        ),
        *("a text beside", "a number beside", "a severity beside", "presence of which", "presence in a container"),
        *("presence of a container", "of the past", "a diagnosis", "a diagnosis that disagrees", "below another item"),
        *("a heading of the site's own", "an addendum"),
    ],
)
def test_a_negation_in_any_other_form_is_never_taken_for_present(
    items: list[Dataset], site: Site, tmp_path: Path
) -> None:
    found = reading(report(*items), site, tmp_path)
    assert found.labels == []
    assert found.refused == {"pneumonia": NOT_UNDERSTOOD}


def test_a_later_report_that_is_not_understood_takes_the_readers_earlier_label_back(site: Site, tmp_path: Path) -> None:
    said = [label.to_json() for label in reading(report(coded(PNEUMONIA, PRESENT)), site, tmp_path).labels]
    unclear = coded(PNEUMONIA, ("1", "99SITE"))
    later = reading(report(unclear), site, tmp_path)
    [withdrawn] = replaced(said, later)
    assert (withdrawn.finding, withdrawn.value, withdrawn.reader) == ("pneumonia", None, later.withdrawals[0].reader)
    assert replaced(said, reading(report(unclear, reader="Roe^Richard"), site, tmp_path)) == []
    assert replaced([], later) == []


def test_a_report_deeper_than_is_looked_at_is_no_label(site: Site, tmp_path: Path) -> None:
    deep = coded(PNEUMONIA, ABSENT)
    for _ in range(20):
        deep = section(None, deep)
    found = reading(report(coded(PNEUMONIA, PRESENT), deep), site, tmp_path)
    assert (found.labels, found.refused) == ([], {"pneumonia": NOT_UNDERSTOOD})


@pytest.mark.parametrize("heading", [HISTORY, PREVIOUS, INDICATIONS])
def test_what_was_or_was_asked_is_no_finding_of_now(heading: tuple[str, str], site: Site, tmp_path: Path) -> None:
    dataset = report()
    dataset.ContentSequence = Sequence([section(heading, coded(FINDING, PNEUMONIA), coded(PNEUMONIA, PRESENT))])
    assert reading(dataset, site, tmp_path) == Reading()


@pytest.mark.parametrize(
    "dataset",
    [
        report(coded(PNEUMONIA, PRESENT), flag="UNVERIFIED"),
        report(coded(("36118008", "SCT"), PRESENT)),
        report(),
    ],
    ids=["not verified", "another finding", "nothing"],
)
def test_other_reports_say_nothing(dataset: Dataset, site: Site, tmp_path: Path) -> None:
    assert reading(dataset, site, tmp_path) == Reading()


def test_a_file_that_cannot_be_read_is_none(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "sr.dcm"
    file.write_bytes(b"\0" * 132)
    assert labels_of(file, "study", NAMES, site) == Reading()


def test_a_label_names_no_person_and_is_the_same_each_time(site: Site, tmp_path: Path) -> None:
    file = write_file(report(coded(PNEUMONIA, PRESENT)), tmp_path / "sr.dcm")
    (first,), (again,) = (labels_of(file, "study", NAMES, site).labels for _ in range(2))
    assert first == again
    assert "Doe" not in first.to_json()
    assert first.reader
    assert first.time.startswith("2026-03-01T")
    assert first.source == "sr"


def test_codes_are_those_of_the_package(tmp_path: Path) -> None:
    manifest = load_package(write_package(tmp_path / "package")).manifest
    spec = manifest.findings[0]
    assert finding_codes([manifest])[spec.code.value, spec.code.scheme] == spec.name
