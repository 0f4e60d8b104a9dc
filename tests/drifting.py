"""Streams of simulated observations with known changes, for the detectors' tests and benchmarks.

Pixel statistics are drawn by a Gaussian copula from those of the shipped package's baseline (real radiographs). Every
day has effects of its own, weekends have another mix, and nothing else changes until a study that is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from stepwatch.config import Family, Labels, WatchConfig
from stepwatch.streams import Table

Floats = NDArray[np.float64]

PACKAGE = Path(__file__).parents[1] / "models" / "chest-pneumonia" / "1.1.0"
PIXELS = tuple(
    f"pixel_{name}" for name in ("mean", "sd", "p01", "p50", "p99", "low_share", "high_share", "entropy", "sharpness")
)
BRIGHT = ("pixel_mean", "pixel_p01", "pixel_p50", "pixel_p99")  # what a change of brightness moves
STUDIES_A_DAY = {"working": 80, "off": 20}
_MONDAY = (date(2026, 1, 5) - date(1970, 1, 1)).days
_PREVALENCE = {"working": 0.10, "off": 0.13}
APART = 1.81  # standard deviations between the scores of ill and well: AUROC .90
WIDER = 2.33  # AUROC .95
_UNTOLD = 0.2875  # share of studies whose truth a decayed model's score says nothing of: AUROC .785


@dataclass(frozen=True, kw_only=True)
class Change:
    """What changes from which study on: bright, new_tag, hidden, prevalence, concept, population, mixed; or none."""

    kind: str = "none"
    at: int = 0
    size: float = 0.3  # of bright: standard deviations of the mean grey level
    share: float = 0.2  # of studies from the new scanner


CONFIG = WatchConfig(
    source="scanner",
    families={
        "patient": Family(numbers=["age"], levels=["sex"], tells_of="population"),
        "view": Family(levels=["view"], tells_of="population"),
        "exposure": Family(numbers=["exposure", "kvp"]),
        "pixels": Family(numbers=list(PIXELS), together=True),
        "prediction": Family(probabilities=["probability"], tells_of="prediction"),
    },
    labels=[Labels(probability="probability", label="label")],
)


@cache
def _pixels() -> tuple[Floats, Floats]:
    """The baseline's pixel statistics, sorted (n, 9), and the Cholesky factor of their normal scores' correlation."""
    table = pyarrow.parquet.read_table(PACKAGE / "baseline.parquet", columns=list(PIXELS))
    raw = np.stack([table[name].to_numpy() for name in PIXELS], axis=1)
    ranks = raw.argsort(axis=0).argsort(axis=0)
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / len(raw)) for i in range(len(raw))])
    correlation = np.corrcoef(quantiles[ranks], rowvar=False) * 0.98 + 0.02 * np.eye(len(PIXELS))
    return np.sort(raw, axis=0), np.linalg.cholesky(correlation)


def stream(
    rng: np.random.Generator,
    studies: int,
    change: Change | None = None,
    *,
    day_sd: float = 0.05,
    labelled: float = 0.3,
    apart: float = APART,
) -> Table:
    """So many studies from a Monday on.

    Parameters
    ----------
    day_sd
        Standard deviation of the effects of days: on normal scores; twice as much on log-odds of shares.
    labelled
        Share of studies with a label.
    apart
        Standard deviations between the model's scores of ill and well.
    """
    change = change or Change()
    ordered, factor = _pixels()
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("scanner", "sex", "view", "age", "exposure", "kvp", "probability", "label", "pixels", "day")
    }
    day, count = _MONDAY, 0
    while count < studies:
        kind = "off" if (day - _MONDAY) % 7 >= 5 else "working"
        off = kind == "off"
        n = min(int(rng.poisson(STUDIES_A_DAY[kind])), studies - count)
        changed = np.arange(count, count + n) >= (change.at if change.kind != "none" else studies)
        effect = rng.normal(0, day_sd, len(PIXELS)) + rng.normal(0, day_sd)
        odds = rng.normal(0, 2 * day_sd, 4)
        scanner_b = rng.random(n) < _share(0.4 + 0.2 * off, odds[0])
        prevalence = np.full(n, _share(_PREVALENCE[kind], odds[1]))
        if change.kind in ("prevalence", "mixed"):
            prevalence = np.where(changed, prevalence * 2.25 / (1 - prevalence + prevalence * 2.25), prevalence)
        ill = rng.random(n) < prevalence
        score = rng.normal(size=n) + np.where(ill, apart / 2, -apart / 2)
        # The scores look as before; what they mean does not.
        untold = changed & (rng.random(n) < _UNTOLD) & (change.kind == "concept")
        ill = np.where(untold, rng.random(n) < prevalence, ill)
        normal = rng.normal(size=(n, len(PIXELS))) @ factor.T + effect
        normal += 0.4 * scanner_b[:, None] * np.linspace(-1, 1, len(PIXELS)) + 0.2 * off + 0.15 * ill[:, None]
        stranger = changed & (rng.random(n) < change.share) & (change.kind in ("new_tag", "hidden"))
        # Another detector and processing: sharper, more contrast, fewer dark pixels.
        look = np.array([0.5, 1.2, -1.0, 0.6, 1.0, -0.8, 0.9, 0.8, 1.6])
        normal = np.where(stranger[:, None], normal + look, normal)
        raw = _to_raw(normal, ordered)
        if change.kind in ("bright", "mixed"):
            gain = 1 + change.size * ordered[:, 0].std() / ordered[:, 0].mean()
            for name in BRIGHT:
                raw[:, PIXELS.index(name)] *= np.where(changed, gain, 1.0)
        tag = np.where(scanner_b, "B", "A").astype("<U4")
        if change.kind == "new_tag":
            tag[stranger] = "C"
        older = changed & (change.kind == "population")
        columns["scanner"].append(tag)
        columns["sex"].append(np.where(rng.random(n) < _share(np.where(older, 0.35, 0.5), odds[2]), "F", "M"))
        columns["view"].append(np.where(rng.random(n) < _share(0.3 + 0.2 * off, odds[3]), "AP", "PA"))
        columns["age"].append(rng.normal(40, 20, n) + np.where(older, 10.0, 0.0))
        columns["exposure"].append(rng.lognormal(1 + 0.3 * scanner_b, 0.4, n))
        columns["kvp"].append(np.round(rng.normal(110 + 5 * scanner_b, 6, n)))
        # The model is calibrated at a prevalence of 10 %; a decayed one does not know that it has decayed.
        columns["probability"].append(1 / (1 + np.exp(-(apart * score + np.log(0.1 / 0.9)))))
        columns["label"].append(np.where(rng.random(n) < labelled, ill.astype(float), np.nan))
        columns["pixels"].append(raw)
        columns["day"].append(np.full(n, day))
        count += n
        day += 1
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    pixels = joined.pop("pixels")
    days = joined.pop("day")
    numbers = {name: joined[name] for name in ("age", "exposure", "kvp", "probability", "label")}
    numbers |= {name: pixels[:, i] for i, name in enumerate(PIXELS)}
    return Table(
        numbers=numbers,
        levels={name: joined[name] for name in ("scanner", "sex", "view")},
        days=days,
        times=tuple(str(np.datetime64(int(d), "D")) for d in days),
        rows=np.arange(len(days)),
    )


def _share(share: Any, odds: float) -> Any:
    return 1 / (1 + np.exp(-(np.log(share / (1 - np.asarray(share))) + odds)))


def _to_raw(normal: Floats, ordered: Floats) -> Floats:
    """From normal scores to the baseline's values, straight on beyond its ends."""
    normal_quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / len(ordered)) for i in range(len(ordered))])
    return np.stack([np.interp(normal[:, j], normal_quantiles, ordered[:, j]) for j in range(normal.shape[1])], axis=1)
