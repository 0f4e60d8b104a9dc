"""Sequential bets against "nothing has changed", updated by every study.

A signal's ordinary level is not one value. It wanders between days and between weeks, and slowly within a band; the
baseline says how far (``baseline``). Effects of the day and of the week are filtered out as they show (a Kalman filter
with one state for each), the slow part is met by betting only against the edge of its band. What is left of a change
that lasts is bet upon: the likelihood ratio of each new value, changed against unchanged, both predicted from the past
alone, enters a Shiryaev–Roberts sum (Shin, Ramdas and Rinaldo, "E-detectors", 2023). Where the null's predictions are
right, such a sum grows by one a study at most on average, and so does every weighted mean of sums; so a limit of A on
the weighted mean bounds the mean number of studies to a false alarm by A. With a baseline of finite length the
predictions are estimates, and the bound is a design aim, to be verified by resampling.

All signals of one kind are columns of the same arrays. Axis 1 has the two directions, up and down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_UP_DOWN = np.array([1.0, -1.0])
_PROBIT = np.pi / 8  # of a logistic averaged over a normal (MacKay 1992)
_LARGEST = 1e200  # of a sum: beyond it only its being large matters
_STATE = (
    *("week", "day", "seen_week", "seen_day", "var_week", "var_day", "cov"),
    *("sums", "held", "level"),
)


@dataclass(frozen=True, kw_only=True)
class Ordinary:
    """What is ordinary of n signals, from the baseline. Levels are log-odds of shares, or means of normal scores."""

    level: Floats  # (n,)
    band: Floats  # (n,), half width of the band that the slow part stays in
    between_days: Floats  # (n,), variance of the effects of days
    between_weeks: Floats  # (n,), variance of the effects of weeks


class Detector:
    """Bets on n signals of one kind. Subclasses say how likely a value is under a level."""

    # How much farther than the band's edge a bet says that the level has gone, in the level's unit.
    steps: ClassVar[tuple[float, ...]] = ()

    def __init__(self, ordinary: Ordinary, weights: Floats, steps: tuple[float, ...] | None = None) -> None:
        """``weights`` are of each signal's bets up and down, (n, 2); those of all detectors add up to one."""
        count = len(ordinary.level)
        steps = steps or self.steps
        self.ordinary = ordinary
        self.level = ordinary.level.copy()  # moves only when a person adopts a change
        self.weights = weights[:, :, None] / len(steps)
        self.held = np.zeros(count, bool)  # alarmed already: no more bets
        self.sums: Floats = np.zeros((count, 2, len(steps)))
        self._steps = np.asarray(steps)
        self._today: int | None = None
        self._this_week: int | None = None
        self._forget_week()

    def update(self, values: Floats, day: int, week: int) -> float:
        """Take one study's values, (n,), NaN where there is none; the weighted sum of all bets.

        ``day`` and ``week`` are numbers that change with the day and the week.
        """
        if week != self._this_week:
            self._forget_week()
            self._this_week, self._today = week, None
        if day != self._today:
            self._forget_day()
            self._today = day
        there = ~np.isnan(values)
        value = np.where(there, values, 0.0)[:, None]
        edge = self.level[:, None] + _UP_DOWN * self.ordinary.band[:, None]
        predicted = edge + self.week + self.day
        variance = self.var_week + 2 * self.cov + self.var_day
        unexplained = 1 - self.seen_week - self.seen_day
        moved = (_UP_DOWN * unexplained)[:, :, None] * self._steps
        ratio = self._ratio(value, predicted, variance, moved)
        bet = (there & ~self.held)[:, None, None]
        self.sums = np.where(bet, np.minimum((self.sums + 1) * ratio, _LARGEST), self.sums)
        score, information = self._score(value, predicted)
        self._filter(score, information, variance, unexplained, there[:, None])
        return self.total()

    def total(self) -> float:
        """The weighted sum of all bets."""
        return float((self.sums * self.weights).sum())

    def evidence(self) -> Floats:
        """Each signal's part of the total, (n,)."""
        return np.asarray((self.sums * self.weights).sum(axis=(1, 2)))

    def direction(self, index: int) -> int:
        """Which way a signal's bets do better: +1 or −1."""
        up, down = (self.sums[index] * self.weights[index]).sum(axis=1)
        return 1 if up >= down else -1

    def hold(self, indexes: NDArray[np.intp]) -> None:
        """Take signals out of the sum until they are released."""
        self.held[indexes] = True
        self.sums[indexes] = 0.0

    def release(self, indexes: NDArray[np.intp]) -> None:
        """Begin to bet on them anew."""
        self.held[indexes] = False
        self.sums[indexes] = 0.0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that changes, as arrays."""
        clock = np.array([-1 if v is None else v for v in (self._today, self._this_week)])
        return {name: getattr(self, name) for name in _STATE} | {"clock": clock}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a state. Raises KeyError or ValueError if it is of other signals."""
        for name in _STATE:
            kept = np.array(state[name])
            if kept.shape != getattr(self, name).shape:
                raise ValueError(f"{name} has shape {kept.shape}, wanted {getattr(self, name).shape}")
            setattr(self, name, kept)
        today, this_week = (int(v) for v in state["clock"])
        self._today, self._this_week = (None if v < 0 else v for v in (today, this_week))

    def _ratio(self, value: Floats, predicted: Floats, variance: Floats, moved: Floats) -> Floats:
        """How much likelier a value is if the level has moved, (n, 2, steps)."""
        raise NotImplementedError

    def _score(self, value: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        """Slope of the log likelihood in the level, and the information that one value holds, (n, 2) each."""
        raise NotImplementedError

    def _forget_week(self) -> None:
        shape = (len(self.level), 2)
        self.week, self.seen_week = np.zeros(shape), np.zeros(shape)
        self.var_week = np.repeat(self.ordinary.between_weeks[:, None], 2, axis=1)
        self._forget_day()

    def _forget_day(self) -> None:
        shape = (len(self.level), 2)
        self.day, self.seen_day, self.cov = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.var_day = np.repeat(self.ordinary.between_days[:, None], 2, axis=1)

    def _filter(
        self, score: Floats, information: Floats, variance: Floats, unexplained: Floats, there: NDArray[np.bool_]
    ) -> None:
        """Learn the day's and the week's effect; and how much of a lasting change they would pass off as theirs."""
        by_week, by_day = self.var_week + self.cov, self.var_day + self.cov
        learnt = there / (1 + information * variance)
        gain_week, gain_day = by_week * learnt, by_day * learnt
        self.week = self.week + gain_week * score
        self.day = self.day + gain_day * score
        gain_week, gain_day = gain_week * information, gain_day * information
        self.seen_week = self.seen_week + gain_week * unexplained
        self.seen_day = self.seen_day + gain_day * unexplained
        self.var_week = self.var_week - gain_week * by_week
        self.var_day = self.var_day - gain_day * by_day
        self.cov = self.cov - gain_week * by_day


class Shares(Detector):
    """Shares of studies: a level of a category, a value below a quantile, missing, never seen. Values are 0 or 1."""

    # From a change worth knowing of to one that a handful of studies shows: log-odds.
    steps = (0.4, 0.8, 1.6, 3.2, 6.4)

    def _ratio(self, value: Floats, predicted: Floats, variance: Floats, moved: Floats) -> Floats:
        shrunk = 1 / np.sqrt(1 + variance * _PROBIT)
        ordinary = _logistic(predicted * shrunk)[:, :, None]
        changed = _logistic((predicted[:, :, None] + moved) * shrunk[:, :, None])
        yes = value[:, :, None] > 0
        return np.where(yes, changed / ordinary, (1 - changed) / (1 - ordinary))

    def _score(self, value: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        share = _logistic(predicted)
        return value - share, share * (1 - share)


class Locations(Detector):
    """Means of normal scores. Values are normal scores, of variance 1 in the baseline."""

    steps = (0.15, 0.3, 0.6)  # standard deviations

    def _ratio(self, value: Floats, predicted: Floats, variance: Floats, moved: Floats) -> Floats:
        off = (value - predicted)[:, :, None]
        return np.asarray(np.exp(np.minimum((moved * off - moved * moved / 2) / (1 + variance[:, :, None]), 300.0)))

    def _score(self, value: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        return value - predicted, np.ones_like(predicted)


class Prevalences(Detector):
    """Prevalences, by calibrated probabilities. A value is a study's odds over those of the baseline's prevalence.

    With prior shift a probability's likelihood at prevalence π' is (1 − p)(1 − π')/(1 − π) + p π'/π (Saerens et al.
    2002); the level is the log-odds of the prevalence.
    """

    steps = (0.5, 1.0)  # log-odds

    def _ratio(self, value: Floats, predicted: Floats, variance: Floats, moved: Floats) -> Floats:
        odds = value[:, :, None]

        def likelihood(level: Floats) -> Floats:
            return np.asarray(1 + _logistic(level) * (odds - 1))

        spread = np.sqrt(3 * variance)[:, :, None]
        below, above = predicted[:, :, None] - spread, predicted[:, :, None] + spread
        at = predicted[:, :, None]
        # The effects of day and week are known only so well: averaged over (Gauss–Hermite, three points).
        changed = 4 * likelihood(at + moved) + likelihood(below + moved) + likelihood(above + moved)
        return np.asarray(changed / (4 * likelihood(at) + likelihood(below) + likelihood(above)))

    def _score(self, value: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        prevalence = _logistic(predicted)
        slope = prevalence * (1 - prevalence)
        score = slope * (value - 1) / (1 + prevalence * (value - 1))
        # What one study tells at most, were its probability 0 or 1: by using it the filter learns slower than it might.
        return score, np.minimum(slope, score * score)


class Ratios(Detector):
    """Bets whose likelihood ratios are worked out beforehand. Values are their logarithms.

    Down is the bet that nothing has changed against the change: it has no weight, and says when an alarm is over.
    """

    steps = (1.0,)

    def _ratio(self, value: Floats, *_: Floats) -> Floats:
        ratio = np.exp(np.clip(value, -300.0, 300.0))
        return np.stack([ratio, 1 / ratio], axis=1)

    def _score(self, _: Floats, predicted: Floats) -> tuple[Floats, Floats]:
        return np.zeros_like(predicted), np.zeros_like(predicted)


def _logistic(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -40, 40))))
