"""The text of a header's elements as Unicode, whatever the header declares or fails to declare.

pydicom warns about bytes that it cannot decode and about values outside their representation, and quotes the value in
the warning. Values of a patient must not reach a log, so the bytes are read here before pydicom judges them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pydicom.charset import CODES_TO_ENCODINGS, default_encoding, python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

REPLACEMENT = "\ufffd"

_ASCII = "ascii"
# Seen in the field: ISO-IR 100, ISO IR 100, ISO_IR_100, ISO 2022-IR 87.
_MISSPELT = re.compile(r"ISO.IR.?(\d+)")
_MISSPELT_2022 = re.compile(r"ISO.2022.IR.?(\d+)")
_ESCAPE = b"\x1b"
# These codecs want the escape sequence itself; the others want it removed.
_CODECS_WITH_ESCAPES = frozenset({"iso2022_jp", "iso2022_jp_2"})


def element_text(dataset: Dataset, keyword: str) -> str:
    """The value of an element as text: several values joined by a backslash, empty when missing or empty.

    Bytes that the declared character set (PS3.3 section C.12.1.1.2) cannot mean are replaced by U+FFFD, as are
    bytes beyond ASCII where no character set is declared. Control characters and padding are removed.
    """
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in dataset:
        return ""
    element: Any = dataset.get_item(tag)
    declared = _declared(dataset)
    value = element.value
    if isinstance(element, RawDataElement):
        text = decoded(value or b"", declared)
    else:
        values = value if isinstance(value, MultiValue | list | tuple) else [value]
        text = "\\".join(_converted(item, declared) for item in values if item is not None)
    return "".join(c for c in text if unicodedata.category(c) != "Cc").strip(" ")


def element_values(dataset: Dataset, keyword: str) -> list[str]:
    """The values of an element as texts; empty when missing or empty."""
    text = element_text(dataset, keyword)
    return [value.strip() for value in text.split("\\")] if text else []


def element_count(dataset: Dataset, keyword: str) -> int | None:
    """The value of an element of VR US; None when missing or not of two bytes."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if tag not in dataset:
        return None
    element: Any = dataset.get_item(tag)
    value = element.value
    if isinstance(element, RawDataElement):
        if value is None or len(value) != 2:
            return None
        return int.from_bytes(value, "little" if element.is_little_endian else "big")
    return value if isinstance(value, int) else None


def decoded(value: bytes, declared: Sequence[str]) -> str:
    """Bytes to text under the values of Specific Character Set (PS3.5 section 6.1); never raises."""
    default = _codec(declared[0] if declared else "")
    first, *rest = value.split(_ESCAPE)
    return first.decode(default, "replace") + "".join(_fragment(_ESCAPE + part, default) for part in rest)


def _fragment(value: bytes, default: str) -> str:
    for escape, name in CODES_TO_ENCODINGS.items():
        if value.startswith(escape):
            if name in _CODECS_WITH_ESCAPES:
                return value.decode(name, "replace")
            return value.removeprefix(escape).decode(default if name == default_encoding else name, "replace")
    return REPLACEMENT + value[1:].decode(default, "replace")


def _codec(term: str) -> str:
    """The Python codec of a defined term. Without one, and for an unknown one, only ASCII is certain."""
    term = _MISSPELT.sub(r"ISO_IR \1", _MISSPELT_2022.sub(r"ISO 2022 IR \1", term))
    codec = python_encoding.get(term, _ASCII) if term else _ASCII
    return _ASCII if codec == default_encoding else codec


def _declared(dataset: Dataset) -> list[str]:
    """The values of (0008,0005) as they are, without pydicom's repairs."""
    if "SpecificCharacterSet" not in dataset:
        return []
    value = dataset.get_item("SpecificCharacterSet").value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    terms = value.split("\\") if isinstance(value, str) else list(value or [])
    return [str(term).strip(" \0") for term in terms]


def _converted(item: object, declared: Sequence[str]) -> str:
    if isinstance(item, PersonName):
        # The bytes as they came; a name that is empty, or was not read from a file, has none.
        item = item.original_string if item.original_string is not None else str(item)
    if isinstance(item, bytes):
        return decoded(item, declared)
    text = str(item)
    if _codec(declared[0] if declared else "") == _ASCII and len(declared) < 2 and not text.isascii():
        # pydicom took undeclared bytes for Latin-1; which characters they were, nobody knows.
        return "".join(c if c.isascii() else REPLACEMENT for c in text)
    return text
