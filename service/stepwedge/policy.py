"""The site's decisions: costs, prevalence, what was fitted on the site's own studies, and who approved it.

A policy is a YAML file. Thresholds are computed from it and never typed in. ``stepwedge policy fit`` writes its
``fitted`` section and the files that the section names by their digests; ``stepwedge policy approve`` adds a signed
line to the log of approvals beside it. Results are for clinical use only where the policy asks for it, a trusted key
has approved exactly this policy for exactly this package, and the package is signed by a trusted key and made for it.
In every other case they carry a demonstration label and go only to destinations that take demonstrations.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwedge.errors import PolicyError, describe_validation
from stepwedge.manifest import Manifest, Package
from stepwedge.records import Costs, PolicyReference
from stepwedge.signing import SIGNER, Trust, decode_public_key, key_id, load_public_key, verify_text

# Keys that people try for a threshold.
_THRESHOLDS = frozenset({"threshold", "thresholds", "clear_below", "act_from", "cutoff", "cut_off", "operating_point"})

# Strict: a number in quotes is a mistake, and so is `true`.
Cost = Annotated[float, Field(gt=0, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FindingPolicy(_Strict):
    """What errors cost for one finding (any unit; only ratios matter), and how common it is at the site."""

    miss: Cost
    false_alarm: Cost
    deferral: Cost
    prevalence: Share

    @property
    def costs(self) -> Costs:
        return Costs(miss=self.miss, false_alarm=self.false_alarm, deferral=self.deferral)


class FittedFile(_Strict):
    """A file beside the policy: a plain name, so that it can lie nowhere else, and its SHA-256."""

    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    sha256: Digest


class FittedDeferral(_Strict):
    """The cost of a deferral under which a finding keeps within the workload cap, and what it was worked out from."""

    deferral: Cost
    deferred: float = Field(ge=0, le=1, strict=True)  # share of the fitted studies that it then defers
    stated: FindingPolicy


class PackageName(_Strict):
    """Which package, exactly."""

    name: str
    version: str
    digest: Digest


class Fitted(_Strict):
    """What ``stepwedge policy fit`` made of the site's own accepted studies."""

    date: datetime.date
    package: PackageName
    studies: Count
    patients: Count
    images: Count
    refused: Count  # images that did not pass the gate's fixed rules, and are in none of the fitted files
    false_rejection: Share  # rate that the gate and the tamper check were fitted for, each
    gate: FittedFile
    baseline: FittedFile
    workload_cap: Share | None = None
    deferrals: dict[str, FittedDeferral] = {}  # by finding


class PolicyFile(_Strict):
    """The contents of a policy file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(max_length=64)
    version: str = Field(max_length=16)
    model: str  # the name of the package that it is for
    clinical: bool = Field(default=False, strict=True)  # that results are wanted for clinical use, once approved
    workload_cap: Share | None = None  # largest share of studies to be deferred; `policy fit` makes a cost of it
    findings: dict[str, FindingPolicy] = Field(min_length=1)
    fitted: Fitted | None = None


class PolicyName(_Strict):
    """Which policy, exactly."""

    name: str
    version: str
    digest: Digest


class Approval(_Strict):
    """One line of the log of approvals. ``signature`` is over the canonical JSON of all other fields."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    action: Literal["approve", "revoke"]
    time: datetime.datetime
    by: str = Field(min_length=1, max_length=128)
    note: str = Field(default="", max_length=1024)
    policy: PolicyName
    package: PackageName
    key: str  # id
    public_key: str  # base64 of its DER form
    previous: str  # SHA-256 of the line before, without its end; empty in the first
    signature: str = ""

    @property
    def signed_text(self) -> bytes:
        """What is signed."""
        values = self.model_dump(mode="json", by_alias=True)
        del values["signature"]
        return _canonical(values).encode()

    @property
    def line(self) -> str:
        """The one form in which it is written, without the end of the line."""
        return _canonical(self.model_dump(mode="json", by_alias=True))

    @property
    def day(self) -> str:
        return self.time.date().isoformat()


class Policy(_Strict):
    """A policy with its digest (SHA-256 of the file, hexadecimal)."""

    file: PolicyFile
    digest: str
    gate_file: Path | None = None  # the gate fitted on the site's own studies
    baseline_file: Path | None = None  # the observations of these studies
    approval: Approval | None = None  # the one that holds for this policy
    demonstration_because: str = "nobody has approved the policy"  # empty where results are for clinical use

    @property
    def reference(self) -> PolicyReference:
        return PolicyReference(
            name=self.file.name,
            version=self.file.version,
            digest=self.digest,
            demonstration=bool(self.demonstration_because),
        )

    def finding(self, name: str) -> FindingPolicy | None:
        """The costs for a finding, or None where the policy states none: such a finding is not decided.

        Where a workload cap was fitted, the cost of a deferral is the one that keeps within it.
        """
        stated = self.file.findings.get(name)
        fitted = self.file.fitted.deferrals.get(name) if self.file.fitted else None
        return stated.model_copy(update={"deferral": fitted.deferral}) if stated and fitted else stated


def load_policy(path: Path, model: Package | Manifest, trust: Trust | None = None) -> Policy:
    """Read a policy for a model, and check everything that was fitted and approved of it.

    Parameters
    ----------
    model
        The package that will run under it. Given a manifest only (a package that is still being made), the policy is
        read for its costs: for which package it was fitted and approved is not asked, and it stays a demonstration.
    trust
        The keys that the site trusts. Without any, the policy stays a demonstration.

    Raises
    ------
    PolicyError
        If the file is wrong, for another model, or names a finding that the model does not have; if a fitted file is
        missing or altered, or fitted for other costs or another package; if the log of approvals is not whole, if the
        policy was changed after its approval, if somebody who is not trusted approved it, or if it asks for clinical
        use and nobody has approved it.
    """
    trust = trust or Trust()
    file, digest = read_policy(path)
    check_model(path, file, model)
    gate, baseline = fitted_files(path, file)
    approval = _holding(path, file, digest, model, trust)
    return Policy(
        file=file,
        digest=digest,
        gate_file=gate,
        baseline_file=baseline,
        approval=approval,
        demonstration_because=_demonstration_because(file, approval, model, trust),
    )


def read_policy(path: Path) -> tuple[PolicyFile, str]:
    """The contents and the digest of a policy file, by itself. Raises PolicyError that names each wrong field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: the site policy cannot be read: {error.strerror}") from None
    return parse_policy(path, data), hashlib.sha256(data).hexdigest()


def parse_policy(path: Path, data: bytes) -> PolicyFile:
    """The contents of a policy file, which ``path`` names in messages. Raises PolicyError."""
    try:
        return PolicyFile.model_validate(yaml.load(data, _OnceEach))  # noqa: S506  # a SafeLoader
    except ValidationError as error:
        message = describe_validation(str(path), error)
        typed = sorted({str(part) for item in error.errors() for part in item["loc"][-1:]} & _THRESHOLDS)
        if typed:
            message += (
                f"\n{path}: {', '.join(typed)}: thresholds are computed from the costs and the prevalence and never "
                "typed in; `stepwedge policy show` prints them"
            )
        raise PolicyError(message) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{path}: cannot be read as YAML: {error}") from None


def check_model(path: Path, file: PolicyFile, model: Package | Manifest) -> None:
    """Refuse a policy for another model, for findings that the model does not have, or fitted for another package."""
    manifest = model.manifest if isinstance(model, Package) else model
    if file.model != manifest.name:
        raise PolicyError(f"{path}: this policy is for the model {file.model}, not for {manifest.name}")
    unknown = sorted(file.findings.keys() - {f.name for f in manifest.findings})
    if unknown:
        raise PolicyError(f"{path}: findings {', '.join(unknown)} are not findings of {manifest.name}")
    if file.fitted is not None and not _is_of(file.fitted.package, model):
        fitted = file.fitted.package
        raise PolicyError(
            f"{path}: fitted for the package {_named(fitted)}, not for this one; fit the policy again "
            "(`stepwedge policy fit`)"
        )


def fitted_files(path: Path, file: PolicyFile) -> tuple[Path | None, Path | None]:
    """The fitted gate and baseline beside a policy, verified.

    Raises PolicyError for a file that is missing or altered, and for costs that were changed after the fit.
    """
    again = "fit the policy again (`stepwedge policy fit`)"
    fitted = file.fitted
    if file.workload_cap is not None and (fitted is None or fitted.workload_cap != file.workload_cap):
        raise PolicyError(f"{path}: workload_cap: no cost of a deferral was fitted for {file.workload_cap}; {again}")
    if fitted is None:
        return None, None
    for name, deferral in fitted.deferrals.items():
        if file.findings.get(name) != deferral.stated:
            raise PolicyError(
                f"{path}: findings.{name}: changed since the cost of a deferral was fitted to the workload cap; {again}"
            )
    found = []
    for field, wanted in (("gate", fitted.gate), ("baseline", fitted.baseline)):
        beside = path.parent / wanted.file
        try:
            digest = hashlib.sha256(beside.read_bytes()).hexdigest()
        except OSError as error:
            raise PolicyError(f"{path}: fitted.{field}: {beside}: {error.strerror}; restore it or {again}") from None
        if digest != wanted.sha256:
            raise PolicyError(
                f"{path}: fitted.{field}: {beside} is not the file that was fitted (SHA-256 {digest[:12]}…, wanted "
                f"{wanted.sha256[:12]}…); restore it or {again}"
            )
        found.append(beside)
    return found[0], found[1]


def approvals_file(path: Path) -> Path:
    """Where the approvals of a policy are logged."""
    return path.with_name(f"{path.name}.approvals.jsonl")


def read_approvals(path: Path) -> list[Approval]:
    """Every approval and revocation of the policy at ``path``, oldest first, with chain and signatures checked.

    Raises PolicyError that names the first line that is not as it was written.
    """
    log = approvals_file(path)
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PolicyError(f"{log}: the approvals cannot be read: {error.strerror}") from None
    approvals: list[Approval] = []
    previous = ""
    *lines, rest = data.split(b"\n")
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        approval = _approval(line)
        if approval is None or number > len(lines):
            wrong = "is not a line as it was written"
        elif approval.previous != previous:
            wrong = "does not follow the line before it: a line was removed, added or changed"
        elif not _is_genuine(approval):
            wrong = f"is not signed by the key {approval.key} that it names"
        else:
            approvals.append(approval)
            previous = hashlib.sha256(line).hexdigest()
            continue
        raise PolicyError(
            f"{log}: line {number} {wrong}; the approvals do not count. Restore the file from a backup, or remove it "
            "and approve the policy again"
        )
    return approvals


def _holding(path: Path, file: PolicyFile, digest: str, model: Package | Manifest, trust: Trust) -> Approval | None:
    """The approval that holds: the newest line, if it approves this policy for this package. Raises PolicyError."""
    approvals = read_approvals(path)
    last = approvals[-1] if approvals else None
    again = "approve it (`stepwedge policy approve`)"
    if last is not None and trust.keys and not trust.has(decode_public_key(last.public_key)):
        raise PolicyError(
            f"{approvals_file(path)}: the newest line, by {last.by} on {last.day}, is signed by the key {last.key}, "
            f"which is not among trust.keys ({', '.join(sorted(trust.keys))})"
        )
    if last is not None and last.action == "approve" and last.policy.digest != digest:
        raise PolicyError(
            f"{path}: changed since {last.by} approved it on {last.day}; restore it as it was approved, or have it "
            "approved again (`stepwedge policy approve`)"
        )
    if last is None:
        problem = "nobody has approved it"
    elif last.action == "revoke":
        problem = f"{last.by} revoked its approval on {last.day}"
    elif not _is_of(last.package, model):
        problem = f"{last.by} approved it for the package {_named(last.package)}, not for this one"
    else:
        return last
    if file.clinical and isinstance(model, Package):
        raise PolicyError(f"{path}: asks for clinical use, and {problem}; {again}, or set clinical: false")
    return None


def _demonstration_because(file: PolicyFile, approval: Approval | None, model: Package | Manifest, trust: Trust) -> str:
    """Why results are a demonstration; empty if they are not."""
    if not file.clinical:
        return "the policy does not ask for clinical use (clinical: true)"
    if approval is None:
        return "nobody has approved the policy for this package"
    if not isinstance(model, Package):
        return "the approval was not held against the package"
    if model.manifest.demonstration_only:
        return "the package is made for demonstration only"
    if not trust.keys:
        return "no keys are trusted (setting trust.keys)"
    if model.signer is None or not trust.has(load_public_key(model.path / SIGNER)):
        return "the package is not signed by a trusted key"
    return ""


def _is_of(named: PackageName, model: Package | Manifest) -> bool:
    return not isinstance(model, Package) or named.digest == model.digest


def _named(package: PackageName) -> str:
    return f"{package.name} {package.version} (digest {package.digest[:12]}…)"


def _approval(line: bytes) -> Approval | None:
    """A line of the log; None if it is not in the one form in which lines are written."""
    try:
        approval = Approval.model_validate_json(line)
        return approval if approval.line.encode() == line else None
    except ValueError:  # pydantic's, or a name that is no text
        return None


def _is_genuine(approval: Approval) -> bool:
    try:
        public = decode_public_key(approval.public_key)
    except ValueError:
        return False
    return key_id(public) == approval.key and verify_text(approval.signed_text, approval.signature, public)


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class _OnceEach(yaml.SafeLoader):
    """YAML in which no mapping has a key twice: of two costs for one finding, which one would hold?"""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
