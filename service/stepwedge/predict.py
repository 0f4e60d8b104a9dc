"""The same pipeline on files and folders: one JSON object per image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.dicom.imagefile import read_image_file
from stepwedge.errors import DecodeError, StepwedgeError, UnusableInstanceError
from stepwedge.manifest import Package
from stepwedge.pipeline import Case, Equipment, analyse_image
from stepwedge.policy import Policy
from stepwedge.records import Finding, GateVerdict, Header, Image, ImageResult, Reason, State, Verdict

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


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
    says so.

    Raises
    ------
    StepwedgeError
        If the file cannot be read.
    """
    try:
        result, _ = analyse_image(_case(file, maximum_bytes), equipment)
    except (UnusableInstanceError, DecodeError) as error:
        reason = Reason(code=error.code, detail=str(error))
        result = ImageResult(
            instance=str(file),
            state=State.REJECTED,
            reasons=(reason,),
            header=Header(),
            gate=GateVerdict(verdict=Verdict.REJECT, reasons=(reason,)),
        )
    except OSError as error:
        raise StepwedgeError(f"{file}: cannot be read: {error.strerror}") from None
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
    if file.suffix.lower() in _IMAGE_SUFFIXES:
        return Case(
            instance=str(file),
            header=Header(present=False),
            decode=lambda: read_image_file(file, maximum_bytes=maximum_bytes),
        )
    dataset = read_dataset(file)

    def decoded() -> Image:
        return decode(dataset, maximum_bytes=maximum_bytes)

    return Case(instance=str(file), header=read_header(dataset), decode=decoded)


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
