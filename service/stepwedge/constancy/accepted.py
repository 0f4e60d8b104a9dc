"""The reference set in a model package: ``constancy.npz``, signed with the rest of it.

It holds whole DICOM files of nobody, one image a study, and the answers that they had on the day of acceptance: how
they were decoded, what the gate said, what the model got, what it gave, and what calibration made of that. What the
site's policy made of it is not the package's to say (see ``expose``).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydantic import TypeAdapter, ValidationError

from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.errors import PackageError
from stepwedge.identity import Site
from stepwedge.intake import take_in
from stepwedge.manifest import Package
from stepwedge.pipeline import Equipment
from stepwedge.records import ImageResult, State

CONSTANCY = "constancy.npz"
_SCHEMA = 1
_MOST_STUDIES = 100
_MOST_BYTES = 64 * 1024 * 1024  # they travel with the package
_MAXIMUM_DECODED_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one reference study gives, without anything that a site's policy decides."""

    state: str  # rejected, or answered
    gate: str  # verdict
    gate_reasons: tuple[str, ...] = ()
    tamper: str = ""
    prints: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # see `fingerprint`
    scores: Mapping[str, float] = field(default_factory=dict)  # the model's outputs by class
    findings: Mapping[str, float] = field(default_factory=dict)  # log-odds by finding, uncalibrated
    probabilities: Mapping[str, float] = field(default_factory=dict)  # by finding, at the package's own prevalence


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceCase:
    """One reference study: an encoded DICOM file, and the answer that was accepted."""

    contents: bytes
    answer: Answer


_answers = TypeAdapter(list[Answer])


def make_reference(files: Sequence[Path], equipment: Equipment) -> list[ReferenceCase]:
    """Answer for the files with this equipment, and take the answers as accepted.

    ``equipment`` is the package's own: its engine, its gate, no policy.

    Raises
    ------
    PackageError
        For a file that the model does not select or that cannot be answered for, for none or too many of them.
    """
    if not 1 <= len(files) <= _MOST_STUDIES:
        raise PackageError(f"{len(files)} reference studies: wanted 1 to {_MOST_STUDIES} DICOM files, a study each")
    total = sum(file.stat().st_size for file in files)
    if total > _MOST_BYTES:
        raise PackageError(
            f"the reference studies have {total / 1e6:.0f} MB; they travel with the package, so at most "
            f"{_MOST_BYTES / 1e6:.0f} MB: take fewer or smaller images"
        )
    cases = [_case(file, equipment) for file in files]
    if not any(case.answer.state == "answered" for case in cases):
        raise PackageError("the gate rejects every reference study, so that the model answers for none; take others")
    return cases


def write_reference(folder: Path, cases: Sequence[ReferenceCase]) -> None:
    """Write ``constancy.npz`` into a package's folder. Seal and sign the package afterwards."""
    arrays = {f"study.{index:03}": np.frombuffer(case.contents, dtype=np.uint8) for index, case in enumerate(cases)}
    text = json.dumps({"schema": _SCHEMA, "answers": [asdict(case.answer) for case in cases]})
    arrays["accepted"] = np.frombuffer(text.encode(), dtype=np.uint8)
    np.savez_compressed(folder / CONSTANCY, allow_pickle=False, **arrays)


def read_reference(package: Package) -> list[ReferenceCase]:
    """The reference set of a package.

    Raises
    ------
    PackageError
        If it has none, or one that cannot be read.
    """
    file = package.path / CONSTANCY
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            accepted = json.loads(arrays["accepted"].tobytes())
            if accepted["schema"] != _SCHEMA:
                raise PackageError(f"{file}: has schema {accepted['schema']}, this version reads {_SCHEMA}")
            answers = _answers.validate_python(accepted["answers"])
            contents = [arrays[f"study.{index:03}"].tobytes() for index in range(len(answers))]
    except FileNotFoundError:
        raise PackageError(
            f"{package.path}: the package has no reference set, so that its constancy cannot be shown; "
            "`stepwedge package constancy` adds one"
        ) from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, ValidationError) as error:
        raise PackageError(f"{file}: cannot be read ({type(error).__name__}); restore the package") from None
    return [ReferenceCase(contents=data, answer=answer) for data, answer in zip(contents, answers, strict=True)]


def answer_of(result: ImageResult, probabilities: Mapping[str, float]) -> Answer:
    """What of an image's result can be held against the accepted answer."""
    return Answer(
        state="rejected" if result.state is State.REJECTED else "answered",
        gate=str(result.gate.verdict),
        gate_reasons=tuple(sorted(reason.code for reason in result.gate.reasons)),
        tamper=result.tamper.verdict,
        prints=dict(result.prints),
        scores=dict(result.scores),
        findings={finding.name: finding.score for finding in result.findings},
        probabilities=dict(probabilities),
    )


def _case(file: Path, equipment: Equipment) -> ReferenceCase:
    _refuse_patients(file)
    intake = take_in([file], {}, site=_NOBODY, equipment=equipment, maximum_bytes=_MAXIMUM_DECODED_BYTES)
    if len(intake.images) != 1:
        raise PackageError(f"{file}: the model selects {len(intake.images)} images in it, wanted 1")
    result = intake.images[0]
    if result.state is State.FAILED:
        raise PackageError(f"{file}: cannot be answered for ({', '.join(reason.code for reason in result.reasons)})")
    probabilities = {finding.name: finding.probability for finding in result.findings}
    return ReferenceCase(contents=file.read_bytes(), answer=answer_of(result, probabilities))


def _refuse_patients(file: Path) -> None:
    """Reference studies are shipped with the package, so that each has to say that it is of no patient.

    Quality Control Subject (0010,0200) says so (PS3.3 section C.7.1.1).
    """
    try:
        header: Any = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["QualityControlSubject"])
    except FOREIGN_ERRORS:
        raise PackageError(f"{file}: is not a DICOM file; a reference set is made of DICOM files") from None
    if str(header.get("QualityControlSubject", "")).strip().upper() != "YES":
        raise PackageError(
            f"{file}: does not say that it is of nobody: Quality Control Subject (0010,0200) has to be YES. A reference"
            " set travels with the package, so take phantoms or simulated studies, and set it in them"
        )


_NOBODY = Site(node="", key=bytes(32))
