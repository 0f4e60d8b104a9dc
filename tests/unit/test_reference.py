"""What is registered as of a constancy run, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwedge.errors import StepwedgeError
from stepwedge.reference import ReferenceStudy, all_registered, forget, is_reference, register, registered

ENTRY = ReferenceStudy(study="ab" * 16, run="r1", case=3, model_name="tiny", registered_at=12.5)


def test_a_study_is_known_until_it_is_forgotten(tmp_path: Path) -> None:
    assert not is_reference(tmp_path, ENTRY.study)
    assert registered(tmp_path, ENTRY.study) is None
    register(tmp_path, ENTRY)
    assert is_reference(tmp_path, ENTRY.study)
    assert registered(tmp_path, ENTRY.study) == ENTRY
    assert all_registered(tmp_path) == [ENTRY]
    forget(tmp_path, ENTRY.study)
    assert not is_reference(tmp_path, ENTRY.study)
    assert all_registered(tmp_path) == []


def test_a_damaged_entry_still_says_that_the_study_is_no_patients(tmp_path: Path) -> None:
    register(tmp_path, ENTRY)
    next((tmp_path / "constancy" / "studies").iterdir()).write_text("{")
    assert is_reference(tmp_path, ENTRY.study)
    with pytest.raises(StepwedgeError, match="of a constancy run"):
        registered(tmp_path, ENTRY.study)
    assert all_registered(tmp_path) == []
