"""A file from a disk as a case for the pipeline: DICOM, or a PNG, JPEG or TIFF, which has no header."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stepwedge.dicom.attributes import DEFAULT_MAXIMUM_BYTES, read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.dicom.imagefile import read_image_file
from stepwedge.errors import UnusableInstanceError
from stepwedge.pipeline import Case
from stepwedge.records import Header

# The first bytes of PNG, JPEG and TIFF; of BMP and GIF. WebP begins with RIFF and a length.
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_OTHER_IMAGES = (b"BM", b"GIF8")
_MARK, _MARK_AT = b"DICM", 128


def open_case(file: Path, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> Case:
    """A file, ready for the pipeline. A DICOM object is kept in memory, its pixels as they are stored.

    Parameters
    ----------
    maximum_bytes
        Of decoded pixels.

    Raises
    ------
    UnusableInstanceError, DecodeError, OSError
        If the file is no image, or cannot be read.
    """
    kind = kind_of(file)
    if kind == "other image":
        raise UnusableInstanceError("image_format_not_supported", "neither DICOM nor PNG, JPEG or TIFF")
    if kind == "image":
        return Case(
            instance=str(file),
            header=Header(present=False),
            decode=lambda: read_image_file(file, maximum_bytes=maximum_bytes),
        )
    dataset = read_dataset(file)
    return Case(
        instance=str(file),
        header=read_header(dataset),
        decode=lambda: decode(dataset, maximum_bytes=maximum_bytes),
    )


def kind_of(file: Path) -> Literal["dicom", "image", "other image"]:
    """What a file is by its first bytes, because its name may say anything; what is nothing else counts as DICOM.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with file.open("rb") as opened:
        start = opened.read(_MARK_AT + len(_MARK))
    if start[_MARK_AT:] == _MARK:
        return "dicom"  # whatever its preamble looks like: PS3.10 section 7.1 lets it be that of a TIFF
    if start.startswith(_IMAGES):
        return "image"
    return "other image" if start.startswith(_OTHER_IMAGES) or start[8:12] == b"WEBP" else "dicom"
