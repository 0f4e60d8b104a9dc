"""An alarm ends when its signal is back, and not because it comes and goes."""

from __future__ import annotations

import numpy as np
from stepwatch.alarms import Alarm, Return, has_stopped, why_not_adopted
from stepwatch.detectors import Locations, Shares

CALM = (0.0, 0.0)


def studies_until_back(way: Return, values: np.ndarray) -> int | None:
    return next((i for i, value in enumerate(values) if way.update(float(value), i // 50, i // 250)), None)


def test_a_stop_ends_within_a_few_studies_of_the_return() -> None:
    rng = np.random.default_rng(0)
    way = Return(Shares, edge=-0.5, usual=0.5, direction=-1, between=(0.3, 0.1), stopped=True)
    assert studies_until_back(way, np.zeros(500)) is None
    back = studies_until_back(way, (rng.random(100) < 0.5).astype(float))
    assert back is not None
    assert back < 20


def test_a_change_that_stays_does_not_end() -> None:
    rng = np.random.default_rng(1)
    way = Return(Locations, edge=0.2, usual=0.0, direction=1, between=CALM, stopped=False)
    assert studies_until_back(way, rng.normal(0.5, 1, 3000)) is None


def test_a_change_that_is_over_ends() -> None:
    rng = np.random.default_rng(2)
    way = Return(Locations, edge=0.4, usual=0.0, direction=1, between=CALM, stopped=False)
    assert studies_until_back(way, rng.normal(0.0, 1, 3000)) is not None


def test_one_good_day_does_not_end_it_where_days_differ() -> None:
    rng = np.random.default_rng(3)
    way = Return(Locations, edge=0.4, usual=0.0, direction=1, between=(0.3, 0.0), stopped=False)
    assert studies_until_back(way, rng.normal(0.0, 1, 50)) is None


def test_it_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, 400)
    whole = Return(Locations, edge=0.3, usual=0.0, direction=1, between=(0.1, 0.1), stopped=False)
    expected = studies_until_back(whole, values)
    first = Return(Locations, edge=0.3, usual=0.0, direction=1, between=(0.1, 0.1), stopped=False)
    for i, value in enumerate(values[:60]):
        first.update(float(value), i // 50, i // 250)
    second = Return(Locations, **first.describe())
    second.restore(first.state())
    found = next((i for i in range(60, 400) if second.update(float(values[i]), i // 50, i // 250)), None)
    assert found == expected


def test_only_what_was_common_can_stop() -> None:
    assert has_stopped(0.6, 0.01)
    assert not has_stopped(0.05, 0.0)
    assert not has_stopped(0.6, 0.2)


ALARM = Alarm(
    alarm="1-all-x",
    kind_of_alarm="drift",
    signal="x",
    family="pixels",
    direction="up",
    evidence=5.4,
    raised_row=1,
    raised_time="2026-01-01T00:00:00",
    raised_count=2,
    changed_row=0,
    changed_time="2026-01-01T00:00:00",
    baseline_value=0.0,
    present_value=0.5,
)


def test_an_alarm_survives_being_written_down() -> None:
    assert Alarm.from_dict(ALARM.to_dict()) == ALARM
    assert ALARM.active


def test_what_lasts_may_become_the_new_normal_but_not_that_the_model_has_got_worse() -> None:
    assert why_not_adopted(ALARM.to_dict()) == ""
    for change, said in (
        ({"family": "labels"}, "cannot be made normal"),
        ({"cleared_row": 7}, "back where it was"),
        ({"adopted": True}, "already"),
    ):
        assert said in why_not_adopted(ALARM.to_dict() | change)
