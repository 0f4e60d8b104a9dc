"""What happens to an image, and to a study: read this first.

An image goes down ``STAGES`` in order. Each stage is a plain function from a case to a case; a case that the gate
rejects goes no further, one that it defers still gets an answer, which is observed but not reported. A study's answer
is made of its images' answers. The service (``workflow``) and ``stepwedge predict`` run this same code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stepwedge.decision import calibrate, costs
from stepwedge.errors import DecodeError, InferenceRefusedError
from stepwedge.gate import validity
from stepwedge.inference.preprocess import presented, resized, to_tensor
from stepwedge.manifest import Package
from stepwedge.observation import Observation
from stepwedge.policy import Policy
from stepwedge.records import (
    Decision,
    Finding,
    FloatArray,
    GateVerdict,
    Header,
    Image,
    ImageResult,
    PixelStatistics,
    Reason,
    State,
    UnitResult,
    Verdict,
)
from stepwedge.seams import Engine


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What the stages work with: one model under one policy."""

    package: Package
    engine: Engine
    policy: Policy | None  # None only for `predict` without a policy: then nothing is decided


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image on its way."""

    instance: str
    header: Header
    decode: Callable[[], Image]  # raises DecodeError
    gate: GateVerdict = field(default_factory=lambda: GateVerdict(verdict=Verdict.ACCEPT))
    image: Image | None = None
    statistics: PixelStatistics | None = None
    tensor: FloatArray | None = None
    class_outputs: NDArray[np.float32] | None = None  # (classes,)
    embedding: tuple[float, ...] = ()
    provider: str = ""
    findings: tuple[Finding, ...] = ()
    failure: Reason | None = None


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
    return replace(case, gate=_combined(case.gate, verdict))


def preprocess(case: Case, equipment: Equipment) -> Case:
    """The image to the model's input tensor."""
    assert case.image is not None
    return replace(case, tensor=to_tensor(case.image, equipment.package.manifest.input))


def infer(case: Case, equipment: Equipment) -> Case:
    """The model's scores and embedding. Raises InferenceUnavailableError if no server answers."""
    manifest = equipment.package.manifest
    assert case.tensor is not None
    try:
        outputs, provider = equipment.engine.run({manifest.input.name: case.tensor})
    except InferenceRefusedError as error:
        return replace(case, failure=Reason(code="inference_refused", detail=str(error)))
    scores = outputs.get(manifest.output.scores)
    embedding = outputs.get(manifest.output.embedding) if manifest.output.embedding else np.empty((1, 0), np.float32)
    if scores is None or scores.shape != (1, len(manifest.output.classes)) or not np.isfinite(scores).all():
        return replace(case, failure=Reason(code="model_output_invalid", detail="scores"), provider=provider)
    if embedding is None or embedding.shape[:1] != (1,) or not np.isfinite(embedding).all():
        return replace(case, failure=Reason(code="model_output_invalid", detail="embedding"), provider=provider)
    return replace(
        case,
        class_outputs=scores[0],
        embedding=tuple(float(value) for value in embedding[0].ravel()),
        provider=provider,
    )


def decide(case: Case, equipment: Equipment) -> Case:
    """Calibrated probability, the policy's prevalence, the cheapest action; none where the gate defers."""
    if case.class_outputs is None:
        return case
    findings = decide_findings(_scores(case.class_outputs, equipment), equipment)
    if case.gate.verdict is Verdict.DEFER:
        findings = tuple(replace(finding, decision=Decision.DEFER) for finding in findings)
    return replace(case, findings=findings)


Stage = Callable[[Case, Equipment], Case]

STAGES: tuple[tuple[str, Stage], ...] = (
    ("gate_header", judge_header),
    ("decode", decode_pixels),
    ("gate_pixels", judge_pixels),
    ("preprocess", preprocess),
    ("infer", infer),
    ("decide", decide),
)


def analyse_image(case: Case, equipment: Equipment) -> tuple[ImageResult, FloatArray | None]:
    """Take one image down the stages.

    Returns
    -------
    The result, and the image as it was presented to the model, float32 (rows, columns) on 0…1 (None if there is none).

    Raises
    ------
    InferenceUnavailableError
        If the inference server does not answer: nothing is wrong with the image, try again later.
    """
    ms: dict[str, float] = {}
    for name, stage in STAGES:
        if case.gate.verdict is Verdict.REJECT or case.failure is not None:
            break
        started = time.perf_counter()
        case = stage(case, equipment)
        ms[name] = (time.perf_counter() - started) * 1000.0
    state, reasons = _image_state(case)
    classes = equipment.package.manifest.output.classes
    outputs = case.class_outputs if case.class_outputs is not None else ()
    result = ImageResult(
        instance=case.instance,
        state=state,
        reasons=reasons,
        header=case.header,
        gate=case.gate,
        statistics=case.statistics,
        findings=case.findings,
        scores={name: float(value) for name, value in zip(classes, outputs, strict=False)},
        embedding=case.embedding,
        provider=case.provider,
        ms={name: round(value, 3) for name, value in ms.items()},
    )
    return result, _picture(case, equipment)


def rejected_image(instance: str, reason: Reason) -> ImageResult:
    """The result for an object that is not even an image."""
    gate = GateVerdict(verdict=Verdict.REJECT, reasons=(reason,))
    return ImageResult(instance=instance, state=State.REJECTED, reasons=(reason,), header=Header(), gate=gate)


def combine(
    images: Sequence[ImageResult], equipment: Equipment
) -> tuple[State, tuple[Reason, ...], tuple[Finding, ...]]:
    """The study's answer from its images' answers.

    The images that the gate accepts answer for the study; if there is none, those that it defers make it deferred; if
    there is none of these either, it is rejected. An image that failed makes the study fail: a report must not be
    silently made of half of it.
    """
    failed = [image for image in images if image.state is State.FAILED]
    if failed or not images:
        return State.FAILED, _all_reasons(failed) or (Reason(code="instance_missing"),), ()
    for verdict in (Verdict.ACCEPT, Verdict.DEFER):
        used = [image for image in images if image.gate.verdict is verdict]
        if not used:
            continue
        findings = decide_findings(_aggregated(used, equipment), equipment)
        if verdict is Verdict.DEFER:
            deferred = tuple(replace(finding, decision=Decision.DEFER) for finding in findings)
            return State.DEFERRED, _all_reasons(used), deferred
        state, reasons = _decided_state(findings)
        return state, reasons, findings
    return State.REJECTED, _all_reasons(images), ()


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
        limits = costs.thresholds(site.costs) if site else None
        decision = costs.decide(probability, limits) if limits else Decision.NONE
        if spec.given is not None and decisions[spec.given] is not Decision.ACT:
            decision = Decision.NONE
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


def observation_of(result: UnitResult, ms: Mapping[str, float]) -> Observation:
    """The row that the monitor reads. The image attributes are those of the first image that answered."""
    order = {Verdict.ACCEPT: 0, Verdict.DEFER: 1, Verdict.REJECT: 2}
    first = min(result.images, key=lambda image: order[image.gate.verdict], default=None)
    base = Observation(
        unit=result.unit,
        study=result.study,
        revision=result.revision,
        time=result.created_at,
        model_name=result.model.name,
        model_version=result.model.version,
        model_digest=result.model.digest,
        policy_digest=result.policy.digest,
        state=str(result.state),
        reasons=tuple(reason.code for reason in result.reasons),
        images=len(result.images),
        probabilities={finding.name: finding.probability for finding in result.findings},
        decisions={finding.name: str(finding.decision) for finding in result.findings},
        ms=dict(ms),
    )
    if first is None:
        return base
    header, pixels = first.header, first.statistics
    row = replace(
        base,
        gate=str(first.gate.verdict),
        gate_reasons=tuple(reason.code for reason in first.gate.reasons),
        modality=header.modality,
        body_part=header.body_part,
        view_position=header.view_position,
        age_years=_coarse(header.age_years),
        sex=header.sex,
        manufacturer=header.manufacturer,
        scanner=header.model_name,
        station=header.station,
        transfer_syntax=header.transfer_syntax_uid,
        photometric=header.photometric_interpretation,
        rows=header.rows,
        columns=header.columns,
        bits_stored=header.bits_stored,
        exposure=header.exposure,
        kvp=header.kvp,
        pixel_spacing=header.pixel_spacing,
        scores=dict(first.scores),
        embedding=first.embedding,
        provider=first.provider,
    )
    if pixels is None:
        return row
    return replace(
        row,
        pixel_mean=pixels.mean,
        pixel_sd=pixels.sd,
        pixel_p01=pixels.p01,
        pixel_p50=pixels.p50,
        pixel_p99=pixels.p99,
        pixel_low_share=pixels.low_share,
        pixel_high_share=pixels.high_share,
        pixel_entropy=pixels.entropy,
        pixel_sharpness=pixels.sharpness,
    )


def _coarse(age_years: float | None) -> float | None:
    """An age in whole years, below two in whole months: with the study date a finer one gives the birth date."""
    if age_years is None:
        return None
    return float(math.floor(age_years)) if age_years >= 2 else round(math.floor(age_years * 12) / 12, 3)


def _scores(class_outputs: NDArray[np.float32], equipment: Equipment) -> dict[str, float]:
    manifest = equipment.package.manifest
    return {
        spec.name: float(calibrate.finding_scores(class_outputs[None], manifest.output, spec)[0])
        for spec in manifest.findings
    }


def _aggregated(images: Sequence[ImageResult], equipment: Equipment) -> dict[str, float]:
    combined = max if equipment.package.manifest.aggregation == "max" else _mean
    by_image = [{finding.name: finding.score for finding in image.findings} for image in images]
    return {spec.name: combined([s[spec.name] for s in by_image]) for spec in equipment.package.manifest.findings}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _image_state(case: Case) -> tuple[State, tuple[Reason, ...]]:
    if case.failure is not None:
        return State.FAILED, (case.failure,)
    if case.gate.verdict is Verdict.REJECT:
        return State.REJECTED, case.gate.reasons
    if case.gate.verdict is Verdict.DEFER:
        return State.DEFERRED, case.gate.reasons
    return _decided_state(case.findings)


def _decided_state(findings: Sequence[Finding]) -> tuple[State, tuple[Reason, ...]]:
    """Deferred if every finding that was to be decided is left to a person."""
    decisions = {finding.decision for finding in findings} - {Decision.NONE}
    if decisions == {Decision.DEFER}:
        names = ", ".join(finding.name for finding in findings if finding.decision is Decision.DEFER)
        return State.DEFERRED, (Reason(code="uncertain", detail=names),)
    return State.REPORTED, ()


def _combined(first: GateVerdict, second: GateVerdict) -> GateVerdict:
    order = [Verdict.ACCEPT, Verdict.DEFER, Verdict.REJECT]
    return GateVerdict(
        verdict=max(first.verdict, second.verdict, key=order.index),
        reasons=(*first.reasons, *second.reasons),
        measures={**first.measures, **second.measures},
        notes=(*first.notes, *second.notes),
    )


def _also_rejected(gate: GateVerdict, reason: Reason) -> GateVerdict:
    return _combined(gate, GateVerdict(verdict=Verdict.REJECT, reasons=(reason,)))


def _all_reasons(images: Sequence[ImageResult]) -> tuple[Reason, ...]:
    """Each reason once, in the order of the images."""
    return tuple(dict.fromkeys(reason for image in images for reason in image.reasons))


def _picture(case: Case, equipment: Equipment) -> FloatArray | None:
    """The image as presented to the model but at a size that a person can read, for the report's picture."""
    if case.image is None:
        return None
    spec = equipment.package.manifest.input
    pixels = presented(case.image, spec)
    step = max(1, math.ceil(max(pixels.shape) / _PICTURE_SIDE))
    if step == 1:
        return pixels
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    return resized(pixels, spec.model_copy(update={"rows": rows, "columns": columns, "fit": "stretch"}))


_PICTURE_SIDE = 1024  # pixels, about what the report's picture shows
