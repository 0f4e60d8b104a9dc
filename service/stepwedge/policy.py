"""The site's decisions: costs, prevalence, and whether a person has approved them.

A policy is a YAML file. Thresholds are computed from it and never typed in. Until a policy can be signed and
approved, every policy is a demonstration policy: results carry a demonstration label and go only to destinations
that are declared as taking demonstrations.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwedge.errors import PolicyError, describe_validation
from stepwedge.manifest import Manifest
from stepwedge.records import Costs, PolicyReference


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FindingPolicy(_Strict):
    """What errors cost for one finding (any unit; only ratios matter), and how common it is at the site."""

    miss: float = Field(gt=0)
    false_alarm: float = Field(gt=0)
    deferral: float = Field(gt=0)
    prevalence: float = Field(gt=0, lt=1)

    @property
    def costs(self) -> Costs:
        return Costs(miss=self.miss, false_alarm=self.false_alarm, deferral=self.deferral)


class PolicyFile(_Strict):
    """The contents of a policy file."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str = Field(max_length=64)
    version: str = Field(max_length=16)
    model: str  # the name of the package that it is for
    findings: dict[str, FindingPolicy] = Field(min_length=1)


class Policy(_Strict):
    """A policy with its digest (SHA-256 of the file, hexadecimal)."""

    file: PolicyFile
    digest: str
    gate_file: Path | None = None  # the gate fitted on the site's own studies

    @property
    def reference(self) -> PolicyReference:
        return PolicyReference(name=self.file.name, version=self.file.version, digest=self.digest, demonstration=True)

    def finding(self, name: str) -> FindingPolicy | None:
        """The costs for a finding, or None where the policy states none: such a finding is not decided."""
        return self.file.findings.get(name)


def load_policy(path: Path, manifest: Manifest) -> Policy:
    """Read a policy for a model.

    Raises
    ------
    PolicyError
        If the file is wrong, for another model, or names a finding that the model does not have.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: the site policy cannot be read: {error.strerror}") from None
    try:
        file = PolicyFile.model_validate(yaml.safe_load(data))
    except ValidationError as error:
        raise PolicyError(describe_validation(str(path), error)) from None
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: cannot be read as YAML: {error}") from None
    if file.model != manifest.name:
        raise PolicyError(f"{path}: this policy is for the model {file.model}, not for {manifest.name}")
    unknown = sorted(file.findings.keys() - {f.name for f in manifest.findings})
    if unknown:
        raise PolicyError(f"{path}: findings {', '.join(unknown)} are not findings of {manifest.name}")
    return Policy(file=file, digest=hashlib.sha256(data).hexdigest())
