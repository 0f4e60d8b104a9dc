"""What a row may be, and at what time it is taken."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwatch.rows import REASONS, RefusedRowError, in_order, read_observation, time_of
from watched import shipped_rows

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
GOOD = json.loads(replace(shipped_rows()[0], time=NOW.isoformat()).to_json())


def refused(row: object) -> str:
    with pytest.raises(RefusedRowError) as error:
        read_observation(row if isinstance(row, str) else json.dumps(row))
    return error.value.reason


def test_a_good_row_is_read_whole() -> None:
    assert json.loads(read_observation(json.dumps(GOOD)).to_json()) == GOOD


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(value: str) -> None:
    for name in ("kvp", "ms", "embedding"):
        inside = {"kvp": value, "ms": f'{{"a":{value}}}', "embedding": f"[{value}]"}[name]
        text = json.dumps({**GOOD, name: None}).replace(f'"{name}": null', f'"{name}": {inside}')
        assert refused(text) == "not_finite"


@pytest.mark.parametrize(
    "changes",
    [
        {"kvp": "70"}, {"kvp": True}, {"scores": [1]}, {"scores": {"a": "b"}}, {"reasons": "code"}, {"unit": 7},
        {"embedding": ["a"]}, {"version": "1"}, {"decisions": {"a": 1}}, {"sex": None},
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused(changes: dict[str, object]) -> None:
    assert refused({**GOOD, **changes}) == "wrong_type"


@pytest.mark.parametrize("time", ["", "2026-03-02T12:00:00", "soon", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time_with_an_offset_is_refused(time: str) -> None:
    assert refused({**GOOD, "time": time}) == "no_time"


def test_null_stands_for_what_is_missing() -> None:
    assert read_observation(json.dumps({**GOOD, "age_years": None, "ms": None})).age_years is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_nothing_else_than_a_refusal_comes_of_what_is_no_row(value: object) -> None:
    assert refused(json.dumps(value)) in REASONS


@given(st.sampled_from(sorted(GOOD)), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
def test_a_row_with_a_strange_field_is_read_or_refused(name: str, value: object) -> None:
    with suppress(RefusedRowError):
        time_of(read_observation(json.dumps({**GOOD, name: value})))


@given(st.lists(st.integers(-3_000_000, 3_000_000), max_size=20))
def test_days_follow_each_other_whatever_the_clocks_say(seconds: list[int]) -> None:
    last = None
    for offset in seconds:
        when, _ = in_order(NOW + timedelta(seconds=offset), last, NOW)
        assert last is None or when >= last
        assert when <= NOW + timedelta(minutes=5)
        last = when


def test_a_clock_that_was_ahead_and_is_put_right_is_followed() -> None:
    wrong = NOW + timedelta(days=3650)
    last, jump = in_order(wrong, None, wrong)
    assert (last, jump) == (wrong, None)
    assert in_order(NOW, last, NOW) == (NOW, None)


def test_workers_that_finish_in_another_order_are_no_jump() -> None:
    assert in_order(NOW - timedelta(minutes=3), NOW, NOW) == (NOW, None)
    assert in_order(NOW - timedelta(hours=3), NOW, NOW) == (NOW, "back")
    assert in_order(NOW + timedelta(hours=3), NOW, NOW) == (NOW, "ahead")
