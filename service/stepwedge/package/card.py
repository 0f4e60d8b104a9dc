"""The model card: written from the package's own description and its measured figures, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from stepwedge.manifest import Calibration, Manifest

CARD = "CARD.md"
EVALUATION = "evaluation.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(_Strict):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class DataSource(_Strict):
    """Where the images came from."""

    name: str
    licence: str
    citation: str
    population: str


class Fold(_Strict):
    """A fold's use and size. No patient is in two folds."""

    use: str
    patients: int = Field(ge=0)
    images: Mapping[str, int]  # by class


class FindingFigures(_Strict):
    """How well one finding is told and how far its probabilities can be believed."""

    fold: str
    positives: int = Field(ge=0)  # images
    negatives: int = Field(ge=0)
    auroc: Estimate
    calibration_error_before: Estimate  # of the model's own probabilities
    calibration_error_after: Estimate


class Strategy(_Strict):
    """One way to decide, and what it leads to at the stated prevalence."""

    name: str
    cost: Estimate  # expected, per study, in units of a false alarm
    deferred: Estimate  # share of studies
    sensitivity: Estimate  # share of ill studies acted on
    cleared_ill: Estimate  # share of ill studies cleared


class CostFigures(_Strict):
    """What deciding costs under one set of costs and one prevalence."""

    finding: str
    fold: str
    condition: str  # what was done to the images, e.g. "as they are"
    prevalence: float
    miss: float
    false_alarm: float
    deferral: float
    strategies: list[Strategy]


class Check(_Strict):
    """One question put to the data or the model, with its answer."""

    question: str
    fold: str
    images: int = Field(ge=0)
    auroc: Estimate


class Evaluation(_Strict):
    """``evaluation.json``: every measured figure of a package."""

    data: DataSource
    folds: Mapping[str, Fold]
    bootstrap_samples: int
    selection: str  # what was chosen by looking at which fold
    findings: Mapping[str, FindingFigures]
    costs: list[CostFigures]
    confounders: list[Check]
    confounder_notes: list[str]
    subgroups: list[str]
    limits: list[str]


def card(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    """The text of ``CARD.md`` (Markdown)."""
    sections = (
        _heading(manifest),
        _intended_use(manifest),
        _data(evaluation),
        _performance(manifest, calibration, evaluation),
        _decisions(evaluation),
        _confounders(evaluation),
        _listed("Subgroups", evaluation.subgroups),
        _listed("Limits", evaluation.limits),
    )
    return "\n\n".join(sections) + "\n"


def _heading(manifest: Manifest) -> str:
    lines = [f"# {manifest.name} {manifest.version}", "", manifest.description]
    if manifest.demonstration_only:
        lines += ["", "**This model demonstrates the software. It is not for clinical use.**"]
    lines += ["", f"Licence of the weights: {manifest.licence}."]
    return "\n".join(lines)


def _intended_use(manifest: Manifest) -> str:
    use = manifest.intended_use
    rows = [("Modality", ", ".join(use.modality))]
    if use.body_part:
        rows.append(("Body part", ", ".join(use.body_part)))
    if use.view:
        rows.append(("View", ", ".join(use.view)))
    if use.age_years is not None:
        rows.append(("Age", f"from {use.age_years[0]:g} to below {use.age_years[1]:g} years"))
    return f"## Intended use\n\n{use.summary}\n\n" + _table(("attribute", "value"), rows)


def _data(evaluation: Evaluation) -> str:
    data = evaluation.data
    classes = list(next(iter(evaluation.folds.values())).images)
    rows = [
        (name, fold.use, str(fold.patients), str(sum(fold.images.values())), *(str(fold.images[c]) for c in classes))
        for name, fold in evaluation.folds.items()
    ]
    return (
        f"## Data\n\n{data.name}, {data.licence}. {data.population}\n\n{data.citation}\n\n"
        "Patients are split once into folds that never mix.\n\n"
        + _table(("fold", "used for", "patients", "images", *classes), rows)
        + f"\n\n{evaluation.selection}"
    )


def _performance(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    rows = []
    for finding in manifest.findings:
        figures = evaluation.findings[finding.name]
        fitted = calibration.findings[finding.name]
        among = f" among {', '.join(finding.among)}" if finding.among else ""
        rows.append(
            (
                f"{finding.name} ({', '.join(finding.positive)}{among})",
                figures.fold,
                f"{figures.positives} / {figures.negatives}",
                str(figures.auroc),
                str(figures.calibration_error_before),
                str(figures.calibration_error_after),
                f"{fitted.method}, slope {fitted.slope:.3f}, intercept {fitted.intercept:+.3f}, "
                f"{fitted.positives} / {fitted.negatives} images",
            )
        )
    return (
        "## Performance and calibration\n\n"
        f"In brackets: 95 % interval, bootstrap over patients ({evaluation.bootstrap_samples} samples). "
        "Calibration error: expected error over ten bins of equal number; an unbiased model of this many images "
        "does not reach zero.\n\n"
        + _table(
            (
                "finding",
                "fold",
                "positive / negative",
                "AUROC",
                "calibration error before",
                "calibration error after",
                "calibration (calibrate fold)",
            ),
            rows,
        )
    )


def _decisions(evaluation: Evaluation) -> str:
    parts = ["## Decisions"]
    for costs in evaluation.costs:
        rows = [
            (s.name, str(s.cost), str(s.deferred), str(s.sensitivity), str(s.cleared_ill)) for s in costs.strategies
        ]
        parts.append(
            f"{costs.finding} on the {costs.fold} fold, images {costs.condition}, "
            f"weighted to a prevalence of {costs.prevalence:.0%}; "
            f"a miss costs {costs.miss:g}, a false alarm {costs.false_alarm:g}, a deferral {costs.deferral:g}. "
            "Cost is per study.\n\n"
            + _table(("decided by", "expected cost", "deferred", "ill acted on", "ill cleared"), rows)
        )
    return "\n\n".join(parts)


def _confounders(evaluation: Evaluation) -> str:
    rows = [(c.question, c.fold, str(c.images), str(c.auroc)) for c in evaluation.confounders]
    notes = "".join(f"\n\n{note}" for note in evaluation.confounder_notes)
    return "## Known confounders\n\n" + _table(("question", "fold", "images", "AUROC"), rows) + notes


def _listed(title: str, items: Iterable[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {item}" for item in items)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
