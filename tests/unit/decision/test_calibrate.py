"""From a graph's scores to log-odds, to calibrated probabilities, to the site's prevalence."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from stepwedge.decision.calibrate import at_prevalence, calibrated, finding_scores
from stepwedge.manifest import CodedConcept, FindingCalibration, FindingSpec, Output

CLASSES = ["normal", "bacterial", "viral"]
logits = arrays.arrays(np.float32, (4, 3), elements=st.floats(-12, 12, width=32))
share = st.floats(0.001, 0.999)
probability = st.floats(1e-5, 1 - 1e-5)


def output(
    kind: Literal["exclusive", "independent"] = "exclusive",
    activation: Literal["none", "sigmoid", "softmax"] = "none",
) -> Output:
    return Output(scores="scores", classes=CLASSES, kind=kind, activation=activation)


def finding(positive: list[str], among: list[str] | None = None) -> FindingSpec:
    code = CodedConcept(value="1", scheme="99TEST", meaning="Test")
    return FindingSpec(name="ill", code=code, positive=positive, among=among or [])


def calibration(slope: float = 1.0, intercept: float = 0.0, prevalence: float = 0.5) -> FindingCalibration:
    return FindingCalibration(
        method="sigmoid", slope=slope, intercept=intercept, prevalence=prevalence, positives=10, negatives=10
    )


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))


class TestExclusiveClasses:
    @given(logits)
    def test_the_score_is_the_log_odds_of_the_positive_classes_together(self, values: NDArray[np.float32]) -> None:
        p = softmax(values.astype(np.float64))
        scores = finding_scores(values, output(), finding(["bacterial", "viral"]))
        assert scores == pytest.approx(np.log(p[:, 1] + p[:, 2]) - np.log(p[:, 0]), abs=1e-6)

    @given(logits)
    def test_classes_outside_among_have_no_say(self, values: NDArray[np.float32]) -> None:
        among = finding(["viral"], among=["bacterial", "viral"])
        scores = finding_scores(values, output(), among)
        assert scores == pytest.approx(values[:, 2].astype(float) - values[:, 1].astype(float), abs=1e-6)
        values[:, 0] += 5
        assert finding_scores(values, output(), among) == pytest.approx(scores)

    @given(logits)
    def test_probabilities_from_inside_the_graph_say_the_same_as_its_logits(self, values: NDArray[np.float32]) -> None:
        gentle = values / 4  # probabilities in float32 lose what lies beyond 1e-7
        p = softmax(gentle.astype(np.float64)).astype(np.float32)
        for wanted in (finding(["bacterial", "viral"]), finding(["viral"], among=["bacterial", "viral"])):
            from_logits = finding_scores(gentle, output(), wanted)
            assert finding_scores(p, output(activation="softmax"), wanted) == pytest.approx(from_logits, abs=1e-3)

    @given(logits, st.floats(-50, 50, width=32))
    def test_a_constant_added_to_every_logit_changes_nothing(
        self, values: NDArray[np.float32], constant: float
    ) -> None:
        wanted = finding(["bacterial"])
        moved = finding_scores(values.astype(np.float64) + constant, output(), wanted)  # type: ignore[arg-type]
        assert moved == pytest.approx(finding_scores(values, output(), wanted), abs=1e-6)

    @pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4, 3e38])
    def test_extreme_logits_give_finite_scores_of_the_right_sign(self, extreme: float) -> None:
        values = np.array([[0.0, extreme, 0.0]], np.float32)
        (score,) = finding_scores(values, output(), finding(["bacterial"]))
        assert np.isfinite(score)
        assert np.sign(score - np.log(0.5)) == np.sign(extreme)

    def test_saturated_probabilities_give_finite_scores(self) -> None:
        values = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
        scores = finding_scores(values, output(activation="softmax"), finding(["viral"]))
        assert np.isfinite(scores).all()
        assert scores[2] > 10
        assert scores[0] < -10


class TestIndependentClasses:
    @given(logits)
    def test_the_score_is_the_classs_own_logit(self, values: NDArray[np.float32]) -> None:
        scores = finding_scores(values, output("independent"), finding(["viral"]))
        assert scores == pytest.approx(values[:, 2])

    @given(logits)
    def test_sigmoid_probabilities_say_the_same_as_logits(self, values: NDArray[np.float32]) -> None:
        p = (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)
        scores = finding_scores(p, output("independent", "sigmoid"), finding(["viral"]))
        assert scores == pytest.approx(values[:, 2], abs=0.1)

    def test_saturated_probabilities_give_finite_scores(self) -> None:
        values = np.array([[0, 0, 0], [1, 1, 1]], np.float32)
        scores = finding_scores(values, output("independent", "sigmoid"), finding(["viral"]))
        assert np.isfinite(scores).all()
        assert scores[0] == pytest.approx(-scores[1])


class TestCalibration:
    def test_a_score_of_nought_with_no_intercept_is_one_half(self) -> None:
        assert calibrated(np.array([0.0]), calibration()) == pytest.approx([0.5])

    @given(st.floats(-30, 30), st.floats(0.01, 5), st.floats(-5, 5))
    def test_it_is_the_sigmoid_of_slope_times_score_plus_intercept(
        self, score: float, slope: float, intercept: float
    ) -> None:
        (p,) = calibrated(np.array([score]), calibration(slope, intercept))
        assert p == pytest.approx(1 / (1 + np.exp(-(slope * score + intercept))), abs=1.1e-7)

    @given(arrays.arrays(np.float64, 20, elements=st.floats(-1e6, 1e6)))
    def test_it_keeps_order_and_stays_within_nought_and_one(self, scores: NDArray[np.float64]) -> None:
        p = calibrated(np.sort(scores), calibration(1.7, -0.4))
        assert (np.diff(p) >= 0).all()
        assert ((p > 0) & (p < 1)).all()

    @pytest.mark.parametrize("score", [-1e300, -745.0, 745.0, 1e300])
    def test_no_score_overflows(self, score: float) -> None:
        (p,) = calibrated(np.array([score]), calibration())
        assert 0 < p < 1
        assert p == pytest.approx(float(score > 0), abs=1.1e-7)


class TestPrevalence:
    @given(probability, share, share)
    def test_there_and_back_is_where_one_was(self, p: float, fitted: float, site: float) -> None:
        there = at_prevalence(np.array([p]), fitted, site)
        if 1e-6 < there[0] < 1 - 1e-6:
            assert at_prevalence(there, site, fitted) == pytest.approx([p], rel=1e-6)

    @given(probability, share)
    def test_the_same_prevalence_changes_nothing(self, p: float, prevalence: float) -> None:
        assert at_prevalence(np.array([p]), prevalence, prevalence) == pytest.approx([p], rel=1e-9)

    @given(arrays.arrays(np.float64, 20, elements=st.floats(0, 1)), share, share)
    def test_it_keeps_order(self, p: NDArray[np.float64], fitted: float, site: float) -> None:
        assert (np.diff(at_prevalence(np.sort(p), fitted, site)) >= 0).all()

    @given(share, share)
    def test_a_score_that_tells_nothing_is_the_prevalence(self, fitted: float, site: float) -> None:
        assert at_prevalence(np.array([fitted]), fitted, site) == pytest.approx([site])

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_certainty_stays_finite_and_does_not_become_its_opposite(self, p: float) -> None:
        (moved,) = at_prevalence(np.array([p]), 0.5, 0.01)
        assert np.isfinite(moved)
        assert moved == pytest.approx(p, abs=1e-4)

    @pytest.mark.parametrize("site", [0.02, 0.3, 0.8])
    def test_it_equals_bayes_where_the_scores_distributions_are_known(self, site: float) -> None:
        # Ill: N(1, 1); well: N(-1, 1). Then the log-odds at a prevalence are 2 × score + log-odds of the prevalence.
        score = np.linspace(-4, 4, 41)
        ill, well = np.exp(-((score - 1) ** 2) / 2), np.exp(-((score + 1) ** 2) / 2)
        fitted = 0.4
        at_fitted = calibrated(score, calibration(2.0, float(log_odds(np.array(fitted))), fitted))
        bayes = site * ill / (site * ill + (1 - site) * well)
        assert at_prevalence(at_fitted, fitted, site) == pytest.approx(bayes, rel=1e-6)

    def test_among_simulated_patients_the_corrected_probabilities_come_true(self) -> None:
        random = np.random.default_rng(1)
        fitted, site, n = 0.5, 0.1, 200_000
        ill = random.random(n) < site
        score = random.normal(np.where(ill, 1.0, -1.0), 1.0)
        p = at_prevalence(calibrated(score, calibration(2.0, 0.0, fitted)), fitted, site)
        assert p.mean() == pytest.approx(site, abs=0.005)
        for low, high in ((0.05, 0.2), (0.4, 0.6), (0.8, 0.95)):
            within = (p >= low) & (p < high)
            assert ill[within].mean() == pytest.approx(p[within].mean(), abs=0.03)
