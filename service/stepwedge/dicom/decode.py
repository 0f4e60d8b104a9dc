"""From a DICOM object, or a plain image file, to the header and the grey-scale image that the pipeline works on.

Reading is defensive: a header attribute that is absent, of the wrong kind or nonsense reads as unknown, and pixel data
that cannot be trusted raises DecodeError before memory is taken for it. All functions may run in several threads.

What is applied: modality LUT or rescale (PS3.3 section C.11.1), padding (C.7.5.1.1.2), MONOCHROME1 inversion
(C.7.6.3.1.2). What is not: a VOI LUT (C.11.2.1.1), the shape that VOI LUT Function gives to a window, the presentation
LUT shape, overlays and the pixel aspect ratio.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps
from pydicom import uid
from pydicom.dataset import Dataset

from stepwedge.dicom import codestream
from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.errors import DecodeError, UnusableInstanceError
from stepwedge.records import FloatArray, Header, Image

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

DEFAULT_MAXIMUM_BYTES = 536_870_912  # that of the setting worker.maximum_decoded_bytes
_FLOAT_BYTES = np.dtype(np.float32).itemsize
_LARGEST_VALUE = 1e30  # after rescale: differences and sums of two such values still fit float32

_MAXIMUM_AGE_YEARS = 130.0
_AGE = re.compile(r"\s*(\d{1,3})\s*([DWMY]?)\s*", re.IGNORECASE)
_PER_YEAR = {"D": 365.2425, "W": 365.2425 / 7, "M": 12.0, "Y": 1.0, "": 1.0}
_DATE = re.compile(r"\s*(\d{4})([.\-/]?)(\d{2})\2(\d{2})\s*")  # ACR-NEMA wrote dots
_MAXIMUM_TEXT = 64  # characters of a header attribute that are kept: LO's limit

# PS3.16 CID 4010 (DX View). SRT and SNM3 are the older names of SNOMED CT's codes.
_VIEWS = {
    "399348003": "AP",
    "R-10206": "AP",
    "272479007": "PA",
    "R-10214": "PA",
    "R-40888": "PA",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
}
# PS3.16 CID 4009 (DX Anatomy), as far as Body Part Examined has the same meaning (PS3.16 annex L).
_REGIONS = {
    "51185008": "CHEST",
    "816094009": "CHEST",
    "43799004": "CHEST",
    "T-D3000": "CHEST",
    "818981001": "ABDOMEN",
    "818983003": "ABDOMEN",
    "T-D4000": "ABDOMEN",
    "76752008": "BREAST",
    "T-04000": "BREAST",
}
_SNOMED = {"SCT", "SRT", "SNM3", "99SDM"}

_ITEM = 0xE000FFFE  # (FFFE,E000) as a little-endian number, and so on
_SEQUENCE_END = 0xE0DDFFFE
_UNDEFINED_LENGTH = 0xFFFFFFFF

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


# --- The header ---------------------------------------------------------------------------------------------------


def _no_hash(_name: str) -> str:
    """Without a key there is no hash, and a name never leaves unhashed."""
    return ""


def read_header(dataset: Dataset, station_hash: Callable[[str], str] = _no_hash) -> Header:
    """What the gate and the monitor need of a header. Never raises, whatever the attributes hold.

    Parameters
    ----------
    station_hash
        Turns the station name into a keyed hash. Without it the station is left out.
    """
    quieten_pydicom()
    station = _text(dataset, "StationName")
    return Header(
        sop_class_uid=_text(dataset, "SOPClassUID"),
        transfer_syntax_uid=_transfer_syntax(dataset),
        modality=_text(dataset, "Modality").upper(),
        body_part=_body_part(dataset),
        view_position=_view(dataset),
        age_years=_age_years(dataset),
        sex=_text(dataset, "PatientSex").upper(),
        manufacturer=_text(dataset, "Manufacturer"),
        model_name=_text(dataset, "ManufacturerModelName"),
        station=station_hash(station) if station else "",
        photometric_interpretation=_text(dataset, "PhotometricInterpretation").upper(),
        rows=_count(dataset, "Rows"),
        columns=_count(dataset, "Columns"),
        bits_stored=_count(dataset, "BitsStored"),
        frames=_frames(dataset),
        exposure=_number(dataset, "Exposure"),
        kvp=_number(dataset, "KVP"),
        pixel_spacing=_pixel_spacing(dataset),
        burned_in_annotation=_text(dataset, "BurnedInAnnotation").upper(),
        priority=_text(dataset, "RequestedProcedurePriority").upper(),
    )


def _value(dataset: Dataset, keyword: str) -> Any:
    """The first value of an attribute, or None where there is none that can be read."""
    try:
        value = dataset.get(keyword)
    except FOREIGN_ERRORS:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else None
    return value


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    if value is None or isinstance(value, Dataset):
        return ""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return "".join(character for character in text if character.isprintable()).strip()[:_MAXIMUM_TEXT].strip()


def _number(dataset: Dataset, keyword: str) -> float | None:
    value = _value(dataset, keyword)
    if isinstance(value, bytes | Dataset):
        return None
    try:
        number = float(value)
    except FOREIGN_ERRORS:
        return None
    return number if math.isfinite(number) else None


def _count(dataset: Dataset, keyword: str) -> int:
    number = _number(dataset, keyword)
    return int(number) if number is not None and 0 < number < 2**32 else 0


def _frames(dataset: Dataset) -> int:
    return max(1, _count(dataset, "NumberOfFrames"))


def _transfer_syntax(dataset: Dataset) -> str:
    """The transfer syntax of the file meta information, or the one that a bare data set was read as."""
    stated = _text(getattr(dataset, "file_meta", None) or Dataset(), "TransferSyntaxUID")
    if stated:
        return stated
    implicit, little = dataset.original_encoding
    if little is False:
        return str(uid.ExplicitVRBigEndian)
    return str(uid.ExplicitVRLittleEndian if implicit is False else uid.ImplicitVRLittleEndian)


def _pixel_spacing(dataset: Dataset) -> float | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = _number(dataset, keyword)
        if spacing is not None and spacing > 0:
            return spacing
    return None


def _snomed_code(dataset: Dataset, keyword: str) -> str:
    item = _value(dataset, keyword)
    if not isinstance(item, Dataset) or _text(item, "CodingSchemeDesignator").upper() not in _SNOMED:
        return ""
    return _text(item, "CodeValue").upper()


def _body_part(dataset: Dataset) -> str:
    return _text(dataset, "BodyPartExamined").upper() or _REGIONS.get(
        _snomed_code(dataset, "AnatomicRegionSequence"), ""
    )


def _view(dataset: Dataset) -> str:
    return _text(dataset, "ViewPosition").upper() or _VIEWS.get(_snomed_code(dataset, "ViewCodeSequence"), "")


def _age_years(dataset: Dataset) -> float | None:
    """The age in years from (0010,1010), else from the birth date and the date of the study.

    An age of nought is what many devices write for "unknown", so that a birth date goes before it.
    """
    stated = parse_age(_text(dataset, "PatientAge"))
    if stated:
        return stated
    born = _date(dataset, "PatientBirthDate")
    if born is None:
        return stated
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        studied = _date(dataset, keyword)
        if studied is not None:
            years = _years_between(born, studied)
            return years if 0 <= years <= _MAXIMUM_AGE_YEARS else stated
    return stated


def parse_age(text: str) -> float | None:
    """Years from an Age String (PS3.5 section 6.2: ``045Y``, ``006M``, ``010W``, ``020D``), or from a bare number.

    None for anything else and for more than 130 years.
    """
    match = _AGE.fullmatch(text)
    if match is None or not text.isascii():
        return None
    years = int(match[1]) / _PER_YEAR[match[2].upper()]
    return years if years <= _MAXIMUM_AGE_YEARS else None


def _date(dataset: Dataset, keyword: str) -> date | None:
    match = _DATE.fullmatch(_text(dataset, keyword))
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return None


def _years_between(born: date, then: date) -> float:
    """Whole years to the last birthday, and the part of the year since: a fifth birthday is exactly 5."""
    years = then.year - born.year
    if _birthday(born, then.year) > then:
        years -= 1
    last, following = _birthday(born, born.year + years), _birthday(born, born.year + years + 1)
    return years + (then - last).days / (following - last).days


def _birthday(born: date, year: int) -> date:
    try:
        return born.replace(year=min(max(year, 1), 9999))
    except ValueError:  # 29 February
        return date(year, 3, 1)


# --- The image ----------------------------------------------------------------------------------------------------


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
    rows, columns, frames = _count(dataset, "Rows"), _count(dataset, "Columns"), _frames(dataset)
    if rows == 0 or columns == 0:
        raise _undecodable("the header gives no rows or no columns")
    size = rows * columns * frames * _FLOAT_BYTES
    if size > maximum_bytes:
        raise DecodeError(
            "pixel_data_too_large",
            f"{rows} × {columns}{f' × {frames} frames' if frames > 1 else ''}, {size} bytes, limit {maximum_bytes}",
        )
    photometric = _text(dataset, "PhotometricInterpretation").upper()
    samples = _count(dataset, "SamplesPerPixel") or 1
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
    allocated, stored_bits = _count(dataset, "BitsAllocated"), _count(dataset, "BitsStored")
    if allocated not in {8, 16, 32}:
        raise _undecodable(f"{allocated} bits allocated, 8, 16 and 32 are handled")
    stored_bits = stored_bits or allocated
    if stored_bits > allocated:
        raise _undecodable(f"{stored_bits} bits stored in {allocated} allocated")
    signed = _count(dataset, "PixelRepresentation") == 1
    high_bit = _number(dataset, "HighBit")
    top = stored_bits if high_bit is None else int(high_bit) + 1
    if not stored_bits <= top <= allocated:
        raise _undecodable(f"high bit {top - 1} with {stored_bits} bits stored in {allocated} allocated")

    syntax = _transfer_syntax(dataset)
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
    item = _value(dataset, "ModalityLUTSequence")
    if isinstance(item, Dataset):
        first, table = _lookup_table(item, signed=low < 0)
        index = np.clip(stored.astype(np.int64) - first, 0, table.size - 1)
        return table[index], (float(table.min()), float(table.max()))
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
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
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is None or width is None or width <= 0:
        return None
    return centre, width


# --- Plain image files --------------------------------------------------------------------------------------------

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
        raise _undecodable("the file cannot be read as PNG, JPEG or TIFF") from None


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
        raise _undecodable(f"pictures of mode {picture.mode} are not handled")
    pixels = values.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise _undecodable("the picture holds values that are not finite")
    low, high = float(pixels.min()), float(pixels.max())
    if values.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    if inverted:
        np.subtract(np.float32(low + high), pixels, out=pixels)
    return Image(pixels=pixels, value_range=(low, high), notes=notes)
