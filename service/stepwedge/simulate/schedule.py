"""When studies come, and how a department's days differ: working and off days, hours, and what varies by itself.

Real departments vary far more from day to day than independent draws would. In PadChest (Bustos et al. 2020, working
days of one year, 84 images a day) the daily share of a manufacturer varied 8.6 times as much, which is a standard
deviation of .63 of its log odds between days; the number of images by 29 % beyond chance, holidays included; the
log odds of pneumonia by .56, seasons included; the mean relative exposure by .40 of its spread between images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta

import numpy as np

# Studies in each hour of the day, relative to a working day's hour between 8:00 and 16:00.
_WORKING_DAY = (
    *(0.08,) * 7, 0.5, 1.0, 1.3, 1.3, 1.1, 0.7, 0.8, 0.9, 0.9, 0.7, 0.5, 0.4, 0.35, 0.3, 0.25, 0.15, 0.1,
)  # fmt: skip
_OFF_DAY = (*(0.06,) * 8, 0.2, 0.35, 0.4, 0.4, 0.35, 0.35, 0.35, 0.3, 0.3, 0.3, 0.25, 0.25, 0.2, 0.15, 0.1, 0.08)
_WORKING_HOURS = range(8, 17)
_SATURDAY = 5  # as datetime counts
OPENING = time(7)  # of the first day: a simulation begins in the morning

# Standard deviations between days, and between weeks on top of it.
_RATE = (0.20, 0.15)  # of the logarithm of the studies an hour
_SCANNER = (0.55, 0.40)  # of the log odds of the wall stand's share
_PREVALENCE = (0.25, 0.25)  # of the log odds of being ill
_BRIGHTNESS = (0.25, 0.20)  # of standard deviations between studies
_EXPOSURE = (0.30, 0.25)  # of standard deviations between studies


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """How one day differs from the average one; all 0 is the average."""

    date: date
    rate: float  # logarithm
    scanner: float  # log odds
    prevalence: float  # log odds
    brightness: tuple[float, float]  # standard deviations, for each of the two scanners
    exposure: tuple[float, float]  # standard deviations, for each of the two scanners


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """When a study is taken, and on what sort of day."""

    taken: datetime
    day: Day

    @property
    def in_working_hours(self) -> bool:
        return self.taken.weekday() < _SATURDAY and self.taken.hour in _WORKING_HOURS


def arrivals(seed: int, start: date, rate: float) -> Iterator[Arrival]:
    """Studies without end, in the order of time, from the opening of the first day.

    Parameters
    ----------
    rate
        Studies an hour, on average, between 8:00 and 16:00 of a working day.
    """
    number = 0
    while True:
        today = _day(seed, start, number)
        rng = np.random.default_rng([seed, 1, number])
        profile = _WORKING_DAY if today.date.weekday() < _SATURDAY else _OFF_DAY
        for hour, relative in enumerate(profile):
            count = int(rng.poisson(rate * relative * math.exp(today.rate)))
            for second in sorted(rng.integers(0, 3600, count).tolist()):
                taken = datetime.combine(today.date, time(hour)) + timedelta(seconds=second)
                if number or taken.time() >= OPENING:
                    yield Arrival(taken=taken, day=today)
        number += 1


def _day(seed: int, start: date, number: int) -> Day:
    today = start + timedelta(days=number)
    by_day = np.random.default_rng([seed, 2, number])
    by_week = np.random.default_rng([seed, 3, *today.isocalendar()[:2]])

    def drawn(spreads: tuple[float, float]) -> float:
        return spreads[0] * float(by_day.standard_normal()) + spreads[1] * float(by_week.standard_normal())

    return Day(
        date=today,
        rate=drawn(_RATE),
        scanner=drawn(_SCANNER),
        prevalence=drawn(_PREVALENCE),
        brightness=(drawn(_BRIGHTNESS), drawn(_BRIGHTNESS)),
        exposure=(drawn(_EXPOSURE), drawn(_EXPOSURE)),
    )
