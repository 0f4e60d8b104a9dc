"""A fingerprint tells a plane from another by brightness, place, orientation and sharpness."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from stepwedge.fingerprint import fingerprint


@pytest.fixture
def plane() -> NDArray[np.float64]:
    return np.random.default_rng(3).random((97, 130))


def test_means_and_deviations_of_the_fields_are_numpys(plane: NDArray[np.float64]) -> None:
    found = fingerprint(plane[:96, :128])
    fields = plane[:96, :128].reshape(8, 12, 8, 16)
    np.testing.assert_allclose(found[:64], fields.mean(axis=(1, 3)).ravel(), atol=1e-6)
    np.testing.assert_allclose(found[64:], fields.std(axis=(1, 3)).ravel(), atol=1e-6)


def test_it_is_in_units_of_the_range(plane: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(fingerprint(plane * 4095 - 1024, -1024, 3071), fingerprint(plane), atol=2e-6)


@pytest.mark.parametrize("change", ["flip", "turn", "shift", "smooth"])
def test_another_plane_has_another(plane: NDArray[np.float64], change: str) -> None:
    other = {
        "flip": lambda: plane[:, ::-1],
        "turn": lambda: plane[::-1, ::-1],
        "shift": lambda: np.roll(plane, 1, axis=0),
        "smooth": lambda: (plane + np.roll(plane, 1, axis=1)) / 2,
    }[change]()
    assert np.abs(np.subtract(fingerprint(other), fingerprint(plane))).max() > 1e-3


def test_a_tiny_plane_has_fewer_fields() -> None:
    assert len(fingerprint(np.ones((3, 20)))) == 2 * 3 * 8
