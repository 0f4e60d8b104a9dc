"""How much the simulated department's studies are like those that the shipped model was accepted on.

``make bench-department``. Ordinary studies (no events) go down the whole pipeline: the share that the gate accepts,
why it does not accept the others, and the AUROC of pneumonia on the department's labels. Where the training data are
at hand (``STEPWEDGE_SHARED``), how close each simulated child comes to any image of the training fold, beside how close
patients come who were never in it. And how much more the scanners' daily shares vary than independent draws would.
Prints tables, and JSON as its last line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from stepwedge.demo.main_job import newest_package
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.inference.engine import OnnxEngine
from stepwedge.inference.preprocess import to_tensor
from stepwedge.manifest import Input, load_package
from stepwedge.pipeline import Case, analyse_image, equip
from stepwedge.policy import load_policy
from stepwedge.simulate.children import Simulator, load_simulator
from stepwedge.simulate.department import WELL, Department, Examination, examinations, radiograph

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "chest-pneumonia"
STUDIES, PREVALENCE, SEED = 600, 0.3, 17
PLANNED = 20_000  # studies whose days are looked at; their images are not made
SAMPLES = 1000  # of the bootstrap
LOCAL = 9  # pixels of the side of the local mean that fine structure is what differs from

Floats = NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=STUDIES)
    options = parser.parse_args()
    package = load_package(newest_package(MODELS))
    simulator = load_simulator(MODELS / "simulated.npz")
    policy = load_policy(MODELS / "policy.yaml", package.manifest)
    equipment = equip(package, OnnxEngine(package, "cpu", 1), policy, explain=False)
    department = Department(studies=options.studies, seed=SEED, prevalence=PREVALENCE)
    children, tensors, rows = [], [], []
    for child in examinations(department, simulator):
        dataset = radiograph(child, department, simulator)
        image = decode(dataset)
        result, _ = analyse_image(
            Case(instance="", header=read_header(dataset), decode=lambda image=image: image), equipment
        )
        children.append(child)
        tensors.append(to_tensor(image, package.manifest.input)[0])
        rows.append(result)
        if len(children) % 100 == 0:
            print(f"{len(children)} of {options.studies}", file=sys.stderr)
    result = {
        "package": f"{package.manifest.name} {package.manifest.version}",
        "gate": {"content": equipment.gate.content is not None, "tamper": equipment.gate.tamper is not None},
        "studies": options.studies,
        **_accepted(children, rows),
        **_auroc(children, rows),
        "daily_variation": _daily_variation(simulator),
        "nearest": _nearest(np.stack(tensors), package.manifest.input),
    }
    _print_tables(result)
    print(json.dumps(result))
    return 0


def _accepted(children: list[Examination], rows: list[Any]) -> dict[str, Any]:
    accepted = [row.gate.verdict == "accept" for row in rows]
    by_scanner: dict[str, list[bool]] = defaultdict(list)
    for child, passes in zip(children, accepted, strict=True):
        by_scanner[child.scanner.name].append(passes)
    return {
        "accepted": _share(sum(accepted), len(accepted)),
        "accepted_by_scanner": {name: _share(sum(each), len(each)) for name, each in sorted(by_scanner.items())},
        "not_accepted_for": dict(Counter(reason.code for row in rows for reason in row.gate.reasons).most_common()),
    }


def _auroc(children: list[Examination], rows: list[Any]) -> dict[str, Any]:
    """Of pneumonia, on the studies that the gate accepts."""
    pairs = [(c, r) for c, r in zip(children, rows, strict=True) if r.gate.verdict == "accept"]
    score = np.array([row.findings[0].score for _, row in pairs])
    found = {}
    for name in ("label", "shows"):
        ill = np.array([getattr(child, name) != WELL for child, _ in pairs])
        rng = np.random.default_rng(0)
        draws = []
        for _ in range(SAMPLES):
            chosen = rng.integers(0, len(ill), len(ill))
            if 0 < ill[chosen].sum() < len(ill):
                draws.append(roc_auc_score(ill[chosen], score[chosen]))
        low, high = np.percentile(draws, [2.5, 97.5])
        found[f"auroc_by_{name}"] = {
            "value": round(float(roc_auc_score(ill, score)), 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "ill": int(ill.sum()),
            "well": int((~ill).sum()),
        }
    return found


def _daily_variation(simulator: Simulator) -> dict[str, float]:
    """Variance of the daily share over what independent draws would give, on working days."""
    days: dict[Any, list[tuple[bool, bool]]] = defaultdict(list)
    for child in examinations(Department(studies=PLANNED, seed=SEED), simulator):
        if child.taken.weekday() < 5:
            days[child.taken.date()].append((child.scanner.name == "wall-stand", child.label != WELL))
    counts = np.array([len(day) for day in days.values()])
    found = {"studies_a_day": round(float(counts.mean()), 1)}
    for column, name in enumerate(("scanner", "ill")):
        shares = np.array([np.mean([each[column] for each in day]) for day in days.values()])
        share = float((counts * shares).sum() / counts.sum())
        found[f"{name}_over_independent"] = round(
            float(np.mean((shares - share) ** 2 * counts / (share * (1 - share)))), 2
        )
    return found


def _nearest(simulated: Floats, spec: Input) -> dict[str, Any] | None:
    """Largest correlation with any image of the training fold: of simulated children, and of patients not in it."""
    data = Path(os.environ.get("STEPWEDGE_SHARED", ROOT.parent / "shared")) / "data" / "pneumonia"
    if not data.is_dir():
        print(f"{data}: not here, so that nearest neighbours are left out", file=sys.stderr)
        return None
    sys.path.insert(0, str(MODELS))
    folds = importlib.import_module("folds")
    rows = folds.read_rows(data)
    known, others = (
        folds.tensors(data, [row for row in rows if row.fold == fold], spec)[:, 0] for fold in ("train", "test")
    )
    found: dict[str, Any] = {"training_images": len(known), "patients_images": len(others)}
    for name, prepare in (("whole", lambda x: x), ("fine_structure", _fine)):
        reference = _unit(prepare(known))
        for who, images in (("simulated", simulated[:, 0]), ("patients", others)):
            nearest = (_unit(prepare(images)) @ reference.T).max(axis=1)
            found[f"{name}_{who}"] = [round(float(value), 3) for value in np.percentile(nearest, [50, 95, 100])]
    return found


def _fine(images: Floats) -> Floats:
    """What differs from a local mean."""
    padded = np.pad(images, ((0, 0), (LOCAL // 2,) * 2, (LOCAL // 2,) * 2), mode="edge")
    down = np.mean([padded[:, k : k + images.shape[1]] for k in range(LOCAL)], axis=0)
    mean = np.mean([down[:, :, k : k + images.shape[2]] for k in range(LOCAL)], axis=0)
    return np.asarray(images - mean, np.float32)


def _unit(images: Floats) -> Floats:
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True), np.float32)


def _share(count: int, of: int) -> dict[str, Any]:
    """A share with its 95 % interval (Wilson)."""
    z, share = 1.96, count / of
    middle, half = share + z * z / (2 * of), z * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * half) / (1 + z * z / of) for sign in (-1, 1))
    return {"value": round(share, 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": of}


def _print_tables(result: dict[str, Any]) -> None:
    fitted = ", ".join(name for name, is_fitted in result["gate"].items() if is_fitted) or "header and structure only"
    print(f"{result['package']}, gate fitted: {fitted}; {result['studies']} ordinary studies, 95 % intervals")
    for name, share in {"accepted": result["accepted"], **result["accepted_by_scanner"]}.items():
        print(f"{name:<34}{share['value']:>8.3f} ({share['low']:.3f} to {share['high']:.3f}), n {share['n']}")
    for code, count in result["not_accepted_for"].items():
        print(f"  {code:<32}{count:>8}")
    for name in ("label", "shows"):
        auroc = result[f"auroc_by_{name}"]
        print(
            f"{'AUROC by ' + name:<34}{auroc['value']:>8.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}), "
            f"{auroc['ill']} ill, {auroc['well']} well"
        )
    for name, value in result["daily_variation"].items():
        print(f"{'daily: ' + name:<34}{value:>8}")
    if result["nearest"]:
        print("largest correlation with a training image: median, 95th percentile, largest")
        for name, values in result["nearest"].items():
            shown = "  ".join(f"{value:.3f}" for value in values) if isinstance(values, list) else values
            print(f"  {name:<32}{shown:>8}")


if __name__ == "__main__":
    sys.exit(main())
