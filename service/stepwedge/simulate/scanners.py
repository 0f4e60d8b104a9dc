"""The department's scanners: what each says of itself, what its images look like, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stepwedge.simulate.children import Look
from stepwedge.simulate.header import Equipment, Technique


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanner:
    """One scanner, and the habits of those who use it."""

    name: str  # in the truth: what it is, whatever its tags say
    equipment: Equipment
    look: Look
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    antero_posterior: float  # share of its images that are AP, the others being PA
    kilovolts: int  # for a child of three
    milliampere_seconds: float  # median
    milliamperes: int
    distance: int  # mm from source to detector


# Two scanners that a person can tell apart: a bedside detector with a soft, bright image, and a wall stand whose
# processing brings out edges and contrast. Only the first works outside working hours to any extent.
BEDSIDE = Scanner(
    name="bedside",
    equipment=Equipment(
        manufacturer="Simulated Imaging",
        model_name="Cradle 35",
        station="SIMDX1",
        serial_number="10351",
        software="V4.2",
        detector_type="SCINTILLATOR",
        detector_id="CR35-0117",
        pixel_spacing=0.148,
    ),
    look=Look(
        rows=(1100, 1500),
        gamma=0.94,
        contrast=0.0,
        enhancement=0.0,
        quantum=0.010,
        grain=0.012,
        structure=0.016,
        white=0.82,
        margin=0.022,
    ),
    photometric="MONOCHROME2",
    antero_posterior=0.93,
    kilovolts=66,
    milliampere_seconds=1.6,
    milliamperes=200,
    distance=1100,
)
WALL_STAND = Scanner(
    name="wall-stand",
    equipment=Equipment(
        manufacturer="Model Radiography",
        model_name="Meridian DR",
        station="SIMDX2",
        serial_number="M-2207",
        software="7.0.3",
        detector_type="DIRECT",
        detector_id="MERIDIAN-A",
        pixel_spacing=0.2,
    ),
    look=Look(
        rows=(900, 1240), aspect=(1.1, 1.3), gamma=1.06, contrast=0.16, enhancement=0.35, quantum=0.006, grain=0.009,
        structure=0.02, white=0.86, margin=0.01,
    ),
    photometric="MONOCHROME1",
    antero_posterior=0.35,
    kilovolts=75,
    milliampere_seconds=1.2,
    milliamperes=320,
    distance=1800,
)  # fmt: skip

# What replaces the wall stand when scanners change: harder contrast, more noise, a wider collimated edge.
NEWCOMER = Scanner(
    name="newcomer",
    equipment=Equipment(
        manufacturer="Fictional Systems",
        model_name="Vista One",
        station="SIMDX3",
        serial_number="VO-00009",
        software="1.0",
        detector_type="SCINTILLATOR",
        detector_id="VISTA-9",
        pixel_spacing=0.125,
    ),
    look=Look(
        rows=(1300, 1700), gamma=0.82, contrast=0.3, enhancement=0.8, quantum=0.016, grain=0.02, structure=0.02,
        white=0.95, margin=0.04,
    ),
    photometric="MONOCHROME2",
    antero_posterior=0.35,
    kilovolts=81,
    milliampere_seconds=0.8,
    milliamperes=400,
    distance=1500,
)  # fmt: skip

_KILOVOLTS_PER_YEAR = 2.0  # of age: thicker chests need harder rays
_EXPOSURE_SPREAD = 0.3  # standard deviation of the logarithm, from study to study
_OLDEST_BY_SIZE = 20.0  # years; nobody grows thicker after that
_MAS_PER_YEAR = 0.06  # growth of the logarithm of the exposure with age


def hidden(scanner: Scanner, behind: Scanner) -> Scanner:
    """A scanner that says it is another: the exchanged part is not named in the header."""
    return replace(scanner, equipment=replace(behind.equipment, pixel_spacing=scanner.equipment.pixel_spacing))


def expose(scanner: Scanner, age_years: float, exposure: float, rng: np.random.Generator) -> Technique:
    """How a patient of this age is exposed.

    Parameters
    ----------
    exposure
        The day's deviation of the logarithm of the exposure, in standard deviations between studies.
    """
    age = min(age_years, _OLDEST_BY_SIZE)
    spread = _EXPOSURE_SPREAD * (exposure + rng.standard_normal())
    product = scanner.milliampere_seconds * float(np.exp(spread + _MAS_PER_YEAR * (age - 3)))
    kilovolts = scanner.kilovolts + round(_KILOVOLTS_PER_YEAR * (age - 3) + float(rng.normal(0, 1.5)))
    return Technique(
        kilovolts=kilovolts,
        milliseconds=max(1, round(1000 * product / scanner.milliamperes)),
        milliamperes=scanner.milliamperes,
        milliampere_seconds=round(product, 2),
        distance=scanner.distance,
    )
