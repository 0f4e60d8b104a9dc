"""A folder of labelled images and a description, from which a small package is built in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image as Pillow

_BRIGHTNESS = {"normal": 0.42, "ill": 0.58}  # mean of the images of a class on 0…1
_SPREAD = 0.05  # of an image's mean: the classes overlap, as they do in life


def picture(mean: float, rng: np.random.Generator, side: int = 96) -> NDArray[np.uint8]:
    """A smooth image with some fine structure, (side, side), of about a given mean brightness on 0…1."""
    coarse = Pillow.fromarray(rng.random((5, 5), dtype=np.float32))
    smooth = np.asarray(coarse.resize((side, side), Pillow.Resampling.BICUBIC), np.float32)
    values = mean + 0.6 * (smooth - smooth.mean()) + rng.normal(0, 0.01, smooth.shape)
    return np.asarray(np.clip(values, 0, 1) * 255, np.uint8)


def write_images(
    folder: Path,
    *,
    patients: int = 150,
    seed: int = 0,
    folds: Sequence[str] = (),
    share_ill: float = 0.4,
) -> Path:
    """Write ``images/`` and ``labels.csv`` with one or two images of each patient; the CSV's path.

    ``folds`` are given to the patients in turn; without any there is no such column.
    """
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = ["file,patient,label,sex" + (",fold" if folds else "")]
    for patient in range(patients):
        label = "ill" if rng.random() < share_ill else "normal"
        for number in range(1 + patient % 2):
            name = f"images/p{patient:03d}-{number}.png"
            mean = _BRIGHTNESS[label] + rng.normal(0, _SPREAD)
            Pillow.fromarray(picture(mean, rng)).save(folder / name)
            fold = f",{folds[patient % len(folds)]}" if folds else ""
            lines.append(f"{name},P{patient:03d},{label},{'FM'[patient % 2]}{fold}")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return labels


def write_manifest(file: Path, **changes: Any) -> Path:
    """Write a finished ``model.yaml`` for the models of ``graphs``; the file. ``changes`` replace top-level keys."""
    contents: Mapping[str, Any] = {
        "schema": 1,
        "name": "bright",
        "version": "1.0.0",
        "description": "Tells bright images from dark ones.",
        "licence": "Apache-2.0",
        "intended_use": {"summary": "Tests only", "modality": ["CR", "DX"]},
        "input": {"name": "image", "rows": graphs.SIDE, "columns": graphs.SIDE, "presentation": {"kind": "range"}},
        "output": {"scores": "logits", "classes": list(graphs.CLASSES), "kind": "exclusive"},
        "findings": [
            {"name": "ill", "code": {"value": "39104002", "scheme": "SCT", "meaning": "Illness"}, "positive": ["ill"]}
        ],
        **changes,
    }
    file.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
    return file
