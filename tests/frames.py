"""Data sets of one grey-scale frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

LIMIT = 536_870_912  # bytes that an image may have once it is decoded


def make(pixels: np.ndarray[Any, Any], syntax: str = uid.ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """A data set of one grey-scale frame; ``attributes`` override the defaults, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    bits = pixels.dtype.itemsize * 8
    defaults: dict[str, Any] = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": attributes.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    }
    for keyword, value in (defaults | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def grey(dtype: str = "uint16", largest: int = 4095, shape: tuple[int, int] = (20, 30)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).integers(0, largest, shape, endpoint=True).astype(dtype)
