"""What the content gate looks at in an image: numbers that describe its layout, texture and grey scale.

Everything is taken from the image squeezed to one size, stretched between two of its percentiles, so that neither the
detector's pixel size nor the stored bits matter; only the last group of numbers is on the stored grey scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from stepwedge.records import FloatArray, Image, PixelStatistics

_SIDE = 256  # pixels; coarser detail than a model of 224 × 224 sees, and as fine as the smallest images that are usual
_CELLS = 8  # cells across and down, for what is described place by place
_ORIENTATIONS = 8  # directions of a gradient, dark to bright: 45° each
_BINS = 16  # of the histogram
_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_EDGE = 0.25  # second difference, of the stretched range, from which a pixel counts as one of a drawn line
_STRONG_EDGE = 0.3
_NEAR_END = 0.01  # of the range present: what counts as clipped
_THUMB = 32

# Where each group of numbers lies.
LAYOUT: Mapping[str, slice] = {
    "thumb": slice(0, 1024),  # the image at 32 × 32, its mean 0 and its standard deviation 1
    "fine_edges": slice(1024, 1536),  # directions of gradients by cell, at 128 × 128
    "coarse_edges": slice(1536, 2048),  # the same at 64 × 64, which noise, compression and blur hardly change
    "cells": slice(2048, 2560),  # contrast by cell at four scales, sharpest lines and how many
    "whole": slice(2560, 2608),  # the same over the whole image, its histogram and its shape
    "grey": slice(2608, 2620),  # on the stored range
}
FEATURES = 2620


def describe(image: Image, statistics: PixelStatistics) -> FloatArray:
    """The numbers of an image, float32 (FEATURES,), in the order of ``LAYOUT``."""
    squeezed = _squeezed(image.pixels)
    levels = np.percentile(squeezed[::2, ::2], _PERCENTILES)
    low, high = float(levels[1]), float(levels[7])
    contrast = max(high - low, float(np.finfo(np.float32).tiny) * 1e6, 1e-7 * abs(high))
    finest = np.clip((squeezed - np.float32(low)) * np.float32(1 / contrast), 0, 1)
    scales = [finest]
    for _ in range(3):
        scales.append(_halved(scales[-1]))
    cells, whole = _sharpness(scales)
    thumb = scales[3]
    parts = [
        ((thumb - thumb.mean()) / (thumb.std() + 1e-3)).ravel(),
        _edges(scales[1]),
        _edges(scales[2]),
        cells,
        whole,
        np.histogram(scales[1], bins=_BINS, range=(0, 1))[0] / scales[1].size,
        [
            np.log(image.pixels.shape[1] / image.pixels.shape[0]),
            min((float(levels[8]) - high) / contrast, 10.0),
            min((low - float(levels[0])) / contrast, 10.0),
        ],
        _grey(squeezed, levels, statistics),
    ]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def _squeezed(pixels: FloatArray) -> FloatArray:
    picture = Pillow.fromarray(np.ascontiguousarray(pixels, np.float32))
    # A gap of 2 shrinks by whole numbers first, which is fast, and leaves the filter enough to work with.
    return np.asarray(picture.resize((_SIDE, _SIDE), Pillow.Resampling.BILINEAR, reducing_gap=2.0), np.float32)


def _halved(plane: FloatArray) -> FloatArray:
    pairs = plane[::2] + plane[1::2]
    return np.asarray((pairs[:, ::2] + pairs[:, 1::2]) * np.float32(0.25), np.float32)


def _edges(plane: FloatArray) -> FloatArray:
    """How much of each cell's gradient points each way, (cells × cells × orientations,)."""
    side = plane.shape[0]
    across, down = np.zeros_like(plane), np.zeros_like(plane)
    across[:, 1:-1] = plane[:, 2:] - plane[:, :-2]
    down[1:-1] = plane[2:] - plane[:-2]
    turn = np.arctan2(down, across) * np.float32(_ORIENTATIONS / (2 * np.pi)) + np.float32(0.5)
    direction = np.floor(turn).astype(np.int32) % _ORIENTATIONS
    cell = np.arange(side) // (side // _CELLS)
    place = ((cell[:, None] * _CELLS + cell[None]) * _ORIENTATIONS + direction).ravel()
    sums = np.bincount(place, weights=np.hypot(across, down).ravel(), minlength=_CELLS * _CELLS * _ORIENTATIONS)
    by_cell = sums.reshape(-1, _ORIENTATIONS)
    # A cell with hardly any gradient says nothing: a twentieth of the mean cell is added.
    strength = by_cell.sum(axis=1, keepdims=True) + 0.05 * by_cell.sum() / len(by_cell) + 1e-6
    return np.asarray(np.sqrt(by_cell / strength).ravel(), np.float32)


def _sharpness(scales: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Logarithms of contrast between neighbours by cell and over the whole image, from fine to coarse."""
    cells: list[FloatArray] = []
    whole: list[float] = []
    for scale, plane in enumerate(scales):
        across, down = np.abs(np.diff(plane, axis=1)), np.abs(np.diff(plane, axis=0))
        whole += [across.mean(), down.mean()]
        whole += [np.abs(np.diff(plane, 2, axis=1)).mean(), np.abs(np.diff(plane, 2, axis=0)).mean()]
        both = np.zeros_like(plane)
        both[:-1, :-1] = across[:-1] + down[:, :-1]
        cells.append(np.log(_by_cell(both).mean(axis=(1, 3)) + 2e-3).ravel())
        if scale < 2:
            second = np.zeros_like(plane)
            second[1:-1, 1:-1] = np.abs(
                4 * plane[1:-1, 1:-1] - plane[2:, 1:-1] - plane[:-2, 1:-1] - plane[1:-1, 2:] - plane[1:-1, :-2]
            )
            cells.append(np.log(_by_cell(second).max(axis=(1, 3)) + 2e-2).ravel())
            cells.append(np.log(_by_cell(second > _EDGE).mean(axis=(1, 3)) + 3e-3).ravel())
            strong = second > _STRONG_EDGE
            margin = plane.shape[0] // _CELLS
            rows = strong[margin:-margin, margin // 2 : -margin // 2].mean(axis=1)
            # Lines of writing: the rows with most of them, away from where markers are.
            whole += [10 * rows.mean(), 3 * np.sort(rows)[-8:].mean()]
            whole += [np.square(np.square(second)).mean() ** 0.25, 10 * strong.mean()]
    whole += [float(scales[1].std()), float(np.abs(scales[1] - scales[1][:, ::-1]).mean())]
    whole += [float(np.abs(scales[1] - scales[1][::-1]).mean()), float(np.abs(scales[2] - scales[2].T).mean())]
    whole += [float(scales[3][8:24, 8:24].mean())]
    return np.concatenate(cells).astype(np.float32), np.log(np.asarray(whole, np.float32) + np.float32(1e-3))


def _by_cell(plane: NDArray[Any]) -> NDArray[Any]:
    size = plane.shape[0] // _CELLS
    return plane.reshape(_CELLS, size, _CELLS, size)


def _grey(squeezed: FloatArray, levels: FloatArray, statistics: PixelStatistics) -> FloatArray:
    """Where on the stored range the image lies, and how much of it at the ends of the range present."""
    near = _NEAR_END * float(levels[8] - levels[0])
    sample = squeezed[::2, ::2]
    return np.array(
        [
            statistics.p01,
            statistics.p50,
            statistics.p99,
            statistics.mean,
            statistics.sd,
            statistics.p99 - statistics.p01,
            np.log(max(statistics.p99 - statistics.p01, 0) + 1e-3),
            np.log(max(statistics.sd, 0) + 1e-3),
            np.log(min(max(statistics.p50, 0), 1) + 0.02),
            np.log(1.02 - min(max(statistics.p50, 0), 1)),
            np.mean(sample <= levels[0] + near),
            np.mean(sample >= levels[8] - near),
        ],
        np.float32,
    )
