"""Every observation is taken once, by the monitor of its model; what cannot be taken is counted, and costs no other."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from stand_in_detectors import OUT_OF_BAND
from stepwatch import database as database_module
from stepwatch import tables
from stepwatch.commands.alarms import ask
from stepwatch.database import ASKED, DONE, REFUSED
from stepwatch.errors import WatchError
from stepwatch.rows import time_of
from stepwatch.settings import Model
from stepwedge.observation import Observation
from watch_bench import NOW, Bench
from watched import department, insert_event, make_service_tables, write_rows, write_watched_package


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_sidecar_that_starts_again_counts_nothing_twice_and_misses_nothing(bench: Bench) -> None:
    rows = bench.rows(30)
    bench.write(rows[:20])
    bench.sidecar.look()
    bench.write(rows[20:])
    bench.again().look()
    assert bench.monitor().units == [row.unit for row in rows]
    # What was taken, but never saved, is taken again from the saved state.
    more = bench.rows(40)[30:]
    bench.write(more)
    bench.sidecar._take(None)
    bench.again().look()
    assert bench.monitor().units == [row.unit for row in rows + more]


def test_a_sidecar_that_starts_again_knows_the_first_study(bench: Bench) -> None:
    rows = bench.rows(6)
    bench.write(rows[:3])
    bench.sidecar.look()
    bench.write(rows[3:])
    bench.again().look()
    [view] = bench.sidecar.overview.models
    assert (view.first_row, view.last_row) == (time_of(rows[0]), time_of(rows[-1]))


def test_a_row_that_becomes_visible_late_is_taken(bench: Bench) -> None:
    rows = bench.rows(5)
    with bench.engine.begin() as db:
        for number in (1, 2, 4, 5):
            row = rows[number - 1]
            db.execute(sa.insert(tables.OBSERVATIONS).values(id=number, unit=row.unit, body=row.to_json()))
    bench.sidecar.look()
    with bench.engine.begin() as db:
        db.execute(sa.insert(tables.OBSERVATIONS).values(id=3, unit=rows[2].unit, body=rows[2].to_json()))
    bench.again().look()
    bench.sidecar.look()
    assert sorted(bench.monitor().units) == sorted(row.unit for row in rows)


def test_bad_rows_are_refused_by_reason_and_the_rest_goes_on(bench: Bench) -> None:
    good = bench.rows(3)
    bodies = {
        "not_json": "{",
        "not_finite": good[0].to_json().replace('"pixel_mean":0.4', '"pixel_mean":NaN'),
        "newer_version": good[0].to_json().replace('"version":1', '"version":2'),
        "missing_field": "{}",
        "wrong_type": good[0].to_json().replace('"pixel_mean":0.4', '"pixel_mean":"bright"'),
        "no_time": replace(good[0], time="yesterday").to_json(),
        "unknown_model": replace(good[0], model_digest="0" * 64).to_json(),
    }
    before = {reason: counted("stepwatch_rows_refused_total", reason=reason) for reason in bodies}
    bench.write(good[:1])
    with bench.engine.begin() as db:
        for reason, body in bodies.items():
            db.execute(sa.insert(tables.OBSERVATIONS).values(unit=reason, body=body))
    bench.write(good[1:])
    bench.sidecar.look()
    bench.again().look()
    assert bench.monitor().units == [row.unit for row in good]
    for reason, count in before.items():
        assert counted("stepwatch_rows_refused_total", reason=reason) == count + 1, reason


def test_a_clock_that_jumps_is_counted_and_days_still_follow_each_other(bench: Bench) -> None:
    rows = bench.rows(4)
    ahead = (NOW + timedelta(days=400)).isoformat()
    back = "1999-01-01T00:00:00+00:00"
    before = {way: counted("stepwatch_clock_jumps_total", direction=way) for way in ("ahead", "back")}
    bench.write([rows[0], replace(rows[1], time=ahead), replace(rows[2], time=back), rows[3]])
    bench.sidecar.look()
    times = bench.monitor().times
    assert times == sorted(times)
    assert times[1] == NOW.isoformat()
    assert len(times) == 4
    assert counted("stepwatch_clock_jumps_total", direction="ahead") == before["ahead"] + 1
    assert counted("stepwatch_clock_jumps_total", direction="back") == before["back"] + 2


def test_an_alarm_is_kept_with_the_state_and_a_person_ends_it_once(bench: Bench) -> None:
    rows = bench.rows(6)
    bench.write([*rows[:2], replace(rows[2], pixel_mean=OUT_OF_BAND + 0.05)])
    bench.sidecar.look()
    [alarm] = bench.database.alarms("chest-pneumonia")
    assert alarm["digest"] == bench.digest
    assert len(bench.database.log("raised")) == 1
    bench.database.append_log(ASKED, who="A. Person", body={"alarm": alarm["alarm"], "adopt": True})
    bench.again().look()
    bench.again().look()
    assert len(bench.database.log("raised")) == 1
    [done] = bench.database.log(DONE)
    assert done.who == "A. Person"
    [alarm] = bench.database.alarms()
    assert alarm["adopted"]
    assert bench.sidecar.overview.models[0].alarms == ()


def test_what_cannot_be_adopted_is_refused_once(bench: Bench) -> None:
    rows = bench.rows(3)
    bench.write([replace(rows[0], pixel_mean=OUT_OF_BAND + 0.05), rows[1]])
    bench.sidecar.look()
    [alarm] = bench.database.alarms()
    assert alarm["cleared_row"] is not None
    bench.database.append_log(ASKED, who="A. Person", body={"alarm": alarm["alarm"], "adopt": True})
    bench.sidecar.look()
    bench.again().look()
    assert [entry.body["said"] for entry in bench.database.log(REFUSED)] == ["there is nothing to adopt"]


def test_what_cannot_be_adopted_is_not_even_noted_and_may_still_be_acknowledged(bench: Bench) -> None:
    rows = bench.rows(2)
    bench.write([replace(rows[0], pixel_mean=OUT_OF_BAND + 0.05)])
    bench.sidecar.look()
    with bench.engine.begin() as db:
        (body,) = db.scalars(sa.select(tables.ALARMS.c.body))
        db.execute(sa.update(tables.ALARMS).values(body=body | {"family": "labels"}))
    with pytest.raises(WatchError, match="cannot be made normal"):
        ask(bench.database, body["alarm"], "A. Person", adopt=True)
    bench.write([rows[1]])
    bench.sidecar.look()
    with pytest.raises(WatchError, match="back where it was"):
        ask(bench.database, body["alarm"], "A. Person", adopt=True)
    assert bench.database.log(ASKED) == []
    ask(bench.database, body["alarm"], "A. Person", adopt=False)
    assert [asked.body["adopt"] for asked in bench.database.log(ASKED)] == [False]


def test_a_database_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    for file in bench.folder.glob("db.sqlite*"):
        file.unlink()
    before = counted("stepwatch_database_failures_total")
    bench.sidecar.look()
    assert "has the service been started" in bench.sidecar.overview.database
    assert counted("stepwatch_database_up") == 0
    assert counted("stepwatch_database_failures_total") == before + 1
    engine = make_service_tables(bench.folder / "db.sqlite")
    write_rows(engine, bench.rows(2))
    engine.dispose()
    bench.sidecar.look()
    assert bench.sidecar.overview.database == ""
    assert counted("stepwatch_database_up") == 1
    assert bench.monitor().studies == 2


def test_a_locked_database_delays_the_saving_and_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.05)
    rows = bench.rows(6)
    bench.write(rows[:2])
    bench.sidecar.look()
    with sqlite3.connect(bench.folder / "db.sqlite", isolation_level=None) as other:
        bench.write(rows[2:4])
        other.execute("BEGIN IMMEDIATE")
        bench.sidecar.look()
        assert "database is locked" in bench.sidecar.overview.database
        other.execute("ROLLBACK")
    other.close()
    bench.write(rows[4:])
    bench.sidecar.look()
    assert bench.sidecar.overview.database == ""
    assert bench.monitor().units == [row.unit for row in rows]
    assert bench.again().look() is None
    assert bench.monitor().units == [row.unit for row in rows]


def test_two_sidecars_on_one_database_do_not_count_a_study_twice(bench: Bench) -> None:
    rows = bench.rows(6)
    bench.write(rows[:2])
    first, second = bench.sidecar, bench.again()
    first.look()
    second.look()
    bench.write(rows[2:])
    first.look()
    second.look()  # finds that the first has saved, and goes on from there
    second.look()
    first.look()
    state = bench.database.load_state("chest-pneumonia", bench.digest)
    assert state is not None
    assert state.rest["studies"] == len(rows)


def test_a_promoted_package_begins_with_its_own_baseline_and_a_roll_back_goes_on_with_the_old_state(
    bench: Bench,
) -> None:
    newer = write_watched_package(bench.folder / "candidate", department(4, start=NOW), version="1.2.0")
    link = bench.folder / "live"
    link.symlink_to("package")
    bench.settings = bench.settings.model_copy(update={"models": [Model(package=link)]})
    rows = bench.rows(9)
    bench.write(rows[:3])
    bench.again().look()
    bench.write([replace(row, model_digest=newer) for row in rows[3:6]])
    turn(link, "candidate")
    bench.sidecar.look()
    assert bench.monitor("1.2.0").units == [row.unit for row in rows[3:6]]
    assert bench.sidecar.overview.models[0].version == "1.2.0"
    turn(link, "package")
    bench.write(rows[6:])
    bench.sidecar.look()
    assert bench.monitor("1.1.0").units == [row.unit for row in rows[:3] + rows[6:]]


def turn(link: Path, to: str) -> None:
    beside = link.with_name("turned")
    beside.symlink_to(to)
    os.replace(beside, link)  # noqa: PTH105 - a link over a link


def test_a_baseline_that_cannot_be_used_is_said_and_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwatch.sidecar._AGAIN_SECONDS", 0.0)
    bench.detectors.unusable = "the baseline has 3 studies"
    bench.write(bench.rows(2))
    bench.sidecar.look()
    [view] = bench.sidecar.overview.models
    assert (view.usable, view.problem) == (False, "the baseline has 3 studies")
    bench.detectors.unusable = ""
    bench.sidecar.look()
    assert bench.sidecar.overview.models[0].studies == 2


def test_a_state_of_other_signals_is_not_taken_up_and_the_past_is_not_alarmed_about(bench: Bench) -> None:
    rows = bench.rows(4)
    bench.write(rows[:3])
    bench.sidecar.look()
    with bench.engine.begin() as db:
        db.execute(sa.update(sa.table("watch_state", sa.column("body"))).values(body=b"of old"))
    before = counted("stepwatch_states_refused_total", model="chest-pneumonia")
    bench.write(rows[3:])
    bench.again().look()
    assert bench.monitor().units == [rows[3].unit]
    assert counted("stepwatch_states_refused_total", model="chest-pneumonia") == before + 1


def test_an_error_of_the_detectors_costs_one_row_and_not_the_watch(bench: Bench) -> None:
    rows = bench.rows(3)
    bench.write([rows[0]])
    bench.sidecar.look()
    before = counted("stepwatch_look_failures_total")
    bench.write([replace(rows[1], pixel_mean=None), rows[2]])
    bench.sidecar.look()
    bench.sidecar.look()
    assert bench.monitor().units[-1] == rows[2].unit
    assert counted("stepwatch_look_failures_total") == before + 1


def test_a_package_named_twice_is_watched_once(bench: Bench) -> None:
    model = bench.settings.models[0]
    bench.settings = bench.settings.model_copy(update={"models": [model, model]})
    bench.write(bench.rows(2))
    bench.again().look()
    assert [view.usable for view in bench.sidecar.overview.models] == [True, False]
    assert "name it once" in bench.sidecar.overview.models[1].problem


def test_observations_of_a_table_that_begins_anew_are_not_waited_for(bench: Bench) -> None:
    rows = bench.rows(6)
    bench.write(rows[:4])
    bench.sidecar.look()
    with bench.engine.begin() as db:
        db.execute(sa.delete(tables.OBSERVATIONS))
    bench.write(rows[4:5])
    bench.sidecar.look()
    bench.write(rows[5:])
    bench.sidecar.look()
    assert bench.monitor().units[-1] == rows[5].unit


def test_requests_are_shown_by_their_last_event(bench: Bench) -> None:
    bench.database.prepare()
    insert_event(bench.database, "r1", "open", body={"signal": "pixel_mean"})
    insert_event(bench.database, "r2", "open")
    insert_event(bench.database, "r1", "approved", who="key")
    insert_event(bench.database, "r1", "locked_set_used")
    bench.sidecar.look()
    requests = bench.sidecar.overview.requests
    assert [(r["request"], r["event"], r["because"].get("signal")) for r in requests] == [
        ("r2", "open", None),
        ("r1", "approved", "pixel_mean"),
    ]


def test_an_older_row_that_lacks_new_fields_is_taken(bench: Bench) -> None:
    row: Observation = bench.rows(1)[0]
    body = row.to_json().replace('"tamper_measure":', '"field_of_the_future":1,"unknown":')
    with bench.engine.begin() as db:
        db.execute(sa.insert(tables.OBSERVATIONS).values(unit="u", body=body))
    bench.sidecar.look()
    assert bench.monitor().studies == 1
