"""The structured report says what was found, by whom, in whose study, and nothing that it must not say."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measurement_report import ROWS, Row, children, code_of, codes, items_under, numbers, texts, violations
from pydicom import DataElement, Dataset
from pydicom.tag import Tag
from results import NAMES, PREDECESSOR, finding, heat, picture, result, source, with_bytes, with_findings, written
from stepwedge.dicom.concepts import _OWN
from stepwedge.dicom.report import is_own_result
from stepwedge.dicom.wording import DEMONSTRATION
from stepwedge.records import Decision, GateVerdict, Reason, State, TamperResult, Verdict
from stepwedge.settings import Report

STATES = [State.REPORTED, State.DEFERRED, State.REJECTED]
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"


def report(folder: Path, *args: object, **options: object) -> Dataset:
    """The structured report of a result, read back."""
    return pydicom.dcmread(written(folder, *args, **options)[0].path)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", STATES)
def test_every_mandatory_row_is_there(state: State, tmp_path: Path) -> None:
    assert violations(report(tmp_path, result(state))) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_missing_mandatory_row_is_noticed(row: Row, tmp_path: Path) -> None:
    made = report(tmp_path, result())
    for parent in items_under(made, row.under):
        parent.ContentSequence = [item for item in children(parent) if code_of(item) != row.code]
    assert any(row.name in line for line in violations(made))


def test_a_report_carries_everything_that_made_the_answer(tmp_path: Path) -> None:
    unit = with_findings(result(), finding())
    made = report(tmp_path, unit)
    assert made.SOPClassUID == COMPREHENSIVE_SR
    assert (made.CompletionFlag, made.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    found = numbers(made)
    assert found["122157"] == [0.93]
    assert (found["clear-below"], found["act-from"], found["prevalence"]) == ([0.11], [0.62], [0.08])
    assert (found["cost-miss"], found["cost-false-alarm"], found["cost-deferral"]) == ([10.0], [1.0], [0.4])
    assert codes(made, "decision") == ["decision-act"]
    assert codes(made, "705057003") == ["52101004"]  # Presence: Present
    assert codes(made, "state") == ["state-reported"]
    assert codes(made, "gate") == ["gate-accept"]
    assert codes(made, "121071") == ["233604007"]  # Finding
    everything = "\n".join(texts(made))
    for part in (unit.model.digest, unit.policy.digest, "chest-pneumonia", "1.2.0", "CPUExecutionProvider"):
        assert part in everything


@pytest.mark.parametrize(
    ("decision", "presence"),
    [
        (Decision.ACT, ["52101004"]),
        (Decision.CLEAR, ["272519000"]),
        (Decision.DEFER, ["82334004"]),
        (Decision.NONE, []),
    ],
)
def test_decisions_have_standard_codes(decision: Decision, presence: list[str], tmp_path: Path) -> None:
    made = report(tmp_path, with_findings(result(), finding(decision)))
    assert codes(made, "decision") == [f"decision-{decision}"]
    assert codes(made, "705057003") == presence


@pytest.mark.parametrize(
    ("state", "headline"),
    [
        (State.DEFERRED, "No AI result: read without AI"),
        (State.REJECTED, "No AI result: image not suitable"),
    ],
)
def test_without_a_result_there_is_a_reason_and_no_probability(state: State, headline: str, tmp_path: Path) -> None:
    unit = result(state)
    made = report(tmp_path, unit)
    found = texts(made)
    assert headline in found
    for reason in unit.reasons:
        assert reason.text in found
        assert f"{reason.code}: {reason.text}" in found
    assert set(numbers(made)) <= {"110910", "110911", "111026", "111066"}  # of the image: its size and spacing
    assert codes(made, "decision") == codes(made, "705057003") == codes(made, "121071") == []
    assert not any("0.35" in text or "robability 0" in text for text in found)


@pytest.mark.parametrize("state", STATES)
def test_a_demonstration_says_so(state: State, tmp_path: Path) -> None:
    made = report(tmp_path / "demonstration", result(state))
    assert DEMONSTRATION in texts(made)
    assert made.SeriesDescription.startswith(DEMONSTRATION)
    made = report(tmp_path / "clinical", result(state, demonstration=False))
    assert not any("DEMONSTRATION" in text for text in [*texts(made), made.SeriesDescription])


def test_a_later_revision_names_the_one_it_supersedes(tmp_path: Path) -> None:
    made = report(tmp_path, result(revision=2), predecessor=PREDECESSOR)
    (study,) = made.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (earlier,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == PREDECESSOR.study_uid
    assert series.SeriesInstanceUID == PREDECESSOR.series_uid
    assert earlier.ReferencedSOPInstanceUID == PREDECESSOR.sop_instance_uid
    assert "Revision 2, supersedes revision 1" in texts(made)


def test_a_first_revision_names_none(tmp_path: Path) -> None:
    made = report(tmp_path, result())
    assert "PredecessorDocumentsSequence" not in made
    assert not any("supersedes" in text for text in texts(made))


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, result()) for name in ("first", "second"))
    assert [item.path.read_bytes() for item in first] == [item.path.read_bytes() for item in second]


def test_another_revision_or_policy_is_another_object(tmp_path: Path) -> None:
    unit = result()
    others = [unit, result(revision=2), replace(unit, policy=replace(unit.policy, digest="0" * 64))]
    made = [written(tmp_path / str(index), other) for index, other in enumerate(others)]
    uids = [item.sop_instance_uid for objects in made for item in objects]
    series = [pydicom.dcmread(item.path).SeriesInstanceUID for objects in made for item in objects]
    assert len(set(uids)) == len(set(series)) == 6


def heated(folder: Path, unit: object = None, **options: object) -> list[Dataset]:
    """The objects of a result with a heat map, read back."""
    objects = written(folder, unit or result(), image=picture(), heat=heat(), **options)  # type: ignore[arg-type]
    return [pydicom.dcmread(item.path) for item in objects]


def test_the_pictures_are_one_series_and_the_contours_another(tmp_path: Path) -> None:
    sr, sc, hot, pr = heated(tmp_path)
    assert sc.SeriesInstanceUID == hot.SeriesInstanceUID
    assert len({item.SeriesInstanceUID for item in (sr, sc, pr)}) == 3
    assert len({item.SOPInstanceUID for item in (sr, sc, hot, pr)}) == 4
    assert (sc.InstanceNumber, hot.InstanceNumber) == (1, 2)
    for keyword in ("SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "Modality"):
        assert sc[keyword].value == hot[keyword].value


def test_every_object_carries_both_digests_and_the_revision(tmp_path: Path) -> None:
    unit = result(revision=2)
    for made in heated(tmp_path, unit, predecessor=PREDECESSOR):
        described = made.ContributingEquipmentSequence[0].ContributionDescription
        assert all(part in described for part in (unit.model.digest, unit.policy.digest, "revision 2"))


def test_the_report_names_the_heat_map_and_the_contours(tmp_path: Path) -> None:
    sr, _, hot, pr = heated(tmp_path)
    (shown,) = items_under(sr, ("heat-map",))
    assert shown.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == hot.SOPInstanceUID
    (under,) = items_under(sr, ("heat-map-state",))
    (image,) = under.ReferencedSOPSequence
    assert image.ReferencedSOPInstanceUID == source().SOPInstanceUID
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == pr.SOPInstanceUID
    (study,) = sr.CurrentRequestedProcedureEvidenceSequence
    named = {
        (series.SeriesInstanceUID, item.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert {(item.SeriesInstanceUID, item.SOPInstanceUID) for item in (hot, pr)} <= named
    assert violations(sr) == []


@pytest.mark.parametrize("state", [State.DEFERRED, State.REJECTED])
def test_without_a_result_there_is_no_heat_map(state: State, tmp_path: Path) -> None:
    assert [item.Modality for item in heated(tmp_path, result(state))] == ["SR", "OT"]


def test_a_cleared_finding_has_no_heat_map(tmp_path: Path) -> None:
    assert len(heated(tmp_path, with_findings(result(), finding(Decision.CLEAR)))) == 2


def test_the_same_heat_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (written(tmp_path / n, result(), image=picture(), heat=heat()) for n in ("first", "second"))
    assert [item.path.read_bytes() for item in first] == [item.path.read_bytes() for item in second]


def test_our_own_codes_have_the_form_of_codes() -> None:
    for value, meaning in _OWN.items():
        assert len(value) <= 16
        assert len(meaning) <= 64


def test_an_inconclusive_finding_is_never_read_as_a_negative_one(tmp_path: Path) -> None:
    unit = with_findings(result(), finding(), finding(Decision.INCONCLUSIVE, name="hernia", probability=0.0317))
    made = report(tmp_path, unit)
    assert numbers(made)["122157"] == [0.93]  # of the other finding only
    assert "decision-inconcl" in codes(made, "decision")
    assert codes(made, "705057003") == ["52101004", "82334004"]
    line = "Hernia: INCONCLUSIVE – too little evidence in the package, read without AI"
    assert line in texts(made)
    assert not any("0.03" in text for text in texts(made))
    assert violations(made) == []


@pytest.mark.parametrize("verdict", ["pass", "flagged", "not_fitted"])
def test_the_tamper_check_and_the_measures_of_the_gate_are_stated(verdict: str, tmp_path: Path) -> None:
    unit = result()
    fitted = verdict != "not_fitted"
    image = replace(
        unit.images[0],
        tamper=TamperResult(verdict=verdict, measure=1.23456789, threshold=2.5) if fitted else TamperResult(),
        gate=GateVerdict(verdict=Verdict.ACCEPT, measures={"content_distance": 3.25}),
    )
    made = report(tmp_path, replace(unit, images=(image,)))
    assert codes(made, "tamper") == ["tamper-unfitted" if not fitted else f"tamper-{verdict}"]
    assert "content_distance: 3.25" in texts(made)
    assert ("1.23457" in texts(made)) is fitted


def test_what_was_rejected_before_the_tamper_check_says_nothing_of_it(tmp_path: Path) -> None:
    assert codes(report(tmp_path, result(State.REJECTED)), "tamper") == []


def test_a_series_is_one_stack_with_some_of_its_images_as_the_source(tmp_path: Path) -> None:
    unit = result()
    members = tuple(f"{number:032x}" for number in range(40))
    stack = replace(unit.images[0], instance=members[20], members=members)
    headers = [
        source(number=n, Modality="CT", SeriesInstanceUID="1.2.826.0.1.9", BodyPartExamined=None) for n in range(40)
    ]
    made = report(tmp_path, replace(unit, images=(stack,)), headers)
    assert "1 stack of 40 images in all judged: 1 accepted by the gate" in texts(made)
    assert len(list(items_under(made, ("111028", "126200", "260753009")))) == 40
    groups = list(items_under(made, ("126010", "125007")))
    assert all(0 < len([i for i in children(group) if code_of(i) == "121112"]) <= 16 for group in groups)
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    assert [len(series.ReferencedSOPSequence) for series in study.ReferencedSeriesSequence] == [40]
    assert violations(made) == []


def test_a_rejected_stack_beside_an_accepted_one_is_no_source(tmp_path: Path) -> None:
    unit = result()
    reason = Reason(code="image_blank")
    good = replace(unit.images[0], members=("a", "b"))
    bad = replace(good, state=State.REJECTED, gate=GateVerdict(verdict=Verdict.REJECT, reasons=(reason,)))
    made = report(tmp_path, replace(unit, images=(bad, good)), [source(number=n) for n in range(4)])
    sources = {
        i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items_under(made, ("126010", "125007", "121112"))
    }
    assert {uid.rsplit(".")[-1] for uid in sources} == {"2", "3"}


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("charset", "name"), NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("read_before", [False, True])
def test_names_survive_every_character_set(
    charset: str | list[str] | None, name: str, kind: int, read_before: bool, tmp_path: Path
) -> None:
    header = source(charset=charset, name=name)
    expected = header.PatientName if read_before else copy.deepcopy(header).PatientName
    made = pydicom.dcmread(written(tmp_path, result(), [header])[kind].path)
    assert made.SpecificCharacterSet == "ISO_IR 192"
    for component in ("alphabetic", "ideographic", "phonetic", "family_name", "given_name"):
        assert getattr(made.PatientName, component) == getattr(expected, component)
    assert str(made.PatientName).rstrip("=") == name.rstrip("=")


@pytest.mark.parametrize(
    ("charset", "name", "expected"),
    [
        (None, b"M\xfcller^J\xf6rg", "M\ufffdller^J\ufffdrg"),
        ("ISO_IR 6", b"M\xfcller", "M\ufffdller"),
        ("ISO_IR 999", b"M\xfcller", "M\ufffdller"),
        ("ISO_IR 192", b"M\xfcller", "M\ufffdller"),
        ("ISO-IR 100", b"M\xfcller ", "Müller"),
        ("ISO_IR 100", b"M\xfc\x00ller\n", "Müller"),
        ("ISO 2022 IR 6", b"A\x1b%Gb", "A\ufffd%Gb"),
    ],
)
@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_bytes_that_mean_nothing_are_replaced(
    charset: str | None, name: bytes, expected: str, read_before: bool, tmp_path: Path
) -> None:
    header = source(charset=None, name="Plain")
    with_bytes(header, "PatientName", name)
    if charset is not None:
        header.add_new("SpecificCharacterSet", "CS", charset)
    if read_before:
        str(header.PatientName)
    made = report(tmp_path, result(), [header])
    assert str(made.PatientName) == expected


def test_other_texts_are_transcoded_as_well(tmp_path: Path) -> None:
    header = source(charset="ISO_IR 126", StudyDescription="Θώρακας", ReferringPhysicianName="Διονυσιος")
    made = report(tmp_path, result(), [header])
    assert (made.StudyDescription, str(made.ReferringPhysicianName)) == ("Θώρακας", "Διονυσιος")


IDENTITY = ("PatientName", "PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyInstanceUID")


def test_it_is_in_the_study_of_the_images(tmp_path: Path) -> None:
    for item in written(tmp_path, result()):
        made = pydicom.dcmread(item.path)
        assert [made[keyword].value for keyword in IDENTITY] == [source()[keyword].value for keyword in IDENTITY]
        assert (made.Manufacturer, made.ManufacturerModelName) == ("Stepwedge", "chest-pneumonia 1.2.0")
        assert (made.SoftwareVersions, made.DeviceSerialNumber) == ("0.1.0", "5a" * 16)
        assert made.InstitutionName == "Test Hospital"


OPTIONAL = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientOrientation",
    "ImagerPixelSpacing",
    "BodyPartExamined",
    "Modality",
    "Rows",
    "Columns",
]


@pytest.mark.parametrize("keyword", OPTIONAL)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_header_may_lack_anything_but_its_uids(keyword: str, how: str, tmp_path: Path) -> None:
    header = source()
    if how == "missing":
        del header[keyword]
    else:
        with_bytes(header, keyword, b"")
    for item in written(tmp_path, result(), [header]):
        made = pydicom.dcmread(item.path)
        for required in OPTIONAL[:9]:
            assert required in made


@pytest.mark.parametrize(
    ("keyword", "rubbish", "kept"),
    [
        ("PatientBirthDate", b"00000000", ""),
        ("PatientBirthDate", b"19.3.40 ", ""),
        ("PatientSex", b"female", ""),
        ("PatientAge", b"62", None),
        ("PatientWeight", b"12,5", None),
        ("StudyDate", b"20041301", ""),
        ("StudyTime", b"25:99", ""),
        ("StudyTime", b"1830", "1830"),
        ("StudyTime", b"183059.123456", "183059.123456"),
        ("PatientID", b"A\\B", ["A", "B"]),
        ("PatientID", b"P" * 80, "P" * 80),
        ("PatientName", b"N" * 200, "N" * 200),
        ("AccessionNumber", b"0123456789ABCDEF01", "0123456789ABCDEF01"),
        ("ImagerPixelSpacing", b"x\\y", None),
        ("ImagerPixelSpacing", b"0.1", None),
        ("PatientOrientation", b"L\\", None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # from reading the result back, to look at it
def test_rubbish_is_left_out_and_identity_is_kept(
    keyword: str, rubbish: bytes, kept: str | list[str] | None, tmp_path: Path
) -> None:
    header = source(PatientAge="005Y", PatientWeight="20")
    with_bytes(header, keyword, rubbish)
    made = report(tmp_path, result(), [header])
    assert made.get(keyword) == kept


@given(
    values=st.dictionaries(
        st.sampled_from([*OPTIONAL, "SpecificCharacterSet", "PatientAge", "TimezoneOffsetFromUTC"]),
        st.binary(max_size=80),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_in_a_header_stop_a_report(values: dict[str, bytes], tmp_path: Path) -> None:
    header = source(PatientAge="005Y")
    for keyword, value in values.items():
        with_bytes(header, keyword, value)
    made = written(tmp_path, result(), [header])
    assert [item.kind for item in made] == ["sr", "sc"]


@pytest.mark.parametrize(
    ("declared", "offset", "date", "time"),
    [
        ("+0900", "+0900", "20261124", "051005"),
        ("-0500", "-0500", "20261123", "151005"),
        (None, None, "20261123", "211005"),
        ("rubbish", None, "20261123", "211005"),
        ("+9900", None, "20261123", "211005"),
    ],
)
@pytest.mark.parametrize("kind", [0, 1])
def test_dates_are_in_the_zone_that_the_source_declares(
    declared: str | None, offset: str | None, date: str, time: str, kind: int, tmp_path: Path
) -> None:
    header = source(TimezoneOffsetFromUTC="+0000")
    with_bytes(header, "TimezoneOffsetFromUTC", (declared or "").encode())
    made = pydicom.dcmread(written(tmp_path, result(), [header])[kind].path)
    assert made.get("TimezoneOffsetFromUTC") == offset
    assert (made.ContentDate, made.ContentTime) == (date, time)
    assert (made.StudyDate, made.StudyTime) == ("20261123", "093012")
    # A date-time with an offset of its own says the same moment in any zone.
    moment = made.ContributingEquipmentSequence[0].ContributionDateTime
    assert pydicom.valuerep.DT(moment).timestamp() == pydicom.valuerep.DT("20261123211005+0100").timestamp()


def test_every_image_is_evidence_and_the_accepted_ones_are_the_source(tmp_path: Path) -> None:
    unit = result()
    reason = Reason(code="image_blank")
    rejected = replace(
        unit.images[0], state=State.REJECTED, gate=GateVerdict(verdict=Verdict.REJECT, reasons=(reason,))
    )
    images = (rejected, unit.images[0], rejected)
    made = report(tmp_path, replace(unit, images=images), [source(number=n) for n in (1, 2, 3)])
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence) == 3
    assert len(list(items_under(made, ("111028", "126200", "260753009")))) == 3
    sources = list(items_under(made, ("126010", "125007", "121112")))
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID[-2:] for item in sources} == {".2"}
    assert f"image_blank: {reason.text}" in texts(made)
    assert "3 images judged: 1 accepted by the gate, 2 rejected by the gate" in texts(made)


def test_an_image_that_came_twice_is_named_once(tmp_path: Path) -> None:
    made = report(tmp_path, result(), [source(), source()])
    assert len(list(items_under(made, ("111028", "126200", "260753009")))) == 1


def test_an_image_with_a_uid_out_of_form_is_still_referred_to(tmp_path: Path) -> None:
    header = source()
    with_bytes(header, "SOPInstanceUID", b"999.01.2")
    files = written(tmp_path, result(), [header])
    assert all(b"999.01.2" in item.path.read_bytes() for item in files)


@pytest.mark.parametrize("evidence", [[], [source(), source(number=2, StudyInstanceUID="1.2.3")]])
def test_a_report_needs_images_of_one_study(evidence: list[Dataset], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one study"):
        written(tmp_path, result(), evidence)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_result_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"):
        written(tmp_path, result(State.FAILED))


def test_the_settings_say_what_is_written(tmp_path: Path) -> None:
    assert [item.kind for item in written(tmp_path, result(), report=Report(picture=False))] == ["sr"]
    assert written(tmp_path, result(State.DEFERRED), report=Report(deferred=False)) == []
    assert written(tmp_path, result(State.REJECTED), report=Report(rejected=False)) == []


def test_nothing_but_the_finished_files_is_left(tmp_path: Path) -> None:
    objects = written(tmp_path, result())
    assert sorted(tmp_path.iterdir()) == sorted(item.path for item in objects)
    for item in objects:
        made = pydicom.dcmread(item.path)
        assert made.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert (made.SOPClassUID, made.SOPInstanceUID) == (item.sop_class_uid, item.sop_instance_uid)


def test_our_own_results_are_known_and_others_are_not(tmp_path: Path) -> None:
    for item in written(tmp_path, result()):
        made = pydicom.dcmread(item.path)
        assert is_own_result(made)
        made.Manufacturer = "Acme"
        assert not is_own_result(made)
    assert not is_own_result(source())
    assert not is_own_result(source(Manufacturer="Stepwedge"))


@pytest.mark.parametrize("value", [None, b""])
def test_a_manufacturer_of_the_same_name_without_our_mark_is_not_us(value: object) -> None:
    header = source(Manufacturer="Stepwedge")
    tag = Tag("ContributingEquipmentSequence")
    header[tag] = DataElement(tag, "UN", value)
    assert not is_own_result(header)
