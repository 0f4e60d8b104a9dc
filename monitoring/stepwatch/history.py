"""How each signal went: a few points of each, kept with the state, for the small plots."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

_EVERY = 20  # studies between two points
_MOST_POINTS = 60  # the latest
_MOST_SIGNALS = 1500  # kept; a monitor with more keeps plots of the first


class Signal(Protocol):
    """What a plot needs of a signal's state."""

    @property
    def signal(self) -> str: ...
    @property
    def stratum(self) -> str: ...
    @property
    def evidence(self) -> float: ...
    @property
    def present_value(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Point:
    """A signal after so many studies; the value is NaN where there was none. Evidence is a log10."""

    studies: int
    value: float
    evidence: float


class History:
    """The latest points of every signal."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, str], list[Point]] = {}
        self._last = 0

    def is_due(self, studies: int) -> bool:
        """Whether a point is to be added after so many studies."""
        return studies >= self._last + _EVERY

    def add(self, studies: int, signals: Iterable[Signal]) -> None:
        """Add a point of every signal."""
        self._last = studies
        for signal in signals:
            key = (signal.signal, signal.stratum)
            points = self._points.get(key)
            if points is None:
                if len(self._points) >= _MOST_SIGNALS:
                    continue
                points = self._points[key] = []
            points.append(Point(studies, _short(signal.present_value), _short(signal.evidence)))
            del points[:-_MOST_POINTS]

    def of(self, signal: str, stratum: str) -> tuple[Point, ...]:
        """The points of a signal, oldest first."""
        return tuple(self._points.get((signal, stratum), ()))

    def to_text(self) -> str:
        """For the saved state: JSON, compressed."""
        points = [
            [*key, [p.studies for p in kept], [_known(p.value) for p in kept], [p.evidence for p in kept]]
            for key, kept in self._points.items()
        ]
        return base64.b64encode(zlib.compress(json.dumps(points, separators=(",", ":")).encode(), 6)).decode()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """From a saved state; empty from none."""
        history = cls()
        if not text:
            return history
        for signal, stratum, *parts in json.loads(zlib.decompress(base64.b64decode(text))):
            points = zip(*parts, strict=True)
            history._points[signal, stratum] = [Point(n, math.nan if v is None else v, e) for n, v, e in points]
        history._last = max((points[-1].studies for points in history._points.values() if points), default=0)
        return history

    def copy(self) -> Mapping[tuple[str, str], tuple[Point, ...]]:
        """The points as they are now, for another thread."""
        return {key: tuple(points) for key, points in self._points.items()}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _short(value: float) -> float:
    """Three significant digits: what a small plot can show."""
    return value if not math.isfinite(value) else float(f"{value:.3g}")
