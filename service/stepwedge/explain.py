"""Where in the image an answer comes from: an activation map of the graph, or an occlusion map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import Manifest
from stepwedge.records import Finding, FloatArray, HeatMap
from stepwedge.seams import Engine


def from_activation_map(maps: NDArray[np.float32], findings: Sequence[Finding], manifest: Manifest) -> HeatMap | None:
    """The heat map of the finding that most deserves one, from the graph's activation map (classes, rows, columns)."""
    return None


def by_occlusion(
    inputs: dict[str, FloatArray], findings: Sequence[Finding], manifest: Manifest, engine: Engine
) -> HeatMap | None:
    """The heat map by covering each cell of a grid in turn; grid × grid forward passes in one batch.

    ``inputs`` are the input tensors of the one image, (1, channels, rows, columns) by name.
    """
    return None
