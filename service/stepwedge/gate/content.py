"""Is this what the gate was fitted on, by its content? Fitted by ``package.fit_content``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepwedge.records import GateVerdict, Image, PixelStatistics, Verdict


@dataclass(frozen=True, kw_only=True)
class ContentGate:
    """The fitted content gate."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """From the arrays of ``gate.npz``. Raises KeyError or ValueError."""
        return cls()

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that ``from_arrays`` reads."""
        return {}


def judge_content(image: Image, statistics: PixelStatistics, fitted: ContentGate) -> GateVerdict:
    """Judge what an image shows."""
    return GateVerdict(verdict=Verdict.ACCEPT)
