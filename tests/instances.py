"""Small DICOM instances, as data sets and as encoded bytes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)
from stepwedge.dicom.encoded import Received

DX = str(DigitalXRayImageStorageForPresentation)
CT = str(CTImageStorage)


def make_instance(
    *,
    modality: str = "DX",
    sop_class: str = DX,
    study: str | None = None,
    series: str | None = None,
    sop: str | None = None,
    rows: int = 16,
    columns: int = 16,
    seed: int = 0,
    pixels: bool = True,
) -> Dataset:
    """An uncompressed image of noise, with names and birth date that no log may show."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = sop or generate_uid()
    dataset.StudyInstanceUID = study or generate_uid()
    dataset.SeriesInstanceUID = series or generate_uid()
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "ACC-SECRET"
    dataset.Modality = modality
    dataset.Manufacturer = "Acme"
    dataset.PatientName, dataset.PatientID = "Secret^Person", "PID-SECRET"
    dataset.PatientBirthDate, dataset.PatientSex = "20200101", "F"
    if pixels:
        values = np.random.default_rng(seed).integers(0, 4096, (rows, columns), dtype=np.uint16)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = rows, columns
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = values.tobytes()
        dataset["PixelData"].VR = "OW"
    return dataset


def encode(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as it travels."""
    syntax = UID(transfer_syntax)
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(out, dataset)
    return out.getvalue()


def received(
    dataset: Dataset, *, data: bytes | None = None, sop_class: str | None = None, sop: str | None = None
) -> Received:
    """What the listener hands to the spool."""
    return Received(
        sop_class_uid=sop_class or dataset.SOPClassUID,
        sop_uid=sop or dataset.SOPInstanceUID,
        transfer_syntax_uid=str(ExplicitVRLittleEndian),
        sender="MODALITY",
        data=encode(dataset) if data is None else data,
    )


def write_file(dataset: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
    """A Part 10 file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path
