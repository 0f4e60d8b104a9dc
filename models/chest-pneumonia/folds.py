"""The published data set as rows, tensors and folds. Patients are split once into folds that never mix."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from stepwedge.inference.preprocess import to_tensor
from stepwedge.manifest import Input
from stepwedge.records import Image

CLASSES = ("normal", "bacterial", "viral")

# Shares of the patients. The calibrate and gate folds together are the baseline that the monitor compares with.
SHARES: Mapping[str, float] = {"train": 0.62, "calibrate": 0.12, "gate": 0.12, "test": 0.14}
_SEED = "stepwedge chest-pneumonia 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One radiograph of the data set."""

    file: str
    patient: str
    label: str  # one of CLASSES
    original_rows: int  # before the data set was resampled to a short side of 256
    original_columns: int
    fold: str


def patient_hash(patient: str) -> str:
    """A patient's place in the order that the split is made by, hexadecimal."""
    return hashlib.sha256(f"{_SEED}/{patient}".encode()).hexdigest()


def read_rows(data: Path) -> list[Row]:
    """Every radiograph of ``data``/labels.csv with its fold, in the file's order."""
    with (data / "labels.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    folds = split((record["patient"], record["label"]) for record in records)
    return [
        Row(
            file=record["file"],
            patient=record["patient"],
            label=record["label"],
            original_rows=int(record["original_rows"]),
            original_columns=int(record["original_columns"]),
            fold=folds[record["patient"]],
        )
        for record in records
    ]


def split(labelled: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The fold of each patient.

    Patients are grouped by the set of labels among their radiographs, ordered within a group by a hash of the
    patient's name, and cut at SHARES: every fold has the same mixture, and neither the order of the file nor a
    random generator has a say.
    """
    labels: dict[str, set[str]] = {}
    for patient, label in labelled:
        labels.setdefault(patient, set()).add(label)
    groups: dict[tuple[str, ...], list[str]] = {}
    for patient, found in labels.items():
        groups.setdefault(tuple(sorted(found)), []).append(patient)
    ends = np.cumsum(list(SHARES.values()))
    folds = {}
    for patients in groups.values():
        for index, patient in enumerate(sorted(patients, key=patient_hash)):
            place = (index + 0.5) / len(patients)
            folds[patient] = list(SHARES)[int(np.searchsorted(ends, place))]
    return folds


def read_image(path: Path) -> Image:
    """A radiograph of the data set as the service would decode it."""
    with Pillow.open(path) as picture:
        pixels = np.asarray(picture.convert("L"), np.float32)
    return Image(pixels=pixels, value_range=(0.0, 255.0))


def tensors(data: Path, rows: Sequence[Row], spec: Input) -> NDArray[np.float32]:
    """Input tensors, float32 (n, channels, rows, columns), made by the code that serves."""
    return np.concatenate([to_tensor(read_image(data / "images" / row.file), spec) for row in rows])


def label_index(rows: Sequence[Row]) -> NDArray[np.int64]:
    """The class of each row, (n,)."""
    return np.array([CLASSES.index(row.label) for row in rows])
