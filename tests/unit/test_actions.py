"""What people ask for is kept, is done by one node once, and is taken up again where it was cut off."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa
from stepwedge import actions
from stepwedge.actions import DISCARD, DONE, REFUSED, RELEASE, RETRY, TAKEN
from stepwedge.errors import StepwedgeError
from stepwedge.schema import ACTIONS
from stepwedge.store import Store


def test_what_is_asked_for_is_taken_once_and_ends(store: Store) -> None:
    number = actions.ask(store, RELEASE, "digest", who="ann")
    assert actions.ask(store, RELEASE, "digest", who="bob") == number, "it is asked for already"
    with pytest.raises(StepwedgeError, match="ann has asked for something else already"):
        actions.ask(store, DISCARD, "digest", who="bob")
    taken = actions.take(store)
    assert taken is not None
    assert (taken.action, taken.subject, taken.who) == (RELEASE, "digest", "ann")
    assert actions.take(store) is None
    actions.end(store, number, REFUSED, said="bad_uid")
    ended = actions.find(store, number)
    assert ended is not None
    assert (ended.state, ended.said) == ("refused", "bad_uid")
    assert ended.ended_at is not None
    actions.end(store, number, DONE)
    assert actions.find(store, number) == ended, "another node, which had it too, is late"
    assert actions.ask(store, RELEASE, "digest", who="ann") > number, "it may be asked for again"


def test_what_a_node_had_taken_up_when_it_died_is_taken_up_by_another(store: Store) -> None:
    number = actions.ask(store, RELEASE, "digest", who="ann")
    assert actions.take(store) is not None
    with store.engine.begin() as db:
        db.execute(sa.update(ACTIONS).values(ended_at=time.time() - 120))
    again = actions.take(store)
    assert again is not None
    assert (again.id, again.state) == (number, TAKEN), "whoever takes it up sees that somebody had before"


def test_what_was_done_is_listed_newest_first_and_by_study(store: Store) -> None:
    actions.note(store, RETRY, "unit-1", who="ann", study="a")
    actions.note(store, RETRY, "unit-2", who="bob", study="b", state=REFUSED, said="no")
    assert [each.subject for each in actions.latest(store, 10)] == ["unit-2", "unit-1"]
    assert [each.who for each in actions.of_study(store, "a", 10)] == ["ann"]
    assert actions.about(store, ["unit-1", "unit-3"])["unit-1"].state == DONE
    assert actions.about(store, []) == {}
    actions.note(store, RETRY, "unit-3", who="bob", state=TAKEN)
    with store.engine.begin() as db:
        db.execute(sa.update(ACTIONS).values(ended_at=time.time() - 120))
    assert actions.take(store) is None, "nothing of that is for the DICOM node"
