"""Which signals a baseline gives, and what a study says of each."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from drifting import CONFIG, PIXELS, stream
from stepwatch.signals import EVERYWHERE, Encoder, normal_scores, observation_row, reference
from stepwatch.streams import Table, one_row
from stepwedge.observation import Observation


@cache
def baseline() -> Table:
    return stream(np.random.default_rng(0), 4000)


@cache
def encoder() -> Encoder:
    return Encoder(baseline(), CONFIG)


def test_ranks_of_the_baseline_are_standard_normal() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=5000)
    scores = normal_scores(reference(values).ranks(values))
    assert scores.mean() == pytest.approx(0, abs=0.01)
    assert scores.std() == pytest.approx(1, abs=0.02)


def test_missing_stays_missing() -> None:
    assert np.isnan(normal_scores(reference(np.arange(10.0)).ranks(np.array([np.nan]))))[0]


def test_a_reference_is_bounded() -> None:
    assert len(reference(np.arange(100_000.0)).values) <= 1024


def test_strata_with_too_few_studies_are_not_judged() -> None:
    assert set(encoder().strata) == {"A|working", "B|working"}
    encoded = encoder().encode(baseline())
    off = np.array([stratum == "" for stratum in encoded.strata])
    assert off.any()
    assert not encoded.asked["location"][off].any()


def test_every_column_has_signals_of_its_own() -> None:
    columns = {signal.column for signals in encoder().groups.values() for signal in signals}
    assert {"scanner", "age", "sex", "view", "kvp", "probability", *PIXELS} <= columns
    kinds = {signal.kind for signal in encoder().groups["A|working"]}
    assert kinds == {"share", "below", "missing", "unseen"}
    assert set(EVERYWHERE) <= encoder().groups.keys()


def test_a_level_never_seen_says_so_and_nothing_else_of_that_source() -> None:
    row = {"scanner": "Z", "sex": "F", "view": "PA", "age": 40.0}
    encoded = encoder().encode(one_row(row, datetime(2026, 3, 3, tzinfo=UTC), CONFIG, 0))
    names = [signal.name for signal in encoder().groups["source|working"]]
    assert encoded.values["source|working"][0][names.index("scanner unseen")] == 1
    assert not encoded.asked["A|working"][0]
    assert not encoded.asked["location"][0]


def test_infinite_and_odd_values_count_as_missing() -> None:
    row = {"scanner": "A", "age": float("inf"), "kvp": "110", "exposure": True, "sex": None}
    table = one_row(row, datetime(2026, 3, 3, tzinfo=UTC), CONFIG, 0)
    assert all(np.isnan(table.numbers[name][0]) for name in ("age", "kvp", "exposure"))
    names = [signal.name for signal in encoder().groups["A|working"]]
    said = encoder().encode(table).values["A|working"][0]
    assert said[names.index("age missing")] == 1
    assert said[names.index("sex missing")] == 1


def test_an_observation_becomes_a_flat_row() -> None:
    row = observation_row(
        Observation(
            unit="u",
            study="s",
            revision=1,
            time="2026-03-03T10:00:00+00:00",
            model_name="m",
            model_version="1",
            model_digest="d",
            policy_digest="p",
            state="reported",
            gate_reasons=("image_flipped", "other"),
            senders=("PACS",),
            probabilities={"pneumonia": 0.2},
            embedding=(0.5, 0.25),
            ms={"infer": 3.0},
        )
    )
    assert row["probability.pneumonia"] == 0.2
    assert row["embedding.1"] == 0.25
    assert row["gate_reason"] == "image_flipped"
    assert row["sender"] == "PACS"
    assert row["ms.infer"] == 3.0
