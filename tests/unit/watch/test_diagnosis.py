"""Of which kind a change is, and where it comes from."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from drifting import CONFIG, Change, stream
from stepwatch.baseline import Baseline, fit_baseline
from stepwatch.diagnosis import prevalence_by_likelihood
from stepwatch.monitor import Monitor


@cache
def baseline() -> Baseline:
    return fit_baseline(stream(np.random.default_rng(5), 5000), CONFIG)


@pytest.mark.parametrize("prevalence", [0.05, 0.1, 0.3])
def test_the_prevalence_is_found_without_labels(prevalence: float) -> None:
    rng = np.random.default_rng(0)
    ill = rng.random(20_000) < prevalence
    odds = np.exp(1.81 * (rng.normal(size=20_000) + np.where(ill, 0.905, -0.905)))
    found, error = prevalence_by_likelihood(odds, float(np.log(0.1 / 0.9)))
    assert 1 / (1 + np.exp(-found)) == pytest.approx(prevalence, rel=0.1)
    assert 0 < error < 0.2


def test_a_change_at_one_scanner_is_put_down_to_it() -> None:
    table = stream(np.random.default_rng(6), 3000)
    at_b = (table.levels["scanner"] == "B") & (np.arange(3000) >= 500)
    table.numbers["pixel_sharpness"][at_b] *= 1.6
    alarm = next(a for _, a in Monitor.start(CONFIG, baseline()).run(table))
    assert alarm.family == "pixels"
    assert alarm.stratum.startswith("B") or max(alarm.attribution, key=alarm.attribution.__getitem__).startswith("B")
    assert alarm.shift == "acquisition"


def test_a_change_of_the_patients_is_not_put_down_to_the_scanner() -> None:
    table = stream(np.random.default_rng(7), 3000, Change(kind="population", at=300))
    alarm = next(a for _, a in Monitor.start(CONFIG, baseline()).run(table))
    assert alarm.family == "patient"
    assert alarm.shift in ("population", "unknown")
