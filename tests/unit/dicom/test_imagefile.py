"""Plain image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from frames import grey
from PIL import Image as Pillow
from stepwedge.dicom.imagefile import COLOUR_NOTE, read_image_file
from stepwedge.errors import DecodeError


@pytest.mark.parametrize(
    ("suffix", "dtype", "value_range"),
    [("png", "uint8", (0, 255)), ("png", "uint16", (0, 65535)), ("tiff", "uint16", (0, 65535))],
)
def test_plain_grey_files_are_read_exactly(
    tmp_path: Path, suffix: str, dtype: str, value_range: tuple[int, int]
) -> None:
    pixels = grey(dtype, value_range[1])
    Pillow.fromarray(pixels).save(tmp_path / f"picture.{suffix}")
    image = read_image_file(tmp_path / f"picture.{suffix}")
    assert (image.pixels == pixels).all()
    assert image.value_range == value_range
    assert image.window is None
    assert not image.notes


def test_colour_files_become_luminance_and_say_so(tmp_path: Path) -> None:
    pixels = grey("uint8", 255)
    Pillow.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "equal.png")
    equal = read_image_file(tmp_path / "equal.png")
    assert (equal.pixels == pixels).all()
    assert not equal.notes
    Pillow.fromarray(np.stack([pixels, pixels // 2, pixels // 3], axis=-1)).save(tmp_path / "colour.png")
    assert read_image_file(tmp_path / "colour.png").notes == (COLOUR_NOTE,)


def test_a_real_jpeg_is_read(shared: Path) -> None:
    file = next((shared / "data/nih/images").glob("*.jpg"))
    assert read_image_file(file).pixels.shape == (256, 256)


def test_plain_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"nothing of the kind")
    Pillow.fromarray(grey("uint8", 255, (300, 300))).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20000])
    for name in ("no.png", "cut.png"):
        with pytest.raises(DecodeError) as caught:
            read_image_file(tmp_path / name)
        assert caught.value.code == "pixel_data_undecodable"


def test_a_plain_file_over_the_limit_is_not_decoded(tmp_path: Path) -> None:
    Pillow.new("L", (12_000, 12_000)).save(tmp_path / "large.png")
    with pytest.raises(DecodeError) as caught:
        read_image_file(tmp_path / "large.png", maximum_bytes=2**20)
    assert caught.value.code == "pixel_data_too_large"


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    page = Pillow.fromarray(grey("uint8", 255))
    page.save(tmp_path / "pages.tiff", save_all=True, append_images=[page])
    with pytest.raises(DecodeError) as caught:
        read_image_file(tmp_path / "pages.tiff")
    assert caught.value.code == "multi_frame"
