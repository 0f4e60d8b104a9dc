"""Plain image files, for ``stepwedge predict``."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from stepwedge.dicom.attributes import DEFAULT_MAXIMUM_BYTES, quieten_pydicom
from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.errors import DecodeError
from stepwedge.records import Image

_FLOAT_BYTES = np.dtype(np.float32).itemsize
_COLOUR = {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}
_WHITE_IS_ZERO = 0  # TIFF tag 262
COLOUR_NOTE = "The file holds colour; its luminance was used"


def read_image_file(path: Path, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> Image:
    """Read a PNG, JPEG or TIFF file as a grey-scale image with no window.

    Colour is read as luminance (ITU-R BT.601); where the channels differ, ``notes`` says so. Transparency is ignored,
    and an orientation in EXIF is applied.

    Raises
    ------
    DecodeError
        ``pixel_data_too_large``, ``multi_frame`` or ``pixel_data_undecodable``.
    OSError
        If the file cannot be read.
    """
    quieten_pydicom()
    content = path.read_bytes()
    try:
        with Pillow.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF")) as picture:
            size = picture.width * picture.height * _FLOAT_BYTES
            if size > maximum_bytes:
                raise DecodeError(
                    "pixel_data_too_large",
                    f"{picture.height} × {picture.width}, {size} bytes, limit {maximum_bytes}",
                )
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                raise DecodeError("multi_frame", f"{frames} pictures in one file")
            inverted = picture.mode.startswith("I;16") and _tiff_photometric(picture) == _WHITE_IS_ZERO
            return _grey(ImageOps.exif_transpose(picture), inverted=inverted)
    except Pillow.DecompressionBombError:
        raise DecodeError("pixel_data_too_large", "the picture is larger than can be read") from None
    except FOREIGN_ERRORS:
        raise _unreadable("the file cannot be read as PNG, JPEG or TIFF") from None


def _tiff_photometric(picture: Pillow.Image) -> int | None:
    tags = getattr(picture, "tag_v2", None)
    return None if tags is None else tags.get(262)


def _grey(picture: Pillow.Image, *, inverted: bool) -> Image:
    notes: tuple[str, ...] = ()
    if picture.mode in _COLOUR:
        channels = np.asarray(picture.convert("RGB"))
        if (channels[..., 0] != channels[..., 1]).any() or (channels[..., 0] != channels[..., 2]).any():
            notes = (COLOUR_NOTE,)
        picture = picture.convert("RGB")
    if picture.mode in {"1", "LA", "La", "RGB"}:
        picture = picture.convert("L")
    values = np.asarray(picture)
    if values.ndim != 2:
        raise _unreadable(f"pictures of mode {picture.mode} are not handled")
    pixels = values.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise _unreadable("the picture holds values that are not finite")
    low, high = float(pixels.min()), float(pixels.max())
    if values.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    if inverted:
        np.subtract(np.float32(low + high), pixels, out=pixels)
    return Image(pixels=pixels, value_range=(low, high), notes=notes)


def _unreadable(message: str) -> DecodeError:
    return DecodeError("pixel_data_undecodable", message)
