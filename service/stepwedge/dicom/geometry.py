"""Where an image lies in its series, and the order of the images of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from stepwedge.dicom.attributes import number_of, numbers_of, text_of
from stepwedge.manifest import Stack
from stepwedge.records import Reason

_SAME_DIRECTION = 1e-3  # largest difference of direction cosines of slices that are parallel
_SAME_PLACE = 1e-3  # mm


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an image lies. All is unknown of a plain image file."""

    series: str = ""  # a UID while the image is analysed; it goes no further
    instance_number: int | None = None  # (0020,0013)
    normal: tuple[float, float, float] | None = None  # of the slice, from (0020,0037)
    distance: float | None = None  # mm along the normal, from (0020,0032)


def place_of(dataset: Dataset) -> Place:
    """The place of an image (Image Plane module, PS3.3 section C.7.6.2)."""
    orientation, position = numbers_of(dataset, "ImageOrientationPatient"), numbers_of(dataset, "ImagePositionPatient")
    number = number_of(dataset, "InstanceNumber")
    normal, distance = None, None
    if len(orientation) == 6 and len(position) == 3:
        across = np.cross(orientation[:3], orientation[3:])
        normal = (float(across[0]), float(across[1]), float(across[2]))
        distance = float(np.dot(across, position))
    return Place(
        series=text_of(dataset, "SeriesInstanceUID"),
        instance_number=None if number is None else int(number),
        normal=normal,
        distance=distance,
    )


def in_order(places: Sequence[Place], stack: Stack) -> tuple[list[int], Reason | None]:
    """The images of a stack in order, as indices, and what is wrong with them.

    Those of several series come series by series, in the order of the series' first images in ``places``. More than
    ``stack.maximum`` are thinned out evenly. A stack that has no order is given in no particular one.
    """
    problem = None
    if len(places) < stack.minimum:
        problem = Reason(code="stack_too_small", detail=f"{len(places)} of at least {stack.minimum}")
    key = [p.distance if stack.order == "position" else p.instance_number for p in places]
    known = [value for value in key if value is not None]
    if len(known) < len(key) and len(places) > 1:
        what = "position and orientation" if stack.order == "position" else "Instance Number"
        return [], problem or Reason(code="stack_inconsistent", detail=f"an image has no {what}")
    series = {name: number for number, name in enumerate(dict.fromkeys(place.series for place in places))}
    order = sorted(range(len(places)), key=lambda i: (series[places[i].series], key[i] or 0.0, i))
    for name in series:
        problem = problem or _inconsistency([places[i] for i in order if places[i].series == name], stack)
    if len(order) > stack.maximum:
        order = [order[round(i)] for i in np.linspace(0, len(order) - 1, stack.maximum)]
    return order, problem


def _inconsistency(places: Sequence[Place], stack: Stack) -> Reason | None:
    """Of the images of one series in order."""
    if stack.order != "position":
        return None
    normals = [place.normal for place in places if place.normal is not None]
    if any(np.abs(np.subtract(normal, normals[0])).max() > _SAME_DIRECTION for normal in normals):
        return Reason(code="stack_inconsistent", detail="the slices are not parallel")
    distances = [place.distance for place in places if place.distance is not None]
    if len(distances) > 1 and float(np.diff(distances).min()) < _SAME_PLACE:
        return Reason(code="stack_inconsistent", detail="two slices lie in one place")
    return None
