"""Bets against "nothing has changed": bounded while nothing has, growing when something has."""

from __future__ import annotations

import numpy as np
import pytest
from stepwatch.detectors import Detector, Locations, Ordinary, Prevalences, Ratios, Shares


def ordinary(level: float, *, days: float = 0.0, weeks: float = 0.0, band: float = 0.0) -> Ordinary:
    return Ordinary(
        level=np.array([level]),
        band=np.array([band]),
        between_days=np.array([days]),
        between_weeks=np.array([weeks]),
    )


def run(detector: Detector, values: np.ndarray, *, a_day: int = 50) -> list[float]:
    return [detector.update(np.array([value]), day=i // a_day, week=i // (5 * a_day)) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("kind", "level"), [(Locations, 0.0), (Shares, -1.0), (Shares, -4.0), (Prevalences, np.log(1 / 9))]
)
def test_the_bets_gain_one_a_study_at_most_on_average_where_nothing_changes(kind: type[Detector], level: float) -> None:
    """The property that the bound on false alarms rests on: the sum less the count is a supermartingale."""
    rng = np.random.default_rng(3)
    studies, streams = 60, 4000
    shape = Ordinary(
        level=np.full(streams, level),
        band=np.zeros(streams),
        between_days=np.zeros(streams),
        between_weeks=np.zeros(streams),
    )
    detector = kind(shape, np.full((streams, 2), 1 / (2 * streams)))
    share = 1 / (1 + np.exp(-level))
    for _ in range(studies):
        if kind is Locations:
            values = rng.normal(size=streams)
        elif kind is Shares:
            values = (rng.random(streams) < share).astype(float)
        else:
            ill = rng.random(streams) < share
            values = np.exp(1.8 * (rng.normal(size=streams) + np.where(ill, 0.9, -0.9)))
        total = detector.update(values, 0, 0)
    # The mean over 4,000 streams has a heavy tail; it lies near 60 and never far above.
    assert 40 < total < 80


def test_a_shift_makes_the_bets_grow_beyond_any_limit() -> None:
    rng = np.random.default_rng(1)
    detector = Locations(ordinary(0.0), np.array([[0.5, 0.5]]))
    before = run(detector, rng.normal(size=400))[-1]
    after = run(detector, rng.normal(0.6, 1, size=400))[-1]
    assert before < 1e4
    assert after > 1e12
    assert detector.direction(0) == 1


def test_wandering_within_the_band_is_not_bet_against() -> None:
    rng = np.random.default_rng(2)
    detector = Locations(ordinary(0.0, band=0.3), np.array([[0.5, 0.5]]))
    slow = np.repeat(np.tile([0.25, -0.25], 10), 200)
    assert max(run(detector, rng.normal(slow, 1))) < 1e5


def test_effects_of_days_are_not_bet_against_where_the_baseline_had_them() -> None:
    rng = np.random.default_rng(4)
    days = np.repeat(rng.normal(0, 0.5, 200), 50)
    values = rng.normal(days, 1)
    told = max(run(Locations(ordinary(0.0, days=0.25), np.array([[0.5, 0.5]])), values))
    untold = max(run(Locations(ordinary(0.0), np.array([[0.5, 0.5]])), values))
    assert told < 1e6
    assert untold > 1e12


def test_what_is_held_is_not_bet_upon_and_starts_anew_when_released() -> None:
    detector = Shares(ordinary(-3.0), np.array([[1.0, 0.0]]))
    run(detector, np.ones(20))
    assert detector.total() > 1e6
    detector.hold(np.array([0]))
    assert detector.total() == 0
    run(detector, np.ones(20))
    assert detector.total() == 0
    detector.release(np.array([0]))
    run(detector, np.ones(20))
    assert detector.total() > 1e6


def test_missing_values_change_nothing() -> None:
    detector = Locations(ordinary(0.0, days=0.1), np.array([[0.5, 0.5]]))
    run(detector, np.array([0.5, -0.2]))
    kept = {name: values.copy() for name, values in detector.state().items()}
    detector.update(np.array([np.nan]), 0, 0)
    assert all(np.array_equal(kept[name], values) for name, values in detector.state().items())


def test_a_detector_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0.2, 1, 300)
    whole = Locations(ordinary(0.0, days=0.05, weeks=0.02), np.array([[0.5, 0.5]]))
    expected = run(whole, values)[-1]
    first = Locations(ordinary(0.0, days=0.05, weeks=0.02), np.array([[0.5, 0.5]]))
    for i, value in enumerate(values[:123]):
        first.update(np.array([value]), i // 50, i // 250)
    second = Locations(ordinary(0.0, days=0.05, weeks=0.02), np.array([[0.5, 0.5]]))
    second.restore(first.state())
    for i, value in enumerate(values[123:], start=123):
        total = second.update(np.array([value]), i // 50, i // 250)
    assert total == pytest.approx(expected)


def test_ratios_are_taken_as_they_come() -> None:
    detector = Ratios(ordinary(0.0), np.array([[1.0, 0.0]]))
    detector.update(np.array([np.log(3.0)]), 0, 0)
    assert detector.update(np.array([np.log(2.0)]), 0, 0) == pytest.approx((3.0 + 1) * 2)
