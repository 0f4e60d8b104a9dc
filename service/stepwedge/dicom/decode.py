"""From a DICOM object's pixel data to the grey-scale image that the pipeline works on.

Pixel data that cannot be trusted raises DecodeError before memory is taken for it. May run in several threads.

What is applied: modality LUT or rescale (PS3.3 section C.11.1), padding (C.7.5.1.1.2), MONOCHROME1 inversion
(C.7.6.3.1.2). What is not: a VOI LUT (C.11.2.1.1), the shape that VOI LUT Function gives to a window, the presentation
LUT shape, overlays and the pixel aspect ratio.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from stepwedge.dicom import codestream
from stepwedge.dicom.attributes import (
    DEFAULT_MAXIMUM_BYTES,
    count_of,
    frames_of,
    number_of,
    quieten_pydicom,
    text_of,
    transfer_syntax_of,
    value_of,
)
from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.errors import DecodeError
from stepwedge.records import FloatArray, Image

_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
# What ``decode`` takes, most wanted first: the listener offers exactly these.
DECODABLE_TRANSFER_SYNTAXES: tuple[str, ...] = (
    str(uid.ExplicitVRLittleEndian),
    str(uid.ImplicitVRLittleEndian),
    str(uid.DeflatedExplicitVRLittleEndian),
    str(uid.ExplicitVRBigEndian),
    *codestream.COMPRESSED,
)

_FLOAT_BYTES = np.dtype(np.float32).itemsize
_LARGEST_VALUE = 1e30  # after rescale: differences and sums of two such values still fit float32

_ITEM = 0xE000FFFE  # (FFFE,E000) as a little-endian number, and so on
_SEQUENCE_END = 0xE0DDFFFE
_UNDEFINED_LENGTH = 0xFFFFFFFF


def decode(dataset: Dataset, *, maximum_bytes: int = DEFAULT_MAXIMUM_BYTES) -> Image:
    """Decode a single-frame grey-scale image.

    Parameters
    ----------
    maximum_bytes
        The largest image as float32 in bytes; checked on the headers, before memory is taken.

    Raises
    ------
    DecodeError
        With one of the codes ``pixel_data_missing``, ``pixel_data_truncated``, ``pixel_data_undecodable``,
        ``pixel_data_too_large``, ``photometric_not_supported`` and ``multi_frame``.
    """
    quieten_pydicom()
    try:
        return _decode(dataset, maximum_bytes)
    except FOREIGN_ERRORS as error:
        # A malformed header can fail in more ways than can be listed; its values stay out of the message.
        raise _undecodable(f"the header contradicts itself ({type(error).__name__})") from None


def _undecodable(message: str) -> DecodeError:
    return DecodeError("pixel_data_undecodable", message)


def _decode(dataset: Dataset, maximum_bytes: int) -> Image:
    content = _pixel_data(dataset)
    rows, columns, frames = count_of(dataset, "Rows"), count_of(dataset, "Columns"), frames_of(dataset)
    if rows == 0 or columns == 0:
        raise _undecodable("the header gives no rows or no columns")
    size = rows * columns * frames * _FLOAT_BYTES
    if size > maximum_bytes:
        raise DecodeError(
            "pixel_data_too_large",
            f"{rows} × {columns}{f' × {frames} frames' if frames > 1 else ''}, {size} bytes, limit {maximum_bytes}",
        )
    photometric = text_of(dataset, "PhotometricInterpretation").upper()
    samples = count_of(dataset, "SamplesPerPixel") or 1
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or samples != 1:
        raise DecodeError(
            "photometric_not_supported", f"{photometric or 'none stated'}, {samples} sample(s), wanted MONOCHROME"
        )
    if frames > 1:
        raise DecodeError("multi_frame", f"{frames} frames")

    stored, low, high = _stored_values(dataset, content, rows, columns, maximum_bytes)
    padding = _padding_mask(dataset, stored, low, high)
    pixels, value_range = _modality_values(dataset, stored, low, high)
    del stored
    window = _window(dataset)
    if photometric == "MONOCHROME1":
        mirror = value_range[0] + value_range[1]
        np.subtract(np.float32(mirror), pixels, out=pixels)
        window = (mirror - window[0], window[1]) if window else None
    if padding is not None:
        kept = pixels[~padding]
        pixels[padding] = kept.min() if kept.size else value_range[0]
    return Image(pixels=pixels, value_range=value_range, window=window)


def _pixel_data(dataset: Dataset) -> bytes:
    element = dataset.get_item("PixelData") if "PixelData" in dataset else None
    content = None if element is None else element.value
    if not content:
        floating = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        if floating:
            raise _undecodable("floating-point pixel data is not handled")
        raise DecodeError("pixel_data_missing", "the object has no pixel data")
    if not isinstance(content, bytes | bytearray):
        raise _undecodable("the pixel data is not a string of bytes")
    return bytes(content)


def _stored_values(
    dataset: Dataset, content: bytes, rows: int, columns: int, maximum_bytes: int
) -> tuple[NDArray[Any], int, int]:
    """The stored values, (rows, columns), and the smallest and largest that the bits stored can represent.

    Bits outside High Bit … High Bit - Bits Stored + 1 are cut off: retired overlays lie there (PS3.5 section 8.1.2).
    """
    allocated, stored_bits = count_of(dataset, "BitsAllocated"), count_of(dataset, "BitsStored")
    if allocated not in {8, 16, 32}:
        raise _undecodable(f"{allocated} bits allocated, 8, 16 and 32 are handled")
    stored_bits = stored_bits or allocated
    if stored_bits > allocated:
        raise _undecodable(f"{stored_bits} bits stored in {allocated} allocated")
    signed = count_of(dataset, "PixelRepresentation") == 1
    high_bit = number_of(dataset, "HighBit")
    top = stored_bits if high_bit is None else int(high_bit) + 1
    if not stored_bits <= top <= allocated:
        raise _undecodable(f"high bit {top - 1} with {stored_bits} bits stored in {allocated} allocated")

    syntax = transfer_syntax_of(dataset)
    if syntax in codestream.COMPRESSED:
        samples = codestream.decode_frame(
            _joined_fragments(content),
            syntax,
            rows=rows,
            columns=columns,
            bits_allocated=allocated,
            maximum_bytes=maximum_bytes,
        )
        values, signed = samples.values, signed or samples.signed
    elif syntax in _NATIVE:
        values = _native_values(dataset, content, syntax, rows, columns, allocated)
    else:
        raise _undecodable(f"transfer syntax {syntax} is not handled")

    low, high = (-(1 << stored_bits - 1), (1 << stored_bits - 1) - 1) if signed else (0, (1 << stored_bits) - 1)
    container = values.dtype.itemsize * 8
    if syntax in codestream.LOSSY:
        if container > stored_bits:
            values = np.clip(_as_kind(values, signed=signed), low, high)
        return _as_kind(values, signed=signed), low, high
    top = min(top, container)
    depth = min(stored_bits, top)
    if top < container or depth < container:
        # To the left, to lose what lies above; then to the right, which repeats the sign of signed values.
        values = _as_kind(_as_kind(values, signed=False) << (container - top), signed=signed) >> (container - depth)
    return _as_kind(values, signed=signed), low, high


def _as_kind(values: NDArray[Any], *, signed: bool) -> NDArray[Any]:
    """The same bits as signed or unsigned integers, in this machine's byte order."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.view(f"{'i' if signed else 'u'}{values.dtype.itemsize}")


def _native_values(
    dataset: Dataset, content: bytes, syntax: str, rows: int, columns: int, allocated: int
) -> NDArray[Any]:
    wanted = rows * columns * allocated // 8
    if len(content) < wanted:
        raise DecodeError("pixel_data_truncated", f"{len(content)} bytes of pixel data, wanted {wanted}")
    if syntax == uid.ExplicitVRBigEndian:
        if allocated == 8 and getattr(dataset.get_item("PixelData"), "VR", "OB") == "OW":
            # Bytes travel in pairs as 16-bit words (PS3.5 section 8.1.1), so every pair is swapped.
            paired = np.frombuffer(content, ">u2", count=len(content) // 2).astype("<u2")
            return paired.view(np.uint8)[:wanted].reshape(rows, columns)
        order = ">"
    else:
        order = "<"
    return np.frombuffer(content, f"{order}u{allocated // 8}", count=rows * columns).reshape(rows, columns)


def _joined_fragments(content: bytes) -> bytes:
    """The fragments of a single frame, without the basic offset table (PS3.5 section A.4)."""
    fragments: list[bytes] = []
    position = 0
    while position + 8 <= len(content):
        tag, length = struct.unpack_from("<II", content, position)
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length == _UNDEFINED_LENGTH:
            raise _undecodable("the encapsulated pixel data is not a sequence of fragments")
        position += 8
        if position + length > len(content):
            raise DecodeError("pixel_data_truncated", "a fragment of the pixel data is shorter than it says")
        fragments.append(content[position : position + length])
        position += length
    if not any(fragments[1:]):
        raise DecodeError("pixel_data_truncated", "the encapsulated pixel data holds no frame")
    return b"".join(fragments[1:])


def _padding_mask(dataset: Dataset, stored: NDArray[Any], low: int, high: int) -> NDArray[np.bool_] | None:
    """Where the stored values are padding (PS3.3 section C.7.5.1.1.2), or None if nowhere."""
    first = _stored_number(dataset, "PixelPaddingValue", low, high)
    if first is None:
        return None
    last = _stored_number(dataset, "PixelPaddingRangeLimit", low, high)
    if last is None or last == first:
        mask = stored == first
    else:
        mask = (stored >= min(first, last)) & (stored <= max(first, last))
    return mask if mask.any() else None


def _stored_number(dataset: Dataset, keyword: str, low: int, high: int) -> int | None:
    """An attribute of VR "US or SS" as a stored value; None if there is none or no pixel could have it."""
    numbers = _integers(dataset, keyword)
    if not numbers:
        return None
    number = int(numbers[0])
    if number < low or number > high:
        # Written with the other signedness: the same bits, read as the pixels are.
        number += 65536 if number < 0 else -65536
    return number if low <= number <= high else None


def _integers(dataset: Dataset, keyword: str) -> NDArray[np.int64] | None:
    """All values of an attribute of VR US, SS or OW, which an implicit VR may have left as bytes."""
    try:
        value = dataset.get(keyword)
    except FOREIGN_ERRORS:
        return None
    if value is None or isinstance(value, str | Dataset):
        return None
    if isinstance(value, bytes):
        order = ">" if dataset.original_encoding[1] is False else "<"
        return np.frombuffer(value[: len(value) // 2 * 2], f"{order}u2").astype(np.int64)
    try:
        return np.atleast_1d(np.asarray(value, np.int64))
    except FOREIGN_ERRORS:
        return None


def _modality_values(
    dataset: Dataset, stored: NDArray[Any], low: int, high: int
) -> tuple[FloatArray, tuple[float, float]]:
    """Stored values after the modality LUT, or after rescale slope and intercept (PS3.3 section C.11.1)."""
    item = value_of(dataset, "ModalityLUTSequence")
    if isinstance(item, Dataset):
        first, table = _lookup_table(item, signed=low < 0)
        index = np.clip(stored.astype(np.int64) - first, 0, table.size - 1)
        return table[index], (float(table.min()), float(table.max()))
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    ends = sorted((low * slope + intercept, high * slope + intercept))
    if slope == 0 or not all(abs(end) < _LARGEST_VALUE for end in ends):
        raise _undecodable("rescale slope and intercept leave no grey scale that can be represented")
    pixels = stored.astype(np.float32)
    if slope != 1:
        pixels *= np.float32(slope)
    if intercept != 0:
        pixels += np.float32(intercept)
    return pixels, (ends[0], ends[1])


def _lookup_table(item: Dataset, *, signed: bool) -> tuple[int, FloatArray]:
    """The first stored value that a LUT maps, and what it maps to (PS3.3 section C.11.1.1.1)."""
    descriptor = _integers(item, "LUTDescriptor")
    if descriptor is None or descriptor.size != 3:
        raise _undecodable("the modality LUT has no descriptor")
    entries, first, bits = (int(number) for number in descriptor)
    entries = entries & 0xFFFF or 65536
    if signed and first > 32767:
        first -= 65536
    elif not signed and first < 0:
        first += 65536
    try:
        raw = item.get("LUTData")
    except FOREIGN_ERRORS:
        raw = None
    if isinstance(raw, bytes) and bits <= 8 and entries <= len(raw) < 2 * entries:
        table = np.frombuffer(raw, np.uint8).astype(np.float32)
    else:
        numbers = _integers(item, "LUTData")
        table = np.zeros(0, np.float32) if numbers is None else (numbers & 0xFFFF).astype(np.float32)
    if table.size < entries:
        raise _undecodable(f"the modality LUT has {table.size} entries, its descriptor says {entries}")
    return first, table[:entries]


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """The first window (PS3.3 section C.11.2.1.2): centre and width, in units after the modality transformation."""
    centre, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    return centre, width
