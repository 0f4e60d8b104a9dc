"""A department's stream of studies: who comes when, to which scanner, and what happens to the department meanwhile.

Everything follows from the seed and the options. Each study has random numbers of its own, so that an event changes
no study before it, and after it only what it is about.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from stepwedge import __version__
from stepwedge.errors import StepwedgeError
from stepwedge.records import FloatArray
from stepwedge.simulate.children import Simulator, draw_anatomy, render, stretched
from stepwedge.simulate.events import Event, check_events
from stepwedge.simulate.header import leave_out, to_dicom
from stepwedge.simulate.scanners import BEDSIDE, NEWCOMER, WALL_STAND, Scanner, expose, hidden
from stepwedge.simulate.schedule import Arrival, arrivals
from stepwedge.simulate.tampering import Kind, tamper

WELL = "normal"  # the label of children without the disease
_SHARES_OF_THE_ILL = {"bacterial": 2.0, "viral": 1.0}  # as in the data behind the generator; any other label counts 1

_SPREAD = 0.85  # of the children against the patients behind the generator
# Share of studies whose label has nothing to do with the image: no radiograph shows everything, no reader is perfect.
_DISAGREEMENT = 0.03

_WALL_STAND_SHARE = 0.45  # in working hours
_WALL_STAND_OFF_HOURS = -2.0  # log odds, added outside them
_MALE = 0.54

_DAYS_PER_YEAR = 365.2425
_CHILDREN_YEARS = (1.02, 5.95)  # clear of both birthdays, so that every reckoning agrees
_CHILDREN_SHAPE = (1.1, 1.5)  # of the Beta distribution between them: more are young
_OLDER_CHILDREN_YEARS, _ADULT_YEARS = (6.1, 16.0), (18.0, 88.0)
_ADULTS = 0.6  # share of those who come in addition when the population changes
# Proportions of a chest of those ages, in the image: longer and narrower.
_OLDER_CHILD, _ADULT = (1.08, 0.95), (1.18, 0.9)

# Brightness is moved by the exponent of the look-up curve: this much of its logarithm moves an image's mean grey by
# one standard deviation between ordinary studies (0.056 of the grey scale, measured on 200).
_GAMMA_PER_SD = 0.26
_WHITE_SPREAD = 0.06  # standard deviation of the grey of what is densest, from study to study
_DARKEST_WHITE = 0.55
_BRIGHTNESS_OF_A_STUDY = 0.5  # SD of what exposure and processing add to what the anatomy does

# How often an attribute is not there. An age is mostly still known from the birth date.
_MISSING = {
    "PatientAge": 0.05,
    "PatientBirthDate": 0.01,
    "PatientSex": 0.008,
    "ViewPosition": 0.004,
    "BodyPartExamined": 0.002,
    "Exposure": 0.02,
    "KVP": 0.005,
}
_NO_AGE_AT_ALL = 0.004


@dataclass(frozen=True, kw_only=True, slots=True)
class Department:
    """What is simulated."""

    studies: int
    seed: int = 0
    start: date = date(2026, 1, 5)
    rate: float = 12.0  # studies an hour, between 8:00 and 16:00 of an average working day
    prevalence: float = 0.1  # share of ill children on an average day
    events: Sequence[Event] = ()
    rows: int | None = None  # about how many rows an image of the bedside scanner has; None: as it makes them
    generator: str = ""  # digest of the generator, so that another one's studies have other UIDs

    def __post_init__(self) -> None:
        """Raise StepwedgeError for what cannot be simulated."""
        if self.studies < 1:
            raise StepwedgeError(f"--studies {self.studies}: ask for at least one")
        if self.seed < 0:
            raise StepwedgeError(f"--seed {self.seed}: a seed is 0 or more")
        if not 0 < self.prevalence < 1:
            raise StepwedgeError(f"--prevalence {self.prevalence:g}: it is a share between 0 and 1")
        if not (math.isfinite(self.rate) and 0 < self.rate <= _LARGEST_RATE):
            raise StepwedgeError(f"--rate {self.rate:g}: from above 0 to {_LARGEST_RATE} studies an hour")
        if self.rows is not None and not _ROWS[0] <= self.rows <= _ROWS[1]:
            raise StepwedgeError(f"--size {self.rows}: from {_ROWS[0]} to {_ROWS[1]} rows")
        check_events(self.events, self.studies)


_LARGEST_RATE = 10_000  # studies an hour
_ROWS = (256, 4096)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """One study, before its image is made."""

    number: int  # from 1
    taken: datetime
    label: str  # the truth
    shows: str  # the label that the image is drawn for
    scanner: Scanner
    age_years: float
    birth_date: date
    sex: Literal["M", "F"]
    view: Literal["AP", "PA"]
    brightness: float  # standard deviations between studies
    exposure: float  # the day's, in standard deviations between studies
    proportions: tuple[float, float] = (1.0, 1.0)  # down and across, against those of the generator's children
    missing: tuple[str, ...] = ()
    tampering: Kind | None = None
    in_force: tuple[str, ...] = ()  # events that have come
    changed_by: tuple[str, ...] = ()  # events without which this study would be another
    study_uid: str
    accession: str
    patient: str


def examinations(department: Department, simulator: Simulator) -> Iterator[Examination]:
    """The department's studies in the order of time.

    Raises StepwedgeError if the generator has no children without the disease, or none with it.
    """
    ill = {label: _SHARES_OF_THE_ILL.get(label, 1.0) for label in simulator if label != WELL}
    if WELL not in simulator or not ill:
        raise StepwedgeError(
            f"the generator has {', '.join(simulator) or 'no labels'}; a department needs {WELL!r} and another label"
        )
    identity = _identity(department)
    began: dict[str, datetime] = {}
    stream = arrivals(department.seed, department.start, department.rate)
    for number, arrival in zip(range(1, department.studies + 1), stream, strict=False):
        in_force = {event.name: event for event in department.events if event.study <= number}
        for event in department.events:
            if event.study == number:
                began[event.name] = arrival.taken
        stop = in_force.get("scanner-stop")
        if stop and arrival.taken >= began[stop.name] + timedelta(days=stop.size):
            del in_force[stop.name]
        yield _examination(department, identity, number, arrival, in_force, ill)


def radiograph(examination: Examination, department: Department, simulator: Simulator) -> Dataset:
    """The study's one DICOM object."""
    rng = np.random.default_rng([department.seed, 6, examination.number])
    scanner = _sized(examination.scanner, department.rows)
    technique = expose(scanner, examination.age_years, examination.exposure, rng)
    dose = technique.milliampere_seconds / scanner.milliampere_seconds
    look = replace(
        scanner.look,
        gamma=scanner.look.gamma * math.exp(-_GAMMA_PER_SD * examination.brightness),
        white=min(1.0, max(_DARKEST_WHITE, scanner.look.white + _WHITE_SPREAD * float(rng.standard_normal()))),
        quantum=scanner.look.quantum / math.sqrt(max(dose, 0.1)),
    )
    anatomy = stretched(draw_anatomy(simulator, examination.shows, rng, _SPREAD), *examination.proportions)
    pixels: FloatArray = render(anatomy, rng, look)
    if examination.tampering:
        pixels = tamper(pixels, examination.tampering, np.random.default_rng([department.seed, 7, examination.number]))
    dataset = to_dicom(
        pixels,
        rng=rng,
        age_years=int(examination.age_years),
        birth_date=examination.birth_date,
        sex=examination.sex,
        view=examination.view,
        photometric=scanner.photometric,
        patient_name=f"Simulated^Child {examination.number:06}",
        patient_id=examination.patient,
        accession=examination.accession,
        taken=examination.taken,
        equipment=scanner.equipment,
        technique=technique,
        study_uid=examination.study_uid,
        series_uid=generate_uid(entropy_srcs=[examination.study_uid, "series"]),
        instance_uid=generate_uid(entropy_srcs=[examination.study_uid, "instance"]),
    )
    for keyword in examination.missing:
        leave_out(dataset, keyword)
    return dataset


def _identity(department: Department) -> str:
    """The same for the same department only: studies that differ must not share a UID."""
    return hashlib.sha256(f"stepwedge {__version__} simulate {department!r}".encode()).hexdigest()


def _examination(
    department: Department,
    identity: str,
    number: int,
    arrival: Arrival,
    in_force: dict[str, Event],
    ill: dict[str, float],
) -> Examination:
    """Draw a study. Everything is drawn for every study, needed or not, so that events move nothing else."""
    rng = np.random.default_rng([department.seed, 4, number])
    day = arrival.day
    changed: list[str] = []

    # The truth, and what the image shows.
    usual = _shifted(department.prevalence, day.prevalence)
    applied = _shifted(in_force["prevalence"].size, day.prevalence) if "prevalence" in in_force else usual
    is_ill, kind, relabelled, relabelled_ill = rng.random(4)
    shows = _label(is_ill, kind, applied, ill)
    if shows != _label(is_ill, kind, usual, ill):
        changed.append("prevalence")
    label = shows
    unrelated = in_force["concept"].size if "concept" in in_force else 0.0
    if relabelled < max(unrelated, _DISAGREEMENT):
        label = _label(relabelled_ill, kind, applied, ill)
        if relabelled >= _DISAGREEMENT and label != shows:
            changed.append("concept")

    # The scanner.
    odds = day.scanner + (0.0 if arrival.in_working_hours else _WALL_STAND_OFF_HOURS)
    second = bool(rng.random() < _shifted(_WALL_STAND_SHARE, odds))
    if second and "scanner-stop" in in_force:
        second = False
        changed.append("scanner-stop")
    scanner = WALL_STAND if second else BEDSIDE
    # Of two exchanges, the later one holds.
    exchanges = [event for event in in_force.values() if event.name.startswith("scanner-change")]
    if second and exchanges:
        latest = max(exchanges, key=lambda event: event.study).name
        scanner = NEWCOMER if latest == "scanner-change" else hidden(NEWCOMER, behind=WALL_STAND)
        changed.append(latest)

    # The patient.
    sex: Literal["M", "F"] = "M" if rng.random() < _MALE else "F"
    low, high = _CHILDREN_YEARS
    age = low + (high - low) * float(rng.beta(*_CHILDREN_SHAPE))
    other, adult, place = rng.random(3)
    proportions = (1.0, 1.0)
    if "population" in in_force and other < in_force["population"].size:
        years, proportions = (_ADULT_YEARS, _ADULT) if adult < _ADULTS else (_OLDER_CHILDREN_YEARS, _OLDER_CHILD)
        age = years[0] + (years[1] - years[0]) * float(place)
        changed.append("population")
    days = round(age * _DAYS_PER_YEAR)

    view: Literal["AP", "PA"] = "AP" if rng.random() < scanner.antero_posterior else "PA"
    brightness = day.brightness[second] + _BRIGHTNESS_OF_A_STUDY * float(rng.standard_normal())
    if "brightness" in in_force:
        brightness += in_force["brightness"].size
        changed.append("brightness")
    tampered, patch = rng.random(2)
    tampering: Kind | None = None
    if "tamper" in in_force and tampered < in_force["tamper"].size:
        tampering = "patch" if patch < 0.5 else "pattern"  # either as often
        changed.append("tamper")
    absent = rng.random(len(_MISSING))
    missing = [name for name, drawn in zip(_MISSING, absent, strict=True) if drawn < _MISSING[name]]
    if rng.random() < _NO_AGE_AT_ALL:
        missing = [*(name for name in missing if name not in _AGE), *_AGE]

    return Examination(
        number=number,
        taken=arrival.taken,
        label=label,
        shows=shows,
        scanner=scanner,
        age_years=age,
        birth_date=arrival.taken.date() - timedelta(days=days),
        sex=sex,
        view=view,
        brightness=brightness,
        exposure=day.exposure[second],
        proportions=proportions,
        missing=tuple(missing),
        tampering=tampering,
        in_force=tuple(sorted(in_force)),
        changed_by=tuple(sorted(changed)),
        study_uid=generate_uid(entropy_srcs=[identity, str(number), "study"]),
        accession=f"S{identity[:6].upper()}{number:07}",
        patient=f"SIM{identity[:6].upper()}{number:07}",
    )


_AGE = ("PatientAge", "PatientBirthDate")


def _shifted(share: float, log_odds: float) -> float:
    """A share with its log odds moved."""
    return 1 / (1 + math.exp(-(math.log(share / (1 - share)) + log_odds)))


def _label(is_ill: float, kind: float, prevalence: float, ill: dict[str, float]) -> str:
    if is_ill >= prevalence:
        return WELL
    total, reached = sum(ill.values()), 0.0
    for label, share in ill.items():
        reached += share / total
        if kind < reached:
            return label
    return next(reversed(ill))


def _sized(scanner: Scanner, rows: int | None) -> Scanner:
    """A scanner whose images are smaller or larger by as much as brings the bedside scanner's to ``rows``."""
    if rows is None:
        return scanner
    factor = rows / (sum(BEDSIDE.look.rows) / 2)
    low, high = (max(1, round(limit * factor)) for limit in scanner.look.rows)
    spacing = scanner.equipment.pixel_spacing
    return replace(
        scanner,
        look=replace(scanner.look, rows=(low, max(high, low + 1))),
        equipment=replace(scanner.equipment, pixel_spacing=spacing / factor if spacing else None),
    )
