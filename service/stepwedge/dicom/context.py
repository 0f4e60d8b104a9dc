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

# Series Number (0020,0011) of our series: high, so that they sort behind the images of a study.
_SERIES_NUMBERS = {"sr": 9801, "sc": 9802}
_MODALITIES = {"sr": "SR", "sc": "OT"}
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
    """A file to deliver. ``kind`` is ``sr`` (structured report) or ``sc`` (picture)."""

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
    study_uid = element_text(source, "StudyInstanceUID")
    set_text(made, "StudyInstanceUID", study_uid)
    of_result = {
        "node": node.node,
        "study_uid": study_uid,
        "revision": result.revision,
        "model_digest": result.model.digest,
        "policy_digest": result.policy.digest,
    }
    made.SOPClassUID = sop_class_uid
    made.SOPInstanceUID = result_uid(**of_result, kind=kind)  # type: ignore[arg-type]
    made.SeriesInstanceUID = result_uid(**of_result, kind=f"series-{kind}")  # type: ignore[arg-type]
    made.SeriesNumber = _SERIES_NUMBERS[kind]
    made.InstanceNumber = result.revision
    made.Modality = _MODALITIES[kind]
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
    item.ContributionDescription = "Analysed the images and wrote this object"
    made.ContributingEquipmentSequence = [item]


def floats(source: Dataset, keyword: str, count: int) -> list[float]:
    """Exactly ``count`` decimal strings as numbers; empty when they are not all there."""
    values = element_values(source, keyword)
    if len(values) != count or not all(_FORMS["DS"].fullmatch(value) for value in values):
        return []
    return [float(value) for value in values]
