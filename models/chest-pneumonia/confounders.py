"""The confounder figures of ``notes.yaml``: what the size of an image tells, and whether the model lives on it.

``python models/chest-pneumonia/confounders.py [--data FOLDER] [--package FOLDER] [--write]`` measures them on the test
fold in a minute, sets them beside those in the notes, and with ``--write`` puts them there. AUROC of pneumonia, with
intervals of 95 % by bootstrap over patients. What needs fitting is fitted on the train fold.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml
from folds import Row, label_index, read_image, read_rows
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from stepwedge.decision.calibrate import finding_scores
from stepwedge.inference.engine import OnnxEngine
from stepwedge.inference.preprocess import to_tensor
from stepwedge.manifest import Package, load_package
from stepwedge.package.figures import Check, Estimate
from stepwedge.package.statistics import Floats, Labels, auroc, bootstrap, estimate
from stepwedge.records import FloatArray, Image

HERE = Path(__file__).parent
NOTES = HERE / "notes.yaml"
SHARED = Path(os.environ.get("STEPWEDGE_SHARED", HERE.parents[1].parent / "shared"))

# Two thirds of the images were squeezed to a square of this side before the data set got them: the true size is lost.
_RESAMPLED_SIDE = 224
_BATCH = 64
_DIGITS = 4
# Small trees: the two numbers of a size hold nothing finer.
_TREES = {"max_iter": 60, "max_leaf_nodes": 8, "random_state": 0}

Change = Callable[[FloatArray], FloatArray]  # of the pixels


def main() -> None:
    """Measure, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "pneumonia")
    parser.add_argument("--package", type=Path, default=max(HERE.glob("[0-9]*.[0-9]*.[0-9]*"), key=_version))
    parser.add_argument("--write", action="store_true", help="put the figures into notes.yaml")
    given = parser.parse_args()
    if not (given.data / "labels.csv").is_file():
        raise SystemExit(f"The radiographs are not at {given.data}; --data names another place.")
    found = measured(given.data, load_package(given.package))
    noted = {check["question"]: check for check in yaml.safe_load(NOTES.read_text(encoding="utf-8"))["confounders"]}
    for check in found:
        known = noted.pop(check.question, None)
        said = Estimate(**known["value"]) if known else "nothing"
        print(f"{check.question:62s} n {check.images:4d}  {check.value}  notes: {said}")
    for question in noted:
        print(f"{question}: in the notes, and no longer measured", file=sys.stderr)
    if given.write:
        write(found)


def measured(data: Path, package: Package) -> list[Check]:
    """Every check, on the test fold."""
    rows = read_rows(data)
    train, test = ([row for row in rows if row.fold == fold] for fold in ("train", "test"))
    truth = label_index(test) > 0
    known = np.array([_size_known(row) for row in test])
    aspect = np.array([row.original_columns / row.original_rows for row in test])
    by_size, score = _by_size(train, test), _scores(data, test, package)
    checks = [
        _check("original size alone (boosted trees, train fold)", test, np.ones(len(test), bool), by_size),
        _check("the same, images of known size", test, known, by_size),
        _check("aspect ratio alone, images of known size", test, known, _by_aspect(train, test)),
        _check("the model, images of known size", test, known, score),
        _check("the model, images of unknown size (224 × 224)", test, ~known, score),
    ]
    # Wider images are all of ill children: there is nobody to tell them from.
    for low, high in pairwise(np.quantile(aspect[known & ~truth], [0.0, 0.5, 1.0])):
        inside = known & (aspect >= low) & (aspect <= high)
        checks.append(_check(f"the model, known size, aspect ratio {low:.2f} to {high:.2f}", test, inside, score))
    square = _scores(data, test, package, _central_square)
    return [*checks, _check("the model, known size, cropped to one aspect (square)", test, known, square)]


def write(checks: Sequence[Check]) -> None:
    """Put the figures into the notes, and leave every other line as it is."""
    lines = NOTES.read_text(encoding="utf-8").splitlines(keepends=True)
    start = lines.index("confounders:\n")
    end = next(i for i in range(start + 1, len(lines)) if lines[i][0] not in " -")
    dumped = yaml.safe_dump(
        [check.model_dump(exclude_defaults=True) for check in checks], sort_keys=False, allow_unicode=True
    )
    NOTES.write_text("".join([*lines[: start + 1], dumped, *lines[end:]]), encoding="utf-8")


def _check(question: str, rows: Sequence[Row], chosen: Labels, score: Floats) -> Check:
    index = np.flatnonzero(chosen)
    truth, own = label_index([rows[i] for i in index]) > 0, score[index]
    found = estimate(bootstrap([rows[i].patient for i in index]), lambda weights: auroc(truth, own, weights))
    if found is None:
        raise SystemExit(f"{question}: too few images of one kind to draw the patients again")
    rounded = Estimate(**{name: round(value, _DIGITS) for name, value in found.model_dump().items()})
    return Check(question=question, fold="test", images=len(index), value=rounded)


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split("."))


def _size_known(row: Row) -> bool:
    return not row.original_rows == row.original_columns == _RESAMPLED_SIDE


def _by_size(train: Sequence[Row], test: Sequence[Row]) -> Floats:
    """Scores of the test fold by a classifier that is shown the original size and nothing else."""
    return _boosted(train, test, lambda row: [row.original_rows, row.original_columns])


def _by_aspect(train: Sequence[Row], test: Sequence[Row]) -> Floats:
    """The same for the aspect ratio, learnt from images whose size is known."""
    known = [row for row in train if _size_known(row)]
    return _boosted(known, test, lambda row: [row.original_columns / row.original_rows])


def _boosted(train: Sequence[Row], test: Sequence[Row], features: Callable[[Row], Sequence[float]]) -> Floats:
    model = HistGradientBoostingClassifier(**_TREES)
    model.fit(np.array([features(row) for row in train], np.float64), label_index(train) > 0)
    return np.asarray(model.decision_function(np.array([features(row) for row in test], np.float64)), np.float64)


def _scores(data: Path, rows: Sequence[Row], package: Package, change: Change | None = None) -> Floats:
    """The model's log-odds of pneumonia, (n,), after a change to the pixels."""
    manifest, engine = package.manifest, OnnxEngine(package, "cpu", 1)
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(rows), _BATCH):
        images = [_changed(read_image(data / "images" / row.file), change) for row in rows[start : start + _BATCH]]
        inputs: Mapping[str, FloatArray] = {
            manifest.input.name: np.concatenate([to_tensor(image, manifest.input) for image in images])
        }
        parts.append(engine.run(inputs)[0][manifest.output.scores])
    return finding_scores(np.concatenate(parts), manifest.output, manifest.findings[0])


def _changed(image: Image, change: Change | None) -> Image:
    return replace(image, pixels=change(image.pixels)) if change else image


def _central_square(pixels: FloatArray) -> FloatArray:
    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


if __name__ == "__main__":
    main()
