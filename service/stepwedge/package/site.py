"""A site's policy: started for a package, approved by a key, and shown. ``fit_policy`` fits one."""

from __future__ import annotations

import fcntl
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stepwedge.decision import costs
from stepwedge.durable import sync_folder
from stepwedge.errors import PolicyError
from stepwedge.manifest import FindingCalibration, FindingSpec, Package
from stepwedge.policy import (
    Approval,
    PackageName,
    Policy,
    PolicyFile,
    PolicyName,
    approvals_file,
    check_model,
    fitted_files,
    load_policy,
    read_approvals,
    read_policy,
)
from stepwedge.signing import Trust, encoded, key_id, load_key, sign_text

# What a draft states, in units of a false alarm: a person has to replace it. Missing somebody is taken to be worse than
# a false alarm, and a reading by a person to cost less than either.
_DRAFT_MISS, _DRAFT_FALSE_ALARM, _DRAFT_DEFERRAL = 10, 1, 0.3


def draft_policy(package: Package) -> str:
    """A commented policy file for a package, valid as it is, in which every number is for a person to replace.

    Raises PolicyError if the package can decide on nothing.
    """
    manifest = package.manifest
    calibrations = {spec.name: package.calibration.findings[spec.name] for spec in manifest.findings}
    conclusive = [spec for spec in manifest.findings if not calibrations[spec.name].inconclusive]
    if not conclusive:
        raise PolicyError(f"{package.path}: the package has too little evidence to decide on any of its findings")
    lines = [
        "# A site policy: what errors cost here, and how common each finding is. EDIT every line that says so.",
        "# Thresholds are computed from it and never typed in: `stepwedge policy show` prints them.",
        "schema: 1",
        f"name: {manifest.name}-draft  # EDIT: the name of the site or department",
        'version: "1"  # EDIT: a new one for each policy that is approved',
        f"model: {manifest.name}",
        "",
        "# true asks for results for clinical use; they are that only once the policy is approved with a trusted key:",
        "# `stepwedge policy approve`. Until then every result says DEMONSTRATION.",
        "clinical: false",
        "",
        "# At most this share of studies left to people for being uncertain; `stepwedge policy fit` turns it into a",
        "# higher cost of a deferral. Take the # away to use it.",
        "# workload_cap: 0.1",
        "",
        "# Costs are in any one unit: only their ratios matter.",
        "#   miss         leaving a patient without the finding's treatment",
        "#   false_alarm  treating the finding as present where it is absent",
        "#   deferral     having a person read the study without AI",
        "#   prevalence   share of the studies that come here, or of those asked about, that have the finding",
        "findings:",
    ]
    for spec in conclusive:
        lines += _draft_finding(spec, calibrations[spec.name])
    for spec in manifest.findings:
        if calibrations[spec.name].inconclusive:
            lines.append(f"  # {spec.name} is never decided: {_one_line(calibrations[spec.name].inconclusive)}")
    return "\n".join(lines) + "\n"


def write_draft(package: Package, out: Path) -> None:
    """Write a draft. Raises PolicyError if ``out`` exists or cannot be written."""
    text = draft_policy(package)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise PolicyError(
            f"{out}: is there already, and is not overwritten; move it away or give another --out"
        ) from None
    except OSError as error:
        raise PolicyError(f"{out}: cannot be written: {error.strerror}") from None


def approve(
    path: Path, package: Package, key_file: Path, *, by: str, note: str = "", now: datetime | None = None
) -> Approval:
    """Add an approval of exactly this policy for exactly this package to the log beside the policy.

    Raises
    ------
    PolicyError
        If the policy, its fitted files or its log are not whole, or the log cannot be written; it is then as it was.
    StepwedgeError
        If the key cannot be used.
    """
    file, digest = read_policy(path)
    check_model(path, file, package)
    fitted_files(path, file)
    return _append(
        path,
        key_file,
        action="approve",
        by=by,
        note=note,
        now=now,
        policy=PolicyName(name=file.name, version=file.version, digest=digest),
        package=PackageName(name=package.manifest.name, version=package.manifest.version, digest=package.digest),
    )


def revoke(path: Path, key_file: Path, *, by: str, note: str = "", now: datetime | None = None) -> Approval:
    """Take the newest approval back, by another line of the log. Raises as ``approve``, and if there is none."""
    approvals = read_approvals(path)
    if not approvals or approvals[-1].action != "approve":
        raise PolicyError(f"{path}: there is no approval to revoke")
    last = approvals[-1]
    return _append(path, key_file, action="revoke", by=by, note=note, now=now, policy=last.policy, package=last.package)


def still_demonstration(file: PolicyFile, package: Package) -> list[str]:
    """What keeps the results of an approved policy a demonstration, as far as policy and package say."""
    reasons = []
    if not file.clinical:
        reasons.append("the policy does not ask for clinical use (clinical: true)")
    if package.manifest.demonstration_only:
        reasons.append("the package is made for demonstration only (demonstration_only in its model.yaml)")
    if package.signer is None:
        reasons.append("the package is not signed (`stepwedge package sign`)")
    return reasons


def show(path: Path, package: Package | None = None, trust: Trust | None = None) -> dict[str, Any]:
    """Everything about a policy, as JSON. What is wrong beyond the file itself stands under ``problems``.

    Raises PolicyError if the file itself is wrong, or for another model.
    """
    file, digest = read_policy(path)
    if file.model != (package.manifest.name if package else file.model):
        assert package is not None
        check_model(path, file, package)
    problems = []
    approvals: list[Approval] | None = None
    try:
        fitted_files(path, file)
    except PolicyError as error:
        problems.append(str(error))
    try:
        approvals = read_approvals(path)
    except PolicyError as error:
        problems.append(str(error))
    because: str | None = None
    if package is not None:
        try:
            because = load_policy(path, package, trust).demonstration_because
        except PolicyError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return {
        "file": str(path),
        "name": file.name,
        "version": file.version,
        "digest": digest,
        "model": file.model,
        "clinical": file.clinical,
        "workload_cap": file.workload_cap,
        "findings": {name: _shown(name, file, package) for name in file.findings},
        "fitted": file.fitted.model_dump(mode="json", exclude={"deferrals"}) if file.fitted else None,
        "approval": _state(approvals, digest, package),
        "approvals": [
            approval.model_dump(mode="json", include={"action", "time", "by", "note", "key", "policy", "package"})
            for approval in approvals or []
        ],
        # None: without its package, or with a problem, a policy cannot say.
        "demonstration": bool(because) if because is not None else None,
        "demonstration_because": because,
        "problems": problems,
    }


def _draft_finding(spec: FindingSpec, calibration: FindingCalibration) -> list[str]:
    of = f", where {spec.given} is present" if spec.given else ""
    evidence = f"{calibration.positives} with and {calibration.negatives} without it"
    return [
        f"  # {_one_line(spec.code.meaning)}{of}; the package was calibrated on {evidence}",
        f"  {spec.name}:",
        f"    miss: {_DRAFT_MISS}  # EDIT",
        f"    false_alarm: {_DRAFT_FALSE_ALARM}  # EDIT",
        f"    deferral: {_DRAFT_DEFERRAL}  # EDIT",
        f"    prevalence: {_share(calibration.prevalence)}  # EDIT: this is that of the package's own data",
    ]


def _share(value: float) -> str:
    """As YAML reads it back as a number, between 0 and 1 however it is rounded."""
    return f"{min(max(value, 1e-6), 1 - 1e-6):.6f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(name: str, file: PolicyFile, package: Package | None) -> dict[str, Any]:
    policy = Policy(file=file, digest="")
    applied, stated = policy.finding(name), file.findings[name]
    assert applied is not None
    fitted = file.fitted.deferrals.get(name) if file.fitted else None
    calibration = package.calibration.findings.get(name) if package else None
    inconclusive = calibration.inconclusive if calibration else ""
    limits = None if inconclusive else costs.thresholds(applied.costs)
    return {
        "miss": stated.miss,
        "false_alarm": stated.false_alarm,
        "deferral": applied.deferral,
        "deferral_stated": stated.deferral,
        "deferral_from_cap": applied.deferral != stated.deferral,
        "deferred_share_fitted": fitted.deferred if fitted else None,
        "prevalence": stated.prevalence,
        "clear_below": limits.clear_below if limits else None,
        "act_from": limits.act_from if limits else None,
        "inconclusive": inconclusive,
    }


def _state(approvals: list[Approval] | None, digest: str, package: Package | None) -> str:
    if approvals is None:
        return "unknown: the log of approvals is not whole"
    if not approvals:
        return "not approved"
    last = approvals[-1]
    if last.action == "revoke":
        return f"revoked by {last.by} on {last.day}"
    if last.policy.digest != digest:
        return f"changed since {last.by} approved it on {last.day}"
    if package is not None and last.package.digest != package.digest:
        return f"approved by {last.by} on {last.day} for another package"
    return f"approved by {last.by} on {last.day}"


def _append(
    path: Path,
    key_file: Path,
    *,
    action: str,
    by: str,
    note: str,
    now: datetime | None,
    policy: PolicyName,
    package: PackageName,
) -> Approval:
    """Sign a line that follows the newest one, and make it durable. One at a time, whoever else approves."""
    key = load_key(key_file)
    _refuse_odd(by, note)
    read_approvals(path)  # so that what is wrong with the log is said before there is one
    log = approvals_file(path)
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise PolicyError(f"{log}: the approvals cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        approvals = read_approvals(path)
        unsigned = Approval.model_validate(
            {
                "action": action,
                "time": (now or datetime.now(UTC)).replace(microsecond=0),
                "by": by,
                "note": note,
                "policy": policy,
                "package": package,
                "key": key_id(key.public_key()),
                "public_key": encoded(key.public_key()),
                "previous": hashlib.sha256(approvals[-1].line.encode()).hexdigest() if approvals else "",
            }
        )
        approval = unsigned.model_copy(update={"signature": sign_text(unsigned.signed_text, key)})
        line = f"{approval.line}\n".encode()
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "no space left")
            os.fsync(descriptor)
            sync_folder(log.parent)
        except OSError as error:
            os.ftruncate(descriptor, size)  # half a line would spoil those before it
            raise PolicyError(f"{log}: the approvals cannot be written: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return approval


def _refuse_odd(by: str, note: str) -> None:
    """A name and a note are one line of text each."""
    for what, text, longest in (("name", by, 128), ("note", note, 1024)):
        if len(text) > longest or not text.isprintable() or (what == "name" and not text.strip()):
            raise PolicyError(f"the {what} of an approval is one line of 1 to {longest} characters; found {text!r}")
