"""Labels from structured reports: what a radiologist has verified of findings that a model reports.

A report counts if it is verified (Verification Flag VERIFIED, PS3.3 section C.17.2) and is not a result of ours. A
label that is wrong is worse than none: what is not understood in full is no label, for a reason that is counted.

What is understood is listed here: a coded item named by the finding, and a Finding (121071, DCM) of the Measurement
Report (PS3.16 TID 1500, 1501) or of the Findings, Impressions or Conclusions of a report. A Finding by itself names
what was looked for; whether it was found, an evaluation beside it says. It is present only where there is no such
evaluation and nothing else beside it that might say otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence

from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.dicom.texts import element_text
from stepwedge.identity import Site
from stepwedge.manifest import Manifest
from stepwedge.observation import Label

STRUCTURED_REPORTS = "1.2.840.10008.5.1.4.1.1.88."  # all of these SOP classes begin so
NOT_UNDERSTOOD, CONTRADICTORY, NOT_A_READER = "not_understood", "contradictory", "not_a_reader"

Code = tuple[str, str]  # value, scheme


def _codes(scheme: str, *values: str) -> frozenset[Code]:
    return frozenset((value, scheme) for value in values)


_FINDING = ("121071", "DCM")
_GROUP = ("125007", "DCM")  # Measurement Group: all in it is of one Finding
# Presence; Finding context of SNOMED CT's situations.
_EVALUATIONS = _codes("SCT", "705057003", "408729009")
_SAYS: Mapping[Code, float | None] = {
    ("52101004", "SCT"): 1.0,  # present
    ("410515003", "SCT"): 1.0,  # known present
    ("272519000", "SCT"): 0.0,  # absent
    ("2667000", "SCT"): 0.0,  # absent, as a qualifier
    ("410516002", "SCT"): 0.0,  # known absent
    ("82334004", "SCT"): None,  # indeterminate
}
# Headings under which a report says what these images show: Findings, Impressions, Conclusions, Summary, Imaging
# Measurements and what they hold. Under those of other times and purposes a finding is named that may not be there:
# History, Request, prior procedures and findings, Recommendations, Indications, Comparison. No other is understood.
_OF_NOW = _codes("DCM", "121070", "121072", "121076", "121111", "126010", "126011", "125007") | _codes(
    "LN", "59776-5", "18782-3", "19005-8", "55110-1"
) | _codes("UMLS", "C0034375")  # fmt: skip
_OF_OTHERS = _codes("DCM", "121060", "121062", "121066", "121068", "121074", "121109", "111028") | _codes(
    "LN", "11329-0", "55115-0", "18834-2", "18785-6"
)  # fmt: skip
_ALGORITHM = _codes("DCM", "111001", "111002", "111003")
_OBSERVER_TYPE, _PERSON = ("121005", "DCM"), ("121006", "DCM")
_SUBJECT_CLASS, _PATIENT = ("121024", "DCM"), ("121025", "DCM")
_SITE = _codes("SCT", "363698007") | _codes("SRT", "G-C0E3")
# A finding that is not in these may be elsewhere in the image.
_WHOLE = _codes("SCT", "816094009", "51185008", "39607008", "74101002")  # chest, thorax, lung, both lungs
# Laterality, topographical modifier.
_PARTS = _codes("SCT", "272741003", "106233006") | _codes("SRT", "G-C171", "G-A1F8")
# Beside a finding, or above it, these take nothing back: language, country and procedure, who and when, tracking
# identifiers, session, the category of the finding, the method and derivation of measurements.
_HARMLESS = _codes(
    "DCM", "121049", "121046", "121058", "121008", "121009", "121010", "121011", "121012", "121013", "121014",
    "121015", "121016", "121017", "128774", "112039", "112040", "121028", "121029", "121030", "121031", "121032",
    "121033", "121401",
) | _codes("SCT", "276214006", "370129005") | _codes("NCIt", "C67447")  # fmt: skip
_REFERENCES = frozenset({"IMAGE", "COMPOSITE", "WAVEFORM", "SCOORD", "SCOORD3D", "TCOORD", "UIDREF"})
_ABOVE = frozenset({"HAS CONCEPT MOD", "HAS OBS CONTEXT"})  # relations of what holds for a whole container
_SIZES = _codes("UCUM", "mm", "cm", "mm2", "cm2", "mm3", "cm3", "ml", "mL")
_DEEPEST = 12  # levels of content that are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a report says of our findings."""

    labels: list[Label] = field(default_factory=list)
    refused: Mapping[str, str] = field(default_factory=dict)  # reason by finding that is named, and has no label
    withdrawals: list[Label] = field(default_factory=list)  # for each of those: that the reader cannot say


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statement:
    finding: str
    value: float | None = None
    doubt: str = ""  # why it is not taken


@dataclass(frozen=True, kw_only=True, slots=True)
class _Context:
    """What holds for everything in a container."""

    doubt: str = ""
    part: bool = False  # it is about a part of the image only


def finding_codes(manifests: Sequence[Manifest]) -> dict[Code, str]:
    """The findings' names by their codes; of two packages with one code the first counts."""
    found: dict[Code, str] = {}
    for manifest in manifests:
        for spec in manifest.findings:
            found.setdefault((spec.code.value, spec.code.scheme), spec.name)
    return found


def labels_of(file: Path, study: str, findings: Mapping[Code, str], site: Site) -> Reading:
    """The labels in a report, and why a finding that it names has none; empty if it does not count, or is no report.

    Parameters
    ----------
    file
        The report, as it lies in the spool.
    study
        The study's keyed hash.
    findings
        Names by codes.
    site
        Whose key hashes the verifying observer's name: the label says which reader, and not who.
    """
    try:
        report = pydicom.dcmread(file)
        if element_text(report, "VerificationFlag") != "VERIFIED":
            return Reading()
        statements = list(_statements(report, findings, _Context()))
        verified = _items(report, "VerifyingObserverSequence")
        reader = element_text(verified[-1], "VerifyingObserverName") if verified else ""
        time = _moment(element_text(verified[-1], "VerificationDateTime") if verified else "")
        instance = element_text(report, "SOPInstanceUID")
    except FOREIGN_ERRORS:
        return Reading()
    labels, refused, withdrawals = [], {}, []
    for name in dict.fromkeys(statement.finding for statement in statements):
        said = [statement for statement in statements if statement.finding == name]
        doubts = [statement.doubt for statement in said if statement.doubt]
        values = {statement.value for statement in said}
        understood = not doubts and len(values) == 1
        label = Label(
            label=hashlib.sha256(f"sr|{site.hash(instance)}|{name}".encode()).hexdigest()[:32],
            study=study,
            finding=name,
            value=values.pop() if understood else None,
            reader=reader_code(site, reader),
            time=time,
            source="sr",
        )
        if understood:
            labels.append(label)
        else:
            refused[name] = doubts[0] if doubts else CONTRADICTORY
            withdrawals.append(label)
    return Reading(labels=labels, refused=refused, withdrawals=withdrawals)


def replaced(known: Sequence[str], reading: Reading) -> list[Label]:
    """The withdrawals of a report that are needed: of findings that the reader's earlier reports were labels of.

    ``known`` are the study's labels (JSON). What an earlier report said does not stand when a later one of the same
    reader is not understood.
    """
    earlier = {(label.finding, label.reader) for label in map(Label.from_json, known) if label.source == "sr"}
    return [label for label in reading.withdrawals if (label.finding, label.reader) in earlier]


def reader_code(site: Site, name: str) -> str:
    """What a label names a reader by, of the Verifying Observer Name (0040,A075); empty where there is none."""
    return site.hash(f"reader|{name}")[:12] if name else ""


def _statements(
    container: Dataset, findings: Mapping[Code, str], above: _Context, depth: int = 0
) -> Iterator[_Statement]:
    """What a container's items say of findings."""
    items = _items(container, "ContentSequence")
    context = _context(items, above)
    if depth >= _DEEPEST and items:
        yield from (_Statement(finding=name, doubt=NOT_UNDERSTOOD) for name in findings.values())
        return
    explicit = {_name(item) for item in items if _name(item) in findings}
    evaluations = [item for item in items if _name(item) in _EVALUATIONS]
    # An evaluation of a whole container: which of the findings deeper in it are meant, nobody knows.
    evaluated = any(_relation(item) in _ABOVE for item in evaluations)
    below = _Context(doubt=context.doubt or NOT_UNDERSTOOD) if evaluated else context
    for item in items:
        name, value = _name(item), _value(item)
        inner, told = below, True
        if name in findings:
            yield _evaluated(findings[name], [item, *evaluations], item, context)
        elif name == _FINDING and value in findings:
            if value not in explicit:  # what is said of it by its name says more
                yield _of_finding(findings[value], item, items, container, context)
        elif value in findings:
            yield _Statement(finding=findings[value], doubt=NOT_UNDERSTOOD)
        elif _type(item) == "CONTAINER":
            told = name not in _OF_OTHERS
            if _relation(item) not in ("CONTAINS", "") or not (name in _OF_NOW or name == ("", "")):
                inner = _Context(doubt=context.doubt or NOT_UNDERSTOOD)
        if _type(item) != "CONTAINER":
            inner = _Context(doubt=NOT_UNDERSTOOD)  # a finding that is named under another item
        if told:
            yield from _statements(item, findings, inner, depth + 1)


def _context(items: Sequence[Dataset], above: _Context) -> _Context:
    """What the items of a container say of all that is in it."""
    doubt, part = above.doubt, above.part
    observers = {_value(item) for item in items if _name(item) == _OBSERVER_TYPE}
    if observers and _PERSON not in observers:
        doubt = doubt or NOT_A_READER
    for item in items:
        name, value = _name(item), _value(item)
        if name in _SITE or name in _PARTS:
            part = part or _is_part(item)
        elif _relation(item) not in _ABOVE or name == _OBSERVER_TYPE or name in _HARMLESS or name in _EVALUATIONS:
            continue
        elif name in _ALGORITHM:
            doubt = doubt or NOT_A_READER
        elif (name, value) != (_SUBJECT_CLASS, _PATIENT) and _type(item) not in _REFERENCES:
            doubt = doubt or NOT_UNDERSTOOD
    return _Context(doubt=doubt, part=part)


def _of_finding(
    finding: str, item: Dataset, beside: Sequence[Dataset], container: Dataset, context: _Context
) -> _Statement:
    """A Finding, by what is beside it in its container and below it."""
    evaluations = [other for other in beside if _name(other) in _EVALUATIONS]
    findings = [other for other in beside if _name(other) == _FINDING]
    others = [other for other in beside if other is not item and _name(other) not in _EVALUATIONS]
    ambiguous = len(findings) > 1 and (evaluations or _name(container) == _GROUP)
    if ambiguous or any(_type(other) == "CODE" and not _is_harmless(other) for other in others):
        return _Statement(finding=finding, doubt=context.doubt or NOT_UNDERSTOOD)
    evaluations += [inner for inner in _items(item, "ContentSequence") if _name(inner) in _EVALUATIONS]
    if not evaluations and not all(_is_harmless(other) for other in others):
        return _Statement(finding=finding, doubt=context.doubt or NOT_UNDERSTOOD)
    return _evaluated(finding, evaluations, item, context)


def _evaluated(finding: str, evaluations: Sequence[Dataset], item: Dataset, context: _Context) -> _Statement:
    """What evaluations say of a finding, all together; without any it is present."""
    values: set[float | None] = set()
    doubt, part = context.doubt, context.part
    known = {id(evaluation) for evaluation in evaluations}
    for of in (item, *(evaluation for evaluation in evaluations if evaluation is not item)):
        for inner in _items(of, "ContentSequence"):
            if _name(inner) in _SITE or _name(inner) in _PARTS:
                part = part or _is_part(inner)
            elif _type(inner) not in _REFERENCES and id(inner) not in known:
                doubt = doubt or NOT_UNDERSTOOD
    for evaluation in evaluations:
        if _type(evaluation) != "CODE" or _value(evaluation) not in _SAYS:
            doubt = doubt or NOT_UNDERSTOOD
        else:
            values.add(_SAYS[_value(evaluation)])
    if len(values) > 1:
        doubt = doubt or CONTRADICTORY
    value = values.pop() if values else 1.0
    if part and value != 1.0:
        doubt = doubt or NOT_UNDERSTOOD  # not in this part: it may be in another
    return _Statement(finding=finding, value=None if doubt else value, doubt=doubt)


def _is_part(item: Dataset) -> bool:
    """Whether a site is less than all that the image shows of it."""
    if _name(item) in _PARTS or _value(item) not in _WHOLE:
        return True
    return any(_name(inner) in _PARTS for inner in _items(item, "ContentSequence"))


def _is_harmless(item: Dataset) -> bool:
    """Whether an item beside a Finding cannot take it back. A text can say anything."""
    name, kind = _name(item), _type(item)
    if kind in _REFERENCES or _relation(item) in _ABOVE:
        return True  # what holds for the whole container is in its context
    if kind == "NUM":
        return _is_size(item)
    return name in _HARMLESS or name in _SITE or name == _FINDING


def _is_size(item: Dataset) -> bool:
    """Whether a number measures something that is there."""
    measured = _items(item, "MeasuredValueSequence")
    if len(measured) != 1 or _code(measured[0], "MeasurementUnitsCodeSequence") not in _SIZES:
        return False
    try:
        return float(element_text(measured[0], "NumericValue")) > 0
    except ValueError:
        return False


def _name(item: Dataset) -> Code:
    return _code(item, "ConceptNameCodeSequence")


def _value(item: Dataset) -> Code:
    return _code(item, "ConceptCodeSequence")


def _type(item: Dataset) -> str:
    return element_text(item, "ValueType")


def _relation(item: Dataset) -> str:
    return element_text(item, "RelationshipType")


def _code(item: Dataset, keyword: str) -> Code:
    """The code of an item; empty where there is none, "?" where there are several."""
    codes = _items(item, keyword)
    if len(codes) != 1:
        return ("?", "?") if codes else ("", "")
    value = element_text(codes[0], "CodeValue") or element_text(codes[0], "LongCodeValue")
    return value, element_text(codes[0], "CodingSchemeDesignator")


def _items(item: Dataset, keyword: str) -> Sequence[Dataset]:
    value = item.get(keyword)
    return value if isinstance(value, DicomSequence) else []


def _moment(text: str) -> str:
    """A DICOM date and time as ISO 8601; now, where there is none that can be read."""
    for form in ("%Y%m%d%H%M%S%z", "%Y%m%d%H%M%S.%f%z", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S.%f"):
        try:
            found = datetime.strptime(text, form)  # noqa: DTZ007 - without a zone it is the node's
        except ValueError:
            continue
        return found.astimezone().isoformat(timespec="seconds")
    return datetime.now(UTC).isoformat(timespec="seconds")
