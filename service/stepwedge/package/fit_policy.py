"""Fitting a policy on the site's own studies: content gate, tamper check, baseline, and the cost of a deferral.

What is fitted is written beside the policy, and the policy's ``fitted`` section names it by its digests.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import yaml

from stepwedge.decision import costs
from stepwedge.dicom.attributes import read_dataset, text_of
from stepwedge.durable import sync_folder, write_durably
from stepwedge.errors import PolicyError
from stepwedge.gate.fitted import save_gate
from stepwedge.identity import Site
from stepwedge.manifest import Package
from stepwedge.observation import Observation
from stepwedge.package.dataset import LabelledImage
from stepwedge.package.fit_gate import fit_gate
from stepwedge.package.observe import BASELINE, Answered, Pictures, answers, write_baseline
from stepwedge.package.progress import Report, Silence
from stepwedge.pipeline import Equipment, combine, observation_of
from stepwedge.policy import (
    Fitted,
    FittedDeferral,
    FittedFile,
    PackageName,
    Policy,
    PolicyFile,
    check_model,
    parse_policy,
)
from stepwedge.records import REASONS, Decision, Finding, PolicyReference, UnitResult, Verdict
from stepwedge.seams import Engine

FALSE_REJECTION = 0.01  # of the site's accepted images, by the content gate and by the tamper check each

_BEGIN = "# --- Written by `stepwedge policy fit`. Do not edit this part: run it again. ---"
_END = "# --- End of what `stepwedge policy fit` wrote. ---"
_BLOCK = re.compile(rf"\n*^{re.escape(_BEGIN)}\n.*?^{re.escape(_END)}\n?", re.DOTALL | re.MULTILINE)
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGITS = 6  # significant ones of a fitted cost
_NOON = "T12:00:00+00:00"  # of the study's day: a baseline needs days and weeks, and an hour would say more than that


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was written, and why some images were left out: how many by reason."""

    fitted: Fitted
    refused: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Study:
    """One study's images with what the pipeline made of them, under the gate that was fitted."""

    key: str
    day: str  # ISO 8601; empty where the header has none
    answered: Sequence[Answered]


def fit_policy(
    path: Path,
    package: Package,
    files: Sequence[Path],
    engine: Engine,
    *,
    false_rejection: float = FALSE_REJECTION,
    cap: float | None = None,
    today: date | None = None,
    report: Report | None = None,
) -> Fit:
    """Fit a policy on files of the site's own studies, and write it.

    Parameters
    ----------
    files
        DICOM, or PNG, JPEG and TIFF. Those that the package's fixed rules accept are fitted on.
    false_rejection
        The share of such images that the content gate may reject, and the tamper check flag, each.
    cap
        Largest share of studies to be deferred by the decision on any one finding; None: what the policy states.

    Raises
    ------
    PolicyError
        If the policy is wrong, if too few images are accepted, or if the policy cannot be written. Then nothing is
        changed.
    """
    report = report or Silence()
    text = _read(path)
    bare = _without_fit(path, text)
    file = parse_policy(path, bare.encode())
    check_model(path, file, package)
    if package.manifest.input.unit != "instance":
        raise PolicyError(
            f"{path}: {package.manifest.name} takes a whole {package.manifest.input.unit}; policies are fitted for "
            "models that take one image so far"
        )
    if cap is not None and file.workload_cap not in (None, cap):
        raise PolicyError(f"{path}: workload_cap is {file.workload_cap}, and --cap asks for {cap}; state one of them")
    cap = cap if cap is not None else file.workload_cap
    if not os.access(path.parent, os.W_OK):
        raise PolicyError(f"{path.parent}: nothing can be written here, and the fitted files lie beside the policy")
    names = (_name(path, "gate.npz"), _name(path, "baseline.parquet"))
    policy = Policy(file=file, digest="")
    site = Site(node="", key=secrets.token_bytes(32))  # forgotten afterwards: nobody can look these hashes up

    pictures = Pictures(files)
    plain = Equipment(package=package, engine=engine, policy=policy, explain=False)
    report.step(f"Reading {len(files)} files")
    images = [LabelledImage(file=file, patient="", fold="gate", labels=frozenset()) for file in files]
    first = answers(images, plain, pictures=pictures, progress=report.progress)
    accepted, refused = _accepted(first, site)
    needed = math.ceil(1 / false_rejection)
    if len(accepted) < needed:
        raise PolicyError(
            f"{path}: {len(accepted)} of {len(files)} files are images that the package accepts, and a rate of false "
            f"rejections of {false_rejection:.2%} needs {needed} or more.{_listed(refused)} Give more of the site's "
            "own studies"
        )
    gate = fit_gate([item for item, _ in accepted], pictures, plain, false_rejection, report)

    equipment = replace(plain, gate=gate)
    report.step(f"Answering for {len(accepted)} images under the fitted gate")
    second = answers([item.image for item, _ in accepted], equipment, pictures=pictures, progress=report.progress)
    studies = _studies(second, [about for _, about in accepted])
    today = today or datetime.now(UTC).date()
    fitted = Fitted(
        date=today,
        package=PackageName(name=package.manifest.name, version=package.manifest.version, digest=package.digest),
        studies=len(studies),
        patients=len({item.image.patient for item, _ in accepted}),
        images=len(accepted),
        refused=len(files) - len(accepted),
        false_rejection=false_rejection,
        gate=FittedFile(file=names[0], sha256="0" * 64),
        baseline=FittedFile(file=names[1], sha256="0" * 64),
        workload_cap=cap,
        deferrals=fit_deferrals([_findings(study, equipment) for study in studies], file, package, cap),
    )
    report.step("Writing")
    folder = path.parent
    try:
        folder = Path(tempfile.mkdtemp(prefix=".fit-", dir=path.parent))
        save_gate(folder / fitted.gate.file, gate)
        write_baseline(folder, [_observation(study, equipment, today) for study in studies])
        (folder / BASELINE).rename(folder / fitted.baseline.file)
        fitted = fitted.model_copy(
            update={
                name: FittedFile(file=written.file, sha256=_flushed(folder / written.file))
                for name, written in (("gate", fitted.gate), ("baseline", fitted.baseline))
            }
        )
        contents = _with_fit(path, bare, file, fitted)
        _put_in_place(path, contents, folder, names)
    except OSError as error:
        raise PolicyError(
            f"{path}: the fitted policy cannot be written: {error.strerror}; nothing is changed"
        ) from None
    finally:
        if folder != path.parent:
            shutil.rmtree(folder, ignore_errors=True)
    return Fit(fitted=fitted, refused=refused)


def fit_deferrals(
    studies: Sequence[Mapping[str, Finding]], file: PolicyFile, package: Package, cap: float | None
) -> dict[str, FittedDeferral]:
    """The cost of a deferral for each finding under which it defers no more than ``cap`` of the studies.

    A study is deferred as a whole only if all its findings are, so the cap holds for studies too. Costs rise only: a
    finding that stays under the cap keeps the stated one.
    """
    fitted: dict[str, FittedDeferral] = {}
    acted: dict[str, set[int]] = {}
    for spec in package.manifest.findings:
        stated = file.findings.get(spec.name)
        if cap is None or stated is None or package.calibration.findings[spec.name].inconclusive:
            continue
        asked = [
            place
            for place, findings in enumerate(studies)
            if spec.name in findings and (spec.given is None or place in acted.get(spec.given, set()))
        ]
        probabilities = np.array([studies[place][spec.name].probability for place in asked])
        deferral = stated.deferral
        if asked:
            share = min(1.0, cap * len(studies) / len(asked))
            found = costs.deferral_cost_for(share, probabilities, None, stated.costs, stated.prevalence)
            deferral = _rounded_up(found) if found > stated.deferral else stated.deferral
        limits = costs.thresholds(replace(stated.costs, deferral=deferral))
        decided = [costs.decide(float(probability), limits) for probability in probabilities]
        acted[spec.name] = {place for place, decision in zip(asked, decided, strict=True) if decision is Decision.ACT}
        deferred = decided.count(Decision.DEFER) / len(studies) if studies else 0.0
        fitted[spec.name] = FittedDeferral(deferral=deferral, deferred=round(deferred, _DIGITS), stated=stated)
    return fitted


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise PolicyError(f"{path}: the site policy cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: cannot be read as YAML: {error}") from None


def _without_fit(path: Path, text: str) -> str:
    """The policy as a person wrote it."""
    bare = _BLOCK.sub("\n", text, count=1)
    if parse_policy(path, bare.encode()).fitted is not None:
        raise PolicyError(
            f"{path}: fitted: not as `stepwedge policy fit` writes it; take this section out, and fit again"
        )
    return bare


def _with_fit(path: Path, bare: str, file: PolicyFile, fitted: Fitted) -> bytes:
    """The policy as a person wrote it, with what was fitted at its end."""
    values = fitted.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    block = yaml.safe_dump({"fitted": values}, sort_keys=False, allow_unicode=True)
    contents = f"{bare.rstrip()}\n\n{_BEGIN}\n{block}{_END}\n".encode()
    try:
        whole = parse_policy(path, contents)
    except PolicyError:
        whole = None
    if whole != file.model_copy(update={"fitted": fitted}):
        raise PolicyError(f"{path}: a section cannot be added to this file; write the policy as `policy init` does")
    return contents


def _name(path: Path, ending: str) -> str:
    if not _STEM.fullmatch(path.stem):
        raise PolicyError(
            f"{path}: name the file with letters, digits, dots, hyphens and underscores: fitted files are called after"
        )
    return f"{path.stem}.{ending}"


def _put_in_place(path: Path, contents: bytes, folder: Path, names: Sequence[str]) -> None:
    """Move the fitted files beside the policy and write the policy, or leave everything as it was."""
    before = folder / "before"
    before.mkdir()
    for name in names:
        if (path.parent / name).exists():
            os.link(path.parent / name, before / name)
    try:
        for name in names:
            (folder / name).replace(path.parent / name)
        sync_folder(path.parent)
        write_durably(path, contents)
    except OSError:
        for name in names:
            if (before / name).exists():
                (before / name).replace(path.parent / name)
            else:
                (path.parent / name).unlink(missing_ok=True)
        raise


def _flushed(file: Path) -> str:
    """The SHA-256 of a file that has just been written, and is then on the disk."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a file is of: keyed hashes, and the study's day."""

    patient: str
    study: str
    instance: str
    day: str = ""


def _about(item: Answered, site: Site) -> _About:
    """Whose image it is, by Patient ID and Study Instance UID; a file without a header is a patient of its own."""
    file = site.hash(str(item.image.file))
    if not item.result.header.present:
        return _About(patient=file, study=file, instance=file)
    dataset = read_dataset(item.image.file)

    def hashed(keyword: str) -> str:
        text = text_of(dataset, keyword)
        return site.hash(f"{keyword} {text}") if text else file

    day = re.fullmatch(r"(\d{4})(\d{2})(\d{2})", text_of(dataset, "StudyDate"))
    return _About(
        patient=hashed("PatientID"),
        study=hashed("StudyInstanceUID"),
        instance=hashed("SOPInstanceUID"),
        day="-".join(day.groups()) if day else "",
    )


def _accepted(answered: Sequence[Answered], site: Site) -> tuple[list[tuple[Answered, _About]], dict[str, int]]:
    """The accepted images, each once, and how many were refused by reason."""
    accepted: list[tuple[Answered, _About]] = []
    refused: Counter[str] = Counter()
    seen: set[str] = set()
    for item in answered:
        if not item.accepted:
            refused.update({REASONS[reason.code] for reason in item.result.reasons} or {"The model gave no answer"})
            continue
        about = _about(item, site)
        if about.instance in seen:
            refused["The image is there twice"] += 1
            continue
        seen.add(about.instance)
        accepted.append((replace(item, image=replace(item.image, patient=about.patient)), about))
    return accepted, dict(refused.most_common())


def _studies(answered: Sequence[Answered], about: Sequence[_About]) -> list[_Study]:
    studies: dict[str, list[Answered]] = {}
    days: dict[str, str] = {}
    for item, of in zip(answered, about, strict=True):
        studies.setdefault(of.study, []).append(item)
        days.setdefault(of.study, of.day)
    return [_Study(key=key, day=days[key], answered=items) for key, items in studies.items()]


def _findings(study: _Study, equipment: Equipment) -> Mapping[str, Finding]:
    """The study's findings; none where the fitted gate accepts no image of it, so that nothing is decided."""
    images = [item.result for item in study.answered]
    if not any(image.gate.verdict is Verdict.ACCEPT for image in images):
        return {}
    _, _, findings = combine(images, equipment)
    return {finding.name: finding for finding in findings}


def _observation(study: _Study, equipment: Equipment, today: date) -> Observation:
    """What the monitor would have been told of the study. The policy's digest covers it, and so is not in it."""
    images = tuple(replace(item.result, instance=study.key) for item in study.answered)
    state, reasons, findings = combine(images, equipment)
    assert equipment.policy is not None
    file = equipment.policy.file
    result = UnitResult(
        unit=study.key,
        study=study.key,
        revision=1,
        state=state,
        reasons=reasons,
        findings=findings,
        images=images,
        model=equipment.package.reference,
        policy=PolicyReference(name=file.name, version=file.version, digest="", demonstration=True),
        created_at=f"{study.day or today.isoformat()}{_NOON}",
    )
    return observation_of(result, {})


def _rounded_up(value: float) -> float:
    """To some significant digits, never below: a lower cost would defer more than the cap."""
    step = 10.0 ** (math.floor(math.log10(value)) - _DIGITS + 1)
    return float(f"{math.ceil(value / step) * step:.{_DIGITS}g}")


def _listed(refused: Mapping[str, int]) -> str:
    if not refused:
        return ""
    return " Refused: " + "; ".join(f"{text} ({count})" for text, count in refused.items()) + "."
