"""What every object that we write has in common: patient, study, series, equipment, dates, and the file itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from stepwedge.dicom.identifiers import derived_uid, device_uid, result_uid
from stepwedge.dicom.texts import element_text, element_values
from stepwedge.dicom.wording import series_description
from stepwedge.records import UnitResult

MANUFACTURER = "Stepwedge"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where a kind of object stands in the study."""

    series: str  # the kind that names the series
    series_number: int  # (0020,0011), high: our series sort behind the images of a study
    modality: str
    instance_number: int  # (0020,0013) in the series, which every revision has anew


# The pictures of a result are one series: a reader leafs from the image to the same image with its heat map.
_PLACES = {
    "sr": _Place(series="sr", series_number=9801, modality="SR", instance_number=1),
    "sc": _Place(series="sc", series_number=9802, modality="OT", instance_number=1),
    "heat": _Place(series="sc", series_number=9802, modality="OT", instance_number=2),
    "pr": _Place(series="pr", series_number=9803, modality="PR", instance_number=1),
}
_IMPLEMENTATION_UID = derived_uid("implementation")
_PROCESSING_EQUIPMENT = ("109102", "DCM", "Processing Equipment")  # CID 7005
_LONG_STRING, _SHORT_STRING = 64, 16  # characters (PS3.5 section 6.2)

# Patient, General Study and Patient Study modules (PS3.3 sections C.7.1.1, C.7.2.1, C.7.2.2). The first two are
# copied as they are, whatever their length: a PACS finds the patient and the study by them.
_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "PatientAge", "PatientSize", "PatientWeight")
# Values outside these forms are left out: they carry no identity, and nobody can read a date such as 00000000.
_FORMS = {
    "DA": re.compile(r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"),
    "TM": re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9]|60)?(?<=[0-9]{6})(\.[0-9]{1,6})?|[0-5][0-9])?"),
    "CS": re.compile(r"[A-Z0-9_ ]{1,16}"),
    "AS": re.compile(r"[0-9]{3}[DWMY]"),
    "DS": re.compile(r"(?=.{1,16}$)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
# A UID that is not quite one, e.g. with a leading zero, is still how a PACS knows the image.
_REFERABLE = re.compile(r"[0-9.]{1,64}")
_OFFSET = re.compile(r"([+-])(0[0-9]|1[0-4])([0-5][0-9])")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeIdentity:
    """Who writes."""

    node: str  # identifier of the node
    ae_title: str
    software_version: str
    institution: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predecessor:
    """The structured report of an earlier revision, which a new one supersedes."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    revision: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportObject:
    """A file to deliver.

    ``kind`` is ``sr`` (structured report), ``sc`` (picture), ``heat`` (picture with the heat map) or ``pr``
    (presentation state with the heat map's contours).
    """

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: Path


def set_text(dataset: Dataset, keyword: str, value: str) -> None:
    """Set an element without judging its value: a value of the source may be out of form, and stays so."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    dataset[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)


def usable_evidence(evidence: Sequence[Dataset]) -> list[Dataset]:
    """The headers that can be referred to, each instance once. Raises ValueError if there are none, or two studies."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    by_uid = {
        element_text(item, "SOPInstanceUID"): item
        for item in reversed(evidence)
        if all(_REFERABLE.fullmatch(element_text(item, keyword)) for keyword in keywords)
    }
    studies = {element_text(item, "StudyInstanceUID") for item in by_uid.values()}
    if len(studies) != 1:
        raise ValueError(f"a report is about the images of one study; the evidence holds {len(studies)} studies")
    return list(reversed(by_uid.values()))


def reference(item: Dataset) -> Dataset:
    """The SOP class and instance of an image, as an item of a reference sequence (PS3.3 section 10.8)."""
    referenced = Dataset()
    set_text(referenced, "ReferencedSOPClassUID", element_text(item, "SOPClassUID"))
    set_text(referenced, "ReferencedSOPInstanceUID", element_text(item, "SOPInstanceUID"))
    return referenced


def by_series(evidence: Sequence[Dataset]) -> dict[str, list[Dataset]]:
    """References to images, by their series."""
    series: dict[str, list[Dataset]] = {}
    for item in evidence:
        series.setdefault(element_text(item, "SeriesInstanceUID"), []).append(reference(item))
    return series


def hierarchy(study_uid: str, series: dict[str, list[Dataset]]) -> Dataset:
    """References by study and series (PS3.3 table C.17-3)."""
    study = Dataset()
    set_text(study, "StudyInstanceUID", study_uid)
    study.ReferencedSeriesSequence = []
    for series_uid, references in series.items():
        item = Dataset()
        set_text(item, "SeriesInstanceUID", series_uid)
        item.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(item)
    return study


def new_object(kind: str, sop_class_uid: str, result: UnitResult, source: Dataset, node: NodeIdentity) -> Dataset:
    """An object of a result with everything but its content.

    Dates and times are in the source's time zone where its header declares one, and then so does ours: (0008,0201)
    holds for every date and time of an object (PS3.3 section C.12.1.1.8), the copied ones of the study among them.
    Where the source declares none, they are in the node's own zone and (0008,0201) is left out, because nothing is
    known of the copied ones. Date-times with an offset of their own are right either way.
    """
    made = Dataset()
    set_text(made, "SpecificCharacterSet", "ISO_IR 192")
    _copy_patient_and_study(source, made)
    set_text(made, "StudyInstanceUID", element_text(source, "StudyInstanceUID"))
    place = _PLACES[kind]
    made.SOPClassUID = sop_class_uid
    made.SOPInstanceUID = instance_uid(kind, result, source, node)
    made.SeriesInstanceUID = series_uid(kind, result, source, node)
    made.SeriesNumber = place.series_number
    made.InstanceNumber = place.instance_number
    made.Modality = place.modality
    made.SeriesDescription = _cut(series_description(result), _LONG_STRING)
    created, offset = created_at(result, source)
    if offset:
        made.TimezoneOffsetFromUTC = offset
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(made, keyword, created.strftime("%Y%m%d"))
    for keyword in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(made, keyword, created.strftime("%H%M%S"))
    _add_equipment(made, result, node, created)
    return made


def instance_uid(kind: str, result: UnitResult, source: Dataset, node: NodeIdentity) -> str:
    """The UID that a kind of object, or what is tracked under it, has in a result."""
    return result_uid(
        node=node.node,
        study_uid=element_text(source, "StudyInstanceUID"),
        revision=result.revision,
        model_digest=result.model.digest,
        policy_digest=result.policy.digest,
        kind=kind,
    )


def series_uid(kind: str, result: UnitResult, source: Dataset, node: NodeIdentity) -> str:
    """The UID of the series that a kind of object has in a result."""
    return instance_uid(f"series-{_PLACES[kind].series}", result, source, node)


def created_at(result: UnitResult, source: Dataset) -> tuple[datetime, str]:
    """When the result was made, and the offset that the source declares ("" for none), which it is then given in."""
    created = datetime.fromisoformat(result.created_at)
    found = _OFFSET.fullmatch(element_text(source, "TimezoneOffsetFromUTC"))
    if found is None:
        return created, ""
    minutes = int(found[2]) * 60 + int(found[3])
    return created.astimezone(timezone(timedelta(minutes=-minutes if found[1] == "-" else minutes))), found[0]


def write_object(made: Dataset, path: Path, node: NodeIdentity) -> None:
    """Write a Part 10 file, Explicit VR Little Endian, that is there whole or not at all whenever the power fails."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.ImplementationClassUID = UID(_IMPLEMENTATION_UID)
    made.file_meta.ImplementationVersionName = _cut(f"STEPWEDGE {node.software_version}", _SHORT_STRING)
    made.file_meta.SourceApplicationEntityTitle = node.ae_title
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as out:
        made.save_as(out, enforce_file_format=True)
        out.flush()
        os.fsync(out.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_own_result(dataset: Dataset) -> bool:
    """Whether an object is a result of Stepwedge, this node's or another's: those start no work.

    Ours name Stepwedge as the manufacturer and as the processing equipment (PS3.3 section C.12.1).
    """
    if element_text(dataset, "Manufacturer") != MANUFACTURER:
        return False
    return any(
        element_text(item, "Manufacturer") == MANUFACTURER
        and any(
            element_text(code, "CodeValue") == _PROCESSING_EQUIPMENT[0]
            for code in _items(item, "PurposeOfReferenceCodeSequence")
        )
        for item in _items(dataset, "ContributingEquipmentSequence")
    )


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none where the element is missing or is no sequence."""
    value = dataset.get(keyword)
    return value if isinstance(value, DicomSequence) else []


def _cut(text: str, length: int) -> str:
    """A text of ours cut to a length in bytes: some receivers count bytes where the standard counts characters."""
    return text.encode()[:length].decode(errors="ignore").rstrip()


def _copy_patient_and_study(source: Dataset, made: Dataset) -> None:
    for keyword in (*_REQUIRED, *_OPTIONAL):
        value = element_text(source, keyword)
        form = _FORMS.get(dictionary_VR(keyword))
        if form is not None and form.fullmatch(value) is None:
            value = ""
        if value or keyword in _REQUIRED:
            set_text(made, keyword, value)


def _add_equipment(made: Dataset, result: UnitResult, node: NodeIdentity, created: datetime) -> None:
    """General Equipment module (PS3.3 section C.7.5.1), and the mark by which ``is_own_result`` knows our objects."""
    model = _cut(f"{result.model.name} {result.model.version}", _LONG_STRING)
    made.Manufacturer = MANUFACTURER
    made.ManufacturerModelName = model
    made.DeviceSerialNumber = _cut(node.node, _LONG_STRING)
    made.SoftwareVersions = _cut(node.software_version, _LONG_STRING)
    made.StationName = _cut(node.ae_title, _SHORT_STRING)
    if node.institution:
        made.InstitutionName = _cut(node.institution, _LONG_STRING)
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = _PROCESSING_EQUIPMENT
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = model
    item.SoftwareVersions = _cut(node.software_version, _LONG_STRING)
    item.DeviceSerialNumber = _cut(node.node, _LONG_STRING)
    item.DeviceUID = device_uid(node.node)
    # The one date-time of the object with an offset of its own.
    item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = (
        f"Analysed the images and wrote this object, revision {result.revision}; model package SHA-256 "
        f"{result.model.digest}; policy {result.policy.name} {result.policy.version} SHA-256 {result.policy.digest}"
    )
    made.ContributingEquipmentSequence = [item]


def numbers(source: Dataset, keyword: str) -> list[float]:
    """Decimal strings as numbers; empty when one of them is none."""
    values = element_values(source, keyword)
    return [float(value) for value in values] if all(map(_FORMS["DS"].fullmatch, values)) else []


def floats(source: Dataset, keyword: str, count: int) -> list[float]:
    """Exactly ``count`` decimal strings as numbers; empty when they are not all there."""
    found = numbers(source, keyword)
    return found if len(found) == count else []
