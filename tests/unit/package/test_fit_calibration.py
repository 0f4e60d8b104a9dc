"""Fits give back the calibration that scores were drawn with, and evidence, not hope, chooses between them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from stepwedge.decision.calibrate import calibrated
from stepwedge.errors import PackageError
from stepwedge.manifest import CodedConcept, FindingSpec, Manifest
from stepwedge.package import fit_calibration as fitting
from stepwedge.package.evaluate import FindingSample, Scored
from stepwedge.package.fit_calibration import METHODS, Method, fit_finding, fit_method
from stepwedge.package.statistics import Floats, Labels


def told(logit: Floats, seed: int = 0) -> Labels:
    """Truth drawn with these log-odds."""
    return np.asarray(np.random.default_rng(seed).random(len(logit)) < 1 / (1 + np.exp(-logit)))


def scores(images: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(0, 2, images)


def sample(score: Floats, truth: Labels, *, images_each: int = 1) -> FindingSample:
    patients = [f"p{i // images_each:04d}" for i in range(len(score))]
    return FindingSample(index=np.arange(len(score)), patients=patients, truth=truth, score=score)


class TestFits:
    def test_a_sigmoid_is_logistic_regression(self) -> None:
        score = scores(2000)
        truth = told(0.5 * score - 2)
        fitted = fit_method("sigmoid", score, truth)
        known = LogisticRegression(C=1e9).fit(score[:, None], truth)
        # Platt's targets pull it a little towards the middle.
        assert (fitted.slope, fitted.intercept) == pytest.approx((known.coef_[0, 0], known.intercept_[0]), abs=0.02)

    def test_a_sigmoid_finds_slope_and_intercept(self) -> None:
        score = scores(40_000)
        fitted = fit_method("sigmoid", score, told(0.6 * score - 1.2))
        assert (fitted.slope, fitted.intercept) == pytest.approx((0.6, -1.2), abs=0.03)

    def test_a_temperature_finds_the_slope_and_has_no_intercept(self) -> None:
        score = scores(40_000)
        fitted = fit_method("temperature", score, told(0.4 * score))
        assert fitted.slope == pytest.approx(0.4, abs=0.02)
        assert fitted.intercept == 0

    def test_an_isotonic_curve_follows_what_no_sigmoid_can(self) -> None:
        score = scores(40_000)
        step = np.where(score < -1, -3.0, np.where(score < 1, 0.0, 2.0))
        fitted = fit_method("isotonic", score, told(step))
        found = calibrated(np.array([-2.0, 0.0, 2.0]), fitted)
        assert found == pytest.approx(1 / (1 + np.exp(-np.array([-3.0, 0.0, 2.0]))), abs=0.03)

    def test_an_isotonic_curve_rises_and_is_never_surer_than_its_images_allow(self) -> None:
        score = scores(60)
        fitted = fit_method("isotonic", score, score > 0)
        at, probability = np.array(fitted.points).T
        assert (np.diff(at) > 0).all()
        assert (np.diff(probability) >= 0).all()
        positives, negatives = int((score > 0).sum()), int((score <= 0).sum())
        assert probability[0] == pytest.approx(1 / (negatives + 2), abs=1e-6)
        assert probability[-1] == pytest.approx((positives + 1) / (positives + 2), abs=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_counts_and_prevalence_are_those_of_the_images(self, method: Method) -> None:
        score = scores(200)
        truth = told(score - 1)
        fitted = fit_method(method, score, truth)
        assert (fitted.positives, fitted.negatives) == (truth.sum(), (~truth).sum())
        assert fitted.prevalence == pytest.approx(truth.mean(), abs=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_scores_that_look_like_probabilities_are_log_odds_all_the_same(self, method: Method) -> None:
        score = np.random.default_rng(2).uniform(0.01, 0.99, 4000)
        fitted = fit_method(method, score, told(2 * score))
        assert calibrated(np.array([0.5]), fitted)[0] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.05)


class TestChoice:
    def test_a_sigmoid_is_chosen_where_the_model_is_sure_of_too_much(self) -> None:
        score = scores(1500)
        fitted = fit_finding(sample(score, told(0.5 * score - 2)))
        assert fitted.method == "sigmoid"
        assert fitted.slope == pytest.approx(0.5, abs=0.15)  # three standard errors of so few images
        assert fitted.intercept == pytest.approx(-2, abs=0.3)
        assert set(fitted.evidence) == {"none", *METHODS}
        assert fitted.evidence["sigmoid"].log_loss < fitted.evidence["temperature"].log_loss
        assert fitted.evidence["temperature"].log_loss < fitted.evidence["none"].log_loss

    def test_the_simplest_that_is_as_good_is_chosen(self) -> None:
        loss = np.random.default_rng(4).uniform(0, 1, 200)
        noise = np.random.default_rng(5).normal(0, 0.05, 200)
        one = sample(loss, np.arange(200) % 2 == 0)
        assert fitting._simplest({"temperature": loss + noise - noise.mean(), "sigmoid": loss}, one) == "temperature"
        assert fitting._simplest({"temperature": loss + noise + 0.1, "sigmoid": loss}, one) == "sigmoid"

    def test_a_curve_is_chosen_where_the_others_are_plainly_wrong(self) -> None:
        score = scores(3000)
        plateau = np.where(score < -1, -4.0, np.where(score < 1.5, -1.0, 3.0)) + np.where(score < -4, 4.0, 0.0)
        assert fit_finding(sample(score, told(plateau))).method == "isotonic"

    def test_a_curve_is_not_tried_on_few_patients(self) -> None:
        score = scores(150)
        fitted = fit_finding(sample(score, told(score)))
        assert "isotonic" not in fitted.evidence
        assert fitted.method != "isotonic"

    def test_what_is_too_sure_of_the_ill_does_not_hide_behind_the_many_well(self) -> None:
        """Over all images a temperature may pass; at another prevalence the ill ones' loss would carry the day."""
        patients = np.arange(200)
        kinds = patients < 20
        losses: dict[Method, Floats] = {
            "temperature": np.where(kinds, 1.0, 0.1),
            "sigmoid": np.where(kinds, 0.4, 0.16),
        }
        one = sample(patients.astype(float), kinds)
        assert losses["temperature"].mean() > losses["sigmoid"].mean() - 0.01
        assert fitting._simplest(losses, one) == "sigmoid"

    def test_the_same_images_give_the_same_fit(self) -> None:
        score = scores(400)
        one = sample(score, told(score), images_each=2)
        assert fit_finding(one) == fit_finding(one)


class TestInconclusive:
    @pytest.mark.parametrize("positives", [0, 9])
    def test_too_few_positive_patients_decide_nothing(self, positives: int) -> None:
        truth = np.arange(200) < positives
        fitted = fit_finding(sample(np.where(truth, 3.0, -3.0), truth))
        assert fitted.method == "none"
        said = f"{positives} positive patients in the calibrate fold, at least 10 are needed"
        assert fitted.inconclusive == said
        assert 0 < fitted.prevalence < 1

    def test_ten_are_enough_and_images_of_one_patient_are_not_ten(self) -> None:
        truth = np.arange(200) < 10
        score = np.where(truth, 2.0, -2.0) + scores(200)
        assert not fit_finding(sample(score, truth)).inconclusive
        assert "1 positive patients" in fit_finding(sample(score, truth, images_each=10)).inconclusive

    def test_too_few_negative_patients_decide_nothing_either(self) -> None:
        truth = np.arange(200) >= 9
        assert fit_finding(sample(scores(200), truth)).inconclusive.startswith("9 negative patients")

    @pytest.mark.parametrize("slope", [0.0, -1.0])
    def test_a_score_that_does_not_tell_is_no_ground_for_a_threshold(self, slope: float) -> None:
        score = scores(300)
        fitted = fit_finding(sample(score, told(slope * score)))
        assert fitted.method == "none"
        assert "may not tell it from chance: AUROC" in fitted.inconclusive


def _manifest() -> Manifest:
    code = CodedConcept(value="1", scheme="99TEST", meaning="Test")
    return Manifest.model_validate(
        {
            "schema": 1,
            "name": "three",
            "version": "1.0.0",
            "description": "x",
            "licence": "x",
            "intended_use": {"summary": "x", "modality": ["DX"]},
            "input": {"name": "image", "rows": 16, "columns": 16, "presentation": {"kind": "range"}},
            "output": {"scores": "logits", "classes": ["well", "a", "b"], "kind": "exclusive"},
            "findings": [
                FindingSpec(name="ill", code=code, positive=["a", "b"]).model_dump(),
                FindingSpec(name="kind_a", code=code, positive=["a"], among=["a", "b"]).model_dump(),
            ],
        }
    )


def test_each_finding_is_fitted_on_the_images_that_count_for_it() -> None:
    rng = np.random.default_rng(3)
    label = rng.choice(["well", "a", "b"], 300, p=[0.5, 0.47, 0.03])
    logits = 2.0 * np.stack([label == name for name in ("well", "a", "b")], axis=1) + rng.normal(size=(300, 3))
    scored = Scored(
        patients=[str(i) for i in range(300)], labels=[frozenset([n]) for n in label], outputs=logits.astype(np.float32)
    )
    found = fitting.fit_calibration(scored, _manifest()).findings
    assert (found["ill"].positives, found["ill"].negatives) == ((label != "well").sum(), (label == "well").sum())
    assert (found["kind_a"].positives, found["kind_a"].negatives) == ((label == "a").sum(), (label == "b").sum())
    assert not found["ill"].inconclusive
    assert "negative patients" in found["kind_a"].inconclusive


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (np.zeros((2, 2), np.float32), r"shape \(2, 2\), wanted \(images, 3\)"),
        (np.array([[0, 1, np.nan], [0, 1, 2]], np.float32), "not finite for 1 images"),
    ],
)
def test_outputs_that_the_model_cannot_have_given_are_refused(outputs: Floats, said: str) -> None:
    scored = Scored(patients=["a", "b"], labels=[frozenset(), frozenset(["a"])], outputs=outputs.astype(np.float32))
    with pytest.raises(PackageError, match=said):
        fitting.fit_calibration(scored, _manifest())
