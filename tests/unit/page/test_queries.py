"""Lists come newest first, each study once, by the state that counts, and go on where they ended."""

from __future__ import annotations

import pytest
from page_served import name_of, put
from stepwedge.entries import Unit
from stepwedge.page.queries import (
    FILTERS,
    Place,
    count,
    list_studies,
    names_beginning,
    not_taking,
    received_of,
)
from stepwedge.records import State
from stepwedge.store import Store
from stepwedge.study_state import units_of


def names(store: Store, state: str, limit: int = 50) -> list[str]:
    return [study.study for _, study in list_studies(store, state, None, limit)]


def test_each_state_lists_its_studies(store: Store) -> None:
    states = [State.FAILED, State.QUEUED, State.RUNNING, State.DEFERRED, State.REPORTED, State.REJECTED]
    for number, state in enumerate(states):
        put(store, name_of(number), state, at=1000.0 + number, deliveries={"pacs": "pending"} if number == 4 else None)
    put(store, name_of(10), None, at=2000.0)
    put(store, name_of(11), at=3000.0, is_open=True)
    put(store, name_of(12), at=4000.0, deliveries={"pacs": "withheld", "ward": "withheld"})
    found = {state: names(store, state) for state in FILTERS}
    assert found == {
        "failed": [name_of(0)],
        "queued": [name_of(1)],
        "running": [name_of(2)],
        "arriving": [name_of(11)],
        "deferred": [name_of(3)],
        "reported": [name_of(12), name_of(4)],
        "rejected": [name_of(5)],
        "not_routed": [name_of(10)],
        "pending": [name_of(4)],
        "withheld": [name_of(12)],
    }
    assert names(store, "") == [name_of(n) for n in (12, 11, 10, 5, 4, 3, 2, 1, 0)]


def test_of_several_models_the_state_that_needs_somebody_counts(store: Store) -> None:
    unit = put(store, name_of(1), State.REPORTED)
    assert unit is not None
    for model, state in (("second", State.FAILED), ("third", State.FAILED)):
        other = {name: getattr(unit, name) for name in Unit.__dataclass_fields__}
        store.restore_unit(Unit(**{**other, "unit": f"{name_of(1)}.1.{model}", "model_name": model, "state": state}))
    assert names(store, "failed") == [name_of(1)]
    assert names(store, "reported") == []
    assert len(units_of(store, [name_of(1)])[name_of(1)]) == 3


@pytest.mark.parametrize("state", ["", "reported", "withheld"])
def test_pages_of_a_list_hold_every_study_once_also_those_of_one_moment(store: Store, state: str) -> None:
    for number in range(7):
        put(store, name_of(number), at=1000.0 + number // 3, deliveries={"pacs": "withheld", "ward": "withheld"})
    found: list[str] = []
    after: Place | None = None
    while part := list_studies(store, state, after, 2):
        found += [study.study for _, study in part]
        after = part[-1][0]
    assert sorted(found) == [name_of(number) for number in range(7)]
    assert len(found) == 7


def test_however_many_destinations_a_study_has_the_list_is_full(store: Store) -> None:
    for number in range(3):
        many = {f"to-{each}": "withheld" for each in range(20)}
        put(store, name_of(number), at=1000.0 + number, deliveries=many)
    assert names(store, "withheld", 2) == [name_of(2), name_of(1)]
    assert names(store, "withheld", 3) == [name_of(2), name_of(1), name_of(0)]


def test_counts_tell_of_all_and_of_those_that_came_lately(store: Store) -> None:
    put(store, name_of(1), at=100.0)
    put(store, name_of(2), at=900.0)
    put(store, name_of(3), State.FAILED, at=900.0)
    counted = count(store, since=500.0)
    assert counted.units == {"reported": 2, "failed": 1}
    assert counted.lately == {"reported": 1, "failed": 1}
    assert (counted.open_studies, counted.quarantined) == (0, 0)


def test_a_name_is_found_by_its_beginning(store: Store) -> None:
    put(store, "abcdef12" + "0" * 24)
    put(store, "abcdef13" + "0" * 24)
    assert names_beginning(store, "abcdef12", 2) == ["abcdef12" + "0" * 24]
    assert len(names_beginning(store, "abcdef", 2)) == 2
    assert names_beginning(store, "ffffff", 2) == []


def test_who_does_not_take_results_is_named(store: Store) -> None:
    unit = put(store, name_of(1), deliveries={"pacs": "pending"})
    assert unit is not None
    assert not_taking(store) == []
    store.set_delivery(unit.unit, "pacs", "pending", at=1.0, error="refused")
    assert not_taking(store) == ["pacs"]
    assert received_of(store, name_of(1)).senders == ("PACS",)
