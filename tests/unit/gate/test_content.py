"""What the content gate accepts, defers and rejects, and what it names as the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepwedge.gate.appearance import FEATURES, LAYOUT
from stepwedge.gate.content import DISTANCES, HEADS, ContentGate, judged, most_likely
from stepwedge.records import FloatArray, Verdict


def made() -> ContentGate:
    """A gate of which only the limits matter: rejects above 0, defers from a distance of 3, rejects from 6."""
    sizes = {name: LAYOUT[name].stop - LAYOUT[name].start for name in DISTANCES}
    heads, groups = len(HEADS), len(DISTANCES)
    return ContentGate(
        mean=np.zeros(FEATURES, np.float32),
        sd=np.ones(FEATURES, np.float32),
        weights=np.zeros((heads, FEATURES), np.float32),
        bias=np.zeros(heads, np.float32),
        limits=np.zeros(heads, np.float32),
        units=np.ones(heads, np.float32),
        naming=np.eye(heads, dtype=np.float32),
        naming_bias=np.zeros(heads, np.float32),
        components={name: np.zeros((1, size), np.float32) for name, size in sizes.items()},
        variances={name: np.ones(1, np.float32) for name in sizes},
        centres=np.zeros((groups, 2), np.float32),
        spreads=np.ones((groups, 2), np.float32),
        reject_above=0.0,
        defer_above=3.0,
        far_above=6.0,
        false_rejection=0.01,
        false_deferral=0.01,
        images=100,
        patients=100,
    )


def beyond(**heads: float) -> FloatArray:
    """Excesses: those named, and −1 for the others."""
    return np.array([heads.get(name, -1.0) for name in HEADS], np.float32)


def verdict(distance: float = 0.0, **heads: float) -> tuple[Verdict, list[str]]:
    found, reasons = judged(beyond(**heads), distance, made())
    return found, [reason.code for reason in reasons]


def test_an_image_like_the_accepted_ones_passes() -> None:
    assert verdict() == (Verdict.ACCEPT, [])


def test_a_head_that_fires_rejects() -> None:
    assert verdict(flipped=0.1) == (Verdict.REJECT, ["image_flipped"])


def test_a_distance_alone_is_another_population() -> None:
    assert verdict(distance=4.0) == (Verdict.DEFER, ["population_not_intended"])


def test_a_large_distance_alone_is_something_else() -> None:
    assert verdict(distance=6.1) == (Verdict.REJECT, ["content_not_intended"])


@pytest.mark.parametrize("head", ["flipped", "cropped", "other"])
def test_another_population_that_trips_a_subtle_head_is_deferred(head: str) -> None:
    found, codes = verdict(distance=4.0, **{head: 1.9})
    assert found is Verdict.DEFER
    assert codes == ["population_not_intended", HEADS[head][0]]


@pytest.mark.parametrize("heads", [{"other": 2.1}, {"rotated": 0.1}, {"flipped": 0.5, "inverted": 0.5}])
def test_another_population_is_rejected_for_what_is_certain(heads: dict[str, float]) -> None:
    assert verdict(distance=4.0, **heads)[0] is Verdict.REJECT


def test_the_reason_is_what_all_heads_speak_for() -> None:
    naming = np.eye(len(HEADS), dtype=np.float32)
    names = list(HEADS)
    naming[names.index("rotated"), names.index("other")] = 2.0  # turned images look like something else, too
    gate = replace(made(), naming=naming)
    assert most_likely(beyond(rotated=2.0, other=3.0), gate) == "rotated"
    assert most_likely(beyond(rotated=2.0, other=3.0), made()) == "other"


def test_arrays_are_read_again_as_they_were_written() -> None:
    gate = made()
    again = ContentGate.from_arrays(gate.to_arrays())
    np.testing.assert_array_equal(again.naming, gate.naming)
    assert (again.defer_above, again.far_above, again.images) == (3.0, 6.0, 100)


@pytest.mark.parametrize("name", ["naming", "naming_bias", "limits"])
def test_an_array_of_another_shape_is_refused(name: str) -> None:
    arrays = made().to_arrays()
    with pytest.raises(ValueError, match=name):
        ContentGate.from_arrays(arrays | {name: np.zeros(3, np.float32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    arrays = made().to_arrays()
    with pytest.raises(ValueError, match="finite"):
        ContentGate.from_arrays(arrays | {"limits": np.full(len(HEADS), value, np.float32)})
