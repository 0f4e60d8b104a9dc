"""Labels that come late are bet upon: readings of the audit, each study and finding once, through restarts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from stepwatch import tables
from stepwatch.audit import is_drawn
from stepwatch.cohort import follow
from stepwatch.database import Database
from stepwatch.detecting import detectors
from stepwatch.feeding import Place, Said
from stepwatch.packages import read_package
from stepwatch.settings import Detection, Model, Performance, Settings
from stepwatch.sidecar import Sidecar
from stepwedge.observation import Label
from watch_bench import Bench
from watched import (
    FINDINGS,
    MONDAY,
    department,
    make_service_tables,
    reading,
    readings,
    write_labels,
    write_rows,
    write_watched_package,
)

COLUMN = f"label.{FINDINGS[0]}"


def said(bench: Bench) -> list[tuple[str, float]]:
    return [(column, value) for column, _, value in bench.monitor().said]


def test_a_reading_is_bet_upon_once_with_what_the_model_had_said(bench: Bench) -> None:
    rows = bench.rows(3)
    bench.write(rows)
    write_labels(bench.engine, [reading(rows[1], 1.0)])
    for _ in range(2):
        bench.sidecar.look()
        bench.again().look()
    assert bench.monitor().said == [(COLUMN, rows[1].probabilities[FINDINGS[0]], 1.0)]
    assert bench.sidecar.overview.models[0].saved_labels == 1


def test_what_was_taken_and_not_saved_is_taken_again_and_not_twice(bench: Bench) -> None:
    rows = bench.rows(4)
    bench.write(rows)
    write_labels(bench.engine, [reading(row, 0.0) for row in rows[:2]])
    bench.sidecar.look()
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[2:]])
    bench.sidecar._take_labels(None)
    assert len(bench.monitor().said) == 4
    bench.again().look()
    assert said(bench) == [(COLUMN, 0.0), (COLUMN, 0.0), (COLUMN, 1.0), (COLUMN, 1.0)]


def test_a_correction_and_a_second_reader_are_not_bet_upon_again(bench: Bench) -> None:
    rows = bench.rows(1)
    bench.write(rows)
    late = (MONDAY + timedelta(days=300)).isoformat()
    write_labels(bench.engine, [reading(rows[0], None), reading(rows[0], 1.0)])
    bench.sidecar.look()
    write_labels(bench.engine, [reading(rows[0], 0.0, time=late), reading(rows[0], 0.0, reader="r2")])
    bench.again().look()
    assert said(bench) == [(COLUMN, 1.0)]


def test_of_two_readers_who_come_at_once_the_first_is_bet_upon(bench: Bench) -> None:
    rows = bench.rows(1)
    bench.write(rows)
    write_labels(bench.engine, [reading(rows[0], 1.0), reading(rows[0], 0.0, reader="r2")])
    bench.sidecar.look()
    assert said(bench) == [(COLUMN, 1.0)]


def test_labels_that_are_not_of_the_audit_are_not_bet_upon(bench: Bench) -> None:
    rows = bench.rows(2)
    bench.write(rows)
    write_labels(bench.engine, [reading(row, 1.0, audit=False, probability_drawn=None) for row in rows])
    bench.sidecar.look()
    assert said(bench) == []


def test_a_report_of_a_reader_of_the_audit_on_a_drawn_study_is_a_reading(bench: Bench) -> None:
    share = 0.3
    bench.settings = bench.settings.model_copy(
        update={"performance": Performance(audit_share=share, audit_readers=["blind"])}
    )
    rows = bench.rows(40)
    bench.write(rows)
    plain: dict[str, Any] = {"audit": False, "probability_drawn": None, "source": "sr"}
    write_labels(bench.engine, [reading(row, 1.0, reader="blind", **plain) for row in rows[:20]])
    write_labels(bench.engine, [reading(row, 1.0, reader="other", **plain) for row in rows[20:]])
    bench.again().look()
    drawn = sum(is_drawn(row.study, share) for row in rows[:20])
    assert 0 < drawn < 20
    assert len(said(bench)) == drawn


def test_a_label_that_comes_before_its_study_waits_for_it_through_a_restart(bench: Bench) -> None:
    rows = bench.rows(2)
    write_labels(bench.engine, [reading(row, 1.0) for row in rows])
    bench.write(rows[:1])
    bench.sidecar.look()
    assert len(said(bench)) == 1
    bench.again().look()
    bench.write(rows[1:])
    bench.sidecar.look()
    assert len(said(bench)) == 2


def test_a_label_of_another_packages_study_is_not_bet_upon(bench: Bench) -> None:
    row = replace(bench.rows(1)[0], model_digest="0" * 64)
    bench.write([row])
    write_labels(bench.engine, [reading(row, 1.0)])
    bench.sidecar.look()
    assert said(bench) == []
    assert bench.sidecar._watches()[0]._labels.waiting == ()


def test_a_label_that_waits_is_let_go_when_another_package_answers_its_study(bench: Bench) -> None:
    row, other = bench.rows(2)
    write_labels(bench.engine, [reading(row, 1.0), reading(other, 1.0)])
    bench.sidecar.look()
    bench.write([replace(row, model_digest="0" * 64), replace(other, model_name="another")])
    bench.sidecar.look()
    assert said(bench) == []
    [waiting] = bench.sidecar._watches()[0]._labels.waiting
    assert waiting.study == other.study  # another model's answer says nothing of ours


def test_an_answer_of_another_model_is_not_the_one_that_a_label_waits_for(bench: Bench) -> None:
    [row] = bench.rows(1)
    bench.write([replace(row, model_name="another", unit="another")])
    bench.sidecar.look()
    write_labels(bench.engine, [reading(row, 1.0)])
    bench.sidecar.look()
    assert said(bench) == []
    bench.write([row])
    bench.sidecar.look()
    assert said(bench) == [(COLUMN, 1.0)]


def test_a_table_of_labels_that_begins_anew_is_followed_and_nothing_is_bet_upon_twice(bench: Bench) -> None:
    rows = bench.rows(6)
    bench.write(rows)
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[:4]])
    bench.sidecar.look()
    with bench.engine.begin() as db:
        db.execute(sa.delete(tables.LABELS))
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[:2]])
    bench.again().look()
    assert len(said(bench)) == 4
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[4:]])
    bench.sidecar.look()
    assert len(said(bench)) == 6


def test_those_that_wait_are_bounded_and_the_oldest_goes() -> None:
    place, dropped = Place(), 0
    for number in range(1005):
        place, more = place.wait(Said(number=number, study=str(number), finding="f", value=1.0, time=""))
        dropped += more
    assert (len(place.waiting), dropped, place.waiting[0].number) == (1000, 5, 5)
    assert Place.from_row(place.to_row()) == place


def test_what_cannot_be_read_is_passed_over(bench: Bench) -> None:
    rows = bench.rows(2)
    bench.write(rows)
    broken = reading(rows[0], 1.0, time="yesterday")
    write_labels(bench.engine, [broken, replace(reading(rows[1], 1.0), version=99), reading(rows[1], 0.0)])
    bench.sidecar.look()
    assert said(bench) == [(COLUMN, 1.0), (COLUMN, 0.0)]


# --- With the detectors ---------------------------------------------------------------------------------------------


class Department:
    """A year's beginning in a database, and the sidecar on it."""

    def __init__(self, folder: Path) -> None:
        digest = write_watched_package(folder / "package", department(1500, start=MONDAY))
        self.rows = department(1500, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
        self.engine = make_service_tables(folder / "db.sqlite")
        self.settings = Settings(
            database_url=f"sqlite:///{folder / 'db.sqlite'}",
            models=[Model(package=folder / "package")],
            detection=Detection(save_seconds=0),
        )
        write_rows(self.engine, self.rows)

    def alarms(self, labels: list[Label]) -> list[dict[str, Any]]:
        write_labels(self.engine, labels)
        database = Database.open(self.settings.database_url)
        sidecar = Sidecar(
            self.settings, database, detectors(self.settings.detection), now=lambda: MONDAY + timedelta(days=400)
        )
        try:
            sidecar.look()
            assert sidecar.overview.models[0].studies == len(self.rows)
            assert sidecar.overview.models[0].saved_labels == len(labels)
            self.performance = follow(self.settings)(database, read_package(self.settings.models[0]))
            again = Sidecar(self.settings, database, detectors(self.settings.detection))
            again.look()
            evidence = [each._watches()[0]._fairness.evidence() for each in (sidecar, again)]
            assert evidence[0] == evidence[1]
            assert any(readings for _, readings in evidence[1].values()) == bool(labels)
            return database.alarms()
        finally:
            database.close()
            self.engine.dispose()


def test_decay_that_only_labels_see_is_an_alarm_of_concept(tmp_path: Path) -> None:
    place = Department(tmp_path)
    [alarm] = place.alarms(readings(place.rows[:800], decayed=True))
    assert alarm["shift"] == "concept"
    assert alarm["signal"].startswith(COLUMN)
    assert alarm["cleared_row"] is None


@pytest.mark.parametrize("labelled", [0, 800], ids=["without labels", "labels that agree"])
def test_without_decay_there_is_none(labelled: int, tmp_path: Path) -> None:
    place = Department(tmp_path)
    assert place.alarms(readings(place.rows[:800], decayed=False)[:labelled]) == []


def test_a_scanner_on_which_more_is_missed_is_called_worse_by_the_evidence_that_was_saved(tmp_path: Path) -> None:
    place = Department(tmp_path)
    far = [row for row in place.rows if row.decisions.get(FINDINGS[0]) in ("act", "clear")]
    labels = []
    for number, row in enumerate(far):
        wrong = number % (2 if row.scanner == "Ray 7" else 20) == 0
        labels.append(reading(row, float((row.decisions[FINDINGS[0]] == "act") != wrong)))
    place.alarms(labels)
    judged = {
        (figure.group, figure.level): figure.verdict
        for figure in place.performance.groups
        if figure.finding == FINDINGS[0] and figure.measure == "sensitivity"
    }
    assert judged["scanner", "Borealis Ray 7"] == "worse"
    assert [level for level, verdict in judged.items() if verdict == "worse"] == [("scanner", "Borealis Ray 7")]
    assert judged["sex", "F"] == "as_others"
    [gap] = [
        v for (name, measure), v in place.performance.worst_gaps.items() if (name, measure) == (FINDINGS[0], "auroc")
    ]
    assert gap > 0.1
