"""What is read by id is read once, whatever the order; what is saved is saved whole or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from stepwatch import tables
from stepwatch.database import (
    LOOK_BACK,
    Cursor,
    Database,
    DatabaseAwayError,
    LogEntry,
    OtherSidecarError,
    SavedState,
)
from stepwatch.errors import WatchError
from stepwedge.observation import Label
from watched import insert_event, make_service_tables


@pytest.fixture
def database(tmp_path: Path) -> Database:
    make_service_tables(tmp_path / "db.sqlite").dispose()
    database = Database.open(f"sqlite:///{tmp_path / 'db.sqlite'}")
    database.prepare()
    yield database
    database.close()


def add(database: Database, *ids: int) -> None:
    with database.engine.begin() as db:
        for number in ids:
            db.execute(sa.insert(tables.OBSERVATIONS).values(id=number, unit=f"unit{number}", body="{}"))


def read(database: Database, cursor: Cursor) -> tuple[list[int], Cursor]:
    found = [number for number, _ in database.new_bodies(cursor)]
    for number in found:
        cursor = cursor.take(number)
    return found, cursor


def test_a_row_with_a_lower_id_that_appears_later_is_not_missed(database: Database) -> None:
    add(database, 1, 2, 5)
    found, cursor = read(database, Cursor())
    assert found == [1, 2, 5]
    add(database, 4, 6)
    found, cursor = read(database, cursor)
    assert found == [4, 6]
    add(database, 3)
    assert read(database, cursor)[0] == [3]


@given(st.permutations(range(1, 40)), st.integers(1, 7))
def test_every_row_is_taken_once_in_whatever_order_they_appear(order: list[int], at_a_time: int) -> None:
    cursor, taken = Cursor(), []
    for start in range(0, len(order), at_a_time):
        for number in sorted(n for n in order[: start + at_a_time] if not cursor.has(n)):
            taken.append(number)
            cursor = cursor.take(number)
    assert sorted(taken) == list(range(1, 40))
    assert cursor == Cursor(position=39)


def test_gaps_are_kept_for_so_long_and_do_not_grow() -> None:
    cursor = Cursor()
    for number in range(0, 50 * LOOK_BACK, LOOK_BACK // 2):
        cursor = cursor.take(number)
        assert len(cursor.gaps) <= LOOK_BACK
    assert not cursor.has(cursor.position - 1)
    assert cursor.has(1)


def test_state_alarms_and_log_are_saved_together_or_not_at_all(database: Database) -> None:
    first = SavedState(
        model="m", digest="d", body=b"one", cursor=Cursor(position=7, gaps=frozenset({3})), rest={"x": 1}
    )
    alarm = {"alarm": "a", "raised_time": "2026-01-01", "raised_row": 7}
    saved = database.save_state(first, [alarm], [LogEntry(at=1.0, event="raised", body={"alarm": "a"})])
    assert database.load_state("m", "d") == saved
    assert saved.cursor == first.cursor
    assert [entry.body for entry in database.log("raised")] == [{"alarm": "a"}]
    # One that goes on from an older state than what is saved.
    with pytest.raises(OtherSidecarError, match="another sidecar"):
        database.save_state(first, [{**alarm, "alarm": "b"}], [LogEntry(at=1.0, event="raised")])
    assert database.load_state("m", "d") == saved
    assert [alarm["alarm"] for alarm in database.alarms("m")] == ["a"]
    assert len(database.log("raised")) == 1


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'absent.sqlite'}")
    with pytest.raises(DatabaseAwayError, match="has the service been started"):
        database.prepare()
    assert not (tmp_path / "absent.sqlite").exists()
    sqlite3.connect(tmp_path / "absent.sqlite").close()
    with pytest.raises(DatabaseAwayError, match="no table of observations"):
        database.prepare()
    database.close()


def test_a_database_that_was_made_anew_is_taken_up(database: Database, tmp_path: Path) -> None:
    add(database, 1)
    assert database.last_observation() == 1
    for file in tmp_path.glob("db.sqlite*"):
        file.unlink()
    with pytest.raises(DatabaseAwayError):
        database.last_observation()
    make_service_tables(tmp_path / "db.sqlite").dispose()
    database.prepare()
    assert database.last_observation() == 0


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///"])
def test_what_is_no_address_is_refused_with_what_to_do(url: str) -> None:
    with pytest.raises(WatchError, match="database_url"):
        Database.open(url)


def test_a_label_sent_twice_is_one_row_and_one_that_cannot_be_read_is_left_out(database: Database) -> None:
    label = Label(label="l1", study="s", finding="f", value=1.0, time="2026-01-01T00:00:00+00:00", source="http")
    assert database.add_label(label)
    assert not database.add_label(label)
    with database.engine.begin() as db:
        db.execute(sa.insert(tables.LABELS).values(label="bad", study="s", body='{"version": 99}'))
    assert database.labels() == [(1, label)]


def test_a_message_is_known_again(database: Database) -> None:
    assert database.first_delivery("x", 600)
    assert not database.first_delivery("x", 600)
    database.forget_delivery("x")
    assert database.first_delivery("x", 600)
    assert database.first_delivery("x", -1), "after its time it is a message like any other"


def test_events_of_requests_and_pages_are_read_as_they_were_written(database: Database) -> None:
    insert_event(database, "r1", "opened", who="alertmanager", body={"signal": "pixel_mean"})
    insert_event(database, "r1", "approved", who="key 1", signature="s")
    assert [event["event"] for event in database.request_events("r1")] == ["opened", "approved"]
    database.add_page("a.html", "alarm")
    assert database.pages()[0]["path"] == "a.html"
