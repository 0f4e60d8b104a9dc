"""Does the answer hold under changes of the image that should not matter? Fitted by ``package.fit_tamper``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import Manifest
from stepwedge.records import FloatArray, TamperResult


@dataclass(frozen=True, kw_only=True)
class TamperCheck:
    """The fitted tamper check."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Self:
        """From the arrays of ``gate.npz``. Raises KeyError or ValueError."""
        return cls()

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that ``from_arrays`` reads."""
        return {}


def variants(plane: FloatArray, check: TamperCheck) -> FloatArray:
    """The changed images to run beside the image itself, (variants, rows, columns) on 0…1.

    ``plane`` is the image at the size of the input before normalisation, (rows, columns) on 0…1. At most three
    variants; the same image always gives the same ones.
    """
    return np.empty((0, *plane.shape), np.float32)


def judge_tamper(outputs: NDArray[np.float32], manifest: Manifest, check: TamperCheck) -> TamperResult:
    """Judge by the scores of the image and its variants, (1 + variants, classes), the image first."""
    return TamperResult()
