"""Making a package: golden cases and the list of digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import GOLDEN, SUMS, Package, digest_list, load_package

Tensors = Mapping[str, NDArray[np.float32]]


def write_golden(path: Path, run: Callable[[Tensors], Tensors], inputs: Tensors) -> None:
    """Write ``golden.npz`` into a package's folder: inputs, and the outputs that every machine must give for them.

    Parameters
    ----------
    run
        The model: inputs by name to outputs by name.
    inputs
        (cases, channels, rows, columns) by name. They travel with the package, so no patient's image may be among them.
    """
    arrays = {f"input.{name}": value for name, value in inputs.items()}
    arrays |= {f"output.{name}": value for name, value in run(inputs).items()}
    # Keyword arrays collide with numpy's own parameters in its annotations only.
    np.savez_compressed(path / GOLDEN, allow_pickle=False, **arrays)


def seal(path: Path) -> Package:
    """Write the list of digests for the files as they are, and give the package as the service will load it.

    Raises
    ------
    PackageError
        If the package is incomplete or a description in it is wrong; the list stays, so that the message can be
        acted upon and the package sealed again.
    """
    (path / SUMS).write_text(digest_list(path), encoding="utf-8")
    return load_package(path)
