"""The DICOM object around a radiograph, with the header that a department's scanner writes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from stepwedge.records import FloatArray
from stepwedge.simulate.children import resized

_BITS = 12
_LARGEST = 2**_BITS - 1
_DETECTOR_WIDTH = 250.0  # mm, where the equipment states no pixel spacing

# SNOMED CT codes of the views (PS3.16 CID 4010) and of the region (CID 4009).
_VIEWS = {"AP": ("399348003", "antero-posterior"), "PA": ("272479007", "postero-anterior")}
_CHEST = ("816094009", "Chest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Equipment:
    """What a scanner says about itself."""

    manufacturer: str = "Simulated Imaging"
    model_name: str = ""  # empty: after the modality
    station: str = ""  # empty: after the modality
    serial_number: str = "0001"
    software: str = "1"
    detector_type: Literal["SCINTILLATOR", "DIRECT"] = "SCINTILLATOR"
    detector_id: str = "SIM1"
    pixel_spacing: float | None = None  # mm at the detector; None: as a detector of 250 mm has it


@dataclass(frozen=True, kw_only=True, slots=True)
class Technique:
    """How an exposure was made."""

    kilovolts: int
    milliseconds: int
    milliamperes: int
    milliampere_seconds: float
    distance: int = 1150  # mm from source to detector


def to_dicom(
    pixels: FloatArray,
    *,
    rng: np.random.Generator,
    age_years: int | None = 3,
    birth_date: date | None = None,
    sex: str = "O",
    view: Literal["AP", "PA", ""] = "AP",
    modality: Literal["DX", "CR"] = "DX",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    patient_name: str = "Simulated^Child",
    patient_id: str = "",
    accession: str = "",
    study_date: date = date(2026, 1, 5),
    taken: datetime | None = None,
    manufacturer: str = "Simulated Imaging",
    equipment: Equipment | None = None,
    technique: Technique | None = None,
    study_uid: str = "",
    series_uid: str = "",
    instance_uid: str = "",
) -> Dataset:
    """Wrap an image on 0…1, (rows, columns), as a chest radiograph with a complete header (PS3.3 A.2 and A.26).

    Pixels are 12 bits in 16, uncompressed. The header depends on the options and ``rng`` only, never on what the
    image shows. ``age_years`` None leaves age and birth date empty. UIDs that are not given are new ones. ``taken``,
    ``equipment`` and ``technique`` go before ``study_date``, ``manufacturer`` and what ``rng`` draws.
    """
    dataset = Dataset()
    dataset.SOPClassUID = (
        DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    )
    dataset.SOPInstanceUID = instance_uid or generate_uid()
    dataset.StudyInstanceUID = study_uid or generate_uid()
    dataset.SeriesInstanceUID = series_uid or generate_uid()
    clock = time(int(rng.integers(7, 19)), int(rng.integers(60)), int(rng.integers(60)))
    taken = taken or datetime.combine(study_date, clock)
    number = int(rng.integers(100_000, 1_000_000))
    equipment = equipment or Equipment(manufacturer=manufacturer)
    _add_patient(dataset, patient_name, patient_id or f"SIM{number}", sex)
    _add_age(dataset, age_years, birth_date, taken.date())
    _add_study(dataset, taken, accession or f"SIMA{number}")
    _add_equipment(dataset, modality, equipment)
    _add_acquisition(dataset, technique or _drawn_technique(rng), view)
    if modality == "DX":
        _add_dx(dataset, view, photometric, equipment)
    _add_pixels(dataset, pixels, photometric, equipment.pixel_spacing)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def wrap_image(
    image: Path | NDArray[np.generic],
    *,
    rng: np.random.Generator,
    shortest_side: int = 1024,
    age_years: int | None = 3,
    sex: str = "O",
    view: Literal["AP", "PA", ""] = "AP",
    modality: Literal["DX", "CR"] = "DX",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    patient_name: str = "Wrapped^Image",
    study_date: date = date(2026, 1, 5),
) -> Dataset:
    """Wrap a grey-scale picture, a file or an array of 8 bits, as ``to_dicom`` does.

    It is enlarged to ``shortest_side`` pixels where it is smaller; nothing else is done to it.
    """
    if isinstance(image, Path):
        with Pillow.open(image) as picture:
            image = np.asarray(picture.convert("L"))
    pixels = np.asarray(np.asarray(image, np.float32) / np.float32(255), np.float32)
    grow = shortest_side / min(pixels.shape)
    if grow > 1:
        pixels = resized(pixels, round(pixels.shape[0] * grow), round(pixels.shape[1] * grow))
    return to_dicom(
        pixels,
        rng=rng,
        age_years=age_years,
        sex=sex,
        view=view,
        modality=modality,
        photometric=photometric,
        patient_name=patient_name,
        study_date=study_date,
    )


def leave_out(dataset: Dataset, keyword: str) -> None:
    """What a header looks like in which somebody, or a device, did not fill in an attribute.

    ``PatientSex`` and ``PatientBirthDate`` (type 2) stay and are empty; anything else goes, a view or a body part
    together with its code.
    """
    if keyword in {"PatientSex", "PatientBirthDate"}:
        dataset[keyword].value = ""
        return
    with_it = {"ViewPosition": "ViewCodeSequence", "BodyPartExamined": "AnatomicRegionSequence"}
    for name in (keyword, with_it.get(keyword, "")):
        if name in dataset:
            del dataset[name]


def _add_patient(dataset: Dataset, name: str, identifier: str, sex: str) -> None:
    dataset.PatientName = name
    dataset.PatientID = identifier
    dataset.PatientSex = sex
    dataset.QualityControlSubject = "YES"  # nobody's image; PS3.3 section C.7.1.1


def _add_age(dataset: Dataset, age_years: int | None, birth_date: date | None, study_date: date) -> None:
    dataset.PatientBirthDate = ""
    if age_years is not None:
        dataset.PatientBirthDate = (birth_date or date(study_date.year - age_years, 1, 1)).strftime("%Y%m%d")
        dataset.PatientAge = f"{age_years:03}Y"


def _add_study(dataset: Dataset, taken: datetime, accession: str) -> None:
    day, clock = taken.strftime("%Y%m%d"), taken.strftime("%H%M%S")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = clock
    dataset.AccessionNumber = accession
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = accession[-6:]
    dataset.StudyDescription = "Chest radiograph"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1


def _add_equipment(dataset: Dataset, modality: str, equipment: Equipment) -> None:
    dataset.Modality = modality
    dataset.Manufacturer = equipment.manufacturer
    dataset.ManufacturerModelName = equipment.model_name or f"{modality} Simulator"
    dataset.StationName = equipment.station or f"SIM{modality}1"
    dataset.InstitutionName = "Simulated Children's Hospital"
    dataset.DeviceSerialNumber = equipment.serial_number
    dataset.SoftwareVersions = equipment.software


def _drawn_technique(rng: np.random.Generator) -> Technique:
    kilovolts, milliseconds = int(rng.integers(60, 81)), int(rng.integers(3, 12))
    milliamperes, product = int(rng.integers(150, 320)), int(rng.integers(1, 4))
    return Technique(
        kilovolts=kilovolts, milliseconds=milliseconds, milliamperes=milliamperes, milliampere_seconds=product
    )


def _add_acquisition(dataset: Dataset, technique: Technique, view: str) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = view
    dataset.PatientOrientation = ["L", "F"]
    dataset.KVP = str(technique.kilovolts)
    dataset.ExposureTime = str(technique.milliseconds)
    dataset.XRayTubeCurrent = str(technique.milliamperes)
    dataset.Exposure = str(max(1, round(technique.milliampere_seconds)))
    dataset.ExposureInuAs = str(round(technique.milliampere_seconds * 1000))
    dataset.DistanceSourceToDetector = str(technique.distance)
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"


def _add_dx(dataset: Dataset, view: str, photometric: str, equipment: Equipment) -> None:
    """What the DX modules ask for beyond CR (PS3.3 C.8.11)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    dataset.SeriesDescription = "Chest"
    dataset.AnatomicRegionSequence = [_code(*_CHEST)]
    if view:
        dataset.ViewCodeSequence = [_code(*_VIEWS[view])]
        dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.AcquisitionContextSequence = []
    dataset.PositionerType = "COLUMN"
    dataset.DetectorType = equipment.detector_type
    dataset.DetectorID = equipment.detector_id
    dataset.PixelIntensityRelationship = "LOG"
    # X-ray intensity is high where the image is dark.
    dataset.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    dataset.PresentationLUTShape = "IDENTITY" if photometric == "MONOCHROME2" else "INVERSE"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _add_pixels(dataset: Dataset, pixels: FloatArray, photometric: str, pixel_spacing: float | None) -> None:
    stored = np.round(np.clip(pixels, 0, 1) * _LARGEST).astype("<u2")
    if photometric == "MONOCHROME1":
        stored = (_LARGEST - stored).astype("<u2")
    rows, columns = stored.shape
    spacing = f"{pixel_spacing or _DETECTOR_WIDTH / columns:.4f}"
    dataset.ImagerPixelSpacing = [spacing, spacing]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, _BITS, _BITS - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = str((_LARGEST + 1) // 2), str(_LARGEST + 1)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
