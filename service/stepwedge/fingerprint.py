"""A short description of a plane of numbers, by which a later one is told to be the same or not.

The plane is cut into eight by eight fields. Their means move with brightness, place and orientation, their standard
deviations with sharpness, noise and the kernel of a resampling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FIELDS = 8


def fingerprint(plane: NDArray[np.floating], low: float = 0.0, high: float = 1.0) -> tuple[float, ...]:
    """Means, then standard deviations of the fields.

    Parameters
    ----------
    plane
        (rows, columns).
    low, high
        What is to become 0 and 1.

    Returns
    -------
    128 numbers in the units of ``high - low``, rounded to six digits; fewer for a plane under eight pixels wide.
    """
    values = (np.asarray(plane, dtype=np.float64) - low) / (high - low)
    rows, columns = (_starts(size) for size in values.shape)
    counts = np.outer(np.diff([*rows, values.shape[0]]), np.diff([*columns, values.shape[1]]))
    means = _sums(values, rows, columns) / counts
    squares = _sums(np.square(values), rows, columns) / counts
    spread = np.sqrt(np.maximum(squares - np.square(means), 0.0))
    return tuple(round(float(value), 6) for value in (*means.ravel(), *spread.ravel()))


def _starts(size: int) -> NDArray[np.intp]:
    """Where the fields along one side begin."""
    return np.unique(np.linspace(0, size, min(_FIELDS, size) + 1).astype(np.intp)[:-1])


def _sums(values: NDArray[np.float64], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    summed: NDArray[np.float64] = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    return summed
