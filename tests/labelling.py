"""Cases whose truth is known, and readers who label some of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from stepwatch.performance import Case
from stepwedge.observation import Label

FINDING = "pneumonia"
START = datetime(2026, 3, 2, 8, tzinfo=UTC)
ACT_FROM = 0.3


def cases_of(
    count: int, *, seed: int = 1, prevalence: float = 0.15, separation: float = 2.0, scanner: str = "Acme DX-1"
) -> tuple[list[Case], NDArray[np.bool_]]:
    """Cases with calibrated probabilities (two normal classes at ``separation``), and which of them are ill."""
    rng = np.random.default_rng(seed)
    ill = rng.random(count) < prevalence
    score = rng.normal(separation * ill, 1.0)
    odds = separation * score - separation**2 / 2 + np.log(prevalence / (1 - prevalence))
    probability = 1 / (1 + np.exp(-odds))
    return [
        Case(
            study=f"{seed:04x}{number:028x}",
            time=(START + timedelta(minutes=number)).isoformat(),
            probabilities={FINDING: float(p)},
            decisions={FINDING: "act" if p >= ACT_FROM else "clear"},
            groups={"scanner": scanner, "sex": "FM"[number % 2]},
        )
        for number, p in enumerate(probability)
    ], ill


def label_of(case: Case, value: float | None, **changes: object) -> Label:
    """A label a day after the study."""
    values: dict[str, object] = {
        "label": f"{case.study}.{changes.get('reader', 'r1')}.{changes.get('audit', False)}.{changes.get('time', '')}",
        "study": case.study,
        "finding": FINDING,
        "value": value,
        "reader": "r1",
        "time": (datetime.fromisoformat(case.time) + timedelta(days=1)).isoformat(),
        "source": "csv",
    }
    return Label(**(values | changes))  # type: ignore[arg-type]


def labels_of(cases: Sequence[Case], ill: NDArray[np.bool_]) -> list[Label]:
    """A label of every case."""
    return [label_of(case, float(truth)) for case, truth in zip(cases, ill, strict=True)]
