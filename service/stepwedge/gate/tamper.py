"""Does the answer hold under changes of the image that should not matter? Fitted by ``package.fit_tamper``.

Who changes an image to change the answer does it by detail fine enough to go unseen. Moving the image by a pixel, or
leaving out the detail that JPEG leaves out, takes part of that detail away, and the answer goes back some of the way
to what it was. The answer for an untouched image goes either way, and less far. So the measure is how far the answer
goes on average over such variants, for each finding in units of what is rare in untouched images. The idea is that of
feature squeezing (Xu et al., NDSS 2018) and of input transformations (Guo et al., ICLR 2018).

It notices changes that follow this network's own gradient, made by somebody who does not know of the check. Somebody
who does gets through; and so, mostly, do changes made on another network that happen to carry over, and coarse ones
found by asking the model again and again: neither is balanced on its finest detail. There, only knowing where an image
comes from helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import FindingSpec, Manifest, Output
from stepwedge.records import FloatArray, TamperResult

Floats = NDArray[np.float64]

# Up and down by one pixel: an odd move is what the strides and pooling of a graph see in another phase, and in moves to
# both sides what an untouched image's answer does cancels out. Of the moves, rotations, enlargements, blurs, medians,
# noises, coarser grey scales and compressions tried on two networks, these two with JPEG's told attacks best.
MOVES = (1, -1)  # rows, downwards
_MOST_MOVES = 2  # with the image and the one without fine detail, three forward passes beside the image's own

# Probabilities inside a graph saturate in float32; beyond this their log-odds carry nothing.
_SMALLEST_PROBABILITY = 1e-7

_BLOCK = 8  # pixels: the side of JPEG's blocks
# JPEG's steps for luminance at quality 75, as shares of the grey scale: half of those of ITU-T T.81 table K.1.
_STEPS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
) / np.float32(2 * 255)

# A change away from the other side counts this much of one towards it: an attack's answer goes back to where it came
# from. It counts at all because where the sides meet is the site's to say, and the check knows only about where.
_AWAY = 0.5
# Attacks that do no more than they must leave the answer near the middle, where few untouched images have theirs. So a
# change counts less the surer the answer is: half at 1 / 0.3 log-odds from the middle.
_SURENESS = 0.3  # per log-odds


@dataclass(frozen=True, kw_only=True)
class TamperCheck:
    """The fitted tamper check."""

    findings: tuple[str, ...]
    moves: tuple[int, ...] = MOVES
    middle: Floats  # (findings,), log-odds: about where the answer turns from no to yes
    scale: Floats  # (findings,), log-odds: a weighted change that is rare in untouched images, the unit of the measure
    threshold: float  # of the measure: flagged above it
    false_rejection: float  # largest expected share of untouched images flagged, 0…1
    images: int  # that it was fitted on

    def __post_init__(self) -> None:
        """Raise ValueError for values that no fit gives."""
        shape = (len(self.findings),)
        if not self.findings or self.scale.shape != shape or self.middle.shape != shape:
            raise ValueError(f"tamper check: not one scale and one middle for each of {len(self.findings)} findings")
        if not 0 < len(self.moves) <= _MOST_MOVES or 0 in self.moves:
            raise ValueError(f"tamper check: moves of {self.moves} rows, wanted one or two, none of them 0")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all() and np.isfinite(self.middle).all()):
            raise ValueError("tamper check: scales and middles must be finite, and scales above 0")
        if not (np.isfinite(self.threshold) and self.threshold > 0):
            raise ValueError(f"tamper check: the threshold is {self.threshold}, wanted a number above 0")
        if not 0 < self.false_rejection < 1:
            raise ValueError(f"tamper check: the rate of false rejection is {self.false_rejection}, wanted 0 to 1")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """From the arrays of ``gate.npz``. Raises KeyError or ValueError."""
        return cls(
            findings=tuple(str(name) for name in np.atleast_1d(arrays["findings"])),
            moves=tuple(int(rows) for rows in np.atleast_1d(np.asarray(arrays["moves"], np.int64))),
            middle=np.atleast_1d(np.asarray(arrays["middle"], np.float64)),
            scale=np.atleast_1d(np.asarray(arrays["scale"], np.float64)),
            threshold=_number(arrays["threshold"]),
            false_rejection=_number(arrays["false_rejection"]),
            images=int(_number(arrays["images"])),
        )

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that ``from_arrays`` reads."""
        return {
            "findings": np.asarray(self.findings),
            "moves": np.asarray(self.moves),
            "middle": self.middle,
            "scale": self.scale,
            "threshold": np.asarray(self.threshold),
            "false_rejection": np.asarray(self.false_rejection),
            "images": np.asarray(self.images),
        }


def _number(array: NDArray[np.generic]) -> float:
    return float(np.asarray(array, np.float64).reshape(()))


def variants(plane: FloatArray, check: TamperCheck) -> FloatArray:
    """The changed images to run beside the image itself, float32 (variants, rows, columns) on 0…1.

    ``plane`` is the image at the size of the input before normalisation, (rows, columns) on 0…1. Nothing of it is
    drawn at random: the same image always gives the same ones.
    """
    return np.stack([*(moved(plane, rows) for rows in check.moves), without_fine_detail(plane)])


def moved(plane: FloatArray, rows: int) -> FloatArray:
    """The image moved down by some rows, the first or last row repeated."""
    index = np.clip(np.arange(plane.shape[0]) - rows, 0, plane.shape[0] - 1)
    return np.asarray(plane[index], np.float32)


def without_fine_detail(plane: FloatArray) -> FloatArray:
    """The image as JPEG of quality 75 leaves it (ITU-T T.81 section A.3), but for the rounding of grey levels.

    Written out, because a codec's last digits differ from version to version.
    """
    rows, columns = plane.shape
    padded = np.pad(plane, ((0, -rows % _BLOCK), (0, -columns % _BLOCK)), mode="edge") - np.float32(0.5)
    blocks = padded.reshape(padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK).swapaxes(1, 2)
    waves = _COSINES @ blocks @ _COSINES.T
    kept = _COSINES.T @ (np.round(waves / _STEPS) * _STEPS) @ _COSINES
    restored = kept.swapaxes(1, 2).reshape(padded.shape)[:rows, :columns] + np.float32(0.5)
    return np.asarray(np.clip(restored, 0.0, 1.0), np.float32)


def _cosines() -> FloatArray:
    """The matrix of the orthonormal discrete cosine transform over a block."""
    step = np.arange(_BLOCK)
    matrix = np.sqrt(2 / _BLOCK) * np.cos((2 * step[None, :] + 1) * step[:, None] * np.pi / (2 * _BLOCK))
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float32)


_COSINES = _cosines()


def judge_tamper(outputs: NDArray[np.float32], manifest: Manifest, check: TamperCheck) -> TamperResult:
    """Judge by the scores of the image and its variants, (1 + variants, classes), the image first."""
    value = float(measure(outputs[None], manifest, check)[0])
    # Not "value > threshold": what is no number is not passed.
    verdict = "pass" if value <= check.threshold else "flagged"
    return TamperResult(verdict=verdict, measure=value, threshold=check.threshold)


def measure(outputs: NDArray[np.float32], manifest: Manifest, check: TamperCheck) -> Floats:
    """The largest weighted change of any finding in units of its scale, (n,), from (n, 1 + variants, classes)."""
    with np.errstate(invalid="ignore"):  # what is no number stays so, and is not passed
        odds = log_odds(outputs, manifest, check.findings)
        return np.asarray((weighted_changes(odds, check.middle) / check.scale).max(axis=1))


def log_odds(outputs: NDArray[np.float32], manifest: Manifest, findings: tuple[str, ...]) -> Floats:
    """The log-odds of findings, (n, 1 + variants, findings), from the graph's scores (n, 1 + variants, classes)."""
    specs = {spec.name: spec for spec in manifest.findings}
    return np.stack([_log_odds(outputs, manifest.output, specs[name]) for name in findings], axis=2)


def weighted_changes(odds: Floats, middle: Floats) -> Floats:
    """How far the variants carry each finding on average, (n, findings), from (n, 1 + variants, findings).

    In log-odds; changes away from the other side, and those of sure answers, count less.
    """
    own = odds[:, 0] - middle
    towards = (odds[:, 1:].mean(axis=1) - odds[:, 0]) * np.where(own > 0, -1.0, 1.0)
    return np.asarray(np.where(towards > 0, towards, -_AWAY * towards) / (1 + _SURENESS * np.abs(own)))


def _log_odds(outputs: NDArray[np.float32], output: Output, finding: FindingSpec) -> Floats:
    """The log-odds of a finding, (…), from the graph's scores (…, classes); as the decision layer reads them."""
    values = np.asarray(outputs, np.float64)
    column = {name: index for index, name in enumerate(output.classes)}
    if output.kind == "independent":
        score = values[..., column[finding.positive[0]]]
        if output.activation == "sigmoid":
            score = np.clip(score, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
            return np.asarray(np.log(score) - np.log1p(-score))
        return np.asarray(score)
    if output.activation == "softmax":
        values = np.log(np.clip(values, _SMALLEST_PROBABILITY, 1.0))
    among = finding.among or output.classes
    positive = [column[name] for name in finding.positive]
    rest = [column[name] for name in among if name not in finding.positive]
    return np.asarray(
        np.logaddexp.reduce(values[..., positive], axis=-1) - np.logaddexp.reduce(values[..., rest], axis=-1)
    )
