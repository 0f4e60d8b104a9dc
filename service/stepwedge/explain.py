"""Where in the image an answer comes from: an activation map of the graph, or an occlusion map.

Both say what a place adds to the log-odds of one finding. The values are coarse, one for each place of the last feature
map or each covered cell; they are interpolated where they are drawn. Evidence against the finding is set to zero, and
the rest is divided by its maximum: 1 is the strongest place of this one image, so that maps of two images cannot be
compared. A map without any evidence for the finding stays zero.

A heat map is made for the first finding that is acted upon, in the order of ``model.yaml``; if there is none, for the
first that is left to a person while another is decided, because that is where a look is worth most. A cleared or
inconclusive finding has none: what speaks for a finding that is said to be absent would be read as its presence. Nor
has an image of which nothing is decided: its report reads "No AI result", and a heat map is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import FindingSpec, Manifest, Output
from stepwedge.records import Decision, Finding, FloatArray, HeatMap
from stepwedge.seams import Engine

Run = Callable[[Mapping[str, FloatArray]], Mapping[str, NDArray[np.float32]]]  # inputs to outputs, each by name

# Probabilities inside a graph saturate in float32; beyond this their log-odds carry nothing.
_SMALLEST_PROBABILITY = 1e-7
# Of the covered copies that run as one batch: 16 × 16 cells of 224 × 224 × 1 take 51 MB.
_LARGEST_BATCH_BYTES = 128 << 20


def explained_finding(findings: Sequence[Finding]) -> str | None:
    """The name of the finding that a heat map is made for, or None where none deserves one."""
    decided = any(finding.decision in (Decision.ACT, Decision.CLEAR) for finding in findings)
    for wanted in (Decision.ACT, Decision.DEFER) if decided else ():
        for finding in findings:
            if finding.decision is wanted:
                return finding.name
    return None


def from_activation_map(
    maps: NDArray[np.float32],
    findings: Sequence[Finding],
    manifest: Manifest,
    *,
    scores: NDArray[np.float32],
) -> HeatMap | None:
    """The heat map from the graph's activation map; None where no finding deserves one.

    Parameters
    ----------
    maps
        (classes, rows, columns), what each place adds to each class's score before any activation (Zhou et al., CVPR
        2016), up to a factor that is the same everywhere.
    scores
        (classes,), the graph's scores of the same image. Where several classes stand for the finding or against it,
        they say how much each counts.
    """
    name = explained_finding(findings)
    if name is None:
        return None
    return HeatMap(
        finding=name, method="activation_map", values=scaled(evidence(maps, _spec(manifest, name), manifest, scores))
    )


def by_occlusion(
    inputs: Mapping[str, FloatArray], findings: Sequence[Finding], manifest: Manifest, engine: Engine
) -> HeatMap | None:
    """The heat map by covering each cell of a grid in turn (Zeiler and Fergus, ECCV 2014).

    Parameters
    ----------
    inputs
        The input tensors of the one image, (1, channels, rows, columns) by name. A cell is the same part of each of
        them: that is the same place of the image where they are fitted in the same way.

    Raises
    ------
    InferenceUnavailableError, InferenceRefusedError
        As ``Engine.run``.
    """
    name = explained_finding(findings)
    if name is None:
        return None
    values = occlusion(inputs, _spec(manifest, name), manifest, lambda covered: engine.run(covered)[0])
    return HeatMap(finding=name, method="occlusion", values=scaled(values))


def evidence(
    maps: NDArray[np.float32], spec: FindingSpec, manifest: Manifest, scores: NDArray[np.float32]
) -> FloatArray:
    """What each place adds to the log-odds of a finding, (rows, columns), to first order.

    The log-odds are log Σ exp over the classes of the finding minus the same over the others among which it is told
    apart. Their derivative by a class's score is that class's share (softmax) within its group, positive or negative.
    """
    logits = _logits(scores[None], manifest.output)[0]
    positive, rest = _groups(spec, manifest.output)
    weights = np.zeros(len(logits))
    weights[positive] += _softmax(logits[positive])
    weights[rest] -= _softmax(logits[rest])
    return np.tensordot(weights, maps.astype(np.float64), axes=1).astype(np.float32)


def occlusion(inputs: Mapping[str, FloatArray], spec: FindingSpec, manifest: Manifest, run: Run) -> FloatArray:
    """How much the log-odds of a finding fall when a cell is covered with the input's mean, (grid, grid).

    All cells run as one batch with the image itself, or as several where one would take too much memory.
    """
    grid = manifest.explanation.grid
    cells: list[tuple[int, int] | None] = [None, *product(range(grid), range(grid))]
    largest = max(1, _LARGEST_BATCH_BYTES // sum(tensor.nbytes for tensor in inputs.values()))
    log_odds: list[NDArray[np.float64]] = []
    for start in range(0, len(cells), largest):
        batch = cells[start : start + largest]
        covered = {name: _covered(tensor, batch, grid) for name, tensor in inputs.items()}
        log_odds.append(finding_log_odds(run(covered)[manifest.output.scores], spec, manifest.output))
    all_odds = np.concatenate(log_odds)
    return np.asarray((all_odds[0] - all_odds[1:]).reshape(grid, grid), np.float32)


def finding_log_odds(scores: NDArray[np.float32], spec: FindingSpec, output: Output) -> NDArray[np.float64]:
    """The log-odds of a finding, (n,), from the graph's scores (n, classes)."""
    logits = _logits(scores, output)
    positive, rest = _groups(spec, output)
    against = np.logaddexp.reduce(logits[:, rest], axis=1) if rest else 0.0
    return np.asarray(np.logaddexp.reduce(logits[:, positive], axis=1) - against)


def scaled(values: FloatArray) -> FloatArray:
    """Evidence for the finding only, divided by its maximum; zero everywhere where there is none. Float32, 0…1."""
    kept = np.maximum(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 0.0).astype(np.float32)
    top = float(kept.max(initial=0.0))
    return kept / np.float32(top) if top > np.finfo(np.float32).tiny else np.zeros_like(kept)


def cell_bounds(size: int, grid: int) -> list[tuple[int, int]]:
    """Where each of ``grid`` cells begins and ends along a side of ``size`` pixels."""
    edges = np.linspace(0, size, grid + 1).round().astype(int)
    return [(int(start), int(end)) for start, end in pairwise(edges)]


def _covered(tensor: FloatArray, cells: Sequence[tuple[int, int] | None], grid: int) -> FloatArray:
    """One copy of the tensor for each cell, with that cell covered; for None as it is."""
    copies = np.repeat(tensor, len(cells), axis=0)
    mean = tensor.mean(axis=(2, 3))[0]
    rows, columns = cell_bounds(tensor.shape[2], grid), cell_bounds(tensor.shape[3], grid)
    for copy, cell in zip(copies, cells, strict=True):
        if cell is not None:
            (top, bottom), (left, right) = rows[cell[0]], columns[cell[1]]
            copy[:, top:bottom, left:right] = mean[:, None, None]
    return copies


def _spec(manifest: Manifest, name: str) -> FindingSpec:
    return next(spec for spec in manifest.findings if spec.name == name)


def _groups(spec: FindingSpec, output: Output) -> tuple[list[int], list[int]]:
    """The columns of the finding's classes, and of those that it is told apart from (none for independent classes)."""
    positive = [output.classes.index(name) for name in spec.positive]
    if output.kind == "independent":
        return positive, []
    among = spec.among or output.classes
    return positive, [output.classes.index(name) for name in among if name not in spec.positive]


def _logits(scores: NDArray[np.float32], output: Output) -> NDArray[np.float64]:
    """The graph's scores as logits; those of a softmax up to a constant."""
    values = np.asarray(scores, np.float64)
    if output.activation == "none":
        return values
    clipped = np.clip(values, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    return np.asarray(np.log(clipped) - np.log1p(-clipped) if output.activation == "sigmoid" else np.log(clipped))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    if logits.size == 0:
        return logits
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
