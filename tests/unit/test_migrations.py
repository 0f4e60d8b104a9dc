"""The tables go forward and back on both databases, rows stay, and no program works with tables that do not fit it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgresql import PASSWORD, PostgreSQL
from stepwedge import database
from stepwedge.cli import main
from stepwedge.entries import Unit
from stepwedge.errors import StepwedgeError
from stepwedge.migrations import FIRST, STEPS, Step, Tables, back, changing, forward, read, refusal
from stepwedge.rundir import Heartbeat
from stepwedge.schema import METADATA, VERSION
from stepwedge.settings import Settings
from stepwedge.store import make_engine

UNIT = Unit(
    unit="u", study="s", revision=1, model_name="tiny", model_digest="m" * 64, created_at=1.0, last_instance_at=1.0
)
# Without these, a database is as version 1 left it.
LATER_TABLES = ("labels", "constancy", "actions")
LATER_INDEXES = ("ix_studies_latest", "ix_units_state_latest", "ix_deliveries_state_latest")
EVERY = [step.version for step in STEPS]


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    values: dict[str, object] = {}
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        values = {"url": server.new_database(), "password": PASSWORD}
    return Settings.model_validate({"data_dir": tmp_path / "data", "database": values})


def _of_version_1(settings: Settings) -> None:
    """Make a database as version 1 did, with a unit in it."""
    store = database.open_store(settings)
    store.restore_unit(UNIT)
    store.close()
    engine = make_engine(database.store_url(settings))
    with engine.begin() as db:
        for table in LATER_TABLES:
            db.execute(sa.text(f"DROP TABLE {table}"))
        for index in LATER_INDEXES:
            db.execute(sa.text(f"DROP INDEX {index}"))
        db.execute(sa.text("DROP TABLE schema"))
        db.execute(sa.text("CREATE TABLE schema (version INTEGER NOT NULL)"))
        db.execute(sa.text("INSERT INTO schema VALUES (1)"))
    engine.dispose()


def _described(settings: Settings) -> dict[str, object]:
    """Tables, columns, keys and indexes, by name."""
    engine = make_engine(database.store_url(settings))
    with engine.connect() as db:
        look = sa.inspect(db)
        found = {
            table: (
                sorted((each["name"], str(each["type"]), each["nullable"]) for each in look.get_columns(table)),
                look.get_pk_constraint(table)["constrained_columns"],
                sorted(str(each["name"]) for each in look.get_indexes(table)),
                sorted(tuple(each["column_names"]) for each in look.get_unique_constraints(table)),
            )
            for table in METADATA.tables
        }
    engine.dispose()
    return dict(found)


def test_an_upgraded_database_is_the_same_as_a_new_one(settings: Settings) -> None:
    database.upgrade(settings)
    new = _described(settings)
    _of_version_1(settings)
    assert [step.version for step in database.upgrade(settings)] == EVERY
    assert _described(settings) == new


def test_forward_back_and_forward_again_keeps_every_row(settings: Settings) -> None:
    _of_version_1(settings)
    store = database.open_store(settings)
    store.add_label("l", "s", "{}")
    store.add_constancy("r", "{}")
    store.close()
    assert [step.version for step in database.downgrade(settings, FIRST)] == EVERY[::-1]
    assert database.read_tables(settings) == Tables(version=1, works_from=1)
    store = database.open_store(settings)
    assert (store.unit("u"), store.labels("s"), store.constancy()) == (UNIT, ["{}"], ["{}"])
    store.close()
    assert database.read_tables(settings) == Tables(version=VERSION, works_from=STEPS[-1].works_from)


def test_roles_that_start_together_upgrade_once(settings: Settings) -> None:
    _of_version_1(settings)
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.append(len(database.upgrade(settings)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0] * 5 + [len(STEPS)]


def test_a_role_waits_for_the_upgrade_where_it_is_told_to(settings: Settings) -> None:
    if not database.is_shared(settings):
        return  # the files of one machine are always upgraded
    waiting = settings.model_copy(update={"database": settings.database.model_copy(update={"upgrade_at_start": False})})
    with pytest.raises(StepwedgeError, match="no tables yet: run `stepwedge database upgrade`") as error:
        database.open_store(waiting)
    assert PASSWORD not in str(error.value)
    _of_version_1(settings)
    with pytest.raises(StepwedgeError, match=f"schema 1, this Stepwedge wants {VERSION}: run"):
        database.open_store(waiting)
    database.upgrade(waiting)
    database.open_store(waiting).close()


def test_going_back_is_refused_where_rows_would_be_lost(settings: Settings) -> None:
    database.upgrade(settings)
    losing = Step(
        version=VERSION + 1, works_from=VERSION, what="more", forward=lambda _: None, loses=lambda _: {"units": 7}
    )
    engine = make_engine(database.store_url(settings))
    with changing(engine) as db:
        assert forward(db, (*STEPS, losing)) == [losing]
        with pytest.raises(StepwedgeError, match=r"no place for 7 rows of units.*--lose-data"):
            back(db, VERSION, steps=(*STEPS, losing))
        # The program of this version goes on beside the newer one, as the newer one says.
        assert refusal(read(db)) is None
        assert back(db, VERSION, lose=True, steps=(*STEPS, losing)) == [losing]
        assert read(db) == Tables(version=VERSION, works_from=STEPS[-1].works_from)
        forward(db, (*STEPS, replace(losing, works_from=VERSION + 1)))
    engine.dispose()
    with pytest.raises(StepwedgeError, match="made by a newer Stepwedge"):
        database.open_store(settings)
    with pytest.raises(StepwedgeError, match="go back with that one"):
        database.downgrade(settings, 1)


def test_a_version_that_is_not_an_older_one_is_refused(settings: Settings) -> None:
    database.upgrade(settings)
    for version in (0, VERSION + 1):
        with pytest.raises(StepwedgeError, match="at the furthest"):
            database.downgrade(settings, version)


def test_going_back_is_refused_while_a_worker_runs(settings: Settings) -> None:
    database.upgrade(settings)
    beating = Heartbeat(settings.data_dir, "work.worker-7")
    beating.start()
    try:
        with pytest.raises(StepwedgeError, match=r"work\.worker-7 is using"):
            database.downgrade(settings, 1)
    finally:
        beating.stop()


def test_the_commands_say_where_the_database_is_and_go_forward_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEPWEDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("stepwedge.logs.configure", lambda *_: None)  # it would hold this test's standard error
    assert main(["database", "status"]) == 1
    assert "no tables yet" in capsys.readouterr().out
    assert not (tmp_path / "data" / "stepwedge.sqlite").exists()
    assert main(["database", "upgrade"]) == 0
    assert main(["database", "status", "--json"]) == 0
    assert f'"schema": {VERSION}' in capsys.readouterr().out
    assert main(["database", "downgrade", "1"]) == 0
    assert main(["database", "status"]) == 1
    assert f"schema 1; this program's is {VERSION}" in capsys.readouterr().out
