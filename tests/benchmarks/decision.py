"""What deciding costs with the shipped package, against simpler ways to decide, on patients that nothing was fitted on.

``make bench-decision``. Calibration is fitted anew on the calibrate fold and measured on the test fold, pneumonia
resampled to 10 %, a miss at 10, a false alarm at 1 and a deferral at 0.3, at most 10 % deferred. Prints tables, and
JSON as its last line. Every interval is of 95 %, by bootstrap over patients.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepwedge.decision.calibrate import at_prevalence, calibrated
from stepwedge.decision.costs import deferral_cost_for
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import FindingCalibration, Package, load_package
from stepwedge.package.evaluate import FindingSample, Scored, cost_figures, evaluate, sample_of, ways
from stepwedge.package.figures import CostFigures, Estimate, Strategy
from stepwedge.package.fit_calibration import fit_calibration
from stepwedge.policy import FindingPolicy

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "chest-pneumonia"
SHARED = Path(os.environ.get("STEPWEDGE_SHARED", ROOT.parent / "shared"))
SITE = FindingPolicy(miss=10, false_alarm=1, deferral=0.3, prevalence=0.10)
CAP = 0.10  # share that may be deferred
SAMPLES = 2000
BATCH = 64  # images at a time
# The package's cost over that of another way, at most.
GOALS = {
    "0.5 on the uncorrected probability": 0.5,
    "0.5 on the prevalence-corrected probability": 0.75,
    "cost-weighted threshold at the data's prevalence": 0.4,
}
FINDING = "pneumonia"


def main() -> None:
    """Measure, print tables and one line of JSON."""
    data = SHARED / "data" / "pneumonia"
    if not (data / "labels.csv").is_file():
        raise SystemExit(f"The radiographs are not at {data}; STEPWEDGE_SHARED can name another place.")
    package = load_package(max(MODEL.glob("[0-9]*.[0-9]*.[0-9]*"), key=_version))
    folds = {name: _scored(package, data, name) for name in ("calibrate", "test")}
    calibration = fit_calibration(folds["calibrate"], package.manifest)
    fitted = calibration.findings[FINDING]
    spec = next(f for f in package.manifest.findings if f.name == FINDING)
    known, sample = (sample_of(folds[name], package.manifest, spec) for name in ("calibrate", "test"))
    deferral = deferral_cost_for(CAP, _corrected(known, fitted), known.truth, SITE.costs, SITE.prevalence)
    site = SITE.model_copy(update={"deferral": deferral})
    weighted = cost_figures(FINDING, sample, fitted, site, fold="test", samples=SAMPLES)
    drawn = _drawn(sample, fitted, site)
    figures = evaluate(folds["test"], package.manifest, calibration, samples=SAMPLES).findings

    print(f"{package.reference.name} {package.reference.version}, digest {package.digest[:12]}")
    print(f"calibrate fold: {fitted.positives} / {fitted.negatives} images; method {fitted.method}")
    print(
        f"test fold: {figures[FINDING].positives} / {figures[FINDING].negatives} images, {weighted.patients} patients"
    )
    for name, found in figures.items():
        print(
            f"{name}: AUROC {found.auroc}, AUPRC {found.auprc}, calibration error {found.calibration_error_before} → "
            f"{found.calibration_error_after} (by chance {found.calibration_error_by_chance}), share positive "
            f"{found.prevalence}, by EM {found.prevalence_estimated}"
        )
    _print_weighted(weighted)
    print("\nthe same with patients drawn to that prevalence, each time some 18 ill images beside the well ones:")
    for name, one in drawn.items():
        print(f"  {name:54s} cost {one['cost']}   ratio {one['ratio'] or '–'}   deferred {one['deferred']}")
    goals = _goals(weighted)
    print()
    for goal in goals:
        print(f"  cost / cost of {goal['against']}: {goal['ratio']}, goal ≤ {goal['goal']}: {goal['verdict']}")
    result = {
        "package": package.reference.version,
        "digest": package.digest,
        "calibration": fitted.model_dump(),
        "findings": {name: found.model_dump() for name, found in figures.items()},
        "cap": CAP,
        "weighted": weighted.model_dump(),
        "drawn": {
            name: {key: value.model_dump() if value else None for key, value in one.items()}
            for name, one in drawn.items()
        },
        "goals": [{**goal, "ratio": goal["ratio"].model_dump()} for goal in goals],
    }
    print(json.dumps(result))


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split("."))


def _scored(package: Package, data: Path, fold: str) -> Scored:
    sys.path.insert(0, str(MODEL))
    module = importlib.import_module("folds")
    rows = [row for row in module.read_rows(data) if row.fold == fold]
    engine, spec = OnnxEngine(package, "cpu", 1), package.manifest.input
    outputs = [
        engine.run({spec.name: module.tensors(data, rows[start : start + BATCH], spec)})[0]
        for start in range(0, len(rows), BATCH)
    ]
    return Scored(
        patients=[row.patient for row in rows],
        labels=[frozenset([row.label]) for row in rows],
        outputs=np.concatenate([output[package.manifest.output.scores] for output in outputs]),
    )


def _corrected(sample: FindingSample, fitted: FindingCalibration) -> NDArray[np.float64]:
    return at_prevalence(calibrated(sample.score, fitted), fitted.prevalence, SITE.prevalence)


def _drawn(
    sample: FindingSample, fitted: FindingCalibration, site: FindingPolicy
) -> dict[str, dict[str, Estimate | None]]:
    """Real departments of the prevalence: well patients drawn again, and ill ones until they make up their share."""
    compared = ways(sample.score, calibrated(sample.score, fitted), _corrected(sample, fitted), site.costs)
    cost = np.array([way.cost(sample.truth, site.costs) for way in compared])
    deferred = np.array([way.deferred for way in compared])
    _, patient = np.unique(sample.patients, return_inverse=True)
    images = [np.flatnonzero(patient == index) for index in range(patient.max() + 1)]
    ill = [index for index, own in enumerate(images) if sample.truth[own].all()]
    well = [index for index, own in enumerate(images) if not sample.truth[own].any()]
    random = np.random.default_rng(0)
    values = []
    for _ in range(SAMPLES):
        chosen = [images[index] for index in random.choice(well, len(well))]
        wanted = sum(map(len, chosen)) * site.prevalence / (1 - site.prevalence)
        while wanted > 0:
            chosen.append(images[random.choice(ill)])
            wanted -= len(chosen[-1])
        index = np.concatenate(chosen)
        values.append((100 * cost[:, index].mean(axis=1), deferred[:, index].mean(axis=1)))
    costs, shares = np.array([v[0] for v in values]), np.array([v[1] for v in values])
    return {
        way.name: {
            "cost": _spread(costs[:, place]),
            "ratio": _spread(costs[:, 0] / costs[:, place], costs[:, 0].mean() / costs[:, place].mean())
            if place and (costs[:, place] > 0).all()
            else None,
            "deferred": _spread(shares[:, place]),
        }
        for place, way in enumerate(compared)
    }


def _spread(values: NDArray[np.float64], value: float | None = None) -> Estimate:
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(value=float(values.mean() if value is None else value), low=float(low), high=float(high))


def _print_weighted(figures: CostFigures) -> None:
    print(
        f"\n{figures.finding} weighted to {figures.prevalence:.0%}: a miss costs {figures.miss:g}, a false alarm "
        f"{figures.false_alarm:g}, a deferral {figures.deferral:g}; AUPRC {figures.auprc}, calibration error "
        f"{figures.calibration_error}; costs per 100 studies"
    )
    for way in figures.strategies:
        print(f"  {way.name:54s} cost {way.cost}   ratio {way.ratio or '–'}")
        print(
            f"    deferred {way.deferred}   sensitivity {way.sensitivity}   missed {way.missed}\n"
            f"    specificity {way.specificity}   PPV {way.ppv or '–'}   NPV {way.npv or '–'}   "
            f"net benefit {way.net_benefit}"
        )


def _goals(figures: CostFigures) -> list[dict[str, Any]]:
    by_name: dict[str, Strategy] = {way.name: way for way in figures.strategies}
    goals: list[dict[str, Any]] = []
    for name, goal in GOALS.items():
        ratio = by_name[name].ratio
        assert ratio is not None
        goals.append(
            {"against": name, "ratio": ratio, "goal": goal, "verdict": "met" if ratio.value <= goal else "not met"}
        )
    deferred = figures.strategies[0].deferred
    goals.append(
        {
            "against": "the share deferred (not a ratio)",
            "ratio": deferred,
            "goal": CAP,
            "verdict": "met" if deferred.value <= CAP else "not met",
        }
    )
    return goals


if __name__ == "__main__":
    main()
