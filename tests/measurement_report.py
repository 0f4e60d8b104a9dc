"""The mandatory rows of the Measurement Report template, as our reports use it (PS3.16 TID 1500 and those it includes).

dciodvfy checks the modules and the form of a content tree, but does not notice a row that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

CONTAINS, MODIFIES, OBSERVED, ACQUIRED = "CONTAINS", "HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT"


@dataclass(frozen=True, slots=True)
class Row:
    """A row that must be there at least once in every item that the row above it matches."""

    template: str
    under: tuple[str, ...]  # code values from the root down
    relationship: str
    value_type: str
    code: str
    name: str


_LIBRARY = ("111028", "126200", "260753009")
_GROUP = ("126010", "125007")
ROWS = (
    Row("TID 1204 row 1", (), MODIFIES, "CODE", "121049", "Language of Content Item and Descendants"),
    Row("TID 1002 row 1", (), OBSERVED, "CODE", "121005", "Observer Type"),
    Row("TID 1004 row 1", (), OBSERVED, "UIDREF", "121012", "Device Observer UID"),
    Row("TID 1500 row 4", (), MODIFIES, "CODE", "121058", "Procedure reported"),
    Row("TID 1600 row 1", (), CONTAINS, "CONTAINER", "111028", "Image Library"),
    Row("TID 1600 row 2", _LIBRARY[:1], CONTAINS, "CONTAINER", "126200", "Image Library Group"),
    Row("TID 1601 row 1", _LIBRARY[:2], CONTAINS, "IMAGE", "260753009", "Source"),
    Row("TID 1602 row 1", _LIBRARY, ACQUIRED, "CODE", "121139", "Modality"),
    Row("TID 1602 row 9", _LIBRARY, ACQUIRED, "NUM", "110910", "Pixel Data Rows"),
    Row("TID 1602 row 10", _LIBRARY, ACQUIRED, "NUM", "110911", "Pixel Data Columns"),
    Row("TID 1500 row 6", (), CONTAINS, "CONTAINER", "126010", "Imaging Measurements"),
    Row("TID 1501 row 1", _GROUP[:1], CONTAINS, "CONTAINER", "125007", "Measurement Group"),
    Row("TID 1501 row 2", _GROUP, OBSERVED, "TEXT", "112039", "Tracking Identifier"),
    Row("TID 1501 row 3", _GROUP, OBSERVED, "UIDREF", "112040", "Tracking Unique Identifier"),
    Row("TID 4019 row 1", _GROUP, MODIFIES, "TEXT", "111001", "Algorithm Name"),
    Row("TID 4019 row 2", _GROUP, MODIFIES, "TEXT", "111003", "Algorithm Version"),
)


def violations(report: Dataset) -> list[str]:
    """What is wrong with a report by the template; empty for a good one."""
    found = []
    template = report.get("ContentTemplateSequence") or [Dataset()]
    if (template[0].get("MappingResource"), template[0].get("TemplateIdentifier")) != ("DCMR", "1500"):
        found.append("the root is not of template 1500")
    if (report.get("ValueType"), code_of(report)) != ("CONTAINER", "126000"):
        found.append("the root is not a container of the title Imaging Measurement Report")
    for row in ROWS:
        parents = list(items_under(report, row.under))
        if row.under and not parents:
            continue  # the row above is missing, and is reported itself
        for number, parent in enumerate(parents, start=1):
            matching = [item for item in children(parent) if code_of(item) == row.code]
            if not any(
                item.ValueType == row.value_type and item.RelationshipType == row.relationship and _has_value(item)
                for item in matching
            ):
                found.append(f"{row.template}: no {row.name} in item {number} of {'/'.join(row.under) or 'root'}")
    return found


def items_under(report: Dataset, path: tuple[str, ...]) -> Iterator[Dataset]:
    """Every content item at a path of concept names."""
    if not path:
        yield report
        return
    for parent in items_under(report, path[:-1]):
        yield from (item for item in children(parent) if code_of(item) == path[-1])


def children(item: Dataset) -> list[Dataset]:
    return list(item.get("ContentSequence") or [])


def code_of(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def every_item(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in children(item):
        yield from every_item(child)


def texts(report: Dataset) -> list[str]:
    """Every text of a report, with the meanings of its coded values."""
    found = []
    for item in every_item(report):
        if item.ValueType == "TEXT":
            found.append(str(item.TextValue))
        if item.ValueType == "CODE":
            found.append(str(item.ConceptCodeSequence[0].CodeMeaning))
    return found


def numbers(report: Dataset) -> dict[str, list[float]]:
    """Every number of a report by its concept's code."""
    found: dict[str, list[float]] = {}
    for item in every_item(report):
        if item.ValueType == "NUM":
            found.setdefault(code_of(item), []).append(float(item.MeasuredValueSequence[0].NumericValue))
    return found


def codes(report: Dataset, name: str) -> list[str]:
    """The code values under a concept name."""
    return [str(i.ConceptCodeSequence[0].CodeValue) for i in every_item(report) if code_of(i) == name]


def _has_value(item: Dataset) -> bool:
    if item.ValueType == "CONTAINER":
        return bool(children(item))
    if item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        return bool(measured.get("NumericValue")) and bool(measured.get("MeasurementUnitsCodeSequence"))
    keyword = {
        "TEXT": "TextValue",
        "CODE": "ConceptCodeSequence",
        "UIDREF": "UID",
        "IMAGE": "ReferencedSOPSequence",
    }[item.ValueType]
    return bool(item.get(keyword))
