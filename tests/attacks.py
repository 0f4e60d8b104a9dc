"""Attacks on a model's answer, to measure the tamper check with. Planes are float32 (n, rows, columns) on 0…1.

Every attack tries to carry the log-odds of one finding to the other side, whichever that is for an image, and has
succeeded where they end there (``Target``). Sources: FGSM, Goodfellow et al. 2015; PGD, Madry et al. 2018; DeepFool,
Moosavi-Dezfooli et al. 2016; CW, Carlini and Wagner 2017; the patch, after Brown et al. 2017, for one image and one
place; the blind attack, after Square, Andriushchenko et al. 2020; the adaptive attacker, Tramèr et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from gradients import open_gradient
from numpy.typing import NDArray
from stepwedge.decision.calibrate import finding_scores
from stepwedge.gate.tamper import TamperCheck, variants
from stepwedge.inference.preprocess import normalised, resized, to_plane
from stepwedge.manifest import FindingSpec, Input, Manifest
from stepwedge.records import FloatArray, Image

Scores = NDArray[np.float64]
Outputs = NDArray[np.float32]

_BATCH = 16  # images at a time: more gain nothing on a processor
_LEAST = 1e-12  # a length below which a gradient is none


@dataclass(frozen=True, kw_only=True)
class Target:
    """One finding of a model, as an attacker sees it.

    An image whose log-odds lie from ``high`` upwards must be brought below ``low``, one that lies below ``low`` up to
    ``high``; what lies between is not attacked. Both are 0 where the model's own answer is to change.
    """

    score: Callable[[FloatArray], Scores]  # planes to log-odds (n,)
    gradient: Callable[[FloatArray], tuple[Scores, FloatArray]]  # planes to log-odds and their slope (n, rows, columns)
    low: float = 0.0  # log-odds
    high: float = 0.0

    def aim(self, planes: FloatArray) -> tuple[Scores, Scores]:
        """Which way to push, (n,), −1 or +1 or 0 for not at all, and the log-odds to reach, (n,)."""
        scores = self.score(planes)
        way = np.where(scores >= self.high, -1.0, np.where(scores < self.low, 1.0, 0.0))
        return way, np.where(way > 0, self.high, self.low)

    def succeeded(self, planes: FloatArray, attacked: FloatArray) -> NDArray[np.bool_]:
        """Whether the attack has brought each image to the other side, (n,)."""
        way, goal = self.aim(planes)
        return _reached(self.score(attacked), way, goal)


def _narrowed(going: NDArray[np.bool_], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the images ``going``, those that are ``kept``."""
    narrowed = going.copy()
    narrowed[going] = kept
    return narrowed


def _reached(scores: Scores, way: Scores, goal: Scores) -> NDArray[np.bool_]:
    return np.asarray(((way < 0) & (scores < goal)) | ((way > 0) & (scores >= goal)))


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


def target_of(
    model: Path, manifest: Manifest, finding: FindingSpec, limits: tuple[float, float] = (0.0, 0.0)
) -> Target:
    """A finding of a model file whose operators ``gradients`` knows."""
    plain, backward = runner(model, manifest), open_gradient(model, manifest, finding)
    sd = np.broadcast_to(np.asarray(manifest.input.sd, np.float32), (manifest.input.channels,))

    def gradient(planes: FloatArray) -> tuple[Scores, FloatArray]:
        if not len(planes):
            return np.zeros(0), planes
        found = [backward(normalised(some, manifest.input)) for some in _batches(planes)]
        outputs, slopes = (np.concatenate([part[i] for part in found]) for i in (0, 1))
        return _log_odds(outputs), np.asarray((slopes / sd[:, None, None]).sum(axis=1), np.float32)

    def _log_odds(outputs: Outputs) -> Scores:
        return finding_scores(outputs, manifest.output, finding)

    return Target(score=lambda planes: _log_odds(plain(planes)), gradient=gradient, low=limits[0], high=limits[1])


def fgsm(target: Target, planes: FloatArray, eps: float) -> FloatArray:
    """One step of ``eps`` along the gradient's sign."""
    way, _ = target.aim(planes)
    _, slope = target.gradient(planes)
    return _clipped(planes + eps * _wide(way) * np.sign(slope))


def pgd(
    target: Target, planes: FloatArray, eps: float, *, steps: int = 10, seed: int = 0, stop: bool = False
) -> FloatArray:
    """Steps along the gradient's sign from a random start, within ``eps`` of the image.

    With ``stop`` an image is left alone once it has reached its goal: the least change that this way finds, which is
    harder to notice than the strongest.
    """
    rng = np.random.default_rng(seed)
    way, goal = target.aim(planes)
    attacked = planes.copy() if stop else _clipped(planes + rng.uniform(-eps, eps, planes.shape))
    step = (1.0 if stop else 2.5) * eps / steps
    going = way != 0
    for _ in range(steps):
        scores, slope = target.gradient(attacked[going])
        if stop:
            short = ~_reached(scores, way[going], goal[going])
            going, slope = _narrowed(going, short), slope[short]
        moved = attacked[going] + step * _wide(way[going]) * np.sign(slope)
        attacked[going] = _clipped(np.clip(moved, planes[going] - eps, planes[going] + eps))
    return attacked


def deepfool(
    target: Target, planes: FloatArray, eps: float, *, steps: int = 10, overshoot: float = 0.02, euclidean: bool = False
) -> FloatArray:
    """To the nearest point beyond the goal as the tangent sees it, again and again, within ``eps`` of the image.

    Nearest in the largest change of a pixel, or, if ``euclidean``, in the root of the sum of squares.
    """
    way, goal = target.aim(planes)
    attacked, going = planes.copy(), way != 0
    for _ in range(steps):
        scores, slope = target.gradient(attacked[going])
        short = ~_reached(scores, way[going], goal[going])
        going, scores, slope = _narrowed(going, short), scores[short], slope[short]
        if euclidean:
            tangent = slope / np.maximum(np.square(slope).sum(axis=(1, 2), keepdims=True), _LEAST)
        else:
            tangent = np.sign(slope) / np.maximum(np.abs(slope).sum(axis=(1, 2), keepdims=True), _LEAST)
        # A little beyond: on the goal itself rounding decides.
        ahead = (goal[going] - scores) * way[going] + 1e-3
        moved = attacked[going] + (1 + overshoot) * _wide(ahead * way[going]) * tangent
        attacked[going] = _clipped(np.clip(moved, planes[going] - eps, planes[going] + eps))
    return attacked


def carlini_wagner(
    target: Target, planes: FloatArray, *, steps: int = 40, weight: float = 2.0, rate: float = 0.02, margin: float = 0.1
) -> FloatArray:
    """The least sum of squares that carries the score ``margin`` beyond the goal, by Adam over hyperbolic tangents.

    One ``weight`` of the score against the squares; the smallest change that crossed is kept, else the last.
    """
    way, goal = target.aim(planes)
    inside = np.clip(planes, 1e-4, 1 - 1e-4)
    hidden = np.arctanh(2 * inside - 1).astype(np.float64)
    first, second = np.zeros_like(hidden), np.zeros_like(hidden)
    best, least = planes.copy(), np.full(len(planes), np.inf)
    attacked = planes
    for step in range(1, steps + 1):
        attacked = np.asarray((np.tanh(hidden) + 1) / 2, np.float32)
        scores, slope = target.gradient(attacked)
        beyond = (scores - goal) * way
        change = attacked - planes
        squares = np.square(change).sum(axis=(1, 2), dtype=np.float64)
        better = _reached(scores, way, goal) & (squares < least)
        best[better], least[better] = attacked[better], squares[better]
        push = _wide(np.where(beyond < margin, -weight * way, 0.0)) * slope
        down = (2 * change + push) * (1 - np.tanh(hidden) ** 2) / 2
        first, second = 0.9 * first + 0.1 * down, 0.999 * second + 0.001 * down**2
        hidden -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return np.where(_wide(np.isfinite(least)) > 0, best, attacked)


def patch(target: Target, planes: FloatArray, *, side: float = 0.125, steps: int = 20, rate: float = 0.1) -> FloatArray:
    """A square of ``side`` of the image's, where the gradient is largest, painted by the gradient's sign; any grey."""
    _, rows, columns = planes.shape
    height, width = max(1, round(side * rows)), max(1, round(side * columns))
    way, _ = target.aim(planes)
    _, slope = target.gradient(planes)
    mask = np.zeros(planes.shape, np.float32)
    for index, strength in enumerate(np.abs(slope)):
        sums = np.pad(strength, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        within = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        top, left = np.unravel_index(int(within.argmax()), within.shape)
        mask[index, top : top + height, left : left + width] = 1
    attacked = planes
    for _ in range(steps):
        attacked = _clipped(attacked + rate * _wide(way) * np.sign(slope) * mask)
        _, slope = target.gradient(attacked)
    return attacked


def adaptive(
    target: Target,
    planes: FloatArray,
    eps: float,
    check: TamperCheck,
    *,
    steps: int = 20,
    weight: float = 3.0,
    tolerance: float = 0.02,
    seed: int = 0,
) -> FloatArray:
    """PGD by somebody who knows the tamper check, within ``eps`` of the image.

    It pushes the image and its variants together, and holds back where their mean score leaves the image's by more than
    ``tolerance`` in log-odds, with ``weight``. Rounding of detail is taken for the identity going backwards (Athalye et
    al. 2018). Of all steps that reach the goal the one with the least change under the variants is kept.
    """
    rng = np.random.default_rng(seed)
    way, goal = target.aim(planes)
    attacked = _clipped(planes + rng.uniform(-eps, eps, planes.shape) / 2)
    best, least = attacked, np.full(len(planes), np.inf)
    for step in range(steps + 1):
        scores, slope = target.gradient(attacked)
        stacks = np.stack([variants(plane, check) for plane in attacked], axis=1)
        found = [target.gradient(stack) for stack in stacks]
        change = np.mean([each for each, _ in found], axis=0) - scores
        better = _reached(scores, way, goal) & (np.abs(change) < least)
        best = np.where(_wide(better) > 0, attacked, best)
        least = np.where(better, np.abs(change), least)
        moves = (*check.moves, 0)
        back = np.stack([np.roll(part, -rows, axis=1) for (_, part), rows in zip(found, moves, strict=True)])
        others = back.mean(axis=0)
        hold = np.where(np.abs(change) > tolerance, weight * np.sign(change), 0.0)
        push = _wide(way) * (slope + others) / 2 - _wide(hold) * (others - slope)
        rate = eps / 4 * (1 - step / (steps + 1))  # smaller and smaller: the balance is fine
        attacked = _clipped(np.clip(attacked + rate * np.sign(push), planes - eps, planes + eps))
    return np.asarray(np.where(_wide(np.isfinite(least)) > 0, best, attacked), np.float32)


def blind(target: Target, planes: FloatArray, eps: float, *, queries: int = 150, seed: int = 0) -> FloatArray:
    """Squares of ±``eps`` at random places, kept where they help: for who can ask the model but has no gradient."""
    rng = np.random.default_rng(seed)
    way, goal = target.aim(planes)
    count, rows, columns = planes.shape
    stripes = rng.choice([-eps, eps], (count, 1, columns))
    best = _clipped(planes + stripes)
    reached = target.score(best)
    for query in range(queries):
        share = 0.3 * (1 - query / queries) + 0.02  # of the side
        height, width = max(1, int(share * rows)), max(1, int(share * columns))
        tried = best.copy()
        for index in range(count):
            top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            place = (index, slice(top, top + height), slice(left, left + width))
            tried[place] = np.clip(planes[place] + rng.choice([-eps, eps]), 0, 1)
        scores = target.score(tried)
        better = ((scores - reached) * way > 0) & ~_reached(reached, way, goal)
        best = np.where(_wide(better) > 0, tried, best)
        reached = np.where(better, scores, reached)
    return np.asarray(best, np.float32)


def pgd_before_resizing(target: Target, image: Image, spec: Input, eps: float, *, steps: int = 10) -> FloatArray:
    """PGD on the stored pixels of one image, through the resize to the input's size.

    ``eps`` is a share of the range that the stored bits can represent. Gives the pixels, (rows, columns), on the
    image's own scale, rounded to whole stored values. Only for ``fit`` stretch.
    """
    rows, columns = image.pixels.shape
    down, across = _weights(rows, spec.rows, spec), _weights(columns, spec.columns, spec)
    low, high = image.value_range
    reach = eps * (high - low)
    way, _ = target.aim(to_plane(image, spec)[None])
    pixels = image.pixels
    for _ in range(steps):
        plane = to_plane(replace(image, pixels=pixels), spec)
        _, slope = target.gradient(plane[None])
        moved = pixels + 2.5 * reach / steps * way[0] * np.sign(down.T @ slope[0] @ across)
        pixels = np.clip(np.clip(moved, image.pixels - reach, image.pixels + reach), low, high).astype(np.float32)
    return np.round(pixels)


def _weights(size: int, wanted: int, spec: Input) -> FloatArray:
    """The matrix (wanted, size) that resizing multiplies a column of an image by."""
    along = spec.model_copy(update={"rows": wanted, "columns": size})
    return resized(np.eye(size, dtype=np.float32), along)


def _batches(planes: FloatArray) -> list[FloatArray]:
    return [planes[start : start + _BATCH] for start in range(0, len(planes), _BATCH)]


def _wide(values: NDArray[np.generic]) -> FloatArray:
    """(n,) as (n, 1, 1)."""
    return np.asarray(values, np.float32)[:, None, None]


def _clipped(planes: NDArray[np.floating]) -> FloatArray:
    return np.asarray(np.clip(planes, 0.0, 1.0), np.float32)
