"""Codes of SNOMED CT and DICOM are those of the dictionaries that pydicom makes from PS3.16, wherever it has them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from pydicom.sr import _snomed_dict
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.coding import Code
from stepwedge.dicom import concepts as own
from stepwedge.dicom import header, heatmap, presentation, report
from stepwedge.package import init
from stepwedge.simulate import header as simulated

# Not in any context group of PS3.16. Held against value sets that are published with FHIR implementation guides.
_NOT_DICOMS = {
    "233604007": "Pneumonia",
    "53084003": "Bacterial pneumonia",
    "75570004": "Viral pneumonia",
    "46621007": "Atelectasis",
    "87433001": "Pulmonary emphysema",
    "95436008": "Lung consolidation",
    "51615001": "Fibrosis of lung",
    "154283005": "Pulmonary tuberculosis",
    "840539006": "COVID-19",
    "84089009": "Hiatal hernia",
    "33737001": "Fracture of rib",
    "705057003": "Presence",
    "399208008": "Plain chest X-ray",
    "363680008": "Radiographic imaging procedure",
    "113091000": "Magnetic resonance imaging",
}
# Synonyms of one concept that our texts use.
_SYNONYMS = {"computed tomography": "computerized axial tomography"}


def _meanings(scheme: str) -> dict[str, set[str]]:
    """By code value; without the kind of concept that SNOMED CT's full names end in."""
    known: dict[str, set[str]] = {}
    named: Mapping[str, tuple[str, list[int]]]
    for named in concepts[scheme].values():  # type: ignore[assignment]  # pydicom types it as object
        for value, (meaning, _groups) in named.items():
            known.setdefault(value, set()).add(re.sub(r" \([a-z ]+\)$", "", meaning).casefold())
    return known


def _codes_of(module: ModuleType) -> Iterator[Code]:
    """Every code that a module names at its top, alone or in a table."""
    for value in vars(module).values():
        for item in value.values() if isinstance(value, dict) else [value]:
            if isinstance(item, Code):
                yield item


def _used() -> dict[str, str]:
    """Meaning by value of every SNOMED CT code that we write."""
    modules = (report, heatmap, presentation)
    codes = [code for module in modules for code in _codes_of(module) if code.scheme_designator == "SCT"]
    pairs = {code.value: code.meaning for code in codes}
    return pairs | dict([*init._CODES.values(), simulated._CHEST, *simulated._VIEWS.values()])


@pytest.mark.parametrize(("value", "meaning"), sorted(_used().items()))
def test_a_code_that_is_written_means_what_it_says(value: str, meaning: str) -> None:
    known = _meanings("SCT").get(value)
    if known is None:
        assert _NOT_DICOMS.get(value) == meaning, f"{value} {meaning}: nobody has confirmed it"
        return
    text = meaning.casefold()
    assert _SYNONYMS.get(text, text) in known
    assert value not in _NOT_DICOMS


def test_a_meaning_that_dicom_codes_has_dicoms_code() -> None:
    """Two codes for one thing would split it: a PACS looks for the one that the standard names."""
    by_meaning: dict[str, set[str]] = {}
    for value, meanings in _meanings("SCT").items():
        for meaning in meanings:
            by_meaning.setdefault(meaning, set()).add(value)
    for value, meaning in _used().items():
        assert value in by_meaning.get(meaning.casefold(), {value}), f"{meaning} is {by_meaning[meaning.casefold()]}"


def test_every_confirmed_code_is_in_use() -> None:
    assert set(_used()) >= set(_NOT_DICOMS)


@pytest.mark.parametrize("codes", [header._VIEWS, header._REGIONS], ids=["views", "regions"])
def test_an_old_code_that_is_read_is_one_of_the_same_place(codes: dict[str, str]) -> None:
    """SNOMED RT values lead to the CT value that we read in the same way."""
    for value, meaning in codes.items():
        modern = _snomed_dict.mapping["SRT"].get(value)
        assert modern is None or codes.get(modern) == meaning


@pytest.mark.parametrize("codes", [header._VIEWS, header._REGIONS], ids=["views", "regions"])
def test_every_code_that_is_read_is_in_the_standard(codes: dict[str, str]) -> None:
    assert {value for value in codes if value.isdigit()} <= set(_meanings("SCT"))


def test_codes_of_dicom_in_the_report_are_in_its_dictionary() -> None:
    known = _meanings("DCM")
    for code in _codes_of(report):
        if code.scheme_designator == "DCM":
            assert code.meaning.casefold() in known[code.value]


def test_codes_of_our_own_fit_their_attribute_and_say_whose_they_are() -> None:
    for value in own._OWN:
        assert len(value) <= 16  # Short String (PS3.5 section 6.2)
    assert own.SCHEME.startswith("99")  # private (PS3.16 section 8)


def test_no_code_hides_in_another_module() -> None:
    """What is written in a function's body is not held against the dictionary above."""
    folder = Path(inspect.getfile(report)).parent
    for file in sorted(folder.glob("*.py")):
        module = importlib.import_module(f"stepwedge.dicom.{file.stem}")
        written = set(re.findall(r'Code\("(\d+)", "SCT"', file.read_text(encoding="utf-8")))
        assert written <= {code.value for code in _codes_of(module)} | set(_used()), file.name
