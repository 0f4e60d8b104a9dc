"""UIDs are functions of what they stand for."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwedge.dicom.encoded import is_uid
from stepwedge.dicom.identifiers import derived_uid, device_uid, result_uid

PARTS = {
    "node": "a" * 32,
    "study_uid": "1.2.3",
    "revision": 1,
    "model_digest": "b" * 64,
    "policy_digest": "c" * 64,
    "kind": "sr",
}


def test_the_same_result_has_the_same_uid_for_ever() -> None:
    assert result_uid(**PARTS) == "2.25.152934280937966020292998929165494416040"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_changes_the_uid(part: str) -> None:
    other = 2 if part == "revision" else "1.2.4"
    assert result_uid(**(PARTS | {part: other})) != result_uid(**PARTS)


def test_parts_do_not_run_into_each_other() -> None:
    assert derived_uid("a", "bc") != derived_uid("ab", "c")


@given(st.text(), st.text())
def test_a_derived_uid_is_a_valid_uuid_of_version_8(first: str, second: str) -> None:
    uid = derived_uid(first, second)
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert is_uid(uid)
    assert number.variant == uuid.RFC_4122
    assert number.version == 8


def test_a_node_is_one_device() -> None:
    assert device_uid("a") == device_uid("a") != device_uid("b")
