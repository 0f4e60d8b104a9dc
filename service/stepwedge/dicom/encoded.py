"""Encoded data sets as they come and as they lie in the spool: what must be known of them, without decoding them.

The walk finds a data set that was cut anywhere but between two elements at its top. It reads only the few values that
the spool needs; nothing is converted, so nothing that a sender writes can raise more than UnusableInstanceError.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from stepwedge import __version__
from stepwedge.dicom.identifiers import derived_uid
from stepwedge.errors import UnusableInstanceError

# PS3.7 annex D.3.3.2; the same for every version.
IMPLEMENTATION_CLASS_UID = derived_uid("implementation")
IMPLEMENTATION_VERSION_NAME = f"STEPWEDGE_{__version__}"[:16]

# C-STORE status values, PS3.4 table B.2-1.
STATUS_MISMATCH = 0xA900
STATUS_CANNOT_UNDERSTAND = 0xC000

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_SOP_CLASS, _SOP_INSTANCE, _MODALITY = 0x00080016, 0x00080018, 0x00080060
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_PIXEL_DATA = 0x7FE00010
_WANTED = frozenset({_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _STUDY, _SERIES})

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# Groups below 0008 belong to commands, file meta information and directories (PS3.5 section 7.8).
_FIRST_GROUP = 0x0008
# Deeper sequences than this are an attack on readers that recurse; the deepest in the standard is far below it.
_DEEPEST = 64
# PS3.5 table 7.1-1: explicit VR with a length of 32 bits after two reserved bytes.
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")

# PS3.5 section 9.1, but for leading zeros in a component, which old devices write and every archive takes.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

PREAMBLE = bytes(128) + b"DICM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What an instance says it is."""

    sop_class_uid: str
    sop_uid: str
    study_uid: str
    series_uid: str
    modality: str
    has_pixels: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A C-STORE request: what the command says, and the encoded data set as it came."""

    sop_class_uid: str
    sop_uid: str
    transfer_syntax_uid: str
    sender: str  # calling AE title
    data: bytes


def read_identity(data: bytes, transfer_syntax_uid: str, *, maximum_bytes: int) -> Identity:
    """Walk an encoded data set and read what it says it is.

    Parameters
    ----------
    data
        The data set as received, without file meta information.
    maximum_bytes
        Largest size after inflating, bytes; only the deflated transfer syntax can grow.

    Raises
    ------
    UnusableInstanceError
        ``not_dicom`` if it cannot be walked from its first byte to its last, ``bad_uid`` if a UID is missing or is
        none (PS3.5 section 9.1).
    """
    try:
        if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            data = _inflate(data, maximum_bytes)
        values, has_pixels = _walk(data, transfer_syntax_uid)
    except (_CutError, struct.error, zlib.error) as error:
        raise UnusableInstanceError(
            "not_dicom", f"the data set cannot be parsed ({error}); send it again from its source"
        ) from None
    uids = {tag: _text(values.get(tag, b"")) for tag in (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)}
    for tag, uid in uids.items():
        if not is_uid(uid):
            raise UnusableInstanceError(
                "bad_uid",
                f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {'is no DICOM UID' if uid else 'is missing'}; "
                "correct it at its source",
            )
    return Identity(
        sop_class_uid=uids[_SOP_CLASS],
        sop_uid=uids[_SOP_INSTANCE],
        study_uid=uids[_STUDY],
        series_uid=uids[_SERIES],
        modality=_code_string(values.get(_MODALITY, b"")),
        has_pixels=has_pixels,
    )


def check_command(identity: Identity, *, sop_class_uid: str, sop_uid: str) -> None:
    """Check that a data set is what the C-STORE command announced (PS3.4 annex B.2.3, status A9xx).

    Raises
    ------
    UnusableInstanceError
        ``identity_mismatch`` with status 0xA900.
    """
    for name, found, wanted in (
        ("class", identity.sop_class_uid, sop_class_uid),
        ("instance", identity.sop_uid, sop_uid),
    ):
        if found != wanted:
            raise UnusableInstanceError(
                "identity_mismatch",
                f"the SOP {name} of the data set is not that of the command; correct it at its source",
                status=STATUS_MISMATCH,
            )


def is_uid(value: str) -> bool:
    """Whether this is a DICOM UID (PS3.5 section 9.1; leading zeros are let through)."""
    return len(value) <= 64 and _UID.fullmatch(value) is not None


def clean_title(value: str) -> str:
    """An AE title as it may be kept and shown: printable, at most 16 characters (PS3.5 section 6.2)."""
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in value.strip())[:16]


def file_meta(*, sop_class_uid: str, sop_uid: str, transfer_syntax_uid: str, sender: str, receiver: str) -> bytes:
    """Preamble and file meta information (PS3.10 section 7.1), with who sent the instance and who received it."""
    elements = b"".join(
        (
            struct.pack("<HH2sHI", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            _short(0x0002, b"UI", sop_class_uid),
            _short(0x0003, b"UI", sop_uid),
            _short(0x0010, b"UI", transfer_syntax_uid),
            _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _short(0x0016, b"AE", sender),
            _short(0x0017, b"AE", sender),
            _short(0x0018, b"AE", receiver),
        )
    )
    return PREAMBLE + struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def split_file(contents: bytes) -> tuple[str, str, bytes]:
    """The transfer syntax, the sender and the data set of a file that ``file_meta`` begins.

    Raises
    ------
    UnusableInstanceError
        ``not_dicom`` if the file does not begin so.
    """
    meta, data = _split(contents)
    return _text(meta[0x00020010]), _text(meta.get(0x00020017, b"")), data


def received_as(contents: bytes) -> Received:
    """What a file that ``file_meta`` begins was received as. Raises UnusableInstanceError as ``split_file``."""
    meta, data = _split(contents)
    return Received(
        sop_class_uid=_text(meta.get(0x00020002, b"")),
        sop_uid=_text(meta.get(0x00020003, b"")),
        transfer_syntax_uid=_text(meta[0x00020010]),
        sender=_text(meta.get(0x00020017, b"")),
        data=data,
    )


def _split(contents: bytes) -> tuple[dict[int, bytes], bytes]:
    """The file meta information, and what comes after it."""
    try:
        if contents[: len(PREAMBLE)] != PREAMBLE:
            raise _CutError("no DICOM file")
        start = len(PREAMBLE) + 12
        (length,) = struct.unpack_from("<I", contents, len(PREAMBLE) + 8)
        meta = dict(_elements(contents[start : start + length]))
        if 0x00020010 not in meta:
            raise _CutError("no transfer syntax")
        return meta, contents[start + length :]
    except (_CutError, struct.error):
        raise UnusableInstanceError("not_dicom", "the file has no file meta information; restore it") from None


class _CutError(Exception):
    """The data set ends, or makes no sense, at a place. The message holds no values."""


def _short(element: int, vr: bytes, value: str) -> bytes:
    encoded = value.encode("ascii", "replace")
    encoded += (b"\0" if vr == b"UI" else b" ") * (len(encoded) % 2)
    return struct.pack("<HH2sH", 0x0002, element, vr, len(encoded)) + encoded


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


def _code_string(value: bytes) -> str:
    text = _text(value).upper()
    return text if re.fullmatch(r"[A-Z0-9_ ]{1,16}", text) else ""


def _inflate(data: bytes, maximum_bytes: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, maximum_bytes)
    if inflater.unconsumed_tail:
        raise _CutError("inflated, it is larger than the limit")
    if not inflater.eof:
        raise _CutError("the deflated data ends too early")
    return inflated


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of file meta information: explicit VR little endian, nothing nested."""
    position = 0
    while position < len(data):
        tag, length, value_at, _ = _header(data, position, False, "<")
        if value_at + length > len(data):
            raise _CutError("it ends within an element")
        yield tag, data[value_at : value_at + length]
        position = value_at + length


def _walk(data: bytes, transfer_syntax_uid: str) -> tuple[dict[int, bytes], bool]:
    """The wanted values at the top of a data set, and whether it has pixel data. Raises _CutError."""
    order = ">" if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "<"
    # As pydicom does: the first element shows the encoding, whatever was agreed on.
    implicit = len(data) < 6 or data[4] not in _LETTERS or data[5] not in _LETTERS
    values: dict[int, bytes] = {}
    has_pixels = False
    position, end = 0, len(data)
    if not end:
        raise _CutError("it is empty")
    while position < end:
        tag, length, value_at, vr = _header(data, position, implicit, order)
        if tag in (_ITEM_END, _SEQUENCE_END) and not length:
            position = value_at  # a stray delimiter after a sequence of defined length
            continue
        if tag >> 16 < _FIRST_GROUP:
            raise _CutError(f"it has an element of group {tag >> 16:04X}")
        if length == _UNDEFINED:
            position = _skip_items(data, value_at, implicit or vr == b"UN", order)
        else:
            position = value_at + length
            if position > end:
                raise _CutError(f"it ends within ({tag >> 16:04X},{tag & 0xFFFF:04X})")
            if tag in _WANTED:
                values[tag] = data[value_at:position]
        has_pixels = has_pixels or tag == _PIXEL_DATA
    return values, has_pixels


def _header(data: bytes, position: int, implicit: bool, order: str) -> tuple[int, int, int, bytes]:
    """Tag, value length, where the value begins, and VR (empty if implicit) of the element at a position."""
    if position + 8 > len(data):
        raise _CutError("it ends within the head of an element")
    group, element = struct.unpack_from(f"{order}HH", data, position)
    tag = group << 16 | element
    vr = data[position + 4 : position + 6]
    if implicit or group == 0xFFFE or vr[0] not in _LETTERS or vr[1] not in _LETTERS:
        (length,) = struct.unpack_from(f"{order}I", data, position + 4)
        return tag, length, position + 8, b""
    if vr not in _LONG_VRS:
        (length,) = struct.unpack_from(f"{order}H", data, position + 6)
        return tag, length, position + 8, vr
    if position + 12 > len(data):
        raise _CutError("it ends within the head of an element")
    (length,) = struct.unpack_from(f"{order}I", data, position + 8)
    return tag, length, position + 12, vr


def _skip_items(data: bytes, position: int, implicit: bool, order: str) -> int:
    """The place after the items of an element of undefined length: a sequence or pixel data fragments."""
    # Each level of nesting: whether its contents are items (else elements), and whether they are of implicit VR.
    levels = [(True, implicit)]
    while levels:
        within_items, implicit = levels[-1]
        tag, length, value_at, vr = _header(data, position, implicit, order)
        position = value_at
        if tag == (_SEQUENCE_END if within_items else _ITEM_END):
            levels.pop()
        elif within_items and tag != _ITEM:
            raise _CutError("a sequence holds something that is no item")
        elif length == _UNDEFINED:
            if len(levels) >= _DEEPEST:
                raise _CutError(f"its sequences are nested deeper than {_DEEPEST}")
            levels.append((not within_items, implicit or vr == b"UN"))
        else:
            position += length
        if position > len(data):
            raise _CutError("it ends within a sequence or the pixel data")
    return position
