"""What becomes of an image, and of a study, with a real model on a real engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from instances import write_file
from numpy.typing import NDArray
from packages import seal, write_package, write_policy
from radiographs import BRIGHT, DARK, GREY, IDENTIFIERS, header, image, radiograph
from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.errors import DecodeError, InferenceRefusedError, InferenceUnavailableError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Package, load_package
from stepwedge.pipeline import STAGES, Case, Equipment, analyse_image, combine, decide_findings, observation_of
from stepwedge.policy import load_policy
from stepwedge.records import (
    Decision,
    Image,
    ImageResult,
    ModelReference,
    PolicyReference,
    Reason,
    State,
    UnitResult,
    Verdict,
)

STAGE_NAMES = [name for name, _ in STAGES]


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    """The tiny model on the CPU under the tiny policy."""
    return equip(tmp_path_factory.mktemp("tiny"))


def equip(folder: Path, *, policy: Mapping[str, float] | None = None, **manifest: Any) -> Equipment:
    package = load_package(write_package(folder / "tiny", manifest=manifest))
    site = load_policy(write_policy(folder / "policy.yaml", **(policy or {})), package.manifest)  # type: ignore[arg-type]
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", threads=1), policy=site)


def case(brightness: float = BRIGHT, **header_values: object) -> Case:
    return Case(instance="i", header=header(**header_values), decode=lambda: image(brightness))


def analysed(equipment: Equipment, brightness: float = BRIGHT, **header_values: object) -> ImageResult:
    result, _ = analyse_image(case(brightness, **header_values), equipment)
    return result


def codes(reasons: Sequence[Reason]) -> list[str]:
    return [reason.code for reason in reasons]


class OtherEngine:
    """An engine that gives what a test wants instead of what the model says: nobody can order a model to fail."""

    def __init__(self, answer: Callable[[], dict[str, NDArray[np.float32]]]) -> None:
        self.model = ModelReference(name="tiny", version="1.0.0", digest="0")
        self.runs = 0
        self._answer = answer

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        self.runs += 1
        return self._answer(), "TestProvider"


def answering(equipment: Equipment, logits: Any, **outputs: Any) -> tuple[Equipment, OtherEngine]:
    values = {name: np.asarray(value, np.float32) for name, value in {"logits": logits, **outputs}.items()}
    engine = OtherEngine(lambda: values)
    return replace(equipment, engine=engine), engine


def failing(equipment: Equipment, error: Exception) -> Equipment:
    def fail() -> dict[str, NDArray[np.float32]]:
        raise error

    return replace(equipment, engine=OtherEngine(fail))


class TestAnAcceptedImage:
    @pytest.mark.parametrize(
        ("brightness", "probability", "decision"),
        [(BRIGHT, 0.993, Decision.ACT), (DARK, 0.007, Decision.CLEAR)],
    )
    def test_it_is_reported_with_its_calibrated_probability(
        self, equipment: Equipment, brightness: float, probability: float, decision: Decision
    ) -> None:
        result = analysed(equipment, brightness)
        assert result.state is State.REPORTED
        assert result.reasons == ()
        assert result.gate.verdict is Verdict.ACCEPT
        (finding,) = result.findings
        assert finding.name == "ill"
        assert finding.probability == pytest.approx(probability, abs=0.002)
        assert finding.decision is decision

    def test_its_answer_carries_thresholds_costs_prevalence_and_method(self, equipment: Equipment) -> None:
        (finding,) = analysed(equipment).findings
        assert finding.thresholds is not None
        assert finding.costs is not None
        assert finding.thresholds.clear_below == pytest.approx(0.03)
        assert finding.thresholds.act_from == pytest.approx(0.7)
        assert finding.costs.miss == 10
        assert finding.prevalence == 0.5
        assert finding.calibration == "none"

    def test_where_the_probability_is_uncertain_a_person_reads(self, equipment: Equipment) -> None:
        result = analysed(equipment, GREY)
        assert result.state is State.DEFERRED
        assert result.gate.verdict is Verdict.ACCEPT
        assert result.reasons == (Reason(code="uncertain", detail="ill"),)
        assert result.findings[0].decision is Decision.DEFER

    def test_it_passes_every_stage_and_each_is_timed(self, equipment: Equipment) -> None:
        ms = analysed(equipment).ms
        assert list(ms) == STAGE_NAMES
        assert all(value >= 0 for value in ms.values())

    def test_scores_embedding_statistics_and_provider_are_kept_for_the_monitor(self, equipment: Equipment) -> None:
        result = analysed(equipment)
        assert set(result.scores) == {"normal", "ill"}
        assert result.scores["ill"] == pytest.approx(2.5, abs=0.05)
        assert len(result.embedding) == 4
        assert result.embedding[0] == pytest.approx(BRIGHT, abs=0.01)
        assert result.statistics is not None
        assert result.statistics.mean == pytest.approx(BRIGHT, abs=0.01)
        assert result.provider == "CPUExecutionProvider"

    def test_the_picture_is_the_image_as_it_was_presented(self, equipment: Equipment) -> None:
        _, view = analyse_image(case(), equipment)
        picture = view.picture
        assert picture is not None
        assert picture.shape == (64, 64)
        assert picture.dtype == np.float32
        assert picture.mean() == pytest.approx(BRIGHT, abs=0.01)

    def test_a_large_images_picture_is_made_small_enough_to_show(self, equipment: Equipment) -> None:
        large = replace(case(), decode=lambda: image(BRIGHT, 2600, 1500))
        _, view = analyse_image(large, equipment)
        picture = view.picture
        assert picture is not None
        assert max(picture.shape) <= 1024
        assert picture.shape[0] / picture.shape[1] == pytest.approx(2600 / 1500, rel=0.01)
        assert picture.mean() == pytest.approx(BRIGHT, abs=0.01)

    def test_the_policys_prevalence_moves_the_probability(self, tmp_path: Path) -> None:
        rare = equip(tmp_path, policy={"prevalence": 0.01})
        (finding,) = analysed(rare).findings
        odds = np.exp(finding.score) * 0.01 / 0.99
        assert finding.probability == pytest.approx(odds / (1 + odds), rel=1e-6)
        assert finding.prevalence == 0.01

    def test_without_a_policy_nothing_is_decided(self, equipment: Equipment) -> None:
        result = analysed(replace(equipment, policy=None))
        (finding,) = result.findings
        assert result.state is State.REPORTED
        assert finding.decision is Decision.NONE
        assert finding.thresholds is None
        assert finding.costs is None
        assert finding.probability == pytest.approx(0.993, abs=0.002)


class TestAnImageThatTheGateDefers:
    @pytest.fixture
    def of_children(self, tmp_path: Path) -> Equipment:
        intended = {"summary": "Children only", "modality": ["DX"], "age_years": [1, 6]}
        return equip(tmp_path, intended_use=intended)

    @pytest.mark.parametrize(("age", "code"), [(None, "age_missing"), (40.0, "age_not_intended")])
    def test_it_is_deferred_with_the_gates_reason(self, of_children: Equipment, age: float | None, code: str) -> None:
        result = analysed(of_children, age_years=age)
        assert result.state is State.DEFERRED
        assert result.gate.verdict is Verdict.DEFER
        assert codes(result.reasons) == [code]

    def test_it_keeps_its_probability_and_decides_nothing(self, of_children: Equipment) -> None:
        (finding,) = analysed(of_children, age_years=40.0).findings
        assert finding.probability == pytest.approx(0.993, abs=0.002)
        assert finding.decision is Decision.DEFER

    def test_the_same_image_within_the_intended_use_is_reported(self, of_children: Equipment) -> None:
        assert analysed(of_children, age_years=3.0).state is State.REPORTED


class TestAnImageThatTheGateRejects:
    def test_a_header_out_of_the_intended_use_stops_before_the_pixels_are_touched(self, equipment: Equipment) -> None:
        def never() -> Image:
            raise AssertionError("decoded an image that the header rules out")

        refused = Case(instance="i", header=header(modality="MG"), decode=never)
        result, view = analyse_image(refused, equipment)
        assert result.state is State.REJECTED
        assert codes(result.reasons) == ["modality_not_intended"]
        assert list(result.ms) == ["gate_header"]
        assert view.picture is None

    def test_a_blank_image_stops_before_inference(self, equipment: Equipment) -> None:
        blank = Image(pixels=np.full((64, 64), 7, np.float32), value_range=(0, 4095))
        observed, engine = answering(equipment, [[0, 1]])
        result, view = analyse_image(replace(case(), decode=lambda: blank), observed)
        assert result.state is State.REJECTED
        assert "image_blank" in codes(result.reasons)
        assert engine.runs == 0
        assert result.findings == ()
        assert result.scores == {}
        assert list(result.ms) == STAGE_NAMES[:3]
        assert view.picture is not None, "a person sees what was rejected"

    @pytest.mark.parametrize("code", ["pixel_data_missing", "pixel_data_undecodable", "photometric_not_supported"])
    def test_an_image_that_cannot_be_decoded_is_rejected_with_the_decoders_reason(
        self, equipment: Equipment, code: str
    ) -> None:
        def fail() -> Image:
            raise DecodeError(code, "the reason in words")

        result, view = analyse_image(replace(case(), decode=fail), equipment)
        assert result.state is State.REJECTED
        assert result.reasons == (Reason(code=code, detail="the reason in words"),)
        assert result.gate.verdict is Verdict.REJECT
        assert list(result.ms) == ["gate_header", "decode"]
        assert view.picture is None

    def test_a_deferral_by_the_header_is_told_beside_the_rejection_by_the_pixels(self, tmp_path: Path) -> None:
        needs_age = equip(tmp_path, intended_use={"summary": "s", "modality": ["DX"], "age_years": [1, 6]})
        blank = Image(pixels=np.full((64, 64), 7, np.float32), value_range=(0, 4095))
        result, _ = analyse_image(replace(case(), decode=lambda: blank), needs_age)
        assert result.state is State.REJECTED
        assert codes(result.reasons)[0] == "age_missing"
        assert "image_blank" in codes(result.reasons)


class TestAModelThatFails:
    @pytest.mark.parametrize(
        "logits",
        [[[np.nan, 0]], [[0, np.inf]], [[0, 1, 2]], [[0]], [0, 1], [[0, 1], [0, 1]]],
        ids=["nan", "infinite", "too many", "too few", "no batch", "two"],
    )
    def test_an_output_that_is_not_finite_or_not_of_the_declared_shape_fails_the_image(
        self, equipment: Equipment, logits: Any
    ) -> None:
        broken, _ = answering(equipment, logits)
        result = analysed(broken)
        assert result.state is State.FAILED
        assert codes(result.reasons) == ["model_output_invalid"]
        assert result.findings == ()

    def test_a_missing_output_fails_the_image(self, equipment: Equipment) -> None:
        broken = replace(equipment, engine=OtherEngine(dict))
        assert codes(analysed(broken).reasons) == ["model_output_invalid"]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_an_embedding_that_is_not_finite_fails_the_image(self, equipment: Equipment, value: float) -> None:
        broken, _ = answering(equipment, [[0, 1]], embedding=[[0, value, 0, 0]])
        result = analysed(broken)
        assert result.state is State.FAILED
        assert codes(result.reasons) == ["model_output_invalid"]

    def test_a_missing_embedding_fails_the_image_where_the_package_declares_one(self, equipment: Equipment) -> None:
        broken, _ = answering(equipment, [[0, 1]])
        assert codes(analysed(broken).reasons) == ["model_output_invalid"]

    def test_a_refusal_fails_the_image_and_says_why(self, equipment: Equipment) -> None:
        result = analysed(failing(equipment, InferenceRefusedError("too large")))
        assert result.state is State.FAILED
        assert result.reasons == (Reason(code="inference_refused", detail="too large"),)
        assert result.findings == ()

    def test_a_server_that_does_not_answer_is_nobodys_verdict_on_the_image(self, equipment: Equipment) -> None:
        with pytest.raises(InferenceUnavailableError):
            analysed(failing(equipment, InferenceUnavailableError("away")))


class TestAStudyOfSeveralImages:
    def test_the_accepted_images_answer_and_the_largest_score_counts(self, equipment: Equipment) -> None:
        images = [analysed(equipment, brightness) for brightness in (DARK, BRIGHT, GREY)]
        state, reasons, findings = combine(images, equipment)
        assert state is State.REPORTED
        assert reasons == ()
        assert findings[0].score == max(image.findings[0].score for image in images)
        assert findings[0].decision is Decision.ACT

    def test_under_mean_the_scores_are_averaged(self, tmp_path: Path) -> None:
        averaging = equip(tmp_path, aggregation="mean")
        images = [analysed(averaging, brightness) for brightness in (DARK, BRIGHT)]
        state, reasons, findings = combine(images, averaging)
        assert findings[0].score == pytest.approx(np.mean([image.findings[0].score for image in images]))
        assert state is State.DEFERRED
        assert codes(reasons) == ["uncertain"]

    def test_the_order_of_the_images_does_not_matter(self, equipment: Equipment) -> None:
        images = [analysed(equipment, brightness) for brightness in (DARK, 0.3, GREY)]
        assert combine(images, equipment) == combine(images[::-1], equipment)

    def test_one_image_answers_for_its_study_as_for_itself(self, equipment: Equipment) -> None:
        alone = analysed(equipment)
        assert combine([alone], equipment) == (alone.state, alone.reasons, alone.findings)

    def test_a_rejected_image_beside_an_accepted_one_is_left_out(self, equipment: Equipment) -> None:
        images = [analysed(equipment, modality="MG"), analysed(equipment, DARK)]
        state, reasons, findings = combine(images, equipment)
        assert state is State.REPORTED
        assert reasons == ()
        assert findings == images[1].findings

    def test_a_deferred_image_beside_an_accepted_one_is_left_out(self, tmp_path: Path) -> None:
        needs_age = equip(tmp_path, intended_use={"summary": "s", "modality": ["DX"], "age_years": [1, 6]})
        images = [analysed(needs_age, BRIGHT), analysed(needs_age, DARK, age_years=3.0)]
        state, _, findings = combine(images, needs_age)
        assert state is State.REPORTED
        assert findings[0].decision is Decision.CLEAR

    def test_with_deferred_images_only_it_is_deferred_and_each_reason_told_once(self, tmp_path: Path) -> None:
        needs_age = equip(tmp_path, intended_use={"summary": "s", "modality": ["DX"], "age_years": [1, 6]})
        images = [analysed(needs_age), analysed(needs_age, DARK), analysed(needs_age, modality="MG")]
        state, reasons, findings = combine(images, needs_age)
        assert state is State.DEFERRED
        assert codes(reasons) == ["age_missing"]
        assert findings[0].decision is Decision.DEFER
        assert findings[0].probability == pytest.approx(0.993, abs=0.002)

    def test_with_rejected_images_only_it_is_rejected_with_all_reasons(self, equipment: Equipment) -> None:
        images = [analysed(equipment, modality="MG"), analysed(equipment, frames=3)]
        state, reasons, findings = combine(images, equipment)
        assert state is State.REJECTED
        assert codes(reasons) == ["modality_not_intended", "multi_frame"]
        assert findings == ()

    def test_a_failed_image_fails_the_study_although_others_answered(self, equipment: Equipment) -> None:
        broken = failing(equipment, InferenceRefusedError("too large"))
        state, reasons, findings = combine([analysed(equipment), analysed(broken)], equipment)
        assert state is State.FAILED
        assert codes(reasons) == ["inference_refused"]
        assert findings == ()

    def test_no_image_at_all_fails_the_study(self, equipment: Equipment) -> None:
        state, reasons, _ = combine([], equipment)
        assert state is State.FAILED
        assert codes(reasons) == ["instance_missing"]


class TestAFindingThatDependsOnAnother:
    """``severe`` is decided only where ``ill`` is acted upon."""

    @pytest.fixture
    def dependent(self, tmp_path: Path) -> Equipment:
        base = write_package(tmp_path / "tiny")
        values = yaml.safe_load((base / "model.yaml").read_text(encoding="utf-8"))
        values["findings"].append(values["findings"][0] | {"name": "severe", "given": "ill"})
        (base / "model.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        fitted = json.loads((base / "calibration.json").read_text())
        fitted["findings"]["severe"] = fitted["findings"]["ill"]
        (base / "calibration.json").write_text(json.dumps(fitted))
        seal(base)
        package: Package = load_package(base)
        file = write_policy(tmp_path / "policy.yaml")
        policy = yaml.safe_load(file.read_text())
        policy["findings"]["severe"] = policy["findings"]["ill"]
        file.write_text(yaml.safe_dump(policy))
        return Equipment(
            package=package,
            engine=OnnxEngine(package, "cpu", threads=1),
            policy=load_policy(file, package.manifest),
        )

    @pytest.mark.parametrize(
        ("ill", "severe", "decisions"),
        [
            (5.0, 5.0, [Decision.ACT, Decision.ACT]),
            (5.0, -5.0, [Decision.ACT, Decision.CLEAR]),
            (-5.0, 5.0, [Decision.CLEAR, Decision.NONE]),
            (0.0, 5.0, [Decision.DEFER, Decision.NONE]),
        ],
    )
    def test_it_is_decided_only_where_the_other_is_acted_upon(
        self, dependent: Equipment, ill: float, severe: float, decisions: list[Decision]
    ) -> None:
        findings = decide_findings({"ill": ill, "severe": severe}, dependent)
        assert [finding.decision for finding in findings] == decisions
        assert all(0 < finding.probability < 1 for finding in findings)

    def test_a_study_whose_only_decided_finding_is_deferred_is_deferred(self, dependent: Equipment) -> None:
        result = analysed(dependent, GREY)
        assert result.state is State.DEFERRED
        assert result.reasons == (Reason(code="uncertain", detail="ill"),)

    def test_a_finding_without_costs_is_not_decided_and_the_rest_is(self, dependent: Equipment) -> None:
        assert dependent.policy is not None
        file = dependent.policy.file
        only_ill = file.model_copy(update={"findings": {"ill": file.findings["ill"]}})
        partial = replace(dependent, policy=dependent.policy.model_copy(update={"file": only_ill}))
        findings = decide_findings({"ill": 5.0, "severe": 5.0}, partial)
        assert [finding.decision for finding in findings] == [Decision.ACT, Decision.NONE]
        assert findings[1].thresholds is None


def unit_result(images: Sequence[ImageResult], equipment: Equipment) -> UnitResult:
    state, reasons, findings = combine(images, equipment)
    assert equipment.policy is not None
    return UnitResult(
        unit="u",
        study="s",
        revision=2,
        state=state,
        reasons=reasons,
        findings=findings,
        images=tuple(images),
        model=equipment.package.reference,
        policy=equipment.policy.reference,
        created_at="2026-01-02T03:04:05.678+00:00",
    )


class TestTheObservation:
    def test_it_says_what_was_answered_and_by_what(self, equipment: Equipment) -> None:
        row = observation_of(unit_result([analysed(equipment)], equipment), {"infer": 1.5})
        assert (row.unit, row.study, row.revision, row.images) == ("u", "s", 2, 1)
        assert (row.state, row.gate, row.reasons) == ("reported", "accept", ())
        assert row.model_digest == equipment.package.digest
        assert equipment.policy is not None
        assert row.policy_digest == equipment.policy.digest
        assert row.decisions == {"ill": "act"}
        assert row.probabilities["ill"] == pytest.approx(0.993, abs=0.002)
        assert row.pixel_mean == pytest.approx(BRIGHT, abs=0.01)
        assert row.ms == {"infer": 1.5}

    def test_its_image_is_the_first_that_answered(self, equipment: Equipment) -> None:
        images = [analysed(equipment, modality="MG"), analysed(equipment, DARK), analysed(equipment, BRIGHT)]
        row = observation_of(unit_result(images, equipment), {})
        assert row.modality == "DX"
        assert row.pixel_mean == pytest.approx(DARK, abs=0.01)
        assert row.images == 3

    def test_a_unit_without_images_has_one_too(self, equipment: Equipment) -> None:
        row = observation_of(unit_result([], equipment), {})
        assert (row.state, row.reasons, row.images) == ("failed", ("instance_missing",), 0)

    @pytest.mark.parametrize("modality", ["DX", "MG"])
    def test_nothing_that_identifies_the_patient_is_in_it(
        self, equipment: Equipment, tmp_path: Path, modality: str
    ) -> None:
        dataset = radiograph(BRIGHT)
        dataset.Modality = modality
        read = read_dataset(write_file(dataset, tmp_path / "image.dcm"))
        seen = Case(instance="0" * 32, header=read_header(read, lambda _: "f" * 32), decode=lambda: decode(read))
        result, _ = analyse_image(seen, equipment)
        text = observation_of(unit_result([result], equipment), result.ms).to_json()
        assert json.loads(text)["station"] == "f" * 32
        uids = {key: str(read[key].value) for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
        for keyword, value in (IDENTIFIERS | uids).items():
            for part in value.split("^"):
                if len(part) > 1:
                    assert part not in text, keyword

    def test_a_demonstration_policy_is_no_secret(self, equipment: Equipment) -> None:
        assert isinstance(unit_result([analysed(equipment)], equipment).policy, PolicyReference)
