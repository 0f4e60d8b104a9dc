"""Attacks on a model's answer, to measure the tamper check with. Planes are float32 (n, rows, columns) on 0…1.

Every attack tries to carry the log-odds of one finding across a limit, in whichever direction the image is not yet.
It has succeeded where they end on the other side (``succeeded``). Sources: FGSM, Goodfellow et al. 2015; PGD, Madry
et al. 2018; DeepFool, Moosavi-Dezfooli et al. 2016; CW, Carlini and Wagner 2017; the patch, after Brown et al. 2017,
for one image and one place; the blind attack, after Square, Andriushchenko et al. 2020; the adaptive attacker, Tramèr
et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from gradients import open_gradient
from numpy.typing import NDArray
from stepwedge.decision.calibrate import finding_scores
from stepwedge.inference.preprocess import normalised
from stepwedge.manifest import FindingSpec, Manifest
from stepwedge.records import FloatArray

Scores = NDArray[np.float64]
Outputs = NDArray[np.float32]

_BATCH = 16  # images at a time: more gain nothing on a processor
_LEAST = 1e-12  # a length below which a gradient is none


@dataclass(frozen=True, kw_only=True)
class Target:
    """One finding of a model, as an attacker sees it."""

    score: Callable[[FloatArray], Scores]  # planes to log-odds (n,)
    gradient: Callable[[FloatArray], tuple[Scores, FloatArray]]  # planes to log-odds and their slope (n, rows, columns)
    limit: float = 0.0  # log-odds at which the decision changes

    def wanted(self, planes: FloatArray) -> Scores:
        """The way that an attack must push, (n,): −1 where the score lies above the limit, else +1."""
        return np.where(self.score(planes) > self.limit, -1.0, 1.0)

    def succeeded(self, planes: FloatArray, attacked: FloatArray) -> NDArray[np.bool_]:
        """Whether the scores of an image before and after lie on different sides of the limit, (n,)."""
        return np.asarray((self.score(planes) > self.limit) != (self.score(attacked) > self.limit))


def runner(model: Path, manifest: Manifest) -> Callable[[FloatArray], Outputs]:
    """A function from planes to the graph's scores (n, classes). One thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, scores = manifest.input.name, manifest.output.scores

    def run(planes: FloatArray) -> Outputs:
        parts = [session.run([scores], {name: normalised(some, manifest.input)})[0] for some in _batches(planes)]
        return np.concatenate(parts)

    return run


def target_of(model: Path, manifest: Manifest, finding: FindingSpec, limit: float = 0.0) -> Target:
    """A finding of a model file whose operators ``gradients`` knows."""
    plain, backward = runner(model, manifest), open_gradient(model, manifest, finding)
    sd = np.broadcast_to(np.asarray(manifest.input.sd, np.float32), (manifest.input.channels,))

    def gradient(planes: FloatArray) -> tuple[Scores, FloatArray]:
        found = [backward(normalised(some, manifest.input)) for some in _batches(planes)]
        outputs, slopes = (np.concatenate([part[i] for part in found]) for i in (0, 1))
        return _log_odds(outputs), np.asarray((slopes / sd[:, None, None]).sum(axis=1), np.float32)

    def _log_odds(outputs: Outputs) -> Scores:
        return finding_scores(outputs, manifest.output, finding)

    return Target(score=lambda planes: _log_odds(plain(planes)), gradient=gradient, limit=limit)


def fgsm(target: Target, planes: FloatArray, eps: float) -> FloatArray:
    """One step of ``eps`` along the gradient's sign."""
    _, slope = target.gradient(planes)
    return _clipped(planes + eps * _wide(target.wanted(planes)) * np.sign(slope))


def pgd(
    target: Target, planes: FloatArray, eps: float, *, steps: int = 10, seed: int = 0, stop: bool = False
) -> FloatArray:
    """Steps along the gradient's sign from a random start, within ``eps`` of the image.

    With ``stop`` an image is left alone once it has crossed the limit: the least change that this way finds, which is
    harder to notice than the strongest.
    """
    rng = np.random.default_rng(seed)
    wanted = target.wanted(planes)
    start = planes if stop else planes + rng.uniform(-eps, eps, planes.shape).astype(np.float32)
    attacked = _clipped(start)
    step = (1.0 if stop else 2.5) * eps / steps
    for _ in range(steps):
        scores, slope = target.gradient(attacked)
        moved = attacked + step * _wide(wanted) * np.sign(slope)
        moved = _clipped(np.clip(moved, planes - eps, planes + eps))
        going = (scores - target.limit) * wanted <= 0 if stop else np.ones(len(planes), bool)
        attacked = np.where(_wide(going) > 0, moved, attacked)
    return attacked


def deepfool(
    target: Target, planes: FloatArray, eps: float, *, steps: int = 10, overshoot: float = 0.02, euclidean: bool = False
) -> FloatArray:
    """To the nearest point beyond the limit as the tangent sees it, again and again, within ``eps`` of the image.

    Nearest in the largest change of a pixel, or, if ``euclidean``, in the root of the sum of squares.
    """
    wanted = target.wanted(planes)
    attacked = planes
    for _ in range(steps):
        scores, slope = target.gradient(attacked)
        left = (target.limit - scores) * wanted  # still to go
        if euclidean:
            way = slope / np.maximum(np.square(slope).sum(axis=(1, 2), keepdims=True), _LEAST)
        else:
            way = np.sign(slope) / np.maximum(np.abs(slope).sum(axis=(1, 2), keepdims=True), _LEAST)
        # A little beyond: on the limit itself rounding decides.
        ahead = np.where(left >= 0, left + 1e-3, 0.0)
        moved = attacked + (1 + overshoot) * _wide(ahead * wanted) * way
        attacked = _clipped(np.clip(moved, planes - eps, planes + eps))
    return attacked


def carlini_wagner(
    target: Target, planes: FloatArray, *, steps: int = 40, weight: float = 2.0, rate: float = 0.02, margin: float = 0.1
) -> FloatArray:
    """The least sum of squares that carries the score ``margin`` beyond the limit, by Adam in the arctangent's space.

    One ``weight`` of the score against the squares; the smallest change that crossed is kept, else the last.
    """
    wanted = target.wanted(planes)
    inside = np.clip(planes, 1e-4, 1 - 1e-4)
    hidden = np.arctanh(2 * inside - 1).astype(np.float64)
    first, second = np.zeros_like(hidden), np.zeros_like(hidden)
    best, least = planes.copy(), np.full(len(planes), np.inf)
    attacked = planes
    for step in range(1, steps + 1):
        attacked = np.asarray((np.tanh(hidden) + 1) / 2, np.float32)
        scores, slope = target.gradient(attacked)
        reached = (scores - target.limit) * wanted
        change = attacked - planes
        squares = np.square(change).sum(axis=(1, 2), dtype=np.float64)
        better = (reached > 0) & (squares < least)
        best[better], least[better] = attacked[better], squares[better]
        push = _wide(np.where(reached < margin, -weight * wanted, 0.0)) * slope
        down = (2 * change + push) * (1 - np.tanh(hidden) ** 2) / 2
        first, second = 0.9 * first + 0.1 * down, 0.999 * second + 0.001 * down**2
        hidden -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return np.where(_wide(np.isfinite(least)) > 0, best, attacked)


def patch(
    target: Target, planes: FloatArray, *, side: float = 0.125, steps: int = 20, rate: float = 0.1, seed: int = 0
) -> FloatArray:
    """A square of ``side`` of the image's, where the gradient is largest, painted by the gradient's sign; any grey."""
    _, rows, columns = planes.shape
    height, width = max(1, round(side * rows)), max(1, round(side * columns))
    wanted = target.wanted(planes)
    _, slope = target.gradient(planes)
    mask = np.zeros(planes.shape, np.float32)
    for index, strength in enumerate(np.abs(slope)):
        sums = np.pad(strength, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        within = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = np.unravel_index(int(within.argmax()), within.shape)
        mask[index, top : top + height, left : left + width] = 1
    attacked = planes
    for _ in range(steps):
        attacked = _clipped(attacked + rate * _wide(wanted) * np.sign(slope) * mask)
        _, slope = target.gradient(attacked)
    return attacked


def _batches(planes: FloatArray) -> list[FloatArray]:
    return [planes[start : start + _BATCH] for start in range(0, len(planes), _BATCH)]


def _wide(values: NDArray[np.generic]) -> FloatArray:
    """(n,) as (n, 1, 1)."""
    return np.asarray(values, np.float32)[:, None, None]


def _clipped(planes: NDArray[np.floating]) -> FloatArray:
    return np.clip(planes, 0.0, 1.0).astype(np.float32)
