"""Labels from structured reports: what a radiologist has verified of findings that a model reports.

A report counts if it is verified (Verification Flag VERIFIED, PS3.3 section C.17.2), is not a result of ours, and says
of a finding, by the code that a package reports it with, whether it is there: either as a coded item named by the
finding whose value is present, absent or indeterminate (SNOMED CT, PS3.16 CID 240 and its kin), or as a Finding
(121071, DCM) whose value is the finding's code, which says that it is present.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
_SAYS: Mapping[tuple[str, str], float | None] = {
    ("52101004", "SCT"): 1.0,  # present
    ("272519000", "SCT"): 0.0,  # absent
    ("2667000", "SCT"): 0.0,  # absent, as a qualifier
    ("82334004", "SCT"): None,  # indeterminate
}
_FINDING = ("121071", "DCM")
_DEEPEST = 12  # levels of content that are looked at

Code = tuple[str, str]  # value, scheme


def finding_codes(manifests: Sequence[Manifest]) -> dict[Code, str]:
    """The findings' names by their codes; of two packages with one code the first counts."""
    found: dict[Code, str] = {}
    for manifest in manifests:
        for spec in manifest.findings:
            found.setdefault((spec.code.value, spec.code.scheme), spec.name)
    return found


def labels_of(file: Path, study: str, findings: Mapping[Code, str], site: Site) -> list[Label]:
    """The labels in a report; none if it does not count, or cannot be read.

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
            return []
        said = dict(_said(report, findings))
        verified = _items(report, "VerifyingObserverSequence")
        reader = element_text(verified[-1], "VerifyingObserverName") if verified else ""
        time = _moment(element_text(verified[-1], "VerificationDateTime") if verified else "")
        instance = element_text(report, "SOPInstanceUID")
    except FOREIGN_ERRORS:
        return []
    return [
        Label(
            label=hashlib.sha256(f"sr|{site.hash(instance)}|{name}".encode()).hexdigest()[:32],
            study=study,
            finding=name,
            value=value,
            reader=site.hash(f"reader|{reader}")[:12] if reader else "",
            time=time,
            source="sr",
        )
        for name, value in said.items()
    ]


def _said(item: Dataset, findings: Mapping[Code, str], depth: int = 0) -> Iterator[tuple[str, float | None]]:
    """What each item of the content says of a finding; later ones come later, and count."""
    for inner in _items(item, "ContentSequence") if depth < _DEEPEST else []:
        named, value = _code(inner, "ConceptNameCodeSequence"), _code(inner, "ConceptCodeSequence")
        if named in findings and value in _SAYS:
            yield findings[named], _SAYS[value]
        elif named == _FINDING and value in findings:
            yield findings[value], 1.0
        yield from _said(inner, findings, depth + 1)


def _code(item: Dataset, keyword: str) -> Code:
    codes = _items(item, keyword)
    if not codes:
        return "", ""
    return element_text(codes[0], "CodeValue"), element_text(codes[0], "CodingSchemeDesignator")


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
