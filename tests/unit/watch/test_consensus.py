"""What several readers say of a study."""

from __future__ import annotations

import math

import numpy as np
from labelling import cases_of, label_of
from stepwatch.consensus import agree, reliabilities

CASE = cases_of(1)[0][0]


def test_a_later_label_of_the_same_reader_replaces_the_earlier_in_whatever_order_they_come() -> None:
    first = label_of(CASE, 0.0, time="2026-03-04T08:00:00+00:00")
    later = label_of(CASE, 1.0, time="2026-03-04T10:00:00+01:00")
    for labels in ([first, later], [later, first]):
        said = agree(labels)[CASE.study]
        assert (said.truth, said.readers) == (1.0, 1)


def test_readers_who_agree_leave_no_doubt_and_others_do() -> None:
    agreed = agree([label_of(CASE, 1.0, reader=name) for name in "abc"])[CASE.study]
    assert (agreed.truth, agreed.spread) == (1.0, 0.0)
    doubtful = agree([label_of(CASE, float(name != "c"), reader=name) for name in "abc"])[CASE.study]
    assert 0.6 < doubtful.truth < 0.8
    assert doubtful.spread == 1.0


def test_one_who_cannot_say_says_nothing() -> None:
    assert agree([label_of(CASE, None)]) == {}
    said = agree([label_of(CASE, None, reader="a"), label_of(CASE, 1.0, reader="b")])[CASE.study]
    assert (said.truth, said.readers) == (1.0, 1)


def test_who_agrees_with_the_others_weighs_more() -> None:
    random = np.random.default_rng(3)
    truth = random.random(300) < 0.3
    right = {"good": 0.97, "also": 0.95, "poor": 0.65}
    votes = {
        str(n): {name: float(t == (random.random() < share)) for name, share in right.items()}
        for n, t in enumerate(truth)
    }
    trust = reliabilities(votes)
    assert trust["good"] > trust["poor"] + 0.15
    assert trust["also"] > trust["poor"] + 0.15


def test_the_audit_is_known_by_its_labels() -> None:
    drawn = agree([label_of(CASE, 1.0, audit=True, probability_drawn=0.05)])[CASE.study]
    assert (drawn.otherwise, drawn.drawn) == (False, 0.05)
    both = agree([label_of(CASE, 1.0, reader="a", audit=True, probability_drawn=0.05), label_of(CASE, 1.0)])
    assert both[CASE.study].otherwise
    assert math.isnan(agree([label_of(CASE, 1.0)])[CASE.study].drawn)


def test_readers_without_a_name_are_one_by_way() -> None:
    labels = [label_of(CASE, 0.0, reader="", source="sr"), label_of(CASE, 1.0, reader="", source="http")]
    assert agree(labels)[CASE.study].readers == 2
