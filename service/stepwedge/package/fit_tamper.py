"""Fitting the tamper check: how far untouched images' answers go under its variants, and where to put the threshold.

No attack is needed, and none is fitted to. The threshold is an order statistic, so the declared rate bounds the
expected one for images drawn as these were, whatever their distribution (Vovk et al. 2005): with n images and rate r,
the ⌈(n + 1)(1 − r)⌉-th smallest measure. Fewer than 1/r − 1 images cannot vouch for r: then the largest measure is
taken, and the check states the rate that it can vouch for, 1/(n + 1). Strictly, the scales would have to come from
other images; they are few numbers, and what that does was not to be seen.

Expected is over fits. What one fit keeps to varies as Beta(r(n + 1), (1 − r)(n + 1)): at 524 images and 1 %, nine fits
in ten keep to between 0.5 and 2.0 %. Only more images narrow that. On random halves of two folds the rates were as
this says (mean 1.0 %), fitted tails hardly narrowed it, and images of one patient were flagged independently of each
other; a threshold that keeps to 1 % in nine fits of ten would flag 0.4 % on average and cost three in a hundred of the
attacks caught.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from stepwedge.errors import PackageError
from stepwedge.gate.tamper import Floats, TamperCheck, log_odds, measure, variants, weighted_changes
from stepwedge.manifest import Manifest
from stepwedge.package.figures import Measured
from stepwedge.records import FloatArray

Run = Callable[[FloatArray], NDArray[np.float32]]  # planes (n, rows, columns) on 0…1 to scores (n, classes)

NOISE = 4 / 255  # of the grey scale: largest noise that must pass
JPEG_QUALITY = 50  # poorest compression that must pass
BENIGN_REJECTION = 0.03  # largest share of noisy, and of compressed, images flagged

# A finding that is read only after another one was acted upon has this share of the false alarms of one that stands
# alone: what it is attacked for weighs less than to be missed altogether.
_SHARE_OF_GIVEN = 0.2
_OUTER = 0.01  # share of the images: a rare finding is one that fewer have even odds of
_LEAST_SCALE = 0.01  # log-odds: a change of less than this alters no probability by more than 0.25 %
_LEAST_THRESHOLD = 0.1  # of the measure: where next to nothing changes, a tenth of the scale is no sign of anything
_ROUNDING = 1e-9  # so that (n + 1)(1 − r) is not rounded up by its last digit
_BATCH = 8  # images at a time, each with its variants


def fit_tamper(
    planes: Sequence[FloatArray],
    run: Run,
    manifest: Manifest,
    *,
    false_rejection: float = 0.01,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TamperCheck:
    """Fit on images that the gate accepts and nobody has touched.

    Parameters
    ----------
    planes
        Each (rows, columns) on 0…1, as ``preprocess.to_plane`` gives it. Noisy and compressed copies are made of them.
    run
        The model.
    false_rejection
        Share of untouched images that may be flagged. Images of one patient count as if drawn apart.
    seed
        Of the copies' noise.
    progress
        Told how many of how many images are done, copies included.

    Raises
    ------
    PackageError
        If there is no image, or a score is not finite.
    """
    if not planes:
        raise PackageError("no image to fit the tamper check on; give the gate fold some images that the gate accepts")
    if not 0 < false_rejection < 1:
        raise PackageError(f"the tamper check's rate of false rejection is {false_rejection}; wanted 0 to 1")
    count, done = len(planes), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, 3 * count)

    plain = TamperCheck(
        findings=tuple(spec.name for spec in manifest.findings),
        middle=np.zeros(len(manifest.findings)),
        scale=np.ones(len(manifest.findings)),
        threshold=1.0,
        false_rejection=max(false_rejection, 1 / (count + 1)),
        images=count,
    )
    clean = answers(planes, run, plain, step)
    noisy = answers(noisy_copies(planes, seed), run, plain, step)
    compressed = answers(map(compressed_copy, planes), run, plain, step)
    odds = log_odds(clean, manifest, plain.findings)
    middle = _middle(odds[:, 0])
    scale = _scale(weighted_changes(odds, middle), manifest, false_rejection)
    check = replace(plain, middle=middle, scale=scale)
    thresholds = [order_statistic(measure(clean, manifest, check), false_rejection)]
    # The copies are of the same images; they raise the threshold where they must, and never lower it.
    thresholds += [order_statistic(measure(o, manifest, check), BENIGN_REJECTION) for o in (noisy, compressed)]
    return replace(check, threshold=max(*thresholds, _LEAST_THRESHOLD))


def measure_tamper(
    check: TamperCheck, planes: Sequence[FloatArray], run: Run, manifest: Manifest, *, seed: int = 1
) -> list[Measured]:
    """Shares of a fold's images that the check flags: as they are, with noise, and compressed. Attacks have a bench.

    Intervals are Wilson's at 95 %; images of one patient count as if drawn apart. No rows where there is no image.
    """
    if not planes:
        return []
    copies: dict[str, Iterable[FloatArray]] = {
        "untouched images flagged": planes,
        f"flagged with noise of ±{NOISE * 255:.0f}/255": noisy_copies(planes, seed),
        f"flagged after JPEG of quality {JPEG_QUALITY}": map(compressed_copy, planes),
    }
    rows = []
    for what, images in copies.items():
        flagged = measure(answers(images, run, check), manifest, check) > check.threshold
        rows.append(share(what, flagged))
    return rows


def share(what: str, hit: NDArray[np.bool_], note: str = "") -> Measured:
    """A share with Wilson's 95 % interval (Wilson 1927), as a line of a table. Of nothing it is 0, from 0 to 1."""
    n, z = len(hit), 1.959964
    if n == 0:
        return Measured(what=what, n=0, value=0.0, low=0.0, high=1.0, note=note)
    rate = float(hit.mean())
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Measured(what=what, n=n, value=round(rate, 5), low=round(low, 5), high=round(high, 5), note=note)


def answers(
    planes: Iterable[FloatArray], run: Run, check: TamperCheck, step: Callable[[], None] = lambda: None
) -> NDArray[np.float32]:
    """The scores of images and their variants, (n, 1 + variants, classes). Raises PackageError if one is not finite."""
    parts: list[NDArray[np.float32]] = []
    remaining = iter(planes)
    while batch := list(islice(remaining, _BATCH)):
        stacks = [np.concatenate([plane[None], variants(plane, check)]) for plane in batch]
        outputs = run(np.concatenate(stacks).astype(np.float32))
        parts.append(outputs.reshape(len(batch), len(stacks[0]), -1))
        for _ in batch:
            step()
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise PackageError("the model's scores are not finite for some image or its variants; mend the model")
    return found


def noisy_copies(planes: Sequence[FloatArray], seed: int) -> Iterator[FloatArray]:
    """Each image with noise, uniform within ±NOISE."""
    rng = np.random.default_rng(seed)
    for plane in planes:
        noise = rng.uniform(-NOISE, NOISE, plane.shape)
        yield np.clip(plane + noise, 0.0, 1.0).astype(np.float32)


def compressed_copy(plane: FloatArray) -> FloatArray:
    """The image after JPEG compression in 8 bits."""
    stored = io.BytesIO()
    grey = np.round(np.asarray(plane) * 255).astype(np.uint8)
    Pillow.fromarray(grey).save(stored, format="JPEG", quality=JPEG_QUALITY)
    with Pillow.open(stored) as picture:
        return np.asarray(picture, np.float32) / np.float32(255)


def order_statistic(values: Floats, rate: float) -> float:
    """The value that the next one exceeds with a probability of ``rate`` at most; the largest where n is too small."""
    place = min(math.ceil((len(values) + 1) * (1 - rate) - _ROUNDING), len(values))
    return float(np.sort(values)[place - 1])


def _middle(scores: Floats) -> Floats:
    """About where each finding's answer turns, (findings,), from log-odds (n, findings) of the untouched images.

    Even odds; for a finding that few images reach them with, or almost all, where the outer images begin.
    """
    low, high = np.quantile(scores, [_OUTER, 1 - _OUTER], axis=0)
    return np.asarray(np.clip(0.0, low, high))


def _scale(ordinary: Floats, manifest: Manifest, false_rejection: float) -> Floats:
    """What change of each finding is rare, (findings,), from the weighted changes (n, findings)."""
    shares = np.array([_SHARE_OF_GIVEN if spec.given else 1.0 for spec in manifest.findings])
    rare = [np.quantile(column, 1 - false_rejection * part) for column, part in zip(ordinary.T, shares, strict=True)]
    return np.maximum(np.asarray(rare, np.float64), _LEAST_SCALE)
