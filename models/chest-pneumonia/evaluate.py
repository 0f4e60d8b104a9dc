"""The card's figures, measured on the test fold, which nothing was chosen or fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from figures import SAMPLES, Floats, Labels, auroc, calibration_error, estimate, weights_at
from folds import CLASSES, Row, label_index, read_image
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from stepwedge.decision.calibrate import at_prevalence, calibrated, finding_scores
from stepwedge.decision.costs import thresholds
from stepwedge.inference.preprocess import to_tensor
from stepwedge.package.card import Check, CostFigures, DataSource, Evaluation, FindingFigures, Fold, Strategy
from stepwedge.pipeline import Equipment
from stepwedge.policy import FindingPolicy
from stepwedge.records import FloatArray, Thresholds
from stepwedge.seams import Engine

_USES = {
    "train": "weights; simulated patients",
    "calibrate": "calibration; baseline",
    "gate": "baseline",
    "test": "every figure below",
}
_RESAMPLED_SIDE = 224  # two thirds of the published images reached the data set at 224 × 224, their size lost
_FRAME = 0.02
_SOURCE = DataSource(
    name="Chest radiographs of Guangzhou Women and Children's Medical Center, published training part, in a copy of "
    "4,416 images resampled to a short side of 256 pixels",
    licence="CC BY 4.0",
    citation="Kermany DS, Goldbaum M, Cai W, et al. Identifying Medical Diagnoses and Treatable Diseases by "
    "Image-Based Deep Learning. Cell 2018; 172(5):1122–1131. doi:10.1016/j.cell.2018.02.010",
    population="Frontal radiographs of children aged one to five, graded by two physicians and checked by a third.",
)


def evaluation(
    data: Path, folds: Mapping[str, Sequence[Row]], logits: NDArray[np.float32], engine: Engine, equipment: Equipment
) -> Evaluation:
    """Every figure of the card. ``logits`` are those of the test fold, (n, classes)."""
    rows = folds["test"]
    truth = label_index(rows) > 0
    manifest = equipment.package.manifest
    pneumonia = manifest.findings[0]
    score = finding_scores(logits, manifest.output, pneumonia)
    framed = _scores_of(data, rows, _with_frame, engine, equipment)
    return Evaluation(
        data=_SOURCE,
        folds={name: _fold(name, folds[name]) for name in _USES},
        bootstrap_samples=SAMPLES,
        selection="The number of epochs was fixed beforehand. Inputs of 128 and 160 pixels were compared on the "
        "calibrate fold, and 128 kept. A first "
        "network moved its answers towards pneumonia where an image had a thin dark frame; that was seen on images of "
        "the test fold among others, and random frames were added to the training. Nothing else was chosen, and "
        "nothing fitted, on the test fold.",
        findings=_findings(rows, logits, equipment),
        costs=[
            _costs(rows, truth, score, equipment, "as they are"),
            _costs(rows, truth, framed, equipment, f"with a dark frame of {_FRAME:.0%} of the short side"),
        ],
        confounders=_confounders(data, folds, truth, score, engine, equipment),
        confounder_notes=[
            "The original size goes with the label, because well and ill children came from different sources of the "
            "data set. The model cannot see it: every image is resampled to 128 × 128 pixels. The aspect ratio could "
            "show as a distortion; training therefore stretched images at random (standard deviation 12 %), and the "
            "rows above measure what is left of it.",
            "Wide images are almost all of ill children: among images of known size, size alone tells most of them. "
            "The comparison that leaves least to it is the last row, where every image is first cropped to a square.",
            "About two thirds of the images reached the data set squeezed to 224 × 224 pixels: their original size is "
            "lost, the distortion is not. Sharpness and exposure may differ between the sources in ways that these "
            "checks do not see.",
        ],
        subgroups=[
            "The data set names neither sex nor age nor scanner: **no figure exists for any subgroup**, and fairness "
            "cannot be judged from it.",
            "The patients are of one hospital in China, all from one to below six years old. Adults and infants "
            "are outside the intended use.",
        ],
        limits=[
            "Trained and tested on one hospital's images: expect worse elsewhere. Figures on other populations are not "
            "part of this card.",
            "Well and ill children were collected in different ways; the figures flatter any model of this data set.",
            "Bacterial or viral is a radiologist's grade, not a culture. That finding is weak and is mostly deferred "
            "or wrong at the margin: read its interval.",
            "Pneumonia is the only disease it knows; anything else that shades a lung may read as pneumonia.",
            "The images were JPEG pictures; pixel statistics in the baseline are those of 8-bit pictures with a short "
            "side of 256 pixels. A site's monitor needs a baseline of the site's own.",
            "It demonstrates the software. It is not for clinical use.",
        ],
    )


def _fold(name: str, rows: Sequence[Row]) -> Fold:
    counts = {label: sum(row.label == label for row in rows) for label in CLASSES}
    return Fold(use=_USES[name], patients=len({row.patient for row in rows}), images=counts)


def _findings(rows: Sequence[Row], logits: NDArray[np.float32], equipment: Equipment) -> dict[str, FindingFigures]:
    manifest = equipment.package.manifest
    figures = {}
    for finding in manifest.findings:
        chosen = [i for i, row in enumerate(rows) if row.label in (finding.among or CLASSES)]
        patients = [rows[i].patient for i in chosen]
        truth = np.array([rows[i].label in finding.positive for i in chosen])
        score = finding_scores(logits[chosen], manifest.output, finding)
        before = 1 / (1 + np.exp(-score))
        after = calibrated(score, equipment.package.calibration.findings[finding.name])
        figures[finding.name] = FindingFigures(
            fold="test",
            positives=int(truth.sum()),
            negatives=int((~truth).sum()),
            auroc=estimate(patients, _of(auroc, truth, score)),
            calibration_error_before=estimate(patients, _of(calibration_error, truth, before)),
            calibration_error_after=estimate(patients, _of(calibration_error, truth, after)),
        )
    return figures


def _of(
    figure: Callable[[Labels, Floats], float], truth: Labels, values: Floats
) -> Callable[[NDArray[np.intp]], float]:
    return lambda index: figure(truth[index], values[index])


# --- What deciding costs ------------------------------------------------------------------------------------------


def _costs(rows: Sequence[Row], truth: Labels, score: Floats, equipment: Equipment, condition: str) -> CostFigures:
    """Ways of deciding on pneumonia at the policy's prevalence. ``score`` is its log-odds, uncalibrated."""
    policy = equipment.policy
    assert policy is not None
    site = policy.file.findings["pneumonia"]
    fitted = equipment.package.calibration.findings["pneumonia"]
    probability = calibrated(score, fitted)
    corrected = at_prevalence(probability, fitted.prevalence, site.prevalence)
    limits = thresholds(site.costs)
    indifferent = site.false_alarm / (site.false_alarm + site.miss)
    patients = [row.patient for row in rows]
    ways: list[tuple[str, Floats, Thresholds]] = [
        ("**this package: calibrated, prevalence corrected, least cost with deferral**", corrected, limits),
        ("the same without deferral", corrected, _at(indifferent)),
        ("0.5 on the probability at the data's prevalence", probability, _at(0.5)),
        ("0.5 on the prevalence-corrected probability", corrected, _at(0.5)),
        ("cost-weighted threshold at the data's prevalence", probability, _at(indifferent)),
        ("everyone left to a person", np.full(len(truth), 0.5), Thresholds(clear_below=0.0, act_from=1.0)),
    ]
    return CostFigures(
        finding="pneumonia",
        fold="test",
        condition=condition,
        prevalence=site.prevalence,
        miss=site.miss,
        false_alarm=site.false_alarm,
        deferral=site.deferral,
        strategies=[_strategy(name, patients, truth, p, t, site) for name, p, t in ways],
    )


def _at(threshold: float) -> Thresholds:
    return Thresholds(clear_below=threshold, act_from=threshold)


def _strategy(
    name: str, patients: Sequence[str], truth: Labels, probability: Floats, limits: Thresholds, site: FindingPolicy
) -> Strategy:
    acted, cleared = probability >= limits.act_from, probability < limits.clear_below
    deferred = ~acted & ~cleared
    each = np.where(deferred, site.deferral, np.where(acted & ~truth, site.false_alarm, 0.0))
    each = each + np.where(cleared & truth, site.miss, 0.0)

    def weighted(values: Floats) -> Callable[[NDArray[np.intp]], float]:
        return lambda index: float((weights_at(truth[index], site.prevalence) * values[index]).sum())

    def among_ill(values: Labels) -> Callable[[NDArray[np.intp]], float]:
        return lambda index: float(values[index][truth[index]].mean())

    return Strategy(
        name=name,
        cost=estimate(patients, weighted(each)),
        deferred=estimate(patients, weighted(deferred.astype(np.float64))),
        sensitivity=estimate(patients, among_ill(acted)),
        cleared_ill=estimate(patients, among_ill(cleared)),
    )


# --- Confounders --------------------------------------------------------------------------------------------------


def _confounders(
    data: Path,
    folds: Mapping[str, Sequence[Row]],
    truth: Labels,
    score: Floats,
    engine: Engine,
    equipment: Equipment,
) -> list[Check]:
    rows = folds["test"]
    known = np.array([_size_known(row) for row in rows])
    aspect = np.array([row.original_columns / row.original_rows for row in rows])
    everywhere = np.ones(len(rows), bool)
    checks = [
        _check("original size alone (boosted trees, train fold)", rows, everywhere, truth, _size_alone(folds, False)),
        _check("the same, images of known size", rows, known, truth, _size_alone(folds, False)),
        _check("aspect ratio alone, images of known size", rows, known, truth, _size_alone(folds, True)),
        _check("the model, images of known size", rows, known, truth, score),
        _check("the model, images of unknown size (224 × 224)", rows, ~known, truth, score),
    ]
    # Wider images are all of ill children: there is nobody to tell them from.
    edges = np.quantile(aspect[known & ~truth], [0.0, 0.5, 1.0])
    for low, high in pairwise(edges):
        inside = known & (aspect >= low) & (aspect <= high)
        checks.append(
            _check(f"the model, known size, aspect ratio {low:.2f} to {high:.2f}", rows, inside, truth, score)
        )
    checks.append(
        _check(
            "the model, known size, cropped to one aspect (square)",
            rows,
            known,
            truth,
            _scores_of(data, rows, _central_square, engine, equipment),
        )
    )
    return checks


def _check(question: str, rows: Sequence[Row], chosen: Labels, truth: Labels, score: Floats) -> Check:
    index = np.flatnonzero(chosen)
    patients = [rows[i].patient for i in index]
    return Check(
        question=question,
        fold="test",
        images=len(index),
        auroc=estimate(patients, _of(auroc, truth[index], score[index])),
    )


def _size_known(row: Row) -> bool:
    return not row.original_rows == row.original_columns == _RESAMPLED_SIDE


def _size_alone(folds: Mapping[str, Sequence[Row]], aspect_only: bool) -> Floats:
    """Scores of the test fold by what a classifier makes of the size alone; nothing else is shown to it."""

    def features(rows: Sequence[Row]) -> Floats:
        size = np.array([[row.original_rows, row.original_columns] for row in rows], np.float64)
        return size[:, 1:] / size[:, :1] if aspect_only else size

    shown = [row for row in folds["train"] if _size_known(row) or not aspect_only]
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=0)
    model.fit(features(shown), label_index(shown) > 0)
    return np.asarray(model.decision_function(features(folds["test"])), np.float64)


def _scores_of(
    data: Path, rows: Sequence[Row], change: Callable[[FloatArray], FloatArray], engine: Engine, equipment: Equipment
) -> Floats:
    """The model's log-odds of pneumonia for images after a change to their pixels, (n,)."""
    manifest = equipment.package.manifest
    inputs = []
    for row in rows:
        image = read_image(data / "images" / row.file)
        inputs.append(to_tensor(replace(image, pixels=change(image.pixels)), manifest.input))
    outputs, _ = engine.run({manifest.input.name: np.concatenate(inputs)})
    return finding_scores(outputs[manifest.output.scores], manifest.output, manifest.findings[0])


def _central_square(pixels: FloatArray) -> FloatArray:
    side = min(pixels.shape)
    top, left = ((length - side) // 2 for length in pixels.shape)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _with_frame(pixels: FloatArray) -> FloatArray:
    """As collimation leaves it: a dark edge on all sides."""
    width = round(_FRAME * min(pixels.shape))
    framed = np.full_like(pixels, pixels.min())
    framed[width:-width, width:-width] = pixels[width:-width, width:-width]
    return framed
