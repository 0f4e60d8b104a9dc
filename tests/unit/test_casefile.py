"""What a file is, is told by its content; what is no image is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from radiographs import BRIGHT, write_picture, write_radiograph
from stepwedge.casefile import kind_of, open_case
from stepwedge.errors import DecodeError, UnusableInstanceError


def test_dicom_is_known_by_its_mark_and_not_by_its_name(tmp_path: Path) -> None:
    case = open_case(write_radiograph(tmp_path / "a.png", BRIGHT))
    assert case.header.modality == "DX"
    assert case.decode().pixels.shape == (64, 64)


def test_a_preamble_may_be_that_of_a_picture(tmp_path: Path) -> None:
    file = write_radiograph(tmp_path / "a.tif", BRIGHT)
    file.write_bytes(b"II*\x00" + file.read_bytes()[4:])
    assert kind_of(file) == "dicom"


def test_a_picture_has_no_header_whatever_its_name(tmp_path: Path) -> None:
    case = open_case(write_picture(tmp_path / "a.png", BRIGHT).rename(tmp_path / "a.dcm"))
    assert not case.header.present
    assert case.decode().pixels.shape == (64, 64)


@pytest.mark.parametrize("start", [b"BM", b"GIF89a", b"RIFF\x10\x00\x00\x00WEBP"])
def test_a_picture_of_another_kind_is_refused_by_name(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a").write_bytes(start + bytes(200))
    with pytest.raises(UnusableInstanceError) as refused:
        open_case(tmp_path / "a")
    assert refused.value.code == "image_format_not_supported"


@pytest.mark.parametrize("contents", [b"", b"words", bytes(500)])
def test_anything_else_is_no_dicom(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "a").write_bytes(contents)
    with pytest.raises(UnusableInstanceError) as refused:
        open_case(tmp_path / "a")
    assert refused.value.code == "not_dicom"


def test_a_broken_picture_is_found_when_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DecodeError):
        open_case(tmp_path / "a").decode()


def test_pixels_beyond_the_limit_are_not_decoded(tmp_path: Path) -> None:
    for file in (write_radiograph(tmp_path / "a.dcm", BRIGHT), write_picture(tmp_path / "a.png", BRIGHT)):
        with pytest.raises(DecodeError) as refused:
            open_case(file, maximum_bytes=1000).decode()
        assert refused.value.code == "pixel_data_too_large"
