"""The reference set of this model: simulated studies, small enough to travel with the package.

Every study is drawn by the simulated department, reduced by averaging so that its shorter side has at least 320
pixels, and kept in one of the transfer syntaxes that radiographs come in, so that each decoder is exercised. A few are
spoilt on purpose, so that the gate has something to refuse.

    python models/chest-pneumonia/reference.py OUT
    stepwedge package constancy models/chest-pneumonia/1.1.0 --from OUT --key KEY
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import JPEG2000Lossless, RLELossless

STUDIES = 24
SEED = 97
SHORTER_SIDE = 320
SPOILT = {4: "inverted", 9: "cut off", 14: "upside down", 20: "no age"}


def main(out: Path) -> None:
    """Write the files."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        drawn = Path(name) / "drawn"
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "stepwedge", "simulate", "--out", str(drawn), "--studies", str(STUDIES), "--seed",
             str(SEED), "--prevalence", "0.5"],
            check=True,
        )  # fmt: skip
        for index, file in enumerate(sorted((drawn / "studies").glob("*.dcm"))):
            dataset = reduced(pydicom.dcmread(file))
            spoil(dataset, SPOILT.get(index, ""))
            dataset.PatientName = "Constancy^Reference"
            dataset.PatientID = f"CONSTANCY{index:02}"
            if index % 3 == 1:
                dataset.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
            elif index % 3 == 2:
                dataset.compress(RLELossless, encoding_plugin="pydicom")
            dataset.save_as(out / f"{index:02}.dcm")


def reduced(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """The same study with fewer pixels."""
    pixels = dataset.pixel_array.astype(np.float64)
    step = max(1, min(pixels.shape) // SHORTER_SIDE)
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    fields = pixels[: rows * step, : columns * step].reshape(rows, step, columns, step)
    put(dataset, fields.mean(axis=(1, 3)))
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if keyword in dataset:
            setattr(dataset, keyword, [round(float(value) * step, 4) for value in dataset[keyword].value])
    return dataset


def spoil(dataset: pydicom.Dataset, how: str) -> None:
    """Make of it what the gate, or the intended use, has to catch."""
    pixels = dataset.pixel_array
    if how == "inverted":
        put(dataset, 2**dataset.BitsStored - 1 - pixels)
    elif how == "cut off":
        spoilt = pixels.copy()
        spoilt[pixels.shape[0] // 2 :] = 0
        put(dataset, spoilt)
    elif how == "upside down":
        put(dataset, pixels[::-1])
    elif how == "no age":
        dataset.PatientAge = dataset.PatientBirthDate = ""


def put(dataset: pydicom.Dataset, pixels: np.ndarray) -> None:
    """Replace the pixels."""
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = np.ascontiguousarray(np.rint(pixels)).astype("<u2").tobytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
