"""Records say what they are and do not change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest
from stepwedge import records
from stepwedge.records import REASONS, Decision, GateVerdict, Reason, State, Verdict


def test_a_reason_reads_as_a_sentence_with_its_facts() -> None:
    assert Reason(code="multi_frame").text == "The image has several frames, and the model takes one"
    assert Reason(code="multi_frame", detail="30 frames").text.endswith("takes one (30 frames)")


def test_a_reason_that_nobody_explained_cannot_be_given() -> None:
    with pytest.raises(ValueError, match="unknown reason code 'bad_luck'"):
        Reason(code="bad_luck")


@pytest.mark.parametrize("code", REASONS)
def test_each_reason_is_a_sentence_without_a_full_stop_and_its_code_fits_the_database(code: str) -> None:
    text = REASONS[code]
    assert text[0].isupper()
    assert not text.endswith(".")
    assert len(text) > 20
    assert len(code) <= 32
    assert code.replace("_", "").isalpha()
    assert code == code.lower()


def dataclasses() -> list[Any]:
    return [item for item in vars(records).values() if is_dataclass(item) and isinstance(item, type)]


@pytest.mark.parametrize("record", dataclasses(), ids=lambda record: record.__name__)
def test_every_record_is_frozen_and_takes_its_fields_by_name(record: Any) -> None:
    assert record.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields(record))
    assert record.__doc__


def test_a_record_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Reason(code="multi_frame").code = "uncertain"  # type: ignore[misc]


def test_two_verdicts_do_not_share_their_measures() -> None:
    one, other = GateVerdict(verdict=Verdict.ACCEPT), GateVerdict(verdict=Verdict.ACCEPT)
    assert one.measures == {}
    assert one.measures is not other.measures


def test_states_verdicts_and_decisions_are_written_as_their_words() -> None:
    assert f"{State.REPORTED} {Verdict.DEFER} {Decision.ACT}" == "reported defer act"
    assert State("deferred") is State.DEFERRED


def test_of_several_verdicts_the_worst_is_the_most_severe() -> None:
    assert max(Verdict, key=lambda verdict: verdict.severity) is Verdict.REJECT
    assert [verdict.severity for verdict in (Verdict.ACCEPT, Verdict.DEFER, Verdict.REJECT)] == [0, 1, 2]
