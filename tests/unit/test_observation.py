"""The rows that the monitor reads can be read back, by this version and by later ones."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwedge import observation
from stepwedge.observation import VERSION, Observation

number = st.floats(allow_nan=False, allow_infinity=False)
word = st.text(max_size=10)
observations = st.builds(
    Observation,
    version=st.just(VERSION),
    reasons=st.lists(word).map(tuple),
    gate_reasons=st.lists(word).map(tuple),
    embedding=st.lists(number).map(tuple),
    scores=st.dictionaries(word, number),
    probabilities=st.dictionaries(word, number),
    ms=st.dictionaries(word, number),
    age_years=st.none() | number,
    pixel_mean=st.none() | number,
)


def row() -> Observation:
    return Observation(
        unit="u",
        study="s",
        revision=1,
        time="2026-01-02T03:04:05+00:00",
        model_name="tiny",
        model_version="1.0.0",
        model_digest="d",
        policy_digest="p",
        state="reported",
    )


@given(observations)
def test_what_is_written_is_read_back(written: Observation) -> None:
    assert Observation.from_json(written.to_json()) == written


@given(observations)
def test_a_row_is_one_line(written: Observation) -> None:
    assert len(written.to_json().splitlines()) == 1


def test_fields_that_this_version_does_not_know_are_left_out() -> None:
    values = json.loads(row().to_json()) | {"mood": "bright"}
    assert Observation.from_json(json.dumps(values)) == row()


def test_fields_that_an_earlier_version_did_not_write_have_their_defaults() -> None:
    values = json.loads(row().to_json())
    required = {"unit", "study", "revision", "time", "model_name", "model_version", "model_digest", "policy_digest"}
    early = {key: value for key, value in values.items() if key in required | {"state"}}
    assert Observation.from_json(json.dumps(early)) == row()


def test_a_row_of_a_later_version_is_not_guessed_at() -> None:
    values = json.loads(row().to_json()) | {"version": VERSION + 1}
    with pytest.raises(ValueError, match="upgrade the reader"):
        Observation.from_json(json.dumps(values))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_not_written(value: float) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="JSON"):
        replace(row(), scores={"ill": value}).to_json()


def test_no_field_is_named_after_an_identifier() -> None:
    names = {field.name for field in fields(Observation)}
    for word in ("patient", "name_of", "birth", "accession", "uid", "institution", "physician", "address", "date"):
        assert not [name for name in names if word in name]


def test_it_imports_nothing_but_the_standard_library() -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(observation)))
        for name in (
            [item.name for item in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names)
