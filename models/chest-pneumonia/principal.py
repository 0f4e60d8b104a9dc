"""What the simulated patients are drawn from: principal components of aligned radiographs, class by class.

Components of radiographs as they are blur the ribs away, because no two chests have them in the same place. So the
radiographs of a class are first warped onto each other; shape (the warps) and appearance (the warped radiographs)
then have components of their own, as in an active appearance model (Cootes et al. 2001).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from folds import CLASSES
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

GRID = 9  # control points of a warp along each side
APPEARANCE = {"normal": 72, "bacterial": 36, "viral": 36}  # components; a clear lung shows more structure
SHAPE = 12  # components
_ROUNDS = ((64, 60), (128, 60), (128, 60))  # pixels of the side, and steps, of each round of alignment
_STIFFNESS = 40.0  # weight of the warp's roughness against the squared difference


def write_simulator(path: Path, images: Floats, labels: NDArray[np.int64]) -> None:
    """Write ``simulated.npz`` from the train fold, (n, side, side) on 0…1.

    Every component is scaled by its standard deviation and kept in 8 bits with a scale of its own.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for index, name in enumerate(CLASSES):
        own = torch.from_numpy(images[labels == index])
        warps = aligned(own)
        with torch.no_grad():
            warped = _warp(own[:, None], warps)[:, 0].numpy()
        for part, rows, kept in (("appearance", warped, APPEARANCE[name]), ("shape", warps.numpy(), SHAPE)):
            mean, components = _components(rows.reshape(len(rows), -1), kept)
            arrays[f"{name}.{part}.mean"] = mean.reshape(rows.shape[1:]).astype(np.float16)
            scale = np.abs(components).max(axis=1) / 127
            arrays[f"{name}.{part}.scale"] = scale.astype(np.float32)
            quantised = np.round(components / scale[:, None]).astype(np.int8)
            arrays[f"{name}.{part}.components"] = quantised.reshape(kept, *rows.shape[1:])
    np.savez_compressed(path, allow_pickle=False, **arrays)


def aligned(images: Tensor) -> Tensor:
    """Warps of images onto their common shape, (n, 2, GRID, GRID): where each point is taken from.

    Displacements are in units in which a side is 2. The first template is the image most like the mean, so that it
    has ribs; afterwards it is the mean of the aligned images.
    """
    warps = torch.zeros(len(images), 2, GRID, GRID)
    detail = _detail(images[:, None])
    flat = nnf.normalize((detail - detail.mean(0)).flatten(1)) + nnf.normalize(detail.flatten(1))
    template = detail[int((flat @ flat.mean(0)).argmax())][None]
    for side, steps in _ROUNDS:
        small, target = (nnf.interpolate(x, (side, side), mode="area") for x in (detail, template))
        warps = _fitted(small, target, warps, steps)
        with torch.no_grad():
            warps -= warps.mean(0)
            template = _warp(detail, warps).mean(0, keepdim=True)
            template = template / template.std()
    return warps


def _fitted(images: Tensor, target: Tensor, warps: Tensor, steps: int) -> Tensor:
    fitted = []
    for start in range(0, len(images), 128):
        part = images[start : start + 128]
        warp = warps[start : start + 128].clone().requires_grad_()
        optimiser = torch.optim.Adam([warp], lr=0.008)
        for _ in range(steps):
            moved = _warp(part, warp)
            likeness = ((moved - target) ** 2).mean()
            rough = warp.diff(dim=2).pow(2).mean() + warp.diff(dim=3).pow(2).mean()
            optimiser.zero_grad()
            (likeness + _STIFFNESS * rough).backward()
            optimiser.step()
        fitted.append(warp.detach())
    return torch.cat(fitted)


def _warp(images: Tensor, warps: Tensor) -> Tensor:
    side = images.shape[-1]
    field = nnf.interpolate(warps, (side, side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = torch.eye(2, 3)[None].expand(len(images), -1, -1)
    grid = nnf.affine_grid(still, list(images.shape), align_corners=False)
    return nnf.grid_sample(images, grid + field, padding_mode="border", align_corners=False)


def _detail(images: Tensor) -> Tensor:
    """Local structure at unit variance: the grey level itself says little about where a rib is."""
    mean = nnf.avg_pool2d(images, 25, 1, 12, count_include_pad=False)
    spread = nnf.avg_pool2d((images - mean) ** 2, 25, 1, 12, count_include_pad=False).sqrt()
    return (images - mean) / (spread + 0.05)


def _components(rows: Floats, kept: int) -> tuple[Floats, Floats]:
    mean = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    return mean, axes[:kept] * (singular[:kept] / np.sqrt(len(rows) - 1))[:, None]
