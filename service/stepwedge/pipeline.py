"""What happens to an image, and to a study: read this first.

An image goes down ``STAGES`` in order. Each stage is a plain function from a case to a case; a case that the gate
rejects goes no further, one that it defers still gets an answer, which is observed but not reported. Images that a
model takes together (input unit series or study) go down the first stages each and the rest as one. A study's answer
is made of the answers for its images or stacks. The service (``workflow``) and ``stepwedge predict`` run this same
code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from stepwedge import tracing
from stepwedge.dicom.geometry import in_order
from stepwedge.fingerprint import fingerprint
from stepwedge.observation import Observation, Provenance
from stepwedge.records import (
    Decision,
    Finding,
    FloatArray,
    GateVerdict,
    Header,
    ImageResult,
    Reason,
    State,
    UnitResult,
    Verdict,
)
from stepwedge.stages import (
    Case,
    Equipment,
    View,
    combined,
    decide,
    decide_findings,
    decode_pixels,
    equip,
    explain_answer,
    infer,
    judge_header,
    judge_pixels,
    judge_tamper,
    picture_of,
    preprocess,
)

__all__ = [
    "STAGES",
    "Case",
    "Equipment",
    "View",
    "analyse_image",
    "analyse_stack",
    "combine",
    "decide_findings",
    "equip",
    "observation_of",
    "rejected_image",
]

Stage = Callable[[Case, Equipment], Case]

Stages = tuple[tuple[str, Stage], ...]

_OF_EACH_IMAGE: Stages = (
    ("gate_header", judge_header),
    ("decode", decode_pixels),
    ("gate_pixels", judge_pixels),
    ("preprocess", preprocess),
)
_OF_THE_INPUT: Stages = (
    ("infer", infer),
    ("tamper", judge_tamper),
    ("decide", decide),
    ("explain", explain_answer),
)
STAGES: Stages = (*_OF_EACH_IMAGE, *_OF_THE_INPUT)


def analyse_image(case: Case, equipment: Equipment) -> tuple[ImageResult, View]:
    """Take one image down the stages.

    Raises
    ------
    InferenceUnavailableError
        If the inference server does not answer: nothing is wrong with the image, try again later.
    """
    ms: dict[str, float] = {}
    with tracing.span("image", instance=case.instance) as span:
        case = _down(STAGES, case, equipment, ms)
        result = _result(case, (), equipment, ms)
        _note(span, result)
    return result, View(picture=picture_of(case, equipment), heat=case.heat)


def analyse_stack(cases: Sequence[Case], equipment: Equipment) -> tuple[ImageResult, View]:
    """Take the images of a series or a study down the stages, together from ``infer`` on.

    The stack is rejected with an image that the gate rejects and deferred with one that it defers: a model of whole
    series must not silently answer for a part of one. The result carries the header and statistics of the middle
    image.

    Raises
    ------
    InferenceUnavailableError
        As in ``analyse_image``.
    """
    manifest = equipment.package.manifest
    ms: dict[str, float] = {}
    plain = replace(equipment, gate=replace(equipment.gate, tamper=None))
    ordered, problem = in_order([case.place for case in cases], manifest.stack)
    middle = ordered[len(ordered) // 2] if ordered else 0
    judged: list[Case] = []
    shown: FloatArray | None = None
    with tracing.span("images", images=len(cases)):
        for index in ordered or range(len(cases)):
            case = _down(_OF_EACH_IMAGE, cases[index], plain, ms, traced=False)
            if index == middle:
                shown = picture_of(case, equipment)
            judged.append(replace(case, image=None))  # a series of decoded images would fill the memory
    first = judged[len(judged) // 2]
    gate = GateVerdict(verdict=Verdict.ACCEPT, measures=first.gate.measures, notes=first.gate.notes)
    for case in judged:
        gate = replace(combined(gate, replace(case.gate, notes=())), measures=first.gate.measures)
    if problem is not None:
        gate = combined(gate, GateVerdict(verdict=Verdict.DEFER, reasons=(problem,)))
    gate = replace(gate, reasons=tuple(dict.fromkeys(gate.reasons)))
    stack = replace(first, gate=gate, inputs={})
    if gate.verdict is not Verdict.REJECT:
        names = [spec.name for spec in manifest.inputs]
        stack = replace(stack, inputs={n: np.concatenate([case.inputs[n] for case in judged])[None] for n in names})
    stack = _down(_OF_THE_INPUT, stack, plain, ms)
    return _result(stack, tuple(case.instance for case in judged), equipment, ms), View(picture=shown)


def _note(span: tracing.Span, result: ImageResult) -> None:
    """What became of an image."""
    reasons = [reason.code for reason in result.reasons]
    span.note(state=result.state, gate=result.gate.verdict, tamper=result.tamper.verdict, reasons=reasons)


def _down(stages: Stages, case: Case, equipment: Equipment, ms: dict[str, float], *, traced: bool = True) -> Case:
    """Take a case down some stages, as far as it goes; milliseconds are added by stage.

    Images of a stack are ``traced`` together: a series may have thousands.
    """
    for name, stage in stages:
        if case.gate.verdict is Verdict.REJECT or case.failure is not None:
            break
        started = time.perf_counter()
        with tracing.span(name) if traced else nullcontext():
            case = stage(case, equipment)
        ms[name] = ms.get(name, 0.0) + (time.perf_counter() - started) * 1000.0
    return case


def _result(case: Case, members: tuple[str, ...], equipment: Equipment, ms: Mapping[str, float]) -> ImageResult:
    state, reasons = _image_state(case)
    classes = equipment.package.manifest.output.classes
    outputs = case.class_outputs[0] if case.class_outputs is not None else ()
    return ImageResult(
        instance=case.instance,
        members=members,
        state=state,
        reasons=reasons,
        header=case.header,
        gate=case.gate,
        statistics=case.statistics,
        tamper=case.tamper,
        findings=case.findings,
        scores={name: float(value) for name, value in zip(classes, outputs, strict=False)},
        embedding=case.embedding,
        provider=case.provider,
        ms={name: round(value, 3) for name, value in ms.items()},
        prints=_prints(case) if equipment.prints else {},
    )


def _prints(case: Case) -> dict[str, tuple[float, ...]]:
    """Fingerprints of the decoded image, where there is a single one, and of the first plane of each input."""
    found = {
        f"input.{name}": fingerprint(values.reshape(-1, *values.shape[-2:])[0]) for name, values in case.inputs.items()
    }
    if case.image is not None:
        found["decoded"] = fingerprint(case.image.pixels, *case.image.value_range)
    return found


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


def observation_of(result: UnitResult, ms: Mapping[str, float], provenance: Provenance | None = None) -> Observation:
    """The row that the monitor reads. The image attributes are those of the first image that answered."""
    provenance = provenance or Provenance()
    first = min(result.images, key=lambda image: image.gate.verdict.severity, default=None)
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
        images=sum(len(image.members) or 1 for image in result.images),
        senders=provenance.senders,
        content=provenance.content,
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
        gate_measures=dict(first.gate.measures),
        tamper=first.tamper.verdict,
        tamper_measure=first.tamper.measure,
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
    if decisions == {Decision.INCONCLUSIVE}:
        return State.DEFERRED, (Reason(code="inconclusive"),)
    if decisions - {Decision.INCONCLUSIVE} == {Decision.DEFER}:
        names = ", ".join(finding.name for finding in findings if finding.decision is Decision.DEFER)
        return State.DEFERRED, (Reason(code="uncertain", detail=names),)
    return State.REPORTED, ()


def _all_reasons(images: Sequence[ImageResult]) -> tuple[Reason, ...]:
    """Each reason once, in the order of the images."""
    return tuple(dict.fromkeys(reason for image in images for reason in image.reasons))
