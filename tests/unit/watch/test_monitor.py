"""A stream with a known change: it is noticed, named, ended; and nothing is noticed where nothing changed."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from drifting import CONFIG, Change, stream
from stepwatch.alarms import Alarm
from stepwatch.baseline import Baseline, fit_baseline
from stepwatch.errors import WatchError
from stepwatch.monitor import Monitor
from stepwatch.streams import Table

WHEN = datetime(2026, 6, 1, tzinfo=UTC)


@cache
def baseline() -> Baseline:
    return fit_baseline(stream(np.random.default_rng(7), 4000), CONFIG)


def watched(change: Change, studies: int = 2500, seed: int = 8) -> Table:
    return stream(np.random.default_rng(seed), studies, change)


def first_alarm(change: Change, studies: int = 2500) -> Alarm:
    monitor = Monitor.start(CONFIG, baseline())
    return next(alarm for _, alarm in monitor.run(watched(change, studies)))


def test_nothing_is_noticed_where_nothing_changed() -> None:
    assert list(Monitor.start(CONFIG, baseline()).run(watched(Change(), 6000))) == []


@pytest.mark.parametrize(
    ("change", "family", "shift"),
    [
        (Change(kind="bright", at=400), "pixels", "acquisition"),
        (Change(kind="hidden", at=400), "pixels", "acquisition"),
        (Change(kind="new_tag", at=400), "source", "acquisition"),
        (Change(kind="population", at=400), "patient", "population"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_change_is_noticed_and_named(change: Change, family: str, shift: str) -> None:
    alarm = first_alarm(change)
    assert alarm.family == family
    assert alarm.shift in (shift, "unknown")
    assert 400 < alarm.raised_count < 1400
    assert alarm.changed_row <= alarm.raised_row


def test_an_unseen_source_says_so() -> None:
    alarm = first_alarm(Change(kind="new_tag", at=400))
    assert alarm.signal == "scanner unseen"
    assert alarm.direction == "unseen"


def test_a_stop_is_an_event_and_then_a_drift_and_ends_with_the_return() -> None:
    table = watched(Change(), 3000)
    stopped = (np.arange(3000) >= 1000) & (np.arange(3000) < 2000)
    kept = np.flatnonzero(~stopped | (table.levels["scanner"] == "A"))
    changes = [alarm for _, alarm in Monitor.start(CONFIG, baseline()).run(table.part(kept))]
    told = [alarm for alarm in changes if alarm.family == "source" and alarm.stratum == "working"]
    assert [alarm.kind_of_alarm for alarm in told] == ["event", "drift", "drift"]
    assert {(alarm.signal, alarm.direction, alarm.shift) for alarm in told} == {("scanner=B", "absent", "stop")}
    assert told[-1].cleared_row is not None
    assert 2000 <= told[-1].cleared_row < 2100


def test_one_cause_is_one_alarm() -> None:
    monitor = Monitor.start(CONFIG, baseline())
    raised = [a for _, a in monitor.run(watched(Change(kind="bright", at=400, size=0.6), 4000)) if a.active]
    assert len({alarm.alarm for alarm in raised}) == 1


def test_the_monitor_goes_on_from_its_state() -> None:
    table = watched(Change(kind="bright", at=400))
    whole = Monitor.start(CONFIG, baseline())
    expected = [alarm for _, alarm in whole.run(table)]
    first = Monitor.start(CONFIG, baseline())
    early = [alarm for _, alarm in first.run(table.part(slice(0, 777)))]
    second = Monitor.from_bytes(CONFIG, baseline(), first.to_bytes())
    late = [alarm for _, alarm in second.run(table.part(slice(777, None)))]
    assert early + late == expected
    assert second.to_bytes() == whole.to_bytes()


def test_a_state_of_other_signals_is_refused() -> None:
    other = fit_baseline(stream(np.random.default_rng(1), 3000), CONFIG.model_copy(update={"source": None}))
    saved = Monitor.start(CONFIG, baseline()).to_bytes()
    with pytest.raises(WatchError, match="begin anew"):
        Monitor.from_bytes(CONFIG, other, saved)


def test_a_change_becomes_normal_only_when_a_person_says_so() -> None:
    table = watched(Change(kind="bright", at=400, size=0.6), 5000)
    monitor = Monitor.start(CONFIG, baseline())
    raised = [alarm for _, alarm in monitor.run(table.part(slice(0, 2500)))]
    assert raised[-1].active
    alarm = monitor.acknowledge(raised[-1].alarm, by="M. Ito", when=datetime.now(UTC), adopt=True)
    assert alarm.adopted
    assert monitor.alarms() == []
    again = [alarm for _, alarm in monitor.run(table.part(slice(2500, None)))]
    assert not [a for a in again if a.stratum == "" and a.signal == alarm.signal]


def test_an_alarm_that_nobody_knows_cannot_be_acknowledged() -> None:
    with pytest.raises(WatchError, match="no such alarm"):
        Monitor.start(CONFIG, baseline()).acknowledge("x", by="M. Ito", when=datetime.now(UTC))


def test_a_column_that_goes_missing_is_an_alarm() -> None:
    table = watched(Change(), 1200)
    table.numbers["kvp"][500:] = np.nan
    alarm = next(a for _, a in Monitor.start(CONFIG, baseline()).run(table))
    assert alarm.signal == "kvp missing"
    assert alarm.direction == "missing"
    assert alarm.raised_count < 560


def test_the_state_is_small() -> None:
    monitor = Monitor.start(CONFIG, baseline())
    list(monitor.run(watched(Change(), 2000)))
    assert len(monitor.to_bytes()) < 1_000_000


def test_rows_one_by_one_say_the_same_as_a_table() -> None:
    table = watched(Change(kind="new_tag", at=100), 300)
    together = [alarm for _, alarm in Monitor.start(CONFIG, baseline()).run(table)]
    monitor = Monitor.start(CONFIG, baseline())
    singly: list[Alarm] = []
    for i in range(300):
        row: dict[str, object] = {name: float(values[i]) for name, values in table.numbers.items()}
        row |= {name: str(values[i]) for name, values in table.levels.items()}
        singly += monitor.update(row, datetime.fromisoformat(table.times[i]))
    assert [a.signal for a in singly] == [a.signal for a in together]
    assert [a.raised_count for a in singly] == [a.raised_count for a in together]


def test_labels_that_come_apart_raise_a_concept_alarm_and_clear_it_by_what_they_say_alone() -> None:
    rng = np.random.default_rng(3)
    monitor = Monitor.start(CONFIG, baseline())
    probability = rng.beta(0.5, 3, 6000)
    found = []
    for p in probability[:2000]:
        found += monitor.label("label", float(p), float(rng.random() < 0.15), WHEN)
        if found:
            break
    [alarm] = found
    assert (alarm.family, alarm.shift) == ("labels", "concept")
    with pytest.raises(WatchError, match="cannot be made normal"):
        monitor.acknowledge(alarm.alarm, by="A", when=WHEN, adopt=True)
    for p in probability[2000:4000]:
        monitor.label("label", float(p), float(rng.random() < 0.15), WHEN)
    assert [alarm.cleared_row for alarm in monitor.alarms()] == [None]
    again = Monitor.from_bytes(CONFIG, baseline(), monitor.to_bytes())
    for each in (monitor, again):
        chance = np.random.default_rng(4)
        for p in probability[-1000:]:
            each.label("label", float(p), float(chance.random() < p), WHEN)
        assert all(alarm.cleared_row is not None for alarm in each.alarms())
    assert monitor.alarms() == again.alarms()
    assert monitor._free("labels") < 1000  # counted in labels, since the alarm's end
