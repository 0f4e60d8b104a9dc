"""What the tamper check catches, and what it flags that it should not, on real radiographs. ``make bench-gates``.

The check is fitted on the gate fold; every figure is of the test fold. Prints tables, and JSON as its last line. An
attack has succeeded where the first finding's log-odds end on the other side of 0 (rows without more ado), or where the
demonstration policy's decision goes from act to clear or from clear to act (rows that say so). Among the successful
ones it is counted what is flagged, whatever it cost the attacker. ``--notes-out`` writes the rows for ``package build
--notes``; ``--surrogate`` adds attacks that are made on another network for the same input and classes.

Ten minutes on one core. A patch rarely succeeds, so patches are tried on more images than the other attacks, in
fewer and longer steps.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydicom import dcmread

TESTS = Path(__file__).parents[1]
MODELS = TESTS.parent / "models" / "chest-pneumonia"
sys.path[:0] = [str(TESTS), str(MODELS)]

from attacks import (  # noqa: E402 - after the path to it
    Outputs,
    Target,
    adaptive,
    blind,
    carlini_wagner,
    deepfool,
    fgsm,
    patch,
    pgd,
    pgd_before_resizing,
    runner,
    target_of,
)
from folds import Row, read_image, read_rows  # noqa: E402
from stepwedge.decision import calibrate, costs  # noqa: E402
from stepwedge.dicom.decode import decode  # noqa: E402
from stepwedge.gate.tamper import TamperCheck, measure  # noqa: E402
from stepwedge.inference.preprocess import to_plane  # noqa: E402
from stepwedge.manifest import Manifest, Package, load_package  # noqa: E402
from stepwedge.package.figures import KNOWING, Measured  # noqa: E402
from stepwedge.package.fit_tamper import answers, fit_tamper, measure_tamper, share  # noqa: E402
from stepwedge.policy import Policy, load_policy  # noqa: E402
from stepwedge.records import FloatArray, Image  # noqa: E402
from stepwedge.simulate import to_dicom, wrap_image  # noqa: E402

EPS = (1, 2, 4, 8)  # of 255 grey levels
SIDES = (0.125, 0.15, 0.2)  # of a patch, of the image's
ATTACKED = 96  # images of the test fold
PATCHED = 3  # times as many
ADAPTIVE = 48  # each step looks at the image and at three variants
THROUGH_DICOM = 60  # each is a million pixels
BLIND, QUERIES = 48, 150
SEED = 11
SHARED = Path(os.environ.get("STEPWEDGE_SHARED", TESTS.parents[1] / "shared"))

# The third-party model: fifteen labels, softmax over them; ``shared/data/README.md`` says how it wants its images.
THIRD_PARTY = "mobilenetv3s_nih15_int8.onnx"
# fmt: off
THIRD_PARTY_CLASSES = [
    "No Finding", "Infiltration", "Atelectasis", "Effusion", "Nodule", "Pneumothorax", "Mass", "Consolidation",
    "Pleural_Thickening", "Cardiomegaly", "Emphysema", "Fibrosis", "Edema", "Pneumonia", "Hernia",
]
# fmt: on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    if not (SHARED / "data" / "pneumonia" / "labels.csv").is_file():
        raise SystemExit(f"The radiographs are not in {SHARED}; STEPWEDGE_SHARED can name another place.")
    package = load_package(options.package or _shipped())
    manifest, model = package.manifest, package.model_file
    run = runner(model, manifest)
    rows = read_rows(SHARED / "data" / "pneumonia")
    folder = SHARED / "data" / "pneumonia" / "images"

    def planes_of(chosen: Sequence[Row]) -> FloatArray:
        return np.stack([to_plane(read_image(folder / row.file), manifest.input) for row in chosen])

    check = fit_tamper(list(planes_of([row for row in rows if row.fold == "gate"])), run, manifest)
    test = [row for row in rows if row.fold == "test"]
    order = np.random.default_rng(SEED).permutation(len(test))
    planes = planes_of(test)
    patients = np.array([row.patient for row in test])
    table: list[tuple[str, list[Measured]]] = [("Not attacked", _benign(check, planes, patients, run, manifest))]
    attacked, patched = planes[order[: options.n]], planes[order[: PATCHED * options.n]]
    finding = manifest.findings[0]
    target = target_of(model, manifest, finding)
    judge = partial(_judged, run=run, manifest=manifest, check=check)
    table.append((f"Attacks on {finding.name}: the answer crosses 0", _attacks(target, attacked, patched, judge)))
    decided = target_of(model, manifest, finding, _limits(package, load_policy(MODELS / "policy.yaml", package)))
    table.append(("Attacks on the decision: act to clear, or clear to act", _on_decision(decided, attacked, judge)))
    sent = [read_image(folder / test[i].file) for i in order[: min(THROUGH_DICOM, options.n)]]
    table.append(("Attacks on the 12-bit pixels of a DX object", _through_dicom(target, sent, manifest, judge)))
    known = attacked[: min(ADAPTIVE, options.n)]
    table.append(("Attackers who know the check", _adaptive(target, known, check, judge)))
    asked = attacked[: min(BLIND, options.n)]
    table.append(("Attackers without gradients, by asking the model", _blind(target, asked, finding.name, judge)))
    if options.surrogate is not None:
        other = target_of(options.surrogate, manifest, finding)
        table.append(("Attacks made on another network", _transferred(target, other, attacked, judge)))
    noted = [row for _, group in table for row in group]
    third = SHARED / "models" / THIRD_PARTY
    if third.is_file():
        table.append(("A third-party model of adults, asked blindly", _third_party(third, SHARED / "data" / "nih")))
    _print(table, check, time.perf_counter() - started)
    _write(table, noted, check, package, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="the package to attack; by default the one shipped")
    parser.add_argument("--n", type=int, default=ATTACKED, help="images attacked")
    parser.add_argument("--surrogate", type=Path, help="another network's ONNX file, to carry attacks over from")
    parser.add_argument("--notes-out", type=Path, help="YAML file with the attacks for `package build --notes`")
    return parser


def _shipped() -> Path:
    """The latest version that is shipped."""
    folders = [file.parent for file in MODELS.glob("*.*.*/model.yaml")]
    return max(folders, key=lambda folder: [int(part) for part in folder.name.split(".")])


Judge = Callable[[Target, FloatArray, FloatArray, str], Measured]


def _judged(
    target: Target,
    planes: FloatArray,
    attacked: FloatArray,
    what: str,
    *,
    run: Callable[[FloatArray], Outputs],
    manifest: Manifest,
    check: TamperCheck,
) -> Measured:
    """How many of the successful attacks are flagged; all shares are of those."""
    aimed_at = int(np.count_nonzero(target.aim(planes)[0]))
    successful = attacked[target.succeeded(planes, attacked)]
    note = f"{len(successful)} of {aimed_at} attacks succeeded"
    if not len(successful):
        return share(what, np.zeros(0, bool), note)
    return share(what, measure(answers(successful, run, check), manifest, check) > check.threshold, note)


def _benign(
    check: TamperCheck,
    planes: FloatArray,
    patients: NDArray[np.str_],
    run: Callable[[FloatArray], Outputs],
    manifest: Manifest,
) -> list[Measured]:
    flagged = measure(answers(planes, run, check), manifest, check) > check.threshold
    rest = measure_tamper(check, list(planes), run, manifest)[1:]
    noise = np.random.default_rng(SEED).standard_normal(planes.shape) * 4 / 255
    noisy = np.clip(planes + noise, 0, 1).astype(np.float32)
    rough = measure(answers(noisy, run, check), manifest, check) > check.threshold
    return [
        share("untouched images flagged", flagged, f"of {len(set(patients[flagged]))} patients"),
        *rest,
        share("flagged with Gaussian noise of standard deviation 4/255", rough),
    ]


def _attacks(target: Target, planes: FloatArray, patched: FloatArray, judge: Judge) -> list[Measured]:
    kinds: dict[str, list[Measured]] = {"FGSM": [], "PGD": [], "DeepFool": [], "Carlini–Wagner": [], "Patch": []}

    def add(kind: str, originals: FloatArray, attacked: FloatArray, what: str) -> None:
        kinds[kind].append(judge(target, originals, attacked, what))

    for level in EPS:
        eps = level / 255
        add("FGSM", planes, fgsm(target, planes, eps), f"FGSM, eps {level}/255")
        add("PGD", planes, pgd(target, planes, eps, seed=SEED), f"PGD, eps {level}/255")
        stopped = pgd(target, planes, eps, stop=True)
        add("PGD", planes, stopped, f"PGD that stops when it is there, eps {level}/255")
        add("DeepFool", planes, deepfool(target, planes, eps), f"DeepFool, largest change, eps {level}/255")
    add("DeepFool", planes, deepfool(target, planes, 1.0, euclidean=True), "DeepFool, sum of squares")
    add("Carlini–Wagner", planes, carlini_wagner(target, planes), "Carlini–Wagner, sum of squares")
    for side in SIDES:
        attacked = patch(target, patched, side=side, steps=12, rate=0.15)
        add("Patch", patched, attacked, f"Patch of {100 * side:g} % of the side")
    together = [_pooled(f"{kind}, all of the above", rows) for kind, rows in kinds.items() if len(rows) > 1]
    found = [row for rows in kinds.values() for row in rows]
    return [*found, *together, _pooled("All of these attacks together", found)]


def _on_decision(target: Target, planes: FloatArray, judge: Judge) -> list[Measured]:
    found = []
    for level in EPS[1:]:
        eps = level / 255
        found += [
            judge(target, planes, pgd(target, planes, eps, seed=SEED), f"decision, PGD, eps {level}/255"),
            judge(target, planes, deepfool(target, planes, eps), f"decision, DeepFool, eps {level}/255"),
        ]
    return [*found, _pooled("decision, all of these together", found)]


def _through_dicom(target: Target, images: Sequence[Image], manifest: Manifest, judge: Judge) -> list[Measured]:
    """Attack the stored pixels, write the object, decode and resize it as the service does, and judge what arrives."""
    rng = np.random.default_rng(SEED)
    originals = [_stored(wrap_image(image.pixels.astype(np.uint8), rng=rng)) for image in images]
    planes = np.stack([to_plane(image, manifest.input) for image in originals])
    found = []
    for level in EPS[1:]:
        arrived = []
        for image in originals:
            pixels = pgd_before_resizing(target, image, manifest.input, level / 255)
            grey = (pixels - image.value_range[0]) / (image.value_range[1] - image.value_range[0])
            arrived.append(to_plane(_stored(to_dicom(grey.astype(np.float32), rng=rng)), manifest.input))
        found.append(judge(target, planes, np.stack(arrived), f"DICOM, PGD through the resize, eps {level}/255"))
    return [*found, _pooled("DICOM, all of these together", found)]


def _stored(dataset: Any) -> Image:
    """An object as it is read again from a file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return decode(dcmread(file))


def _adaptive(target: Target, planes: FloatArray, check: TamperCheck, judge: Judge) -> list[Measured]:
    return [
        judge(target, planes, adaptive(target, planes, level / 255, check, seed=SEED), f"{KNOWING}, eps {level}/255")
        for level in EPS[1:]
    ]


def _blind(target: Target, planes: FloatArray, finding: str, judge: Judge) -> list[Measured]:
    found = []
    for level in EPS[2:]:
        attacked = blind(target, planes, level / 255, queries=QUERIES, seed=SEED)
        found.append(judge(target, planes, attacked, f"{finding}, squares by {QUERIES} queries, eps {level}/255"))
    return found


def _transferred(target: Target, surrogate: Target, planes: FloatArray, judge: Judge) -> list[Measured]:
    found = []
    for level in EPS[2:]:
        attacked = pgd(surrogate, planes, level / 255, seed=SEED)
        found.append(judge(target, planes, attacked, f"PGD on another network, eps {level}/255"))
    return found


def _third_party(model: Path, data: Path) -> list[Measured]:
    """The same check for a quantised model without gradients: fitted on half of a sample, attacked on the rest."""
    manifest = _third_party_manifest()
    run = runner(model, manifest)
    files = sorted((data / "images").glob("*.jpg"))
    chosen = [files[i] for i in np.random.default_rng(SEED).permutation(len(files))[: 240 + BLIND * 4]]
    planes = np.stack([to_plane(read_image(file), manifest.input) for file in chosen])
    check = fit_tamper(list(planes[:240]), run, manifest)
    rest = planes[240:]
    finding = manifest.findings[0]
    scores = _score(run, manifest)(planes)
    limit = float(np.quantile(scores, 0.5))  # half of the images on either side: rare findings have no other limit
    target = Target(score=_score(run, manifest), gradient=_no_gradient, low=limit, high=limit)
    judge = partial(_judged, run=run, manifest=manifest, check=check)
    return [*measure_tamper(check, list(rest), run, manifest), *_blind(target, rest[:BLIND], finding.name, judge)]


def _score(run: Callable[[FloatArray], Outputs], manifest: Manifest) -> Callable[[FloatArray], NDArray[np.float64]]:
    return lambda planes: calibrate.finding_scores(run(planes), manifest.output, manifest.findings[0])


def _no_gradient(planes: FloatArray) -> tuple[NDArray[np.float64], FloatArray]:
    raise NotImplementedError("this model has no gradient here")


def _third_party_manifest() -> Manifest:
    return Manifest.model_validate(
        {
            "schema": 1,
            "name": "third-party",
            "version": "1.0.0",
            "description": "Fifteen labels on frontal chest radiographs of adults.",
            "licence": "not named by its source",
            "intended_use": {"summary": "Tests only", "modality": ["DX"]},
            "input": {
                "name": "input",
                "rows": 224,
                "columns": 224,
                "presentation": {"kind": "range"},
                "mean": [0.485],
                "sd": [0.229],
            },
            "output": {"scores": "output", "classes": THIRD_PARTY_CLASSES, "kind": "exclusive"},
            "findings": [
                {
                    "name": name.lower(),
                    "code": {"value": name, "scheme": "99TEST", "meaning": name},
                    "positive": [name],
                }
                for name in ("Effusion", "Cardiomegaly", "Emphysema")
            ],
        }
    )


def _limits(package: Package, policy: Policy) -> tuple[float, float]:
    """The log-odds below which the policy clears the first finding, and from which it acts."""
    name = package.manifest.findings[0].name
    fitted, site = package.calibration.findings[name], policy.finding(name)
    scores = np.linspace(-30, 30, 60_001)
    probabilities = calibrate.at_prevalence(calibrate.calibrated(scores, fitted), fitted.prevalence, site.prevalence)
    limits = costs.thresholds(site.costs)
    return (
        float(scores[np.searchsorted(probabilities, limits.clear_below)]),
        float(scores[min(np.searchsorted(probabilities, limits.act_from), len(scores) - 1)]),
    )


def _pooled(what: str, rows: Sequence[Measured]) -> Measured:
    hits = sum(round(row.value * row.n) for row in rows)
    return share(what, np.arange(sum(row.n for row in rows)) < hits)


def _print(table: Sequence[tuple[str, Sequence[Measured]]], check: TamperCheck, seconds: float) -> None:
    print(f"Tamper check fitted on {check.images} images for {check.false_rejection:.1%} of them; test fold below")
    for title, rows in table:
        print(f"\n{title}")
        for row in rows:
            print(f"  {row.what:58s} {row.value:7.1%} ({row.low:.1%}–{row.high:.1%})  n {row.n:4d}  {row.note}")
    print(f"\n{seconds:.0f} s")


def _write(
    table: Sequence[tuple[str, Sequence[Measured]]],
    noted: Sequence[Measured],
    check: TamperCheck,
    package: Package,
    options: argparse.Namespace,
) -> None:
    result = {
        "package": {"name": package.manifest.name, "version": package.manifest.version, "digest": package.digest},
        "fitted_on": check.images,
        "false_rejection": check.false_rejection,
        "tables": {title: [row.model_dump() for row in rows] for title, rows in table},
    }
    print(json.dumps(result, ensure_ascii=False))
    if options.notes_out is not None:
        text = yaml.safe_dump(
            {"tamper_attacks": [row.model_dump() for row in noted]}, sort_keys=False, allow_unicode=True, width=120
        )
        options.notes_out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
