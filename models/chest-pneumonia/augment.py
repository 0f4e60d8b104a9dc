"""What a radiograph may look like on another day: the changes that must not change the answer.

Every function takes and gives a batch on 0…1, (n, 1, rows, columns). There are no mirror images: the heart lies on
the left, and a mirrored radiograph is something that the gate has to notice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

_DEGREES = 8.0  # rotation, standard deviation
_SHIFT = 0.05  # of the image's side, standard deviation
_ZOOM = 0.10  # natural logarithm, standard deviation
_STRETCH = 0.12  # natural logarithm of the aspect ratio, standard deviation
_FRAME = 0.06  # of the image's side, widest collimated edge


def augmented(batch: Tensor) -> Tensor:
    """Moved, then shown and acquired differently, at half the batch's size."""
    return acquired(nnf.avg_pool2d(moved(batch), 2))


def moved(batch: Tensor) -> Tensor:
    """Rotated, shifted, zoomed, and stretched: the aspect ratio of the data set goes with the label by accident."""
    n = len(batch)
    angle = torch.randn(n) * _DEGREES * torch.pi / 180
    zoom, stretch = torch.randn(n) * _ZOOM, torch.randn(n) * _STRETCH
    wide, high = torch.exp(zoom + stretch / 2), torch.exp(zoom - stretch / 2)
    shift = torch.randn(n, 2) * _SHIFT * 2  # grid_sample counts a side as 2
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [torch.stack([cos * wide, -sin * wide, shift[:, 0]], 1), torch.stack([sin * high, cos * high, shift[:, 1]], 1)],
        1,
    )
    grid = nnf.affine_grid(theta, list(batch.shape), align_corners=False)
    return nnf.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def acquired(batch: Tensor) -> Tensor:
    """Other grey scale, sharpness and noise, and now and then a part of the field hidden."""
    n = len(batch)
    one = (n, 1, 1, 1)
    gamma = torch.exp(torch.randn(one) * 0.25)
    gain, offset = 1 + torch.randn(one) * 0.12, torch.randn(one) * 0.06
    batch = batch.clamp(0, 1) ** gamma * gain + offset
    batch = _sharpness(batch)
    noise = torch.rand(one) * 0.04 * (torch.rand(one) < 0.5)
    batch = batch + torch.randn_like(batch) * noise
    batch = _blocks(batch)
    return _framed(_erased(batch)).clamp(0, 1)


def _sharpness(batch: Tensor) -> Tensor:
    """Between blurred and sharpened, image by image."""
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel[None, :] / 16)[None, None]
    blurred = nnf.conv2d(nnf.pad(batch, (1, 1, 1, 1), mode="replicate"), kernel)
    amount = torch.empty(len(batch), 1, 1, 1).uniform_(-0.6, 1.0)  # 1 is fully blurred, below 0 sharpens
    return batch + amount * (blurred - batch)


def _blocks(batch: Tensor) -> Tensor:
    """Coarse grey levels in a part of the images, as lossy compression leaves."""
    levels = torch.randint(24, 128, (len(batch), 1, 1, 1)).float()
    coarse = torch.round(batch * levels) / levels
    return torch.where(torch.rand(len(batch), 1, 1, 1) < 0.2, coarse, batch)


def _erased(batch: Tensor) -> Tensor:
    """One rectangle in a quarter of the images at their mean grey (Zhong et al. 2020)."""
    n, _, rows, columns = batch.shape
    batch = batch.clone()
    for i in torch.nonzero(torch.rand(n) < 0.25)[:, 0].tolist():
        high, wide = (int(side * (0.08 + 0.22 * torch.rand(1).item())) for side in (rows, columns))
        top = int(torch.randint(rows - high, (1,)).item())
        left = int(torch.randint(columns - wide, (1,)).item())
        batch[i, :, top : top + high, left : left + wide] = batch[i].mean()
    return batch


def _framed(batch: Tensor) -> Tensor:
    """Collimated edges on half the images, each side by its own width; a part of them white, as shutters are shown.

    Without them a network takes a thin dark frame, which says nothing about a lung, for a sign of pneumonia.
    """
    n, _, rows, columns = batch.shape
    near, far = torch.rand(2, n, 2, 1) * _FRAME
    near, far = (side * (torch.rand(n, 2, 1) < 0.7) * (torch.rand(n, 1, 1) < 0.5) for side in (near, far))
    inside = []
    for axis, length in enumerate((rows, columns)):
        place = (torch.arange(length) + 0.5) / length
        inside.append((place >= near[:, axis]) & (place <= 1 - far[:, axis]))
    field = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    grey = torch.rand(n, 1, 1, 1) * 0.06 + (torch.rand(n, 1, 1, 1) < 0.1)
    return torch.where(field, batch, grey)
