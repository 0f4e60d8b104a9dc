"""The stages that an image goes through, each from a case to a case, and what they work with.

``pipeline`` has them in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stepwedge import explain
from stepwedge.decision import calibrate, costs
from stepwedge.dicom.geometry import Place
from stepwedge.errors import DecodeError, InferenceRefusedError
from stepwedge.gate import tamper, validity
from stepwedge.gate.content import judge_content
from stepwedge.gate.fitted import Gate, load_gate
from stepwedge.inference.preprocess import normalised, presented, resized, to_plane
from stepwedge.manifest import Package
from stepwedge.policy import Policy
from stepwedge.records import (
    URGENT,
    Decision,
    Finding,
    FloatArray,
    GateVerdict,
    Header,
    HeatMap,
    Image,
    PixelStatistics,
    Reason,
    TamperResult,
    Verdict,
)
from stepwedge.seams import Engine

_PICTURE_SIDE = 1024  # pixels, about what the report's picture shows


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What the stages work with: one model under one policy."""

    package: Package
    engine: Engine
    policy: Policy | None  # None only for `predict` without a policy: then nothing is decided
    gate: Gate = field(default_factory=Gate)  # what is fitted of it
    explain: bool = True  # whether pictures and heat maps are made, for reports
    prints: bool = False  # whether results carry fingerprints of what was decoded and what the model got


def equip(package: Package, engine: Engine, policy: Policy | None, *, explain: bool = True) -> Equipment:
    """The equipment for a model under a policy, with the gate that the policy fitted, or else the package's.

    Raises PackageError for a gate that cannot be read.
    """
    file = (policy.gate_file if policy else None) or package.gate_file
    gate = load_gate(file) if file else Gate()
    return Equipment(package=package, engine=engine, policy=policy, gate=gate, explain=explain)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image on its way."""

    instance: str
    header: Header
    decode: Callable[[], Image]  # raises DecodeError
    gate: GateVerdict = field(default_factory=lambda: GateVerdict(verdict=Verdict.ACCEPT))
    place: Place = field(default_factory=Place)
    image: Image | None = None
    statistics: PixelStatistics | None = None
    inputs: Mapping[str, FloatArray] = field(default_factory=dict)  # by name; the image first, its variants behind it
    class_outputs: NDArray[np.float32] | None = None  # (1 + variants, classes)
    activation_map: NDArray[np.float32] | None = None  # (classes, rows, columns)
    embedding: tuple[float, ...] = ()
    provider: str = ""
    tamper: TamperResult = field(default_factory=TamperResult)
    findings: tuple[Finding, ...] = ()
    heat: HeatMap | None = None
    failure: Reason | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """What a person is shown of a case."""

    picture: FloatArray | None = None  # as presented to the model, (rows, columns) on 0…1
    heat: HeatMap | None = None


def judge_header(case: Case, equipment: Equipment) -> Case:
    """Is this what the model is intended for, as far as the header says?"""
    return replace(case, gate=validity.judge_header(case.header, equipment.package.manifest.intended_use))


def decode_pixels(case: Case, _: Equipment) -> Case:
    """Pixel data to an image."""
    try:
        image = case.decode()
    except DecodeError as error:
        return replace(case, gate=_also_rejected(case.gate, Reason(code=error.code, detail=str(error))))
    return replace(case, image=image, statistics=validity.pixel_statistics(image))


def judge_pixels(case: Case, equipment: Equipment) -> Case:
    """Is this an image that the model can answer for, as far as its structure says?"""
    assert case.image is not None
    assert case.statistics is not None
    verdict = validity.judge_pixels(case.image, case.statistics, equipment.package.manifest.input)
    if verdict.verdict is not Verdict.REJECT and equipment.gate.content is not None:
        verdict = combined(verdict, judge_content(case.image, case.statistics, equipment.gate.content))
    return replace(case, gate=combined(case.gate, verdict))


def preprocess(case: Case, equipment: Equipment) -> Case:
    """The image to the model's input tensors, with the variants that the tamper check wants behind it."""
    assert case.image is not None
    inputs: dict[str, FloatArray] = {}
    for spec in equipment.package.manifest.inputs:
        plane = to_plane(case.image, spec)
        planes = plane[None]
        if equipment.gate.tamper is not None:
            planes = np.concatenate([planes, tamper.variants(plane, equipment.gate.tamper)])
        inputs[spec.name] = normalised(planes, spec)
    return replace(case, inputs=inputs)


def infer(case: Case, equipment: Equipment) -> Case:
    """The model's scores and embedding. Raises InferenceUnavailableError if no server answers."""
    output = equipment.package.manifest.output
    try:
        outputs, provider = equipment.engine.run(case.inputs, urgent=case.header.priority in URGENT)
    except InferenceRefusedError as error:
        return replace(case, failure=Reason(code="inference_refused", detail=str(error)))
    case = replace(case, provider=provider)
    count = len(next(iter(case.inputs.values())))
    shapes: dict[str, tuple[int, ...]] = {output.scores: (count, len(output.classes))}
    shapes |= {name: (count,) for name in (output.embedding, output.activation_map) if name}
    for name, shape in shapes.items():
        values = outputs.get(name)
        if values is None or values.shape[: len(shape)] != shape or not np.isfinite(values).all():
            return replace(case, failure=Reason(code="model_output_invalid", detail=name))
    return replace(
        case,
        class_outputs=outputs[output.scores],
        activation_map=outputs[output.activation_map][0] if output.activation_map else None,
        embedding=tuple(float(v) for v in outputs[output.embedding][0].ravel()) if output.embedding else (),
    )


def judge_tamper(case: Case, equipment: Equipment) -> Case:
    """Does the answer hold under changes that should not matter? Deferred where it does not."""
    check = equipment.gate.tamper
    if check is None or case.class_outputs is None or len(case.class_outputs) == 1:
        return case
    found = tamper.judge_tamper(case.class_outputs, equipment.package.manifest, check)
    case = replace(case, tamper=found)
    if found.verdict != "flagged":
        return case
    suspected = GateVerdict(verdict=Verdict.DEFER, reasons=(Reason(code="tamper_suspected"),))
    return replace(case, gate=combined(case.gate, suspected))


def decide(case: Case, equipment: Equipment) -> Case:
    """Calibrated probability, the policy's prevalence, the cheapest action; none where the gate defers."""
    if case.class_outputs is None:
        return case
    findings = decide_findings(_scores(case.class_outputs[0], equipment), equipment)
    if case.gate.verdict is Verdict.DEFER:
        findings = tuple(replace(finding, decision=Decision.DEFER) for finding in findings)
    return replace(case, findings=findings)


def explain_answer(case: Case, equipment: Equipment) -> Case:
    """Where in the image the answer comes from."""
    manifest = equipment.package.manifest
    if not equipment.explain or not case.findings or manifest.explanation.kind == "none":
        return case
    if manifest.explanation.kind == "activation_map":
        assert case.activation_map is not None
        assert case.class_outputs is not None
        heat = explain.from_activation_map(case.activation_map, case.findings, manifest, scores=case.class_outputs[0])
        return replace(case, heat=heat)
    inputs = {name: values[:1] for name, values in case.inputs.items()}
    try:
        return replace(case, heat=explain.by_occlusion(inputs, case.findings, manifest, equipment.engine))
    except InferenceRefusedError as error:
        return replace(case, failure=Reason(code="inference_refused", detail=str(error)))


def decide_findings(scores: Mapping[str, float], equipment: Equipment) -> tuple[Finding, ...]:
    """Every finding's calibrated probability and decision, from its log-odds by name."""
    decisions: dict[str, Decision] = {}
    findings: list[Finding] = []
    for spec in equipment.package.manifest.findings:
        calibration = equipment.package.calibration.findings[spec.name]
        site = equipment.policy.finding(spec.name) if equipment.policy else None
        prevalence = site.prevalence if site else calibration.prevalence
        score = np.asarray([scores[spec.name]])
        probability = float(
            calibrate.at_prevalence(calibrate.calibrated(score, calibration), calibration.prevalence, prevalence)[0]
        )
        limits = costs.thresholds(site.costs) if site and not calibration.inconclusive else None
        decision = costs.decide(probability, limits) if limits else Decision.NONE
        if spec.given is not None and decisions[spec.given] is not Decision.ACT:
            decision = Decision.NONE
        elif calibration.inconclusive:
            decision = Decision.INCONCLUSIVE
        decisions[spec.name] = decision
        findings.append(
            Finding(
                name=spec.name,
                code=spec.code.record(),
                score=float(score[0]),
                probability=probability,
                prevalence=prevalence,
                decision=decision,
                thresholds=limits,
                costs=site.costs if site else None,
                calibration=calibration.method,
            )
        )
    return tuple(findings)


def combined(first: GateVerdict, second: GateVerdict) -> GateVerdict:
    """Two verdicts on one image: the worse counts, and the reasons of both."""
    return GateVerdict(
        verdict=max(first.verdict, second.verdict, key=lambda verdict: verdict.severity),
        reasons=(*first.reasons, *second.reasons),
        measures={**first.measures, **second.measures},
        notes=(*first.notes, *second.notes),
    )


def _also_rejected(gate: GateVerdict, reason: Reason) -> GateVerdict:
    return combined(gate, GateVerdict(verdict=Verdict.REJECT, reasons=(reason,)))


def picture_of(case: Case, equipment: Equipment) -> FloatArray | None:
    """The image as presented to the model but at a size that a person can read, for the report's picture."""
    if case.image is None or not equipment.explain:
        return None
    spec = equipment.package.manifest.input
    pixels = presented(case.image, spec)
    step = max(1, math.ceil(max(pixels.shape) / _PICTURE_SIDE))
    if step == 1:
        return pixels
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    return resized(pixels, spec.model_copy(update={"rows": rows, "columns": columns, "fit": "stretch"}))


def _scores(class_outputs: NDArray[np.float32], equipment: Equipment) -> dict[str, float]:
    manifest = equipment.package.manifest
    return {
        spec.name: float(calibrate.finding_scores(class_outputs[None], manifest.output, spec)[0])
        for spec in manifest.findings
    }
