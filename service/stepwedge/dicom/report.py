"""The structured report of a result, and all the objects of a result written into a folder.

A Comprehensive SR with the Measurement Report template (PS3.16 TID 1500), in the study that was analysed: summary,
image library, one measurement group (TID 1501) for the result as a whole and, where there is a result, one for each
finding. Comprehensive 3D SR is not used: dcmtk's ``storescu`` does not propose it by default.

Concepts of our own are listed in ``dicom.concepts``. Everything else has a standard code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from highdicom import sr
from highdicom.sr.enum import RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from stepwedge.dicom import wording
from stepwedge.dicom.concepts import SCHEME, own
from stepwedge.dicom.context import (
    MANUFACTURER,
    NodeIdentity,
    Predecessor,
    ReportObject,
    by_series,
    created_at,
    floats,
    hierarchy,
    instance_uid,
    is_own_result,
    new_object,
    reference,
    usable_evidence,
    write_object,
)
from stepwedge.dicom.heatmap import PlacedHeat, explained_finding, heat_object
from stepwedge.dicom.identifiers import device_uid
from stepwedge.dicom.picture import picture_object
from stepwedge.dicom.presentation import presentation_object, state_reference
from stepwedge.dicom.texts import element_count, element_text, element_values
from stepwedge.records import Decision, Finding, FloatArray, ImageResult, State, UnitResult, Verdict
from stepwedge.settings import Report

__all__ = ["NodeIdentity", "PlacedHeat", "Predecessor", "ReportObject", "is_own_result", "write_report"]

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"

_PRESENCE = Code("705057003", "SCT", "Presence")
_PRESENCES = {
    Decision.ACT: Code("52101004", "SCT", "Present"),
    Decision.CLEAR: Code("272519000", "SCT", "Absent"),
    Decision.DEFER: Code("82334004", "SCT", "Indeterminate"),
    Decision.INCONCLUSIVE: Code("82334004", "SCT", "Indeterminate"),
}
_DECISIONS = {decision: f"decision-{decision}" for decision in Decision} | {Decision.INCONCLUSIVE: "decision-inconcl"}
_TAMPER = {"pass": "tamper-pass", "flagged": "tamper-flagged", "not_fitted": "tamper-unfitted"}
_ENGLISH = Code("en", "RFC5646", "English")
_CHEST = Code("816094009", "SCT", "Chest")
_PIXELS = Code("{pixels}", "UCUM", "Pixels")
_CHEST_RADIOGRAPH = Code("399208008", "SCT", "Plain chest X-ray")
_SOURCE = Code("260753009", "SCT", "Source")
_IMAGING = Code("363679005", "SCT", "Imaging procedure")
_PROCEDURES = {  # by Modality (0008,0060)
    "CR": Code("363680008", "SCT", "Radiographic imaging procedure"),
    "DX": Code("363680008", "SCT", "Radiographic imaging procedure"),
    "CT": Code("77477000", "SCT", "Computed tomography"),
    "MR": Code("113091000", "SCT", "Magnetic resonance imaging"),
    "MG": Code("71651007", "SCT", "Mammography"),
    "US": Code("16310003", "SCT", "Diagnostic ultrasonography"),
}
_RADIOGRAPHY = {"CR", "DX", "MG", "IO", "PX", "RF", "RG", "XA"}
# highdicom warns of a UID that is out of form, and quotes it: it gets this one, and the true one takes its place.
_STAND_IN = "2.25.1"
_MOST_SOURCES = 16  # images that a measurement group names; the image library names all
_FIGURES = 6  # significant digits of a number in the report: more than any of them means


def write_report(
    folder: Path,
    result: UnitResult,
    evidence: Sequence[Dataset],
    picture: FloatArray | None,
    *,
    node: NodeIdentity,
    report: Report,
    predecessor: Predecessor | None,
    heat: PlacedHeat | None = None,
) -> list[ReportObject]:
    """Write the objects of a result; the same inputs give the same bytes.

    Parameters
    ----------
    evidence
        Headers of the images that were judged, all of one study, in the order of ``result.images`` and of the members
        of each.
    picture
        The presented image to show, (rows, columns), 0…1, or None.
    heat
        The heat map of the image in ``picture``, or None. It is left out where the result says nothing that it could
        explain: see ``heatmap.explained_finding``.

    Returns
    -------
    The files in the order of delivery: report, picture, picture with the heat map, presentation state; none where the
    settings want no report for the state.

    Raises
    ------
    ValueError
        If the state has no report, or the evidence does not hold usable images of exactly one study.
    """
    if result.state not in wording.HEADLINES:
        raise ValueError(f"a result in state {result.state} has no report")
    if not {State.DEFERRED: report.deferred, State.REJECTED: report.rejected}.get(result.state, True):
        return []
    usable = usable_evidence(evidence)
    used = _used(result, evidence, usable)
    explaining: list[tuple[str, Dataset]] = []
    if heat is not None and picture is not None and explained_finding(result, heat) is not None:
        explaining.append(("heat", heat_object(result, usable, picture, heat, node=node, predecessor=predecessor)))
        state = presentation_object(result, heat, node=node)
        explaining += [("pr", state)] if state is not None else []
    made = [("sr", _report_object(result, usable, used, heat, explaining, node=node, predecessor=predecessor))]
    if report.picture:
        made.append(("sc", picture_object(result, usable, picture, node=node, predecessor=predecessor)))
    return [_write(folder, kind, item, node) for kind, item in (*made, *explaining)]


def _write(folder: Path, kind: str, made: Dataset, node: NodeIdentity) -> ReportObject:
    path = folder / f"{kind}.dcm"
    write_object(made, path, node)
    return ReportObject(
        kind=kind, sop_class_uid=str(made.SOPClassUID), sop_instance_uid=str(made.SOPInstanceUID), path=path
    )


def _used(result: UnitResult, evidence: Sequence[Dataset], usable: Sequence[Dataset]) -> list[Dataset]:
    """The images that the answer comes from: those that the gate let through, else all."""
    verdicts = [image.gate.verdict for image in result.images for _ in image.members or (image.instance,)]
    if len(evidence) != len(verdicts):
        return list(usable)
    accepted = {
        element_text(item, "SOPInstanceUID")
        for item, verdict in zip(evidence, verdicts, strict=True)
        if verdict is Verdict.ACCEPT
    }
    return [item for item in usable if element_text(item, "SOPInstanceUID") in accepted] or list(usable)


def _report_object(
    result: UnitResult,
    evidence: Sequence[Dataset],
    used: Sequence[Dataset],
    heat: PlacedHeat | None,
    explaining: Sequence[tuple[str, Dataset]],
    *,
    node: NodeIdentity,
    predecessor: Predecessor | None,
) -> Dataset:
    """The Comprehensive SR (PS3.3 section A.35.3). ``explaining`` are the objects that show where it comes from."""
    made = new_object("sr", COMPREHENSIVE_SR, result, evidence[0], node)
    made.ReferencedPerformedProcedureStepSequence = []
    made.PerformedProcedureCodeSequence = []
    made.CompletionFlag = "COMPLETE"
    made.VerificationFlag = "UNVERIFIED"
    made.PreliminaryFlag = "FINAL"
    made.CurrentRequestedProcedureEvidenceSequence = [
        hierarchy(element_text(evidence[0], "StudyInstanceUID"), by_series([*evidence, *(i for _, i in explaining)]))
    ]
    if predecessor is not None:
        earlier = Dataset()
        earlier.ReferencedSOPClassUID = predecessor.sop_class_uid
        earlier.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
        made.PredecessorDocumentsSequence = [hierarchy(predecessor.study_uid, {predecessor.series_uid: [earlier]})]
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Stepwedge concepts"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    made.CodingSchemeIdentificationSequence = [scheme]
    shown = _explaining_items(heat, explaining)
    for element in _content(result, evidence, used, shown, node=node, predecessor=predecessor):
        made[element.tag] = element
    created, _ = created_at(result, evidence[0])
    made.ObservationDateTime = created.strftime("%Y%m%d%H%M%S%z")
    return made


def _content(
    result: UnitResult,
    evidence: Sequence[Dataset],
    used: Sequence[Dataset],
    shown: Sequence[Any],
    *,
    node: NodeIdentity,
    predecessor: Predecessor | None,
) -> Dataset:
    """The content tree: TID 1500, with the summary and what explains it put before the image library."""
    chest = _shows_chest(evidence)
    uid = _tracking_uids(result, evidence[0], node)
    groups = [_result_group(result, used, uid)]
    if result.state is State.REPORTED:
        groups += [_finding_group(finding, result, used, uid, chest=chest) for finding in result.findings]
    tree = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer(result, node)),
        procedure_reported=_procedure(element_text(evidence[0], "Modality"), chest=chest),
        imaging_measurements=groups,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(_ENGLISH),
    )
    root: Dataset = tree[0]
    content = root.ContentSequence
    library = len(content) - 1  # before Imaging Measurements, the last
    summary = _summary(result, predecessor)
    content[library:library] = [*summary, *shown, _image_library(evidence)]
    return root


def _observer(result: UnitResult, node: NodeIdentity) -> Any:
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid(node.node),
            name=f"{MANUFACTURER.upper()} {node.ae_title}",
            manufacturer_name=MANUFACTURER,
            model_name=f"{result.model.name} {result.model.version} (Stepwedge {node.software_version})",
            serial_number=node.node,
        ),
    )


def _summary(result: UnitResult, predecessor: Predecessor | None) -> list[Any]:
    """What a person reads first. TID 1500 is extensible: these rows are in addition to it."""
    lines = [(codes.DCM.Comment, wording.DEMONSTRATION)] if result.policy.demonstration else []
    lines += [(codes.DCM.Summary, line) for line in wording.summary_lines(result)]
    supersedes = predecessor.revision if predecessor else None
    lines += [
        (codes.DCM.Comment, wording.images_line(result)),
        (own("revision"), wording.revision_line(result, supersedes)),
        (codes.DCM.Comment, f"Made by software at {result.created_at}, not verified by a person"),
    ]
    return [_text(name, line) for name, line in lines]


def _image_library(evidence: Sequence[Dataset]) -> Any:
    """The images (TID 1600, 1601, 1602, 1603). What a header lacks is left out."""
    library = _container(codes.DCM.ImageLibrary)
    group = _container(codes.DCM.ImageLibraryGroup)
    for item in evidence:
        image = _image_item(_SOURCE, reference(item))
        image.ContentSequence = sr.ContentSequence(_descriptors(item))
        group.ContentSequence.append(image)
    library.ContentSequence.append(group)
    return library


def _explaining_items(heat: PlacedHeat | None, explaining: Sequence[tuple[str, Dataset]]) -> list[Any]:
    """The heat map, and the image under the presentation state, as items of the report."""
    items = []
    for kind, made in explaining:
        if kind == "heat":
            items.append(_image_item(own("heat-map"), reference(made)))
        elif heat is not None:
            items.append(_image_item(own("heat-map-state"), state_reference(heat.image, str(made.SOPInstanceUID))))
    return items


def _image_item(name: Code, referenced: Dataset) -> Any:
    image = sr.ImageContentItem(
        name=name,
        referenced_sop_class_uid=_STAND_IN,
        referenced_sop_instance_uid=_STAND_IN,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )
    image.ReferencedSOPSequence = [referenced]
    return image


def _descriptors(item: Dataset) -> Iterable[Any]:
    context = RelationshipTypeValues.HAS_ACQ_CONTEXT
    modality = element_text(item, "Modality")
    yield sr.CodeContentItem(name=codes.DCM.Modality, value=_modality(modality), relationship_type=context)
    for name, keyword in ((codes.DCM.PixelDataRows, "Rows"), (codes.DCM.PixelDataColumns, "Columns")):
        size = element_count(item, keyword)
        if size is not None:
            yield sr.NumContentItem(name=name, value=size, unit=_PIXELS, relationship_type=context)
    if modality not in _RADIOGRAPHY:
        return
    orientation = element_values(item, "PatientOrientation")
    if len(orientation) == 2 and all(orientation):
        names = (codes.DCM.PatientOrientationRow, codes.DCM.PatientOrientationColumn)
        for name, value in zip(names, orientation, strict=True):
            yield sr.TextContentItem(name=name, value=value, relationship_type=context)
    spacing = floats(item, "ImagerPixelSpacing", 2)
    if spacing:
        names = (codes.DCM.HorizontalPixelSpacing, codes.DCM.VerticalPixelSpacing)
        for name, number in zip(names, reversed(spacing), strict=True):
            yield sr.NumContentItem(
                name=name, value=_rounded(number), unit=codes.UCUM.Millimeter, relationship_type=context
            )


def _modality(value: str) -> Code:
    """The modality as a code (CID 29, whose code values are the terms of Modality)."""
    for code in (getattr(codes.cid29, keyword) for keyword in codes.cid29.dir()):
        if code.value == value:
            return code  # type: ignore[no-any-return]
    return Code("OT", "DCM", "Other Modality")


def _result_group(result: UnitResult, used: Sequence[Dataset], uid: dict[str, str]) -> Any:
    """The result as a whole: its state, the verdicts of the gate and the tamper check, the reasons. It has no NUM."""
    best = _best(result.images)
    verdict = best.gate.verdict if best else Verdict.REJECT
    evaluations = [
        sr.QualitativeEvaluation(name=own("state"), value=own(f"state-{result.state}")),
        sr.QualitativeEvaluation(name=own("gate"), value=own(f"gate-{verdict}")),
    ]
    lines: list[tuple[Code, str]] = []
    if best is not None and verdict is not Verdict.REJECT:
        tamper = "flagged" if any(i.tamper.verdict == "flagged" for i in result.images) else best.tamper.verdict
        evaluations.append(sr.QualitativeEvaluation(name=own("tamper"), value=own(_TAMPER[tamper])))
        if best.tamper.measure is not None and best.tamper.threshold is not None:
            lines += [
                (own("tamper-measure"), f"{best.tamper.measure:.{_FIGURES}g}"),
                (own("tamper-threshold"), f"{best.tamper.threshold:.{_FIGURES}g}"),
            ]
    reasons = result.reasons or tuple(dict.fromkeys(reason for image in result.images for reason in image.gate.reasons))
    lines += [(own("reason"), f"{reason.code}: {reason.text}") for reason in dict.fromkeys(reasons)]
    if best is not None:
        lines += [(own("gate-measure"), f"{name}: {value:.{_FIGURES}g}") for name, value in best.gate.measures.items()]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid[""], identifier=f"{result.model.name} result"),
        algorithm_id=_algorithm(result),
        qualitative_evaluations=evaluations,
        source_images=_sources(used),
    )
    group[0].ContentSequence.extend(_text(name, line) for name, line in lines)
    return group


def _best(images: Sequence[ImageResult]) -> ImageResult | None:
    """The first of those that the gate judged most favourably: it is what answers, or would have."""
    return min(images, key=lambda image: image.gate.verdict.severity, default=None)


def _finding_group(
    finding: Finding, result: UnitResult, used: Sequence[Dataset], uid: dict[str, str], *, chest: bool
) -> Any:
    """One finding: the probability, what it was held against, and what follows."""
    numbers: list[tuple[Code, float]] = []
    if finding.decision is not Decision.INCONCLUSIVE:
        # A figure that too little evidence stands behind would be read as if it were one.
        numbers += [(codes.DCM.Probability, finding.probability), (own("prevalence"), finding.prevalence)]
    if finding.thresholds is not None:
        numbers += [
            (own("clear-below"), finding.thresholds.clear_below),
            (own("act-from"), finding.thresholds.act_from),
        ]
    if finding.costs is not None:
        numbers += [
            (own("cost-miss"), finding.costs.miss),
            (own("cost-false-alarm"), finding.costs.false_alarm),
            (own("cost-deferral"), finding.costs.deferral),
        ]
    evaluations = [sr.QualitativeEvaluation(name=own("decision"), value=own(_DECISIONS[finding.decision]))]
    if finding.decision in _PRESENCES:
        evaluations.append(sr.QualitativeEvaluation(name=_PRESENCE, value=_PRESENCES[finding.decision]))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid[finding.name], identifier=finding.name),
        finding_type=Code(finding.code.value, finding.code.scheme, wording.label(finding)),
        finding_sites=[sr.FindingSite(anatomic_location=_CHEST)] if chest else None,
        algorithm_id=_algorithm(result, calibration=finding.calibration),
        measurements=[
            sr.Measurement(name=name, value=_rounded(value), unit=codes.UCUM.NoUnits) for name, value in numbers
        ],
        qualitative_evaluations=evaluations,
        source_images=_sources(used),
    )


def _algorithm(result: UnitResult, calibration: str = "") -> Any:
    """TID 4019: which model gave the answer, under which policy."""
    providers = dict.fromkeys(image.provider for image in result.images if image.provider)
    return sr.AlgorithmIdentification(
        name=result.model.name,
        version=result.model.version,
        parameters=[
            f"package digest SHA-256 {result.model.digest}",
            f"policy {result.policy.name} {result.policy.version}",
            f"policy digest SHA-256 {result.policy.digest}",
            f"policy {'not approved: demonstration' if result.policy.demonstration else 'approved'}",
            *(f"execution provider {provider}" for provider in providers),
            *([f"calibration {calibration}"] if calibration else []),
        ],
    )


def _tracking_uids(result: UnitResult, source: Dataset, node: NodeIdentity) -> dict[str, str]:
    """Tracking UIDs by finding; that of the result as a whole under the empty name."""
    names = ("", *(finding.name for finding in result.findings))
    return {name: instance_uid(f"tracking-{name}", result, source, node) for name in names}


def _sources(used: Sequence[Dataset]) -> list[Any]:
    """The images of a measurement group; of a long series some, at even distances."""
    sources = []
    step = max(1, -(-len(used) // _MOST_SOURCES))
    for item in used[step // 2 :: step]:
        source = sr.SourceImageForMeasurementGroup(
            referenced_sop_class_uid=_STAND_IN, referenced_sop_instance_uid=_STAND_IN
        )
        source.ReferencedSOPSequence = [reference(item)]
        sources.append(source)
    return sources


def _shows_chest(evidence: Sequence[Dataset]) -> bool:
    """Whether every image says that it is of the chest."""
    parts = {element_text(item, "BodyPartExamined").upper() for item in evidence}
    return parts == {"CHEST"}


def _procedure(modality: str, *, chest: bool) -> Code:
    if chest and modality in {"CR", "DX"}:
        return _CHEST_RADIOGRAPH
    return _PROCEDURES.get(modality, _IMAGING)


def _text(name: Code, value: str) -> Any:
    return sr.TextContentItem(name=name, value=value, relationship_type=RelationshipTypeValues.CONTAINS)


def _container(name: Code) -> Any:
    item = sr.ContainerContentItem(name=name, relationship_type=RelationshipTypeValues.CONTAINS)
    item.ContentSequence = sr.ContentSequence()
    return item


def _rounded(value: float) -> float:
    return float(f"{value:.{_FIGURES}g}")
