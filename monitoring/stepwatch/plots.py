"""Small plots, as the numbers that an SVG is drawn with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepwatch.history import Point

WIDTH, HEIGHT = 180.0, 64.0  # of the whole, in the SVG's units
_VALUES = (3.0, 42.0)  # top and bottom of the part that shows values
_EVIDENCE = (47.0, 63.0)  # of the part that shows evidence; its top is the limit
_ROOM = 0.15  # of the range of values, above and below


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """A plot. Paths are for an SVG's ``d``; empty where there is nothing to draw."""

    band_top: float
    band_height: float
    baseline: float  # height of the baseline's value
    values: str
    last: tuple[float, float] | None  # where the present value is
    evidence: str  # an area
    limit: float  # height of the limit


def draw(points: Sequence[Point], *, low: float, high: float, baseline: float, limit: float) -> Plot:
    """The course of a signal within its ordinary band, and of the evidence up to the limit (log10)."""
    finite = [p.value for p in points if math.isfinite(p.value)]
    least, most = min([low, baseline, *finite]), max([high, baseline, *finite])
    room = (most - least or 1.0) * _ROOM
    least, most = least - room, most + room

    def height(value: float) -> float:
        top, bottom = _VALUES
        return round(bottom - (value - least) / (most - least) * (bottom - top), 1)

    places = _across(points)
    drawn = [(x, height(p.value)) if math.isfinite(p.value) else None for x, p in zip(places, points, strict=True)]
    top, bottom = _EVIDENCE
    strengths = [
        (x, round(bottom - min(max(p.evidence, 0.0) / limit, 1.0) * (bottom - top), 1))
        for x, p in zip(places, points, strict=True)
    ]
    area = ""
    if strengths:
        along = " L".join(f"{x} {y}" for x, y in strengths)
        area = f"M{strengths[0][0]} {bottom} L{along} L{strengths[-1][0]} {bottom} Z"
    return Plot(
        band_top=height(high),
        band_height=round(max(height(low) - height(high), 1.0), 1),
        baseline=height(baseline),
        values=_path(drawn),
        last=next((place for place in reversed(drawn) if place is not None), None),
        evidence=area,
        limit=top,
    )


def _across(points: Sequence[Point]) -> list[float]:
    if not points:
        return []
    first, last = points[0].studies, points[-1].studies
    span = max(last - first, 1)
    return [round(2 + (p.studies - first) / span * (WIDTH - 6), 1) for p in points]


def _path(places: Sequence[tuple[float, float] | None]) -> str:
    """A line that breaks where there is no value."""
    parts, pen_down = [], False
    for place in places:
        if place is not None:
            parts.append(f"{'L' if pen_down else 'M'}{place[0]} {place[1]}")
        pen_down = place is not None
    return " ".join(parts)
