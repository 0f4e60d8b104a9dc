"""Golden cases: inputs, and the outputs that every machine must give for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from stepwedge.casefile import open_case
from stepwedge.errors import DecodeError, PackageError, UnusableInstanceError
from stepwedge.inference.preprocess import normalised, to_tensor
from stepwedge.manifest import GOLDEN, Input, Manifest
from stepwedge.records import FloatArray

Tensors = Mapping[str, NDArray[np.float32]]

_SEED = 20_261_124
_CASES = 4
_COARSE = (3, 5, 9, 17)  # grid points along each side from which the fields are drawn, one for each case
_NOISE = 0.03  # standard deviation on 0…1: fine structure, so that no layer sees only smooth fields
_MOST_FILES = 8  # golden cases travel with the package and run at each start


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


def synthetic_inputs(manifest: Manifest) -> dict[str, FloatArray]:
    """Inputs of nobody: smooth random fields with noise, the same for the same shapes. By name, four cases each."""
    return {spec.name: normalised(_fields(spec), spec) for spec in manifest.inputs}


def inputs_from(folder: Path, manifest: Manifest) -> dict[str, FloatArray]:
    """Inputs made of the images in a folder, which must be images of nobody.

    Raises
    ------
    PackageError
        If there are none, more than eight, or one cannot be read.
    """
    files = sorted(file for file in folder.glob("*") if file.is_file() and not file.name.startswith("."))
    if not 1 <= len(files) <= _MOST_FILES:
        raise PackageError(f"{folder}: {len(files)} files, wanted 1 to {_MOST_FILES} images for golden cases")
    images = []
    for file in files:
        try:
            images.append(open_case(file).decode())
        except (UnusableInstanceError, DecodeError, OSError) as error:
            raise PackageError(f"{file}: cannot be read as an image for a golden case: {error}") from None
    return {spec.name: np.concatenate([to_tensor(image, spec) for image in images]) for spec in manifest.inputs}


def _fields(spec: Input) -> FloatArray:
    rng = np.random.default_rng(_SEED)
    planes = []
    for points in _COARSE[:_CASES]:
        coarse = Pillow.fromarray(rng.random((points, points), dtype=np.float32))
        smooth = np.asarray(coarse.resize((spec.columns, spec.rows), Pillow.Resampling.BICUBIC), np.float32)
        noise = rng.normal(0.0, _NOISE, smooth.shape).astype(np.float32)
        planes.append(np.clip(smooth + noise, 0.0, 1.0))
    return np.stack(planes)
