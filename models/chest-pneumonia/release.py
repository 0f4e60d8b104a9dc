"""What `stepwedge package build` needs beside the graph: the folds as a table, and golden images of nobody."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from folds import CLASSES, Row
from learn import SIDE
from network import Network
from PIL import Image as Pillow
from stepwedge.simulate import load_simulator, simulate

_GOLDEN_SEED = 1
_GOLDEN_OF_EACH = 2
_OPSET = 17


def export(model: Network, path: Path) -> None:
    """Write the graph; the build adds what its head allows."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, SIDE, SIDE),),
        str(path),
        input_names=["image"],
        output_names=["logits", "embedding"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}, "embedding": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )


def write_labels(path: Path, rows: Sequence[Row]) -> None:
    """Write the labels with the fold of each image."""
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["file", "patient", "label", "fold"])
        table.writerows([row.file, row.patient, row.label, row.fold] for row in rows)


def write_golden_images(folder: Path, simulated: Path) -> None:
    """Write simulated patients of every class: no patient's image travels with the package."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_GOLDEN_SEED)
    simulator = load_simulator(simulated)
    for label in CLASSES:
        for number in range(_GOLDEN_OF_EACH):
            pixels = np.round(simulate(simulator, label, rng) * 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(folder / f"{label}-{number}.png")
