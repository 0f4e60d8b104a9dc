"""Fit the content gate on images that a model is accepted on, and measure it.

The gate learns from changed copies of these images (``corruptions``) and from drawings of other things (``foreign``);
it needs no other images. Its limits come from cross-fitting: the images are split by patient, what judges an image was
fitted without that patient, and the limit is the quantile that a new image of the same kind exceeds at no more than
the declared rate (split conformal; Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; taken over
folds). All that rejects shares one limit, so that the declared rate is that of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from stepwedge.errors import PackageError
from stepwedge.gate.appearance import FEATURES, LAYOUT, describe
from stepwedge.gate.content import (
    DISTANCES,
    HEADS,
    ContentGate,
    bounded,
    distances,
    excesses,
    raw_distances,
    standardised,
)
from stepwedge.gate.validity import pixel_statistics
from stepwedge.package import corruptions, foreign
from stepwedge.records import FloatArray, Image

# Below this the 1 % quantile with the finite-sample correction is beyond the largest of the images.
LEAST_IMAGES = 100
FALSE_DEFERRAL = 0.01  # declared rate of deferrals for another population

_FOLDS = 5
_COMPONENTS = {"thumb": 20, "coarse_edges": 40}
_CHANGED_IMAGES = 600  # at most so many images are changed; more would take time and add little
_WORKING_SIDE = 320  # pixels of the shorter side of changed copies: beyond what is looked at
_LEAST_FOREIGN = 600  # drawings
_COPIES = {"rotated": 2, "cropped": 5, "blurred": 2, "written_across": 2, "other": 3, "grey_scale": 2, "saturated": 2}
_ORDINARY = 3  # ordinary variants of an image, which are accepted; flipped ones count for the head that sees flips
_STRENGTH = 1e-2  # inverse of the penalty on weights, in scikit-learn's sense
_NAMING_STRENGTH = 0.1
_SMALLEST_SD = 1e-3
_CLEAN_TAIL = 0.994  # quantile of the accepted images' scores from which a head's limit is measured
_CHANGED_TAIL = 0.01  # quantile of the changed images' scores that it should lie below
_BETWEEN = 0.5  # where between the two

# The groups of numbers that a head looks at; all but the grey scale where it is not named.
_LOOK = ("thumb", "fine_edges", "coarse_edges", "cells", "whole")
_EMPHASIS: Mapping[str, float] = {"cropped": 8.0, "written_across": 4.0}  # on the few numbers of the whole image
_LOOKS: Mapping[str, tuple[str, ...]] = {"blurred": ("cells", "whole"), "grey_scale": ("whole", "grey")}


@dataclass(frozen=True, kw_only=True)
class _Material:
    """Features of the images and of what was made of them, with the patient that each comes from."""

    clean: FloatArray  # (images, FEATURES)
    clean_groups: NDArray[np.int64]
    ordinary: FloatArray
    ordinary_groups: NDArray[np.int64]
    changed: Mapping[str, FloatArray]  # by head
    changed_groups: Mapping[str, NDArray[np.int64]]  # -1: of no patient


def fit_content(
    images: Iterable[Image],
    patients: Sequence[str],
    *,
    false_rejection: float = 0.01,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ContentGate:
    """Fit the content gate.

    Parameters
    ----------
    images
        What the model is accepted on, in the order of ``patients``; gone through once.
    patients
        Whose each image is: no patient is judged by what was fitted on them.
    false_rejection
        Declared share of such images that the gate may reject.
    progress
        Called with how many images are done, and of how many.

    Raises
    ------
    PackageError
        If there are fewer than LEAST_IMAGES images, or fewer than the rate needs.
    """
    if not 0 < false_rejection < 0.5:
        raise PackageError(f"a false rejection rate of {false_rejection:g} cannot be fitted; give one like 0.01")
    least = max(LEAST_IMAGES, math.ceil(1 / min(false_rejection, FALSE_DEFERRAL)))
    if len(patients) < least:
        raise PackageError(
            f"the content gate needs at least {least} images for a false rejection rate of {false_rejection:g}, "
            f"and there are {len(patients)}; give it more images, or build without a gate"
        )
    return _calibrated(_material(images, patients, seed, progress), false_rejection)


def _calibrated(material: _Material, false_rejection: float) -> ContentGate:
    """Heads, components and limits from the features."""
    folds = _folds(material.clean_groups)
    count = len(material.clean)
    heads = np.empty((count, len(HEADS)), np.float32)
    parts = [_fitted(material, np.flatnonzero(folds != fold), folds, fold) for fold in range(_FOLDS)]
    raw = np.empty((count, len(DISTANCES), 2), np.float32)
    for fold, part in enumerate(parts):
        held = folds == fold
        standard = standardised(material.clean[held], part.mean, part.sd)
        heads[held] = excesses(standard, part)
        raw[held] = raw_distances(standard, part.components, part.variances)
    changed = _changed_scores(material, parts, folds)
    limits, units = _limits(heads, changed)
    naming, naming_bias = _naming({name: (scores - limits) / units for name, scores in changed.items()})
    centres, spreads = raw.mean(axis=0), np.maximum(raw.std(axis=0), _SMALLEST_SD)
    scaled = ((raw - centres) / spreads).max(axis=(1, 2))
    whole = replace(
        _fitted(material, np.arange(count), folds, -1),
        limits=limits,
        units=units,
        naming=naming,
        naming_bias=naming_bias,
        centres=centres,
        spreads=spreads,
    )
    far_above = float(np.median(distances(_standard(material.changed["other"], whole), whole)))
    beyond = np.maximum(((heads - limits) / units).max(axis=1), scaled - far_above)
    return replace(
        whole,
        far_above=far_above,
        reject_above=_quantile(beyond, false_rejection),
        defer_above=_quantile(scaled, FALSE_DEFERRAL),
        false_rejection=false_rejection,
    )


def _quantile(values: FloatArray, rate: float) -> float:
    """What a new value exceeds with a probability of at most ``rate``, with the finite-sample correction."""
    ordered = np.sort(values)
    return float(ordered[min(math.ceil((len(ordered) + 1) * (1 - rate)), len(ordered)) - 1])


def _folds(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold of each image. Patients stay together, unless they are too few: then neighbours in the list do."""
    if len(np.unique(groups)) < 2 * _FOLDS:
        return np.arange(len(groups)) * _FOLDS // len(groups)
    return groups % _FOLDS


def _limits(clean: FloatArray, changed: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Where each head's limit lies, and its unit, in units of its score.

    Midway between the accepted images and the changed ones where they lie apart, so that neither another hospital's
    images nor a weaker change are judged by a hair; at the edge of the accepted ones otherwise.
    """
    limits, units = [], []
    for index, name in enumerate(HEADS):
        tail = float(np.quantile(clean[:, index], _CLEAN_TAIL))
        gap = max(float(np.quantile(changed[name][:, index], _CHANGED_TAIL)) - tail, 0.0)
        limits.append(tail + _BETWEEN * gap)
        units.append(max(float(clean[:, index].std()), _BETWEEN * gap, _SMALLEST_SD))
    return np.array(limits, np.float32), np.array(units, np.float32)


def _changed_scores(
    material: _Material, parts: Sequence[ContentGate], folds: NDArray[np.int64]
) -> dict[str, FloatArray]:
    """What the heads say, out of fold, of the images that each one is for: by head, (images, heads)."""
    scores = {}
    for name in HEADS:
        fold_of = _fold_of(material.changed_groups[name], material.clean_groups, folds)
        found = [
            excesses(_standard(material.changed[name][fold_of == fold], part), part) for fold, part in enumerate(parts)
        ]
        scores[name] = np.concatenate(found)
    return scores


def _naming(beyond: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """From all heads' excesses to what most likely was done, every head's change being equally likely beforehand."""
    truth = np.repeat(np.arange(len(HEADS)), [len(beyond[name]) for name in HEADS])
    seen = bounded(np.concatenate([beyond[name] for name in HEADS]))
    model = LogisticRegression(C=_NAMING_STRENGTH, class_weight="balanced", max_iter=1000).fit(seen, truth)
    return model.coef_.astype(np.float32), model.intercept_.astype(np.float32)


def _fold_of(groups: NDArray[np.int64], clean_groups: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The fold of made images: that of the image they come from, drawings in turn."""
    first = np.full(int(clean_groups.max()) + 2, -1, np.int64)
    first[clean_groups] = folds
    found = first[groups]
    loose = groups < 0
    found[loose] = np.arange(loose.sum()) % _FOLDS
    return found


# --- The features -------------------------------------------------------------------------------------------------


def _material(
    images: Iterable[Image], patients: Sequence[str], seed: int, progress: Callable[[int, int], None] | None
) -> _Material:
    rng = np.random.default_rng(seed)
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    groups = np.array([numbers[patient] for patient in patients])
    stride = max(1, math.ceil(len(patients) / _CHANGED_IMAGES))
    clean: list[FloatArray] = []
    ordinary: list[tuple[int, FloatArray]] = []
    changed: dict[str, list[tuple[int, FloatArray]]] = {name: [] for name in HEADS}
    for index, image in enumerate(images):
        clean.append(look(image))
        group = int(groups[index])
        if index % stride == 0:
            plane, restored = working_copy(image)
            for _ in range(_ORDINARY):
                variant = corruptions.ordinary(plane, rng)
                ordinary.append((group, look(restored(variant))))
                changed["flipped"].append((group, look(restored(corruptions.flipped(variant, rng)))))
            changed["flipped"].append((group, look(restored(corruptions.flipped(plane, rng)))))
            for name, changes in corruptions.CHANGES.items():
                for copy in range(0 if name == "flipped" else _COPIES.get(name, 1)):
                    change = changes[
                        copy % len(changes) if len(changes) <= _COPIES.get(name, 1) else rng.integers(len(changes))
                    ]
                    changed[name].append((group, look(restored(change(plane, rng)))))
        if progress is not None:
            progress(index + 1, len(patients))
    if len(clean) != len(patients):
        raise PackageError(f"{len(clean)} images came for {len(patients)} patients; give one patient for each image")
    for _ in range(max(_LEAST_FOREIGN, 2 * min(len(clean), _CHANGED_IMAGES))):
        changed["other"].append((-1, look(Image(pixels=foreign.draw(rng), value_range=(0.0, 1.0)))))
    return _Material(
        clean=np.stack(clean),
        clean_groups=groups,
        ordinary=np.stack([features for _, features in ordinary]),
        ordinary_groups=np.array([group for group, _ in ordinary]),
        changed={name: np.stack([features for _, features in found]) for name, found in changed.items()},
        changed_groups={name: np.array([group for group, _ in found]) for name, found in changed.items()},
    )


def look(image: Image) -> FloatArray:
    """The features of an image, (FEATURES,)."""
    return describe(image, pixel_statistics(image))


def working_copy(image: Image) -> tuple[FloatArray, Callable[[FloatArray], Image]]:
    """An image on 0…1 of the values present and no larger than needed, and what puts a changed one back."""
    pixels, shrink = image.pixels, _WORKING_SIDE / min(image.pixels.shape)
    low, high = float(pixels.min()), float(pixels.max())
    extent = max(high - low, float(np.finfo(np.float32).tiny))
    plane = np.asarray((pixels - np.float32(low)) / np.float32(extent), np.float32)
    if shrink < 1:
        plane = corruptions.resized(plane, *(max(1, round(side * shrink)) for side in pixels.shape))

    def restored(changed: FloatArray) -> Image:
        values = np.ascontiguousarray(changed * np.float32(extent) + np.float32(low), np.float32)
        return replace(image, pixels=values)

    return plane, restored


# --- One fit ------------------------------------------------------------------------------------------------------


def _fitted(material: _Material, kept: NDArray[np.int64], folds: NDArray[np.int64], left_out: int) -> ContentGate:
    """Heads and components from all but one fold; scores are left as they are (limits 0, units 1)."""

    def without(features: FloatArray, groups: NDArray[np.int64]) -> FloatArray:
        kept_rows: FloatArray = features[_fold_of(groups, material.clean_groups, folds) != left_out]
        return kept_rows

    accepted = np.concatenate([material.clean[kept], without(material.ordinary, material.ordinary_groups)])
    mean = accepted.mean(axis=0)
    sd = np.maximum(accepted.std(axis=0), _SMALLEST_SD) + np.float32(_SMALLEST_SD)
    standard = standardised(accepted, mean, sd)
    weights, bias = np.zeros((len(HEADS), FEATURES), np.float32), np.zeros(len(HEADS), np.float32)
    for index, name in enumerate(HEADS):
        changed = standardised(without(material.changed[name], material.changed_groups[name]), mean, sd)
        columns = np.concatenate([np.arange(FEATURES)[LAYOUT[group]] for group in _LOOKS.get(name, _LOOK)])
        emphasis = np.ones(FEATURES, np.float32)
        emphasis[LAYOUT["whole"]] = _EMPHASIS.get(name, 1.0)
        model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=300)
        truth = np.repeat([0, 1], [len(standard), len(changed)])
        model.fit((np.concatenate([standard, changed]) * emphasis)[:, columns], truth)
        weights[index, columns], bias[index] = model.coef_[0] * emphasis[columns], model.intercept_[0]
    components, variances = {}, {}
    own = standardised(material.clean[kept], mean, sd)
    for group in DISTANCES:
        values = own[:, LAYOUT[group]]
        count = min(_COMPONENTS[group], len(values) // 4)
        found = PCA(count, svd_solver="randomized", random_state=0).fit(values)
        components[group] = found.components_.astype(np.float16).astype(np.float32)
        variances[group] = np.maximum(found.explained_variance_, _SMALLEST_SD).astype(np.float32)
    return ContentGate(
        mean=mean,
        sd=sd,
        weights=weights.astype(np.float16).astype(np.float32),
        bias=bias,
        limits=np.zeros(len(HEADS), np.float32),
        units=np.ones(len(HEADS), np.float32),
        naming=np.eye(len(HEADS), dtype=np.float32),
        naming_bias=np.zeros(len(HEADS), np.float32),
        components=components,
        variances=variances,
        centres=np.zeros((len(DISTANCES), 2), np.float32),
        spreads=np.ones((len(DISTANCES), 2), np.float32),
        reject_above=0.0,
        defer_above=0.0,
        far_above=0.0,
        false_rejection=0.0,
        false_deferral=FALSE_DEFERRAL,
        images=len(material.clean),
        patients=len(np.unique(material.clean_groups)),
    )


def _standard(features: FloatArray, part: ContentGate) -> FloatArray:
    return standardised(features, part.mean, part.sd)
