"""The index: what it is told once, it tells again, however often and from wherever it is told."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from stepwedge.errors import StepwedgeError
from stepwedge.records import State
from stepwedge.store import Quarantined, Revision, Store, StoredInstance, Unit, unit_id

STUDY = "a" * 32
FIRST = StoredInstance(
    study=STUDY,
    instance="i1",
    digest="d1",
    path="spool/1",
    study_uid="1.2",
    series_uid="1.2.1",
    sop_uid="1.2.1.1",
    sop_class_uid="1.2.840",
    transfer_syntax_uid="1.2.840.10008.1.2",
    modality="DX",
    routed=True,
    size=10,
    received_at=100.0,
    sender="MODALITY",
)
REVISION = Revision(study=STUDY, revision=1, closed_at=120.0, last_instance_at=100.0, paths=("spool/1",))
UNIT = Unit(
    unit=unit_id(STUDY, 1, "m" * 64),
    study=STUDY,
    revision=1,
    model_name="tiny",
    model_digest="m" * 64,
    created_at=120.0,
    last_instance_at=100.0,
)


def closed(store: Store) -> None:
    """One study with one revision and one unit."""
    store.add_instance(FIRST)
    study = store.study(STUDY)
    assert study is not None
    assert store.close_study(study, REVISION, [UNIT])


# Instances and studies


def test_an_instance_opens_its_study(store: Store) -> None:
    assert store.add_instance(FIRST)
    assert not store.add_instance(FIRST)
    assert store.has_instance(STUDY, "i1", "d1")
    assert not store.has_instance(STUDY, "i1", "d2")
    (study,) = store.open_studies()
    assert (study.study, study.study_uid, study.revision, study.last_instance_at) == (STUDY, "1.2", 0, 100.0)
    assert store.study_by_uid("1.2") == study
    assert store.studies() == [study]
    assert store.study_by_uid("1.3") is None


def test_of_several_contents_the_one_that_came_last_is_given(store: Store) -> None:
    store.add_instance(FIRST)
    newer = replace(FIRST, digest="d2", path="spool/2", received_at=105.0)
    store.add_instance(newer)
    assert store.instances(STUDY) == [newer]
    assert store.instance_versions(STUDY, "i1") == 2
    assert store.count_contents(STUDY) == 2
    assert store.instance_paths(STUDY) == {"spool/1", "spool/2"}


def test_instances_are_given_in_the_order_of_arrival(store: Store) -> None:
    later = replace(FIRST, instance="i2", received_at=200.0)
    store.add_instance(later)
    store.add_instance(FIRST)
    assert store.instances(STUDY) == [FIRST, later]
    study = store.study(STUDY)
    assert study is not None
    assert study.last_instance_at == 200.0


def test_a_closed_study_opens_again_for_what_a_model_selects_only(store: Store) -> None:
    closed(store)
    store.add_instance(replace(FIRST, instance="report", routed=False, received_at=200.0))
    assert store.open_studies() == []
    store.add_instance(replace(FIRST, instance="i2", received_at=300.0))
    assert [study.revision for study in store.open_studies()] == [1]


def test_a_study_is_not_closed_over_an_instance_that_came_meanwhile(store: Store) -> None:
    store.add_instance(FIRST)
    study, contents = store.study(STUDY), store.count_contents(STUDY)
    assert study is not None
    # At the same moment and, by a clock that was set back, before: only their number tells.
    store.add_instance(replace(FIRST, instance="i2", received_at=FIRST.received_at))
    store.add_instance(replace(FIRST, instance="i3", received_at=50.0))
    assert not store.close_study(study, REVISION, [UNIT], contents=contents)
    assert store.revision(STUDY, 1) is None
    assert store.units() == []
    assert store.close_study(study, REVISION, [UNIT], contents=contents + 2)
    assert store.open_studies() == []


def test_a_revision_and_its_units_are_written_together_and_once(store: Store) -> None:
    store.add_instance(FIRST)
    study = store.study(STUDY)
    assert study is not None
    assert store.close_study(study, REVISION, [UNIT])
    assert not store.close_study(study, REVISION, [UNIT])
    assert store.revision(STUDY, 1) == REVISION
    assert store.revision_keys() == {(STUDY, 1)}
    assert store.units(study=STUDY) == [UNIT]
    assert store.units(states=[State.REPORTED]) == []


# Units, deliveries, observations


def test_a_unit_goes_through_its_states_and_can_be_tried_again(store: Store) -> None:
    closed(store)
    assert store.oldest_waiting() == 120.0
    store.set_unit(UNIT.unit, State.FAILED, ["internal_error"], at=130.0)
    failed = store.unit(UNIT.unit)
    assert failed == replace(UNIT, state=State.FAILED, reasons=("internal_error",), ended_at=130.0)
    assert store.oldest_waiting() is None
    assert store.retry_unit(failed) == replace(UNIT, tries=1)
    assert store.unit(UNIT.unit) == replace(UNIT, tries=1)
    assert store.retry_unit(failed) is None, "somebody was faster"
    assert store.counts()["units"] == {"queued": 1}


def test_of_many_who_try_again_at_once_one_does(store: Store) -> None:
    closed(store)
    store.set_unit(UNIT.unit, State.FAILED, at=130.0)
    failed = store.unit(UNIT.unit)
    assert failed is not None
    with ThreadPoolExecutor(6) as many:
        done = list(many.map(store.retry_unit, [failed] * 6))
    assert done.count(None) == 5
    assert store.unit(UNIT.unit) == replace(UNIT, tries=1)


def test_failed_units_are_tried_again_some_at_a_time_and_with_what_is_noted_or_not_at_all(store: Store) -> None:
    for number in range(5):
        at = float(number)
        store.restore_unit(replace(UNIT, unit=f"u{number}", state=State.FAILED, ended_at=at))
    noted: list[str] = []

    def note(_db: sa.Connection, units: Sequence[Unit]) -> None:
        noted.extend(unit.unit for unit in units)

    def fail(_db: sa.Connection, _units: Sequence[Unit]) -> None:
        raise StepwedgeError

    with pytest.raises(StepwedgeError):
        store.retry_failed(3.0, 2, fail)
    assert len(store.units(states=[State.FAILED])) == 5
    assert [len(store.retry_failed(3.0, 3, note)) for _ in range(3)] == [3, 1, 0]
    assert sorted(noted) == ["u0", "u1", "u2", "u3"]
    assert [unit.unit for unit in store.units(states=[State.FAILED])] == ["u4"], "it failed later"


def test_a_unit_that_is_there_is_not_overwritten_by_a_rebuild(store: Store) -> None:
    ended = replace(UNIT, state=State.REPORTED, ended_at=130.0)
    store.restore_unit(ended)
    store.restore_unit(UNIT)
    assert store.unit(UNIT.unit) == ended


def test_deliveries_count_their_attempts(store: Store) -> None:
    assert store.set_delivery("u", "pacs", "pending", at=1.0) == 0
    assert store.set_delivery("u", "pacs", "pending", at=2.0, error="away") == 1
    assert store.set_delivery("u", "pacs", "delivered", at=3.0) == 2
    assert store.set_delivery("u", "archive", "withheld", at=3.0) == 0
    assert [item.destination for item in store.deliveries(unit="u", state="delivered")] == ["pacs"]
    assert store.counts()["deliveries"] == {"delivered": 1, "withheld": 1}


def test_an_observation_is_kept_once_and_read_in_order(store: Store) -> None:
    assert store.add_observation("u1", "{}")
    assert not store.add_observation("u1", '{"again": 1}')
    assert store.add_observation("u2", "{}")
    first, second = store.observations()
    assert first[1] == "{}"
    assert store.observations(after=first[0]) == [second]


def test_what_is_refused_again_and_again_is_one_row_that_counts(store: Store) -> None:
    item = Quarantined(
        digest="d", reason="not_dicom", sender="X", count=1, first_seen=1.0, last_seen=1.0, size=3, path="q/d"
    )
    assert store.quarantine(item) == 1
    assert store.quarantine(replace(item, first_seen=9.0, last_seen=9.0)) == 2
    assert store.quarantined() == [replace(item, count=2, last_seen=9.0)]


# The file


def test_the_index_survives_a_restart_and_is_shared_between_processes(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    first, second = Store.open_file(file), Store.open_file(file)
    first.add_instance(FIRST)
    assert second.instances(STUDY) == [FIRST]
    first.close()
    second.close()


def test_roles_that_start_together_on_a_new_machine_make_the_tables_once(tmp_path: Path) -> None:
    for attempt in range(5):
        together = threading.Barrier(4)
        failures: list[Exception] = []

        def start(file: Path, together: threading.Barrier, failures: list[Exception]) -> None:
            together.wait()
            try:
                Store.open_file(file).close()
            except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
                failures.append(error)

        arguments = (tmp_path / str(attempt) / "index.sqlite", together, failures)
        threads = [threading.Thread(target=start, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_threads_write_at_once_and_lose_nothing(store: Store) -> None:
    def add(part: int) -> None:
        for number in range(20):
            store.add_instance(replace(FIRST, instance=f"{part}.{number}"))

    threads = [threading.Thread(target=add, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.instances(STUDY)) == 80


def test_a_database_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "index.sqlite"
    Store.open_file(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("update schema set version = 99, works_from = 99")
    connection.close()
    with pytest.raises(StepwedgeError, match=r"schema 99.*index rebuild"):
        Store.open_file(file)


def test_a_database_of_schema_1_gets_the_tables_that_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "db" / "stepwedge.sqlite"
    Store.open_file(file).close()
    with closing(sqlite3.connect(file)) as db:
        db.executescript("drop table labels; drop table constancy; update schema set version = 1")
    store = Store.open_file(file)
    try:
        assert store.add_label("l", "s", "{}")
        assert not store.add_label("l", "s", "{}")
    finally:
        store.close()
    Store.open_file(file).close()
