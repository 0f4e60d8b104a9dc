"""Small grey-scale images that the gate accepts and whose mean brightness a test chooses (see ``packages``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from instances import make_instance, write_file
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom import Dataset
from stepwedge.records import Header, Image

# Mean brightness, and what the tiny model says of it under the tiny policy.
BRIGHT, GREY, DARK = 0.75, 0.5, 0.25  # act, defer, clear

WHITE = 4095  # of twelve stored bits

# Every attribute that could name a patient, with values that occur nowhere else.
IDENTIFIERS: Mapping[str, str] = {
    "PatientName": "Quillfeather^Zebulon",
    "PatientID": "PID-7734-XYZZY",
    "OtherPatientNames": "Plumtree^Zebulon",
    "IssuerOfPatientID": "ISSUER-XYZZY",
    "PatientBirthDate": "19530417",
    "PatientAddress": "17 Xyzzy Lane",
    "PatientTelephoneNumbers": "555-0177-3141",
    "PatientMotherBirthName": "Featherstone^Araminta",
    "PatientComments": "comment about Zebulon",
    "AccessionNumber": "ACC-XYZZY-99",
    "StudyID": "SID-XYZZY",
    "StudyDescription": "chest of Zebulon",
    "SeriesDescription": "series of Zebulon",
    "ReferringPhysicianName": "Physician^Referring^Q",
    "OperatorsName": "Operator^Olga^Q",
    "PerformingPhysicianName": "Physician^Performing^Q",
    "InstitutionName": "Xyzzy General Hospital",
    "InstitutionAddress": "1 Xyzzy Square",
    "StationName": "XYZZY-ROOM-3",
    "DeviceSerialNumber": "SERIAL-XYZZY",
    "ImageComments": "image of Zebulon",
    "StudyDate": "20240229",
    "StudyTime": "031415",
}


def shades(brightness: float, rows: int = 64, columns: int = 64) -> NDArray[np.float32]:
    """A smooth image with a mean of ``brightness`` on 0…1, float32 (rows, columns)."""
    down, across = np.mgrid[0:rows, 0:columns]
    slope = 0.2 * (across / (columns - 1) - 0.5) + 0.2 * (down / (rows - 1) - 0.5)
    return (brightness + slope).astype(np.float32)


def image(brightness: float, rows: int = 64, columns: int = 64) -> Image:
    """A decoded image of twelve bits."""
    return Image(pixels=shades(brightness, rows, columns) * np.float32(WHITE), value_range=(0.0, float(WHITE)))


def header(**values: object) -> Header:
    """The header of an image that the tiny package is intended for."""
    return Header(**{"modality": "DX", "rows": 64, "columns": 64, "bits_stored": 12, **values})  # type: ignore[arg-type]


def radiograph(brightness: float, *, rows: int = 64, columns: int = 64, study: str | None = None) -> Dataset:
    """A digital radiograph of a patient who has every identifier that there is."""
    dataset = make_instance(rows=rows, columns=columns, study=study)
    for keyword, value in IDENTIFIERS.items():
        setattr(dataset, keyword, value)
    values = np.rint(shades(brightness, rows, columns) * WHITE).astype("<u2")
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def write_radiograph(path: Path, brightness: float) -> Path:
    """A radiograph as a DICOM file."""
    return write_file(radiograph(brightness), path)


def write_picture(path: Path, brightness: float) -> Path:
    """A plain image file without a header, of the format that its name says."""
    Pillow.fromarray(np.rint(shades(brightness) * 255).astype(np.uint8)).save(path)
    return path
