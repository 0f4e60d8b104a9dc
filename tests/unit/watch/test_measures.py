"""Measures over resamples of weighted studies."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from stepwatch.measures import calibration_error, draw_truth, measure, resample

RANDOM = np.random.default_rng(5)
SCORE = np.round(RANDOM.random(400), 2)  # with ties
TRUTH = (RANDOM.random(400) < SCORE).astype(float)
WEIGHTS = RANDOM.uniform(0.5, 3, 400)
ANSWERS = np.where(SCORE > 0.5, "act", "clear")


def test_areas_are_those_of_scikit_learn_with_ties_and_weights() -> None:
    found = measure(SCORE, TRUTH[None], WEIGHTS[None], ANSWERS, None)
    assert found["auroc"][0] == pytest.approx(roc_auc_score(TRUTH, SCORE, sample_weight=WEIGHTS))
    assert found["auprc"][0] == pytest.approx(average_precision_score(TRUTH, SCORE, sample_weight=WEIGHTS))


def test_a_doubtful_truth_counts_in_part_each_way() -> None:
    doubtful = measure(SCORE, np.full((1, 400), 0.5), WEIGHTS[None], ANSWERS, None)
    assert doubtful["auroc"][0] == pytest.approx(0.5)
    assert doubtful["ppv"][0] == pytest.approx(0.5)


def test_calibration_error_is_the_mean_gap_of_ten_bins() -> None:
    score, truth = np.repeat([0.05, 0.95], 500), np.repeat([0.0, 1.0], 500)
    ones = np.ones((1, 1000))
    assert calibration_error(score, truth[None], ones)[0] == pytest.approx(0.05)
    assert calibration_error(score, 1 - truth[None], ones)[0] == pytest.approx(0.95)


def test_resamples_keep_how_many_studies_are_of_which_group() -> None:
    groups = np.repeat([0, 1], [100, 300])
    drawn = resample(groups, WEIGHTS, 50, np.random.default_rng(1))
    assert drawn.shape == (50, 400)
    np.testing.assert_allclose(drawn[:, :100].sum(axis=1), WEIGHTS[:100].sum())
    np.testing.assert_allclose(drawn[:, 100:].sum(axis=1), WEIGHTS[100:].sum())


def test_truth_is_drawn_only_where_it_is_uncertain() -> None:
    drawn = draw_truth(np.array([0.0, 1.0, 0.5]), 1000, np.random.default_rng(1))
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] == 1).all()
    assert drawn[:, 2].mean() == pytest.approx(0.5, abs=0.06)


def test_what_never_happens_has_no_figure() -> None:
    found = measure(SCORE, TRUTH[None], WEIGHTS[None], np.full(400, "clear"), None)
    assert np.isnan(found["ppv"][0])
    assert np.isnan(found["expected_cost"][0])
