"""How far signals wander by themselves is learnt from the baseline, and what it cannot support is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drifting import CONFIG, PACKAGE, stream
from stepwatch.baseline import fit_baseline, load_baseline
from stepwatch.config import Family, WatchConfig, default_config
from stepwatch.errors import WatchError
from stepwatch.streams import Table

ONE = WatchConfig(families={"level": Family(numbers=["x"])}, off_days=[])


def wandering(rng: np.random.Generator, *, days: float = 0.0, weeks: float = 0.0, slow: float = 0.0) -> Table:
    """A year of 40 studies a day, of which the mean wanders by so much between days, weeks and months."""
    day = np.repeat(np.arange(364), 40)
    level = rng.normal(0, days, 364)[day] + rng.normal(0, weeks, 52)[day // 7] + rng.normal(0, slow, 13)[day // 28]
    x = level + rng.normal(size=len(day))
    return Table(
        numbers={"x": x},
        levels={},
        days=day + 20_458,  # a Monday
        times=tuple("2026-01-05" for _ in day),
        rows=np.arange(len(day)),
    )


@pytest.mark.parametrize(
    ("truth", "where"), [({"days": 0.3}, "between_days"), ({"weeks": 0.3}, "between_weeks"), ({"slow": 0.3}, "band")]
)
def test_wandering_is_put_down_to_what_it_is(truth: dict[str, float], where: str) -> None:
    found = {"between_days": [], "between_weeks": [], "band": []}
    for seed in range(5):
        ordinary = fit_baseline(wandering(np.random.default_rng(seed), **truth), ONE).ordinary["location"]
        for name, values in found.items():
            values.append(float(getattr(ordinary, name)[0]))
    variance = {name: float(np.mean(values)) for name, values in found.items()}
    if where == "band":
        assert variance["band"] > 0.5
        assert max(variance["between_days"], variance["between_weeks"]) < 0.02
    else:
        assert variance[where] == pytest.approx(0.09 / (1 + 0.09), rel=0.35)
        assert variance["band"] < 0.35


def test_a_calm_baseline_has_a_narrow_band() -> None:
    ordinary = fit_baseline(wandering(np.random.default_rng(0)), ONE).ordinary["location"]
    assert float(ordinary.band[0]) < 0.1


def test_a_small_baseline_is_refused() -> None:
    with pytest.raises(WatchError, match="at least 400"):
        fit_baseline(stream(np.random.default_rng(0), 200), CONFIG)


def test_a_short_baseline_warns_and_assumes() -> None:
    fitted = fit_baseline(stream(np.random.default_rng(0), 1200), CONFIG)
    assert any("weeks" in warning for warning in fitted.warnings)
    assert (fitted.ordinary["location"].band > 0.3).all()


def test_what_the_baseline_never_has_is_not_watched_and_said() -> None:
    """Else the first study that has it would be taken for a change."""
    count = 600
    table = Table(
        numbers={"x": np.random.default_rng(0).normal(size=count), "kvp": np.full(count, np.nan)},
        levels={"sex": np.full(count, "")},
        days=np.repeat(np.arange(20), 30) + 20_458,
        times=tuple("2026-01-05" for _ in range(count)),
        rows=np.arange(count),
    )
    config = WatchConfig(families={"all": Family(numbers=["x", "kvp"], levels=["sex"])}, off_days=[])
    fitted = fit_baseline(table, config)
    columns = {signal.column for signals in fitted.encoder.groups.values() for signal in signals}
    assert columns == {"x"}
    assert any("says nothing of sex, kvp" in warning for warning in fitted.warnings)


def test_a_stop_in_the_baseline_is_told_and_left_out() -> None:
    table = stream(np.random.default_rng(0), 4000)
    days = np.unique(table.days)
    stopped = (table.days == days[8]) | (table.days == days[9])
    kept = np.flatnonzero(~(stopped & (table.levels["scanner"] == "A")))
    fitted = fit_baseline(table.part(kept), CONFIG)
    assert [event for event in fitted.events if "scanner" in event]


def test_the_shipped_packages_baseline_can_be_used() -> None:
    fitted = load_baseline(PACKAGE, default_config(("pneumonia", "bacterial_pneumonia")))
    assert fitted.studies > 900
    assert fitted.model == "chest-pneumonia 1.1.0"
    assert fitted.warnings  # it was measured in one go, and has no days


def test_a_folder_without_a_baseline_says_so(tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="cannot be read"):
        load_baseline(tmp_path, default_config())
