"""Errors say what happened; the base error says it even where nobody wrote a message."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError
from stepwedge import errors
from stepwedge.errors import DecodeError, StepwedgeError, UnusableInstanceError, describe_validation


class Inner(BaseModel):
    port: int


class Outer(BaseModel):
    inner: Inner
    names: list[str] = []


def test_the_message_defaults_to_what_the_error_is() -> None:
    assert str(errors.PackageError()) == "A model package is incomplete, altered or inconsistent."
    assert str(errors.PackageError("model.onnx is missing")) == "model.onnx is missing"


def test_every_error_is_a_stepwedge_error_with_a_docstring() -> None:
    own = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, Exception) and item.__module__ == errors.__name__
    ]
    assert len(own) > 5
    for item in own:
        assert issubclass(item, StepwedgeError)
        assert item.__doc__


def test_reasons_travel_with_the_errors_that_become_verdicts() -> None:
    assert DecodeError("pixel_data_missing", "there are none").code == "pixel_data_missing"
    refused = UnusableInstanceError("bad_uid", "it has none", status=0xA900)
    assert (refused.code, refused.status) == ("bad_uid", 0xA900)
    assert UnusableInstanceError("not_dicom", "it is not").status == 0xC000  # cannot understand


def test_a_validation_is_described_by_one_line_for_each_wrong_field() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"port": "often"}, "names": 3})
    first, second = describe_validation("file.yaml", caught.value).splitlines()
    assert first.startswith("file.yaml: inner.port: ")
    assert first.endswith("(found 'often')")
    assert second.startswith("file.yaml: names: ")


def test_a_validation_does_not_repeat_whole_structures() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {"elsewhere": list(range(1000))}})
    (line,) = describe_validation("file.yaml", caught.value).splitlines()
    assert "inner.port" in line
    assert len(line) < 100


def test_a_file_that_is_no_mapping_is_described_as_a_whole() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate("rubbish")
    assert describe_validation("file.yaml", caught.value).startswith("file.yaml: (whole file): ")
