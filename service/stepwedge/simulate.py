"""Simulated children: radiographs that belong to nobody, in DICOM objects as a department would send them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from stepwedge.errors import StepwedgeError
from stepwedge.records import FloatArray

# Spread of the drawn component weights over that of the patients behind them: typical children, no extremes.
_APPEARANCE_SPREAD = 0.7
_SHAPE_SPREAD = 0.7

# Rows of a simulated radiograph, and columns over rows. Real paediatric chests: 1.2 to 1.6.
_ROWS = (1024, 1537)
_ASPECT = (1.15, 1.4)

_QUANTUM = 0.008  # standard deviation of quantum noise, of the grey scale
_GRAIN = 0.012  # standard deviation of fine structure a few pixels wide
_MARGIN = 0.02  # collimated edge, largest share of each side
_COLLIMATED = 0.03  # grey of the collimated edge

_BITS = 12
_LARGEST = 2**_BITS - 1
_DETECTOR_WIDTH = 250.0  # mm

# SNOMED CT codes of the views (PS3.16 CID 4010) and of the region (CID 4009).
_VIEWS = {"AP": ("399348003", "antero-posterior"), "PA": ("272479007", "postero-anterior")}
_CHEST = ("51185008", "Chest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """A mean and components scaled by their standard deviations: what values of a Gaussian are drawn from."""

    mean: FloatArray  # (…)
    components: FloatArray  # (components, …)

    def draw(self, rng: np.random.Generator, spread: float) -> FloatArray:
        """One sample, of the shape of ``mean``."""
        weights = (rng.standard_normal(len(self.components)) * spread).astype(np.float32)
        return np.asarray(self.mean + np.tensordot(weights, self.components, axes=1), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How children with one label look."""

    appearance: Principal  # (side, side) on 0…1, of radiographs warped onto each other
    shape: Principal  # (2, grid, grid) displacements across and down, a side being 2


Simulator = Mapping[str, Kind]  # by label


def load_simulator(path: Path) -> Simulator:
    """Read ``simulated.npz``. Raises StepwedgeError if it is missing or is no simulator."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels = dict.fromkeys(name.split(".")[0] for name in arrays.files)
            return {
                label: Kind(
                    appearance=_principal(arrays, f"{label}.appearance"), shape=_principal(arrays, f"{label}.shape")
                )
                for label in labels
            }
    except (OSError, KeyError, ValueError) as error:
        raise StepwedgeError(f"{path}: cannot be read as simulated patients: {error}; restore the file") from None


def simulate(simulator: Simulator, label: str, rng: np.random.Generator) -> FloatArray:
    """A radiograph of a child that does not exist, float32 (rows, columns) on 0…1, brighter where denser.

    Raises StepwedgeError for a label that the simulator does not have.
    """
    if label not in simulator:
        raise StepwedgeError(f"no simulated patients are labelled {label!r}; there are {', '.join(simulator)}")
    kind = simulator[label]
    appearance = kind.appearance.draw(rng, _APPEARANCE_SPREAD)
    warped = _warped(appearance, -kind.shape.draw(rng, _SHAPE_SPREAD))
    rows = int(rng.integers(*_ROWS))
    columns = round(rows * rng.uniform(*_ASPECT))
    return _collimated(_textured(_resized(warped, rows, columns), rng), rng)


def to_dicom(
    pixels: FloatArray,
    *,
    rng: np.random.Generator,
    age_years: int | None = 3,
    sex: str = "O",
    view: Literal["AP", "PA", ""] = "AP",
    modality: Literal["DX", "CR"] = "DX",
    photometric: Literal["MONOCHROME1", "MONOCHROME2"] = "MONOCHROME2",
    patient_name: str = "Simulated^Child",
    patient_id: str = "",
    accession: str = "",
    study_date: date = date(2026, 1, 5),
    manufacturer: str = "Simulated Imaging",
    study_uid: str = "",
    series_uid: str = "",
    instance_uid: str = "",
) -> Dataset:
    """Wrap an image on 0…1, (rows, columns), as a chest radiograph with a complete header (PS3.3 A.2 and A.26).

    Pixels are 12 bits in 16, uncompressed. The header depends on the options and ``rng`` only, never on what the
    image shows. ``age_years`` None leaves age and birth date empty. UIDs that are not given are new ones.
    """
    dataset = Dataset()
    dataset.SOPClassUID = (
        DigitalXRayImageStorageForPresentation if modality == "DX" else ComputedRadiographyImageStorage
    )
    dataset.SOPInstanceUID = instance_uid or generate_uid()
    dataset.StudyInstanceUID = study_uid or generate_uid()
    dataset.SeriesInstanceUID = series_uid or generate_uid()
    taken = datetime.combine(study_date, time(int(rng.integers(7, 19)), int(rng.integers(60)), int(rng.integers(60))))
    number = int(rng.integers(100_000, 1_000_000))
    _add_patient(dataset, patient_name, patient_id or f"SIM{number}", sex, age_years, study_date)
    _add_study(dataset, taken, accession or f"SIMA{number}")
    _add_equipment(dataset, modality, manufacturer)
    _add_acquisition(dataset, rng, view)
    if modality == "DX":
        _add_dx(dataset, view, photometric)
    _add_pixels(dataset, pixels, photometric)
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
        pixels = _resized(pixels, round(pixels.shape[0] * grow), round(pixels.shape[1] * grow))
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


# --- Drawing ------------------------------------------------------------------------------------------------------


def _principal(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Principal:
    components = np.asarray(arrays[f"{name}.components"], np.float32)
    scale = np.asarray(arrays[f"{name}.scale"], np.float32)
    return Principal(
        mean=np.asarray(arrays[f"{name}.mean"], np.float32),
        components=components * scale.reshape(-1, *[1] * (components.ndim - 1)),
    )


def _warped(image: FloatArray, displacement: FloatArray) -> FloatArray:
    """Each pixel taken from where ``displacement``, (2, grid, grid), points; bilinear, the border repeated."""
    side = image.shape[0]
    spread = _cubic(side, displacement.shape[1])
    across, down = (spread @ plane @ spread.T * (side / 2) for plane in displacement)
    still = np.arange(side, dtype=np.float32)
    columns = np.clip(still[None, :] + across, 0, side - 1)
    rows = np.clip(still[:, None] + down, 0, side - 1)
    left, top = np.minimum(columns.astype(int), side - 2), np.minimum(rows.astype(int), side - 2)
    right_share, low_share = columns - left, rows - top
    upper = image[top, left] * (1 - right_share) + image[top, left + 1] * right_share
    lower = image[top + 1, left] * (1 - right_share) + image[top + 1, left + 1] * right_share
    return np.asarray(upper * (1 - low_share) + lower * low_share, np.float32)


def _cubic(side: int, points: int) -> FloatArray:
    """Weights (side, points) of cubic convolution between control points, the first and last on the edges."""
    place = np.linspace(0, points - 1, side)
    distance = place[:, None] - np.arange(-2, points + 2)[None, :]
    x, a = np.abs(distance), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    inside = weights[:, 2:-2].copy()
    inside[:, 0] += weights[:, :2].sum(axis=1)
    inside[:, -1] += weights[:, -2:].sum(axis=1)
    return np.asarray(inside, np.float32)


def _resized(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    picture = Pillow.fromarray(np.ascontiguousarray(pixels, np.float32))
    return np.clip(np.asarray(picture.resize((columns, rows), Pillow.Resampling.BICUBIC), np.float32), 0.0, 1.0)


def _textured(pixels: FloatArray, rng: np.random.Generator) -> FloatArray:
    """With quantum noise, and fine structure where there is tissue."""
    coarse = rng.standard_normal((pixels.shape[0] // 3 + 1, pixels.shape[1] // 3 + 1)).astype(np.float32)
    grain = _resized_signed(coarse, *pixels.shape) * np.sqrt(pixels)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.asarray(np.clip(pixels + _GRAIN * grain + _QUANTUM * noise, 0.0, 1.0), np.float32)


def _resized_signed(pixels: FloatArray, rows: int, columns: int) -> FloatArray:
    return np.asarray(Pillow.fromarray(pixels).resize((columns, rows), Pillow.Resampling.BICUBIC), np.float32)


def _collimated(pixels: FloatArray, rng: np.random.Generator) -> FloatArray:
    """With the field's edges dark, each by its own width, and as soft as a focal spot makes them."""
    rows, columns = pixels.shape
    field = Pillow.new("L", (columns, rows), 0)
    left, right = (int(columns * rng.uniform(0, _MARGIN)) for _ in range(2))
    top, bottom = (int(rows * rng.uniform(0, _MARGIN)) for _ in range(2))
    field.paste(255, (left, top, columns - right, rows - bottom))
    share = np.asarray(field.filter(ImageFilter.GaussianBlur(2)), np.float32) / 255
    scatter = _COLLIMATED + _QUANTUM * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.asarray(np.clip(pixels * share + scatter * (1 - share), 0.0, 1.0), np.float32)


# --- The header ---------------------------------------------------------------------------------------------------


def _add_patient(
    dataset: Dataset, name: str, identifier: str, sex: str, age_years: int | None, study_date: date
) -> None:
    dataset.PatientName = name
    dataset.PatientID = identifier
    dataset.PatientSex = sex
    dataset.PatientBirthDate = "" if age_years is None else f"{study_date.year - age_years:04}0101"
    if age_years is not None:
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


def _add_equipment(dataset: Dataset, modality: str, manufacturer: str) -> None:
    dataset.Modality = modality
    dataset.Manufacturer = manufacturer
    dataset.ManufacturerModelName = f"{modality} Simulator"
    dataset.StationName = f"SIM{modality}1"
    dataset.InstitutionName = "Simulated Children's Hospital"
    dataset.DeviceSerialNumber = "0001"
    dataset.SoftwareVersions = "1"


def _add_acquisition(dataset: Dataset, rng: np.random.Generator, view: str) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = view
    dataset.PatientOrientation = ["L", "F"]
    dataset.KVP = str(int(rng.integers(60, 81)))
    dataset.ExposureTime = str(int(rng.integers(3, 12)))
    dataset.XRayTubeCurrent = str(int(rng.integers(150, 320)))
    dataset.Exposure = str(int(rng.integers(1, 4)))
    dataset.DistanceSourceToDetector = "1150"
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"


def _add_dx(dataset: Dataset, view: str, photometric: str) -> None:
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
    dataset.DetectorType = "SCINTILLATOR"
    dataset.DetectorID = "SIM1"
    dataset.PixelIntensityRelationship = "LOG"
    # X-ray intensity is high where the image is dark.
    dataset.PixelIntensityRelationshipSign = -1 if photometric == "MONOCHROME2" else 1
    dataset.PresentationLUTShape = "IDENTITY" if photometric == "MONOCHROME2" else "INVERSE"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def _add_pixels(dataset: Dataset, pixels: FloatArray, photometric: str) -> None:
    stored = np.round(np.clip(pixels, 0, 1) * _LARGEST).astype("<u2")
    if photometric == "MONOCHROME1":
        stored = (_LARGEST - stored).astype("<u2")
    rows, columns = stored.shape
    spacing = f"{_DETECTOR_WIDTH / columns:.4f}"
    dataset.ImagerPixelSpacing = [spacing, spacing]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, _BITS, _BITS - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = str((_LARGEST + 1) // 2), str(_LARGEST + 1)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
