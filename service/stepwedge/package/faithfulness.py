"""Whether a heat map marks what the answer rests on: deletion and insertion (Petsiuk et al., BMVC 2018).

The image is cut into cells. In the deletion game they are replaced one after the other, the hottest first; a map that
marks what the answer rests on brings the probability down early. In the insertion game they are put, in that order,
into what they were replaced with, and it brings the probability up early. The figure is the area under the
probability, 0…1, over the share of cells.

Cells are replaced with those of an image without the finding. Grey, the usual choice, is no absence of a finding that
is an opacity: the pneumonia model that this was tried on answers to a plain grey image as it does to pneumonia, and
nothing is then measured.

Orders to compare with: by chance; by the heat map of another patient's image, which marks where such findings usually
lie but knows nothing of this image; and by an occlusion map of this image, which costs many forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stepwedge import explain
from stepwedge.manifest import FindingSpec, Manifest
from stepwedge.package.figures import FaithfulnessFigures, Measured
from stepwedge.package.statistics import Bootstrap, bootstrap, estimate, mean
from stepwedge.records import FloatArray

MOST_IMAGES = 40  # of the fold: with 2 × 26 forward passes for each of 6 orders, half a minute on one core
_CELLS = 10  # along each side: cells of a tenth of the image
_STEPS = 25  # of 4 cells each
_RANDOM_ORDERS = 3  # for each image; their mean counts
_BATCH = 52  # covered images at a time

Planes = Callable[[FloatArray], Mapping[str, NDArray[np.float32]]]
"""Runs planes (m, rows, columns), on 0…1 as the model is shown them before normalisation: the outputs by name."""
_Order = NDArray[np.intp]  # (cells,), the order in which cells are exchanged


def faithfulness(
    planes: FloatArray,
    run: Planes,
    manifest: Manifest,
    finding: str,
    *,
    patients: Sequence[str],
    fold: str,
    without: FloatArray | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FaithfulnessFigures:
    """Measure the heat maps of one finding on images that have it.

    Parameters
    ----------
    planes
        (n, rows, columns), 0…1: images as the model is shown them (``preprocess.to_plane``) that have the finding and
        that the model finds it on. Of more than ``MOST_IMAGES``, so many are drawn by ``seed``.
    run
        The model: outputs by name for planes (m, rows, columns), m up to 257. For a model of several inputs it makes
        all of them of the plane.
    patients
        Of each image; intervals are by patient.
    without
        (m, rows, columns): images without the finding that the model does not find it on, to replace cells with; each
        image takes one by chance. None: the image's mean grey, which says little about findings that are opacities.

    Raises
    ------
    ValueError
        If there are no images, or ``model.yaml`` declares no explanation.
    """
    kind = manifest.explanation.kind
    if kind == "none" or len(planes) == 0:
        raise ValueError("faithfulness needs an explanation in model.yaml and at least one image")
    spec = next(spec for spec in manifest.findings if spec.name == finding)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(planes))[:MOST_IMAGES])
    planes, patients = planes[chosen], [patients[i] for i in chosen]
    if without is None or len(without) == 0:
        others = np.broadcast_to(planes.mean(axis=(1, 2), keepdims=True), planes.shape)
        filled = "the image's mean grey"
    else:
        others = without[rng.integers(len(without), size=len(planes))]
        filled = "those of an image without the finding"
    maps = [_map(plane, run, manifest, spec) for plane in planes]
    areas: dict[str, list[NDArray[np.float64]]] = {}
    for index, plane in enumerate(planes):
        orders = {"heat map": [_order(maps[index], rng)]}
        if kind != "occlusion":
            orders["occlusion map"] = [_order(_occlusion(plane, run, manifest, spec), rng)]
        other = next((i for i in _from(index, len(planes)) if patients[i] != patients[index]), None)
        if other is not None:
            orders["another patient's heat map"] = [_order(maps[other], rng)]
        orders["random"] = [rng.permutation(_CELLS**2) for _ in range(_RANDOM_ORDERS)]
        for name, of_name in orders.items():
            played = [_play(plane, others[index], order, run, manifest, spec) for order in of_name]
            areas.setdefault(name, []).append(np.mean(played, axis=0))
        if progress is not None:
            progress(index + 1, len(planes))
    resampled = bootstrap(patients)
    return FaithfulnessFigures(
        method=kind.replace("_", " "),
        fold=fold,
        rows=_rows({name: np.array(values) for name, values in areas.items()}, resampled),
        notes=[
            f"{finding}: {len(planes)} images with it that the model finds it on, of {len(set(patients))} patients; "
            f"{_CELLS} × {_CELLS} cells in {_STEPS} steps, exchanged with {filled}; the model's own probability."
        ],
    )


def _rows(areas: Mapping[str, NDArray[np.float64]], resampled: Bootstrap) -> list[Measured]:
    """Areas (images, 2), deletion and insertion, by order: each of them, and how much better the heat map is."""
    rows = []
    for game, name, better in ((0, "deletion", "lower"), (1, "insertion", "higher")):
        for order, values in areas.items():
            if len(values) == len(resampled.patient):
                rows.append(_measured(f"{name}, {order}", values[:, game], resampled, f"{better} is better"))
        for order, values in areas.items():
            if order != "heat map" and len(values) == len(resampled.patient):
                gain = (values - areas["heat map"])[:, game] * (1 if game == 0 else -1)
                rows.append(
                    _measured(f"{name}, heat map against {order}", gain, resampled, "above 0: the heat map is better")
                )
    return rows


def _measured(what: str, values: NDArray[np.float64], resampled: Bootstrap, note: str) -> Measured:
    found = estimate(resampled, lambda weights: mean(values, weights))
    if found is None:
        return Measured(what=what, n=len(values), value=float(values.mean()), note=note)
    return Measured(what=what, n=len(values), value=found.value, low=found.low, high=found.high, note=note)


def _from(index: int, count: int) -> list[int]:
    """The others, beginning with the next."""
    return [(index + step) % count for step in range(1, count)]


def _map(plane: FloatArray, run: Planes, manifest: Manifest, spec: FindingSpec) -> FloatArray:
    """The heat map as it is shown, whatever is decided on the image."""
    if manifest.explanation.kind == "occlusion":
        return explain.scaled(_occlusion(plane, run, manifest, spec))
    outputs = run(plane[None])
    assert manifest.output.activation_map is not None, "the manifest checks it"
    maps, scores = outputs[manifest.output.activation_map][0], outputs[manifest.output.scores][0]
    return explain.scaled(explain.evidence(maps, spec, manifest, scores))


def _occlusion(plane: FloatArray, run: Planes, manifest: Manifest, spec: FindingSpec) -> FloatArray:
    name = manifest.input.name
    return explain.occlusion({name: plane[None, None]}, spec, manifest, lambda covered: run(covered[name][:, 0]))


def _order(values: FloatArray, rng: np.random.Generator) -> _Order:
    """The cells by falling heat, as it is drawn (bilinear); those that are equally hot in random order."""
    rows, columns = (np.clip((np.arange(_CELLS) + 0.5) / _CELLS * n - 0.5, 0, n - 1) for n in values.shape)
    by_row = np.array([np.interp(columns, np.arange(values.shape[1]), line) for line in values])
    drawn = np.array([np.interp(rows, np.arange(values.shape[0]), line) for line in by_row.T]).T.ravel()
    shuffled = rng.permutation(drawn.size)
    return shuffled[np.argsort(-drawn[shuffled], kind="stable")]


def _play(
    plane: FloatArray, other: FloatArray, order: _Order, run: Planes, manifest: Manifest, spec: FindingSpec
) -> tuple[float, float]:
    """The areas of deletion and insertion in an order of the cells."""
    rows, columns = (explain.cell_bounds(size, _CELLS) for size in plane.shape)
    deleted, inserted = [plane], [other]
    for step in np.array_split(order, _STEPS):
        less, more = deleted[-1].copy(), inserted[-1].copy()
        for cell in step:
            (top, bottom), (left, right) = rows[cell // _CELLS], columns[cell % _CELLS]
            less[top:bottom, left:right] = other[top:bottom, left:right]
            more[top:bottom, left:right] = plane[top:bottom, left:right]
        deleted.append(less)
        inserted.append(more)
    images = np.stack([*deleted, *inserted])
    scores = np.concatenate(
        [run(images[start : start + _BATCH])[manifest.output.scores] for start in range(0, len(images), _BATCH)]
    )
    log_odds = explain.finding_log_odds(scores, spec, manifest.output)
    probability = 0.5 * (1 + np.tanh(0.5 * log_odds))
    first, second = np.split((probability[1:] + probability[:-1]) / 2, [_STEPS])
    return float(first.mean()), float(second[1:].mean())  # second[0] lies between the two games
