"""The same pipeline on files and folders: one JSON object per image, or per series or study for models of those."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwedge.casefile import kind_of, open_case
from stepwedge.dicom.attributes import read_dataset, text_of
from stepwedge.dicom.decode import decode
from stepwedge.dicom.geometry import place_of
from stepwedge.dicom.header import read_header
from stepwedge.errors import DecodeError, StepwedgeError, UnusableInstanceError
from stepwedge.manifest import Package
from stepwedge.pipeline import Case, Equipment, analyse_image, analyse_stack, rejected_image
from stepwedge.policy import Policy
from stepwedge.records import Finding, Image, ImageResult, Reason, State, TamperResult


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


def answers(paths: Sequence[Path], equipment: Equipment, *, maximum_bytes: int) -> Iterator[dict[str, Any]]:
    """The answers for files and folders, as JSON objects.

    Raises
    ------
    StepwedgeError
        If one of ``paths`` does not exist.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise StepwedgeError(f"{missing[0]}: no such file or folder")
    if equipment.package.manifest.input.unit == "instance":
        for file in find_files(paths):
            yield predict_file(file, equipment, maximum_bytes=maximum_bytes)
    else:
        yield from _stack_answers(find_files(paths), equipment, maximum_bytes)


def predict_file(file: Path, equipment: Equipment, *, maximum_bytes: int) -> dict[str, Any]:
    """One image's answer as a JSON object. A file that is no image is rejected with its reason.

    A plain image file (PNG, JPEG, TIFF) has no header: the intended use is not checked on it, and the answer's gate
    says so. A file that cannot be read has failed.
    """
    try:
        result, _ = analyse_image(open_case(file, maximum_bytes=maximum_bytes), equipment)
    except (UnusableInstanceError, DecodeError, OSError) as error:
        result = _without_image(file, error)
    return {"path": str(file)} | as_json(result, equipment.package, equipment.policy)


def _stack_answers(files: Iterable[Path], equipment: Equipment, maximum_bytes: int) -> Iterator[dict[str, Any]]:
    """What is no DICOM image is answered for first, file by file; then each series, or each study."""
    unit = equipment.package.manifest.input.unit
    stacks: dict[str, list[Case]] = {}
    for file in files:
        try:
            if kind_of(file) != "dicom":
                raise UnusableInstanceError("not_dicom", f"a model of unit {unit} needs DICOM")
            dataset = read_dataset(file)
            keyword = "SeriesInstanceUID" if unit == "series" else "StudyInstanceUID"
            case = Case(
                instance=str(file),
                header=read_header(dataset),
                place=place_of(dataset),
                decode=_decoder(file, maximum_bytes),
            )
            stacks.setdefault(text_of(dataset, keyword), []).append(case)
        except (UnusableInstanceError, DecodeError, OSError) as error:
            result = _without_image(file, error)
            yield {"path": str(file)} | as_json(result, equipment.package, equipment.policy)
    for cases in stacks.values():
        result, _ = analyse_stack(cases, equipment)
        # In the order in which the model takes them, where it gets as far.
        members = result.members or tuple(case.instance for case in cases)
        yield {"paths": list(members)} | as_json(result, equipment.package, equipment.policy)


def _without_image(file: Path, error: UnusableInstanceError | DecodeError | OSError) -> ImageResult:
    """Rejected for what the file is; failed where it cannot even be read."""
    if isinstance(error, OSError):
        reason = Reason(code="unreadable", detail=error.strerror or "")
        return replace(rejected_image(str(file), reason), state=State.FAILED)
    return rejected_image(str(file), Reason(code=error.code, detail=str(error)))


def as_json(result: ImageResult, package: Package, policy: Policy | None) -> dict[str, Any]:
    """The documented object without its path or paths: see ``stepwedge predict --help``."""
    return {
        "state": str(result.state),
        "reasons": [reason.code for reason in result.reasons],
        "findings": [_finding(finding) for finding in result.findings],
        "gate": {
            "verdict": str(result.gate.verdict),
            "reasons": [{"code": reason.code, "text": reason.text} for reason in result.gate.reasons],
            "measures": dict(result.gate.measures),
            "notes": list(result.gate.notes),
        },
        "tamper": _tamper(result.tamper),
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
    path = answer.get("path") or f"{answer['paths'][0]} (and {len(answer['paths']) - 1} more)"
    return "  ".join(part for part in (path, answer["state"], ",".join(answer["reasons"]), findings) if part)


def dump(answer: dict[str, Any]) -> str:
    """One line of JSON, in ASCII: a file's name need not be text, and every terminal and pipe can carry it."""
    return json.dumps(answer, allow_nan=False)


def _decoder(file: Path, maximum_bytes: int) -> Callable[[], Image]:
    """Reads the file again: the pixels of a whole folder would not fit into memory."""
    return lambda: decode(read_dataset(file), maximum_bytes=maximum_bytes)


def _tamper(found: TamperResult) -> dict[str, Any]:
    if found.measure is None:
        return {"verdict": found.verdict}
    return {"verdict": found.verdict, "measure": found.measure, "threshold": found.threshold}


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
