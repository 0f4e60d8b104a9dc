"""The records of what was measured of a package: ``evaluation.json``, and the notes that people add to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stepwedge.errors import PackageError, describe_validation

EVALUATION = "evaluation.json"
KNOWING = "attacker who knows the check"  # what rows of ``tamper_attacks`` begin with that such a one made


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Strict):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class Fold(_Strict):
    """A fold's use and size. No patient is in two folds."""

    use: str
    patients: int = Field(ge=0)
    images: Mapping[str, int]  # by class; an image with several labels counts for each of them
    total: int | None = None  # images, where they are not the sum of the above
    left_out: int = Field(default=0, ge=0)  # images of it that the gate did not accept; no figure counts them


class FindingFigures(_Strict):
    """How well one finding is told and how far its probabilities can be believed. None: it cannot be said."""

    fold: str
    positives: int = Field(ge=0)  # images
    negatives: int = Field(ge=0)
    positive_patients: int = Field(ge=0)
    negative_patients: int = Field(ge=0)
    inconclusive: str = ""  # why nothing is decided on it; empty where something is
    auroc: Estimate | None = None
    auprc: Estimate | None = None  # at the prevalence of the fold
    brier: Estimate | None = None
    calibration_error_before: Estimate | None = None  # of the model's own probabilities
    calibration_error_after: Estimate | None = None
    calibration_error_by_chance: float | None = None  # 95th percentile, were the probabilities after it exactly true
    prevalence: float | None = None  # share of positive images in the fold
    prevalence_estimated: Estimate | None = None  # by EM from the probabilities alone


class Strategy(_Strict):
    """One way to decide, and what it leads to at the stated prevalence. None: it never happens."""

    name: str
    cost: Estimate  # expected, per 100 studies
    ratio: Estimate | None = None  # the package's cost over this one's; None for itself, and where this one's is zero
    deferred: Estimate  # share of studies
    sensitivity: Estimate  # share of ill studies acted on
    specificity: Estimate  # share of well studies cleared
    missed: Estimate  # share of ill studies cleared
    false_alarms: Estimate  # share of well studies acted on
    ppv: Estimate | None = None  # share of ill ones among those acted on
    npv: Estimate | None = None  # share of well ones among those cleared
    net_benefit: Estimate  # per 100 studies, in ill studies found; clearing everybody has 0


class CostFigures(_Strict):
    """What deciding on one finding costs under one set of costs and one prevalence. The package's own way is first."""

    finding: str
    fold: str
    images: int = Field(ge=0)
    patients: int = Field(ge=0)
    prevalence: float
    miss: float
    false_alarm: float
    deferral: float
    auprc: Estimate | None = None  # at this prevalence
    calibration_error: Estimate | None = None  # of the prevalence-corrected probabilities, at this prevalence
    strategies: list[Strategy]


class SubgroupFigures(_Strict):
    """One finding in one subgroup. None: too few to say, or no policy says where to act."""

    finding: str
    group: str  # e.g. sex
    value: str  # e.g. F
    positives: int = Field(ge=0)  # images
    negatives: int = Field(ge=0)
    auroc: Estimate | None = None
    calibration_error: Estimate | None = None
    sensitivity: Estimate | None = None  # share of ill studies acted on, by the policy
    specificity: Estimate | None = None  # share of well studies cleared, by the policy


class Measured(_Strict):
    """One line of a table: a rate or a ratio, with its interval where there is one."""

    what: str
    n: int = Field(ge=0)
    value: float
    low: float | None = None  # 95 % interval
    high: float | None = None
    note: str = ""


class GateFigures(_Strict):
    """The validity gate: what it refuses that it should not, and what it catches."""

    declared: float  # share of proper images that it was fitted to refuse
    fold: str
    rows: list[Measured]
    notes: list[str] = []


class TamperFigures(_Strict):
    """The tamper check: what it flags that it should not, and which attacks it catches."""

    declared: float  # share of untouched images that it was fitted to flag
    fold: str
    rows: list[Measured]
    notes: list[str] = []


class FaithfulnessFigures(_Strict):
    """Whether the heat map marks what the answer rests on."""

    method: str
    fold: str
    rows: list[Measured]
    notes: list[str] = []


class DataSource(_Strict):
    """Where the images came from."""

    name: str
    licence: str
    citation: str = ""
    population: str = ""


class Check(_Strict):
    """One question put to the data or the model, with its answer."""

    question: str
    fold: str
    images: int = Field(ge=0)
    measure: str = "AUROC"
    value: Estimate


class Notes(_Strict):
    """What no program can measure of a package, or only one made for its data: ``package build --notes``."""

    data: DataSource | None = None
    selection: str = ""  # what was chosen by looking at which fold
    uses: dict[Literal["train", "calibrate", "gate", "test"], str] = {}  # of each fold
    confounders: list[Check] = []
    confounder_notes: list[str] = []
    subgroup_notes: list[str] = []
    content_detection: list[Measured] = []  # shares not accepted of images that the model was not made for
    tamper_attacks: list[Measured] = []  # shares flagged, of harmless changes too
    limits: list[str] = []


class Evaluation(_Strict):
    """``evaluation.json``: every measured figure of a package."""

    fold: str  # the one that the figures are of, where nothing else is said
    patients: int = Field(ge=0)
    images: int = Field(ge=0)
    bootstrap_samples: int = Field(ge=0)
    policy: str = ""  # name and version of the policy that the decisions are by
    folds: Mapping[str, Fold] = {}
    findings: Mapping[str, FindingFigures]
    costs: list[CostFigures] = []
    subgroups: list[SubgroupFigures] = []
    gate: GateFigures | None = None
    tamper: TamperFigures | None = None
    faithfulness: FaithfulnessFigures | None = None
    notes: Notes = Notes()


def read_notes(path: Path) -> Notes:
    """Read a file of notes (YAML, of which JSON is a part). Raises PackageError that names each wrong field."""
    try:
        return Notes.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise PackageError(describe_validation(str(path), error)) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PackageError(f"{path}: the notes cannot be read: {error}") from None
