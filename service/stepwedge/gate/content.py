"""Is this what the gate was fitted on, by its content? Fitted by ``package.fit_content``.

Two kinds of look at the numbers of ``appearance``. Heads, each a linear score, have learned to tell the accepted images
from one kind of other ones: turned, flipped, cropped, blurred, written across, of something else altogether. One
distance says how far an image lies from the accepted ones, whatever the reason (principal components, after Hotelling,
J. Educ. Psych. 1933; the part within them and the rest apart, as in process monitoring: Jackson and Mudholkar,
Technometrics 1979). A head that fires rejects, and so does a distance beyond the far limit. A distance beyond the near
limit alone is another population or another scanner, and defers. What is named as the reason is the change that all
heads' excesses together speak for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepwedge.gate.appearance import FEATURES, LAYOUT, describe
from stepwedge.records import FloatArray, GateVerdict, Image, PixelStatistics, Reason, Verdict

# What each head tells from the accepted images: the reason's code, and what a person reads beside it.
HEADS: Mapping[str, tuple[str, str]] = {
    "inverted": ("image_inverted", ""),
    "rotated": ("image_rotated", ""),
    "flipped": ("image_flipped", ""),
    "cropped": ("image_cropped", ""),
    "blurred": ("image_blurred", ""),
    "grey_scale": ("image_grey_scale", ""),
    "saturated": ("image_saturated", "black or white where there is anatomy"),
    "written_across": ("content_not_intended", "something like writing lies across it"),
    "noisy": ("content_not_intended", "noise covers it"),
    "other": ("content_not_intended", "another body part, another kind of image or none"),
}
_NAMES = tuple(HEADS)
# Heads that another population's ordinary images may trip a little. Where an image is unlike the accepted ones anyway,
# these alone defer up to _SURE: at most 1 in 100 photographs and drawings lie below it, and adults' chests mostly do.
_SUBTLE = frozenset({"flipped", "cropped", "blurred", "saturated", "written_across", "other"})
_SURE = 2.0  # of a head's unit beyond what rejects

# Groups of numbers that the distance looks at, each by itself.
DISTANCES = ("thumb", "coarse_edges")

_NAMED_WITHIN = 6.0  # units of excess
_WIDEST = 8.0  # standard deviations: no single number counts for more


@dataclass(frozen=True, kw_only=True)
class ContentGate:
    """The fitted content gate. A score s of head h is beyond its limit by ``(s - limit) / unit``."""

    mean: FloatArray  # (FEATURES,) of the accepted images
    sd: FloatArray  # (FEATURES,)
    weights: FloatArray  # (heads, FEATURES), in the order of HEADS
    bias: FloatArray  # (heads,)
    limits: FloatArray  # (heads,)
    units: FloatArray  # (heads,)
    naming: FloatArray  # (heads, heads) from all excesses to what most likely was done: a linear score of each
    naming_bias: FloatArray  # (heads,)
    components: Mapping[str, FloatArray]  # by DISTANCES: (components, numbers of the group)
    variances: Mapping[str, FloatArray]  # (components,)
    centres: FloatArray  # (distances, 2) mean logarithm of the distance within and beside the components
    spreads: FloatArray  # (distances, 2) their standard deviation
    reject_above: float  # excess, in units
    defer_above: float  # distance, in standard deviations
    far_above: float  # the same; its excess counts in ``reject_above`` too
    false_rejection: float  # declared, share of the accepted images
    false_deferral: float
    images: int  # that it was fitted on
    patients: int

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """From the arrays of ``gate.npz``. Raises KeyError or ValueError."""
        plain = {name: _floats(arrays[name]) for name in _PLAIN}
        components = {name: _floats(arrays[f"components.{name}"]) for name in DISTANCES}
        variances = {name: _floats(arrays[f"variances.{name}"]) for name in DISTANCES}
        wanted = {
            "mean": (FEATURES,),
            "sd": (FEATURES,),
            "weights": (len(HEADS), FEATURES),
            "bias": (len(HEADS),),
            "limits": (len(HEADS),),
            "units": (len(HEADS),),
            "naming": (len(HEADS), len(HEADS)),
            "naming_bias": (len(HEADS),),
            "centres": (len(DISTANCES), 2),
            "spreads": (len(DISTANCES), 2),
            "numbers": (len(_NUMBERS),),
        }
        for name, shape in wanted.items():
            if plain[name].shape != shape:
                raise ValueError(f"content.{name} has the shape {plain[name].shape}, wanted {shape}")
        for name in DISTANCES:
            size = LAYOUT[name].stop - LAYOUT[name].start
            if components[name].ndim != 2 or components[name].shape != (variances[name].size, size):
                raise ValueError(f"content.components.{name} has the shape {components[name].shape}")
        if not all((plain[name] > 0).all() for name in ("sd", "units", "spreads")):
            raise ValueError("content.sd, units and spreads have to be positive")
        numbers = dict(zip(_NUMBERS, (float(value) for value in plain.pop("numbers")), strict=True))
        return cls(
            **plain,
            components=components,
            variances=variances,
            reject_above=numbers["reject_above"],
            defer_above=numbers["defer_above"],
            far_above=numbers["far_above"],
            false_rejection=numbers["false_rejection"],
            false_deferral=numbers["false_deferral"],
            images=int(numbers["images"]),
            patients=int(numbers["patients"]),
        )

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that ``from_arrays`` reads."""
        arrays: dict[str, NDArray[np.generic]] = {name: getattr(self, name) for name in _PLAIN if name != "numbers"}
        arrays |= {f"components.{name}": self.components[name].astype(np.float16) for name in DISTANCES}
        arrays |= {f"variances.{name}": self.variances[name] for name in DISTANCES}
        arrays["weights"] = self.weights.astype(np.float16)
        arrays["numbers"] = np.array([getattr(self, name) for name in _NUMBERS], np.float64)
        return arrays


_PLAIN = ("mean", "sd", "weights", "bias", "limits", "units", "naming", "naming_bias", "centres", "spreads", "numbers")
_NUMBERS = (
    "reject_above",
    "defer_above",
    "far_above",
    "false_rejection",
    "false_deferral",
    "images",
    "patients",
)


def _floats(array: NDArray[np.generic]) -> FloatArray:
    values = np.asarray(array, np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a content array holds values that are not finite")
    return values


def judge_content(image: Image, statistics: PixelStatistics, fitted: ContentGate) -> GateVerdict:
    """Judge what an image shows.

    ``measures`` are, by head, ``content.<head>``: how far its score lies beyond the head's limit, in the head's unit,
    and ``content.distance``: how far the image lies from the accepted ones, in standard deviations. It is rejected
    where one of the heads, or the distance beyond its far limit, exceeds ``reject_above``.
    """
    standard = standardised(describe(image, statistics)[None], fitted.mean, fitted.sd)
    beyond = excesses(standard, fitted)[0]
    distance = float(distances(standard, fitted)[0])
    measures = {f"content.{name}": float(value) for name, value in zip(HEADS, beyond, strict=True)}
    measures["content.distance"] = distance
    verdict, reasons = judged(beyond, distance, fitted)
    return GateVerdict(verdict=verdict, reasons=reasons, measures=measures)


def judged(beyond: FloatArray, distance: float, fitted: ContentGate) -> tuple[Verdict, tuple[Reason, ...]]:
    """The verdict on one image, by its heads' excesses (heads,) and its distance, with the reason."""
    unlike = distance > fitted.defer_above
    firing = {
        name: float(value - fitted.reject_above)
        for name, value in zip(_NAMES, beyond, strict=True)
        if value > fitted.reject_above
    }
    if firing:
        code, detail = HEADS[most_likely(beyond, fitted)]
        reason = Reason(code=code, detail=detail)
        unsure = all(name in _SUBTLE and value < _SURE for name, value in firing.items())
        if not (unlike and unsure):
            return Verdict.REJECT, (reason,)
        return Verdict.DEFER, (Reason(code="population_not_intended"), reason)
    if distance - fitted.far_above > fitted.reject_above:
        return Verdict.REJECT, (Reason(code="content_not_intended", detail="unlike all of them"),)
    if unlike:
        return Verdict.DEFER, (Reason(code="population_not_intended"),)
    return Verdict.ACCEPT, ()


def most_likely(beyond: FloatArray, fitted: ContentGate) -> str:
    """The head whose change most likely was made, by all heads' excesses (heads,)."""
    return _NAMES[int(np.argmax(fitted.naming @ bounded(beyond) + fitted.naming_bias))]


# --- The figures behind it, for many images at once; fitting uses them too -----------------------------------------


def standardised(features: FloatArray, mean: FloatArray, sd: FloatArray) -> FloatArray:
    """Features (n, FEATURES) in standard deviations of the accepted images, bounded."""
    return np.asarray(np.clip((features - mean) / sd, -_WIDEST, _WIDEST), np.float32)


def excesses(standard: FloatArray, fitted: ContentGate) -> FloatArray:
    """By how many units each head's score lies beyond its limit, (n, heads)."""
    return np.asarray((standard @ fitted.weights.T + fitted.bias - fitted.limits) / fitted.units, np.float32)


def bounded(beyond: FloatArray) -> FloatArray:
    """Excesses (…, heads) as naming takes them: beyond a few units they say no more."""
    return np.asarray(np.clip(beyond, -_NAMED_WITHIN, _NAMED_WITHIN), np.float32)


def distances(standard: FloatArray, fitted: ContentGate) -> FloatArray:
    """How far images lie from the accepted ones, (n,), the farthest of the looks counting."""
    raw = raw_distances(standard, fitted.components, fitted.variances)
    return np.asarray(((raw - fitted.centres) / fitted.spreads).max(axis=(1, 2)), np.float32)


def raw_distances(
    standard: FloatArray, components: Mapping[str, FloatArray], variances: Mapping[str, FloatArray]
) -> FloatArray:
    """Logarithms of the distance within the components and of the rest beside them, (n, distances, 2)."""
    found = []
    for name in DISTANCES:
        group = standard[:, LAYOUT[name]]
        along = group @ components[name].T
        rest = np.square(group).sum(axis=1) - np.square(along).sum(axis=1)
        within = (np.square(along) / variances[name]).mean(axis=1)
        found.append(np.log(np.stack([within, np.maximum(rest, 0)], axis=1) + 1e-3))
    return np.asarray(np.stack(found, axis=1), np.float32)
