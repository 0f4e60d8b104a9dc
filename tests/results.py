"""Results of units of work, and studies to report on, for tests of what is written and sent."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset, FileMetaDataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from stepwedge.dicom.report import NodeIdentity, PlacedHeat, Predecessor, ReportObject, write_report
from stepwedge.manifest import Input, RangePresentation
from stepwedge.records import (
    Code,
    Costs,
    Decision,
    Finding,
    FloatArray,
    GateVerdict,
    Header,
    HeatMap,
    ImageResult,
    ModelReference,
    PolicyReference,
    Reason,
    State,
    Thresholds,
    UnitResult,
    Verdict,
)
from stepwedge.settings import Report

NODE = NodeIdentity(node="5a" * 16, ae_title="STEPWEDGE", software_version="0.1.0", institution="Test Hospital")
PREDECESSOR = Predecessor(
    study_uid="1.2.826.0.1.1",
    series_uid="1.2.826.0.1.2",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
    sop_instance_uid="1.2.826.0.1.3",
    revision=1,
)
# The names of PS3.5 annexes H and I, and one without a declared character set.
NAMES = {
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "japanese-kana": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "greek": ("ISO_IR 126", "Διονυσιος"),
    "latin": ("ISO_IR 100", "Buc^Jérôme"),
    "utf-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东="),
    "ascii": (None, "Adams^John Robert Quincy^^Rev.^B.A. M.Div."),
}


def finding(
    decision: Decision = Decision.ACT, *, name: str = "pneumonia", probability: float = 0.93, decided: bool = True
) -> Finding:
    """An answer for one finding."""
    return Finding(
        name=name,
        code=Code(value="233604007", scheme="SCT", meaning=name.capitalize()),
        score=2.6,
        probability=probability,
        prevalence=0.08,
        decision=decision,
        thresholds=Thresholds(clear_below=0.11, act_from=0.62) if decided else None,
        costs=Costs(miss=10.0, false_alarm=1.0, deferral=0.4) if decided else None,
        calibration="sigmoid",
    )


def result(
    state: State = State.REPORTED, *, revision: int = 1, demonstration: bool = True, created_at: str | None = None
) -> UnitResult:
    """A result in a state, with the findings or reasons that belong to it."""
    reasons = {
        State.DEFERRED: (Reason(code="uncertain", detail="pneumonia"), Reason(code="age_missing")),
        State.REJECTED: (Reason(code="image_truncated", detail="38 % of the rows"), Reason(code="image_saturated")),
    }.get(state, ())
    verdict = {State.REJECTED: Verdict.REJECT, State.DEFERRED: Verdict.DEFER}.get(state, Verdict.ACCEPT)
    findings = {
        State.REPORTED: (finding(), finding(Decision.NONE, name="bacterial", probability=0.4, decided=False)),
        State.DEFERRED: (finding(Decision.DEFER, probability=0.3517),),
    }.get(state, ())
    image = ImageResult(
        instance="0" * 32,
        state=state,
        reasons=reasons,
        header=Header(modality="DX"),
        gate=GateVerdict(verdict=verdict, reasons=reasons),
        findings=findings,
        provider="CPUExecutionProvider",
    )
    return UnitResult(
        unit="unit",
        study="study",
        revision=revision,
        state=state,
        reasons=reasons,
        findings=findings,
        images=(image,),
        model=ModelReference(name="chest-pneumonia", version="1.2.0", digest="1a2b3c4d" * 8),
        policy=PolicyReference(name="site-default", version="3", digest="9f8e7d6c" * 8, demonstration=demonstration),
        created_at=created_at or "2026-11-23T21:10:05.123+01:00",
    )


def with_findings(base: UnitResult, *findings: Finding) -> UnitResult:
    """The same result with other findings."""
    return replace(base, findings=findings)


def source(
    *, charset: str | list[str] | None = "ISO_IR 100", name: str = "Doe^Jane", number: int = 1, **values: object
) -> Dataset:
    """The header of a chest radiograph as it is read back from a file; a value of None removes an element."""
    dataset = Dataset()
    if charset is not None:
        dataset.SpecificCharacterSet = charset
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{number}"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.10.2"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.10.3.{number}"
    dataset.Modality = "DX"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientName = name
    dataset.PatientID = "PID-4711"
    dataset.PatientBirthDate = "20210304"
    dataset.PatientSex = "F"
    dataset.StudyDate = "20261123"
    dataset.StudyTime = "093012"
    dataset.StudyID = "S-1"
    dataset.AccessionNumber = "ACC-1"
    dataset.ReferringPhysicianName = "House^Gregory"
    dataset.PatientOrientation = ["L", "F"]
    dataset.ImagerPixelSpacing = [0.143, 0.143]
    dataset.Rows, dataset.Columns = 2000, 1800
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
    for keyword, value in values.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return read_back(dataset)


def read_back(dataset: Dataset) -> Dataset:
    """A data set as it comes out of a file: its elements not yet interpreted."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def with_bytes(header: Dataset, keyword: str, value: bytes) -> None:
    """Put bytes into a header as a sender might, whether or not they mean anything."""
    tag = Tag(keyword)
    header[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def picture() -> FloatArray:
    """An image to show, (rows, columns), 0…1."""
    return np.linspace(0.0, 1.0, 300 * 256, dtype=np.float32).reshape(300, 256)


def heat(image: Dataset | None = None, *, finding: str = "pneumonia", values: FloatArray | None = None) -> PlacedHeat:
    """A heat map of 4 × 4 places, by default hot in the second row and third column, on an image fitted by padding."""
    if values is None:
        values = np.zeros((4, 4), np.float32)
        values[1, 2] = 1.0
    spec = Input(name="image", rows=128, columns=128, presentation=RangePresentation(kind="range"), fit="pad")
    made = HeatMap(finding=finding, method="activation_map", values=values)
    return PlacedHeat(heat=made, image=source() if image is None else image, spec=spec)


def written(
    folder: Path,
    unit: UnitResult,
    evidence: list[Dataset] | None = None,
    *,
    image: FloatArray | None = None,
    report: Report | None = None,
    predecessor: Predecessor | None = None,
    heat: PlacedHeat | None = None,
) -> list[ReportObject]:
    """The objects of a result, written into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_report(
        folder,
        unit,
        [source()] if evidence is None else evidence,
        image,
        node=NODE,
        report=report or Report(),
        predecessor=predecessor,
        heat=heat,
    )
