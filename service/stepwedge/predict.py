"""The same pipeline on files and folders: one JSON object per image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.dicom.imagefile import read_image_file
from stepwedge.errors import DecodeError, UnusableInstanceError
from stepwedge.manifest import Package
from stepwedge.pipeline import Case, Equipment, analyse_image, rejected_image
from stepwedge.policy import Policy
from stepwedge.records import Finding, Header, Image, ImageResult, Reason, State

# The first bytes of PNG, JPEG and TIFF; of BMP and GIF. WebP begins with RIFF and a length.
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_OTHER_IMAGES = (b"BM", b"GIF8")


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files among ``paths`` and in the folders among them, in the order of their names; hidden ones left out."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        else:
            yield path


def predict_file(file: Path, equipment: Equipment, *, maximum_bytes: int) -> dict[str, Any]:
    """One image's answer as a JSON object. A file that is no image is rejected with its reason.

    A plain image file (PNG, JPEG, TIFF) has no header: the intended use is not checked on it, and the answer's gate
    says so. A file that cannot be read has failed.
    """
    try:
        result, _ = analyse_image(_case(file, maximum_bytes), equipment)
    except (UnusableInstanceError, DecodeError) as error:
        result = rejected_image(str(file), Reason(code=error.code, detail=str(error)))
    except OSError as error:
        reason = Reason(code="unreadable", detail=error.strerror or "")
        result = replace(rejected_image(str(file), reason), state=State.FAILED)
    return as_json(file, result, equipment.package, equipment.policy)


def as_json(file: Path, result: ImageResult, package: Package, policy: Policy | None) -> dict[str, Any]:
    """The documented object: see ``stepwedge predict --help``."""
    return {
        "path": str(file),
        "state": str(result.state),
        "reasons": [reason.code for reason in result.reasons],
        "findings": [_finding(finding) for finding in result.findings],
        "gate": {
            "verdict": str(result.gate.verdict),
            "reasons": [{"code": reason.code, "text": reason.text} for reason in result.gate.reasons],
            "measures": dict(result.gate.measures),
            "notes": list(result.gate.notes),
        },
        "tamper": {"verdict": "not_fitted"},
        "model": {
            "name": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "provider": result.provider,
        },
        "policy": None
        if policy is None
        else {
            "name": policy.file.name,
            "version": policy.file.version,
            "digest": policy.digest,
            "demonstration": policy.reference.demonstration,
        },
        "scores": dict(result.scores),
        "ms": dict(result.ms),
    }


def as_line(answer: dict[str, Any]) -> str:
    """The answer for people: one line."""
    findings = ", ".join(
        f"{finding['name']} {finding['probability']:.3f} {finding['decision']}" for finding in answer["findings"]
    )
    return "  ".join(part for part in (answer["path"], answer["state"], ",".join(answer["reasons"]), findings) if part)


def dump(answer: dict[str, Any]) -> str:
    """One line of JSON, in ASCII: a file's name need not be text, and every terminal and pipe can carry it."""
    return json.dumps(answer, allow_nan=False)


def _case(file: Path, maximum_bytes: int) -> Case:
    kind = _kind(file)
    if kind == "other image":
        raise UnusableInstanceError("image_format_not_supported", "neither DICOM nor PNG, JPEG or TIFF")
    if kind == "image":
        return Case(
            instance=str(file),
            header=Header(present=False),
            decode=lambda: read_image_file(file, maximum_bytes=maximum_bytes),
        )
    dataset = read_dataset(file)

    def decoded() -> Image:
        return decode(dataset, maximum_bytes=maximum_bytes)

    return Case(instance=str(file), header=read_header(dataset), decode=decoded)


def _kind(file: Path) -> str:
    """What a file is by its first bytes: its name may say anything."""
    with file.open("rb") as opened:
        start = opened.read(132)
    if start[128:132] == b"DICM":
        return "dicom"  # whatever its preamble looks like: PS3.10 section 7.1 lets it be that of a TIFF
    if start.startswith(_IMAGES):
        return "image"
    return "other image" if start.startswith(_OTHER_IMAGES) or start[8:12] == b"WEBP" else "dicom"


def _finding(finding: Finding) -> dict[str, Any]:
    limits = finding.thresholds
    return {
        "name": finding.name,
        "probability": finding.probability,
        "threshold": limits.act_from if limits else None,
        "clear_below": limits.clear_below if limits else None,
        "decision": str(finding.decision),
        "prevalence": finding.prevalence,
        "score": finding.score,
    }
