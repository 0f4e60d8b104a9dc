"""Reading DICOM defensively: an attribute that is absent, of the wrong kind or nonsense reads as unknown.

All functions may run in several threads.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydicom
from PIL import Image as Pillow
from pydicom import uid
from pydicom.dataset import Dataset

from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.errors import DecodeError, UnusableInstanceError

DEFAULT_MAXIMUM_BYTES = 536_870_912  # that of the setting worker.maximum_decoded_bytes
_MAXIMUM_TEXT = 64  # characters of a header attribute that are kept: LO's limit

# Largest data set that a deflated object may inflate to, as a multiple of the limit on an image: other attributes
# and 64-bit samples count in it too.
_INFLATED_PER_DECODED = 2
_INFLATE_CHUNK = 1 << 20  # bytes

_quiet_lock = threading.Lock()
_QUIET_CATEGORIES: tuple[tuple[type[Warning], str], ...] = (
    (UserWarning, r"pydicom(\.|$)"),
    (DeprecationWarning, r"pydicom(\.|$)"),
    (Pillow.DecompressionBombWarning, r"PIL(\.|$)"),  # we have a limit of our own
    (UserWarning, r"PIL(\.|$)"),
)


def quieten_pydicom() -> None:
    """Keep pydicom from repeating header values in warnings and logs, where they may name a patient.

    Sets process-wide filters, which is safe in threads (``warnings.catch_warnings`` is not). Every function here that
    reads calls it; calling it again is cheap and does nothing.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    present = {(item[0], item[2], getattr(item[3], "pattern", None)) for item in warnings.filters[:16]}
    wanted = [item for item in _QUIET_CATEGORIES if ("ignore", *item) not in present]
    if wanted:
        with _quiet_lock:
            for category, module in wanted:
                warnings.filterwarnings("ignore", category=category, module=module)


def read_dataset(source: Path | bytes, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> Dataset:
    """Read a DICOM file (PS3.10), or a bare data set without preamble and file meta information.

    A bare data set is taken for what its first elements look like, implicit VR little endian above all.

    Raises
    ------
    UnusableInstanceError
        ``not_dicom`` if it cannot be parsed as DICOM.
    DecodeError
        ``pixel_data_too_large`` if a deflated data set inflates to more than twice ``maximum_bytes``.
    OSError
        If the file cannot be read.
    """
    quieten_pydicom()
    content = source if isinstance(source, bytes) else source.read_bytes()
    bare = content[128:132] != b"DICM"
    if bare and not _plausible_start(content):
        raise UnusableInstanceError("not_dicom", "the object does not begin like a DICOM file or data set")
    if not bare:
        _check_inflated(content, _INFLATED_PER_DECODED * maximum_bytes)
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=bare)
    except FOREIGN_ERRORS:
        raise UnusableInstanceError("not_dicom", "the object cannot be parsed as DICOM") from None
    if len(dataset) == 0:
        raise UnusableInstanceError("not_dicom", "the object holds no DICOM element")
    return dataset


def _plausible_start(content: bytes) -> bool:
    """Whether a bare data set may begin here: group 0002 or 0008, then a VR or a length that fits."""
    if len(content) < 8:
        return False
    group, _ = struct.unpack_from("<HH", content)
    if group not in {0x0002, 0x0008}:
        return False
    if content[4:6].isalpha() and content[4:6].isupper():
        return True
    (length,) = struct.unpack_from("<I", content, 4)
    return bool(length <= len(content) - 8)


def _check_inflated(content: bytes, limit: int) -> None:
    """Raise DecodeError if a deflated data set (PS3.5 section A.5) is larger than ``limit`` bytes inflated."""
    if content[132:138] != b"\x02\x00\x00\x00UL" or len(content) < 144:
        return
    (group_length,) = struct.unpack_from("<I", content, 140)
    start = 144 + group_length
    if uid.DeflatedExplicitVRLittleEndian.encode() not in content[144:start]:
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, rest = 0, content[start:]
    try:
        while rest and not inflater.eof:
            total += len(inflater.decompress(rest, _INFLATE_CHUNK))
            rest = inflater.unconsumed_tail
            if total > limit:
                raise DecodeError("pixel_data_too_large", f"the deflated data set is larger than {limit} bytes")
    except zlib.error:
        raise UnusableInstanceError("not_dicom", "the deflated data set is damaged") from None


def value_of(dataset: Dataset, keyword: str) -> Any:
    """The first value of an attribute, or None where there is none that can be read."""
    try:
        value = dataset.get(keyword)
    except FOREIGN_ERRORS:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else None
    return value


def text_of(dataset: Dataset, keyword: str) -> str:
    """An attribute as printable text without blanks around it; empty where there is none."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, Dataset):
        return ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return "".join(character for character in text if character.isprintable()).strip()[:_MAXIMUM_TEXT].strip()


def number_of(dataset: Dataset, keyword: str) -> float | None:
    """An attribute as a finite number, or None."""
    value = value_of(dataset, keyword)
    if isinstance(value, bytes | Dataset):
        return None
    try:
        number = float(value)
    except FOREIGN_ERRORS:
        return None
    return number if math.isfinite(number) else None


def numbers_of(dataset: Dataset, keyword: str) -> list[float]:
    """A list of finite numbers; empty where one of them is none, or there are none."""
    try:
        numbers = [float(value) for value in dataset.get(keyword) or ()]
    except FOREIGN_ERRORS:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def count_of(dataset: Dataset, keyword: str) -> int:
    """An attribute as a positive integer; 0 where there is none."""
    number = number_of(dataset, keyword)
    return int(number) if number is not None and 0 < number < 2**32 else 0


def frames_of(dataset: Dataset) -> int:
    """How many frames the object says that it has; at least 1."""
    return max(1, count_of(dataset, "NumberOfFrames"))


def transfer_syntax_of(dataset: Dataset) -> str:
    """The transfer syntax of the file meta information, or the one that a bare data set was read as."""
    stated = text_of(getattr(dataset, "file_meta", None) or Dataset(), "TransferSyntaxUID")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if little is False:
        return str(uid.ExplicitVRBigEndian)
    return str(uid.ExplicitVRLittleEndian if implicit is False else uid.ImplicitVRLittleEndian)
