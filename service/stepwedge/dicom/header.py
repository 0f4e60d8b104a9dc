"""What the gate and the monitor read of an image's header. Nothing of it identifies a patient.

A coded attribute may hold whatever somebody typed, a name too. So a value is kept only where it is one of the terms in
``terms``; any other reads as ``OTHER``, which no package can intend.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date

from pydicom.dataset import Dataset

from stepwedge.dicom.attributes import (
    count_of,
    frames_of,
    number_of,
    quieten_pydicom,
    text_of,
    transfer_syntax_of,
    value_of,
)
from stepwedge.dicom.terms import (
    BODY_PARTS,
    BURNED_IN_ANNOTATIONS,
    MODALITIES,
    PHOTOMETRIC_INTERPRETATIONS,
    PRIORITIES,
    VIEWS,
)
from stepwedge.records import OTHER_TERM, Header

_MAXIMUM_AGE_YEARS = 130.0
_OLDEST_AGE_YEARS = 90.0  # "90 or older" is one category (45 CFR 164.514(b)(2)(i)(C)): an age above identifies
_AGE = re.compile(r"\s*(\d{1,3})\s*([DWMY]?)\s*", re.IGNORECASE)
_PER_YEAR = {"D": 365.2425, "W": 365.2425 / 7, "M": 12.0, "Y": 1.0, "": 1.0}
_DATE = re.compile(r"\s*(\d{4})([.\-/]?)(\d{2})\2(\d{2})\s*")  # ACR-NEMA wrote dots
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
    "113345001": "ABDOMEN",
    "T-D4000": "ABDOMEN",
    "76752008": "BREAST",
    "T-04000": "BREAST",
}
_SNOMED = {"SCT", "SRT", "SNM3", "99SDM"}
_SEXES = {"M", "F", "O"}
_UID = re.compile(r"[0-9.]{1,64}")
_NAME_MARKS = frozenset("^=")  # what separates the components and groups of a person's name (PS3.5 section 6.2.1)
_NAME_WORD = 3  # letters; shorter parts of a name are found in words that are none
_PUNCTUATION = frozenset(" -_./()+")


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
    station = text_of(dataset, "StationName")
    sex = text_of(dataset, "PatientSex").upper()
    return Header(
        sop_class_uid=_uid(text_of(dataset, "SOPClassUID")),
        transfer_syntax_uid=_uid(transfer_syntax_of(dataset)),
        modality=_term(dataset, "Modality", MODALITIES),
        body_part=_body_part(dataset),
        view_position=_view(dataset),
        age_years=_age_years(dataset),
        sex=sex if sex in _SEXES else "",
        manufacturer=_product(dataset, "Manufacturer"),
        model_name=_product(dataset, "ManufacturerModelName"),
        station=station_hash(station) if station else "",
        photometric_interpretation=_term(dataset, "PhotometricInterpretation", PHOTOMETRIC_INTERPRETATIONS),
        rows=count_of(dataset, "Rows"),
        columns=count_of(dataset, "Columns"),
        bits_stored=count_of(dataset, "BitsStored"),
        frames=frames_of(dataset),
        exposure=number_of(dataset, "Exposure"),
        kvp=number_of(dataset, "KVP"),
        pixel_spacing=_pixel_spacing(dataset),
        burned_in_annotation=_term(dataset, "BurnedInAnnotation", BURNED_IN_ANNOTATIONS),
        priority=_term(dataset, "RequestedProcedurePriority", PRIORITIES),
    )


def _term(dataset: Dataset, keyword: str, known: frozenset[str]) -> str:
    """A coded attribute in upper case; empty where there is none, and OTHER_TERM for what is no known term."""
    term = " ".join(text_of(dataset, keyword).upper().split())
    return term if not term or term in known else OTHER_TERM


def _uid(text: str) -> str:
    return text if _UID.fullmatch(text) else ""


def _product(dataset: Dataset, keyword: str) -> str:
    """The name of a maker or of a product, without odd characters; OTHER_TERM where it names the patient."""
    text = text_of(dataset, keyword)
    words = {word.casefold() for word in re.findall(r"\w+", text)}
    of_patient = re.findall(r"\w+", f"{text_of(dataset, 'PatientName')} {text_of(dataset, 'PatientID')}")
    if _NAME_MARKS & set(text) or words & {word.casefold() for word in of_patient if len(word) >= _NAME_WORD}:
        return OTHER_TERM
    kept = "".join(character if character.isalnum() or character in _PUNCTUATION else " " for character in text)
    return " ".join(kept.split())


def _pixel_spacing(dataset: Dataset) -> float | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = number_of(dataset, keyword)
        if spacing is not None and spacing > 0:
            return spacing
    return None


def _snomed_code(dataset: Dataset, keyword: str) -> str:
    item = value_of(dataset, keyword)
    if not isinstance(item, Dataset) or text_of(item, "CodingSchemeDesignator").upper() not in _SNOMED:
        return ""
    return text_of(item, "CodeValue").upper()


def _body_part(dataset: Dataset) -> str:
    return _term(dataset, "BodyPartExamined", BODY_PARTS) or _REGIONS.get(
        _snomed_code(dataset, "AnatomicRegionSequence"), ""
    )


def _view(dataset: Dataset) -> str:
    return _term(dataset, "ViewPosition", VIEWS) or _VIEWS.get(_snomed_code(dataset, "ViewCodeSequence"), "")


def _age_years(dataset: Dataset) -> float | None:
    """The age as far as it may be told: 90 stands for every age from there up."""
    years = _true_age_years(dataset)
    return None if years is None else min(years, _OLDEST_AGE_YEARS)


def _true_age_years(dataset: Dataset) -> float | None:
    """The age in years from (0010,1010), else from the birth date and the date of the study.

    An age of nought is what many devices write for "unknown", so that a birth date goes before it.
    """
    stated = parse_age(text_of(dataset, "PatientAge"))
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
    match = _DATE.fullmatch(text_of(dataset, keyword))
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
