"""Labels against probabilities: the baseline's line is found, and bets on a flatter one pay where the model decays."""

from __future__ import annotations

import numpy as np
import pytest
from stepwatch.calibration import BETS, Line, fit_calibration, log_odds


def draw(rng: np.random.Generator, n: int, line: Line) -> tuple[np.ndarray, np.ndarray]:
    odds = rng.normal(-1.5, 1.5, n)
    return 1 / (1 + np.exp(-odds)), (rng.random(n) < line.shares(odds)).astype(float)


def test_the_baselines_line_is_found() -> None:
    probabilities, labels = draw(np.random.default_rng(0), 20_000, Line(intercept=0.5, slope=0.8))
    usual = fit_calibration(probabilities, labels).usual
    assert usual.intercept == pytest.approx(0.5, abs=0.1)
    assert usual.slope == pytest.approx(0.8, abs=0.05)


def test_too_few_labels_leave_the_probabilities_at_their_word() -> None:
    probabilities, labels = draw(np.random.default_rng(0), 100, Line(intercept=2.0, slope=1.0))
    assert fit_calibration(probabilities, labels).usual == Line(intercept=0.0, slope=1.0)


def test_flatter_lines_keep_the_share_of_positives() -> None:
    probabilities, labels = draw(np.random.default_rng(0), 5000, Line(intercept=0.0, slope=1.0))
    fitted = fit_calibration(probabilities, labels)
    shares = [line.shares(log_odds(probabilities)).mean() for line in fitted.changed]
    assert shares == pytest.approx([fitted.usual.shares(log_odds(probabilities)).mean()] * len(shares), abs=1e-6)


def test_bets_on_a_flatter_line_pay_where_it_is_flatter_and_not_otherwise() -> None:
    rng = np.random.default_rng(0)
    fitted = fit_calibration(*draw(rng, 5000, Line(intercept=0.0, slope=1.0)))
    bet = BETS.index("slope × 0.4")
    flatter = fitted.log_ratios(*draw(rng, 5000, fitted.changed[bet]))[:, bet]
    same = fitted.log_ratios(*draw(rng, 5000, fitted.usual))[:, bet]
    assert flatter.mean() > 0 > same.mean()
    assert np.exp(same).mean() == pytest.approx(1.0, abs=0.1)


def test_a_study_without_a_label_says_nothing() -> None:
    fitted = fit_calibration(np.array([0.2, 0.8]), np.array([np.nan, np.nan]))
    assert np.isnan(fitted.log_ratios(np.array([0.5]), np.array([np.nan]))).all()
