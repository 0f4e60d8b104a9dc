"""Deletion and insertion tell a map that marks what counts from one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from stepwedge.manifest import Manifest
from stepwedge.package.faithfulness import MOST_IMAGES, faithfulness
from stepwedge.package.figures import FaithfulnessFigures
from stepwedge.records import FloatArray

SIDE = 40
MANIFEST = {
    "schema": 1,
    "name": "spots",
    "version": "1.0.0",
    "description": "",
    "licence": "",
    "intended_use": {"summary": "", "modality": ["DX"]},
    "input": {"name": "image", "rows": SIDE, "columns": SIDE, "presentation": {"kind": "range"}},
    "output": {"scores": "scores", "activation_map": "maps", "classes": ["no", "spot"], "kind": "exclusive"},
    "explanation": {"kind": "activation_map"},
    "findings": [
        {"name": "spot", "code": {"value": "1", "scheme": "SCT", "meaning": "Spot"}, "positive": ["spot"]},
    ],
}


def spots(count: int, seed: int = 0) -> FloatArray:
    """Dark images with one bright spot each, in different places."""
    rng = np.random.default_rng(seed)
    planes = np.zeros((count, SIDE, SIDE), np.float32)
    for plane in planes:
        row, column = rng.integers(0, SIDE - 8, 2)
        plane[row : row + 8, column : column + 8] = 1.0
    return planes


def model(*, honest: bool) -> Callable[[FloatArray], Mapping[str, NDArray[np.float32]]]:
    """Finds bright spots; its map shows where they are, or everything but them."""

    def run(planes: FloatArray) -> dict[str, NDArray[np.float32]]:
        odds = 400 * planes.mean(axis=(1, 2)) - 8
        coarse = planes.reshape(-1, 10, 4, 10, 4).mean(axis=(2, 4))
        heat = coarse if honest else 1 - coarse
        maps = np.stack([np.zeros_like(heat), heat], axis=1)
        return {"scores": np.stack([np.zeros_like(odds), odds], axis=1).astype(np.float32), "maps": maps}

    return run


def measured(*, honest: bool = True, count: int = 8, **options: object) -> FaithfulnessFigures:
    return faithfulness(
        spots(count),
        model(honest=honest),
        Manifest.model_validate(MANIFEST),
        "spot",
        patients=[f"patient {i // 2}" for i in range(count)],
        fold="test",
        **options,  # type: ignore[arg-type]
    )


def by_name(figures: FaithfulnessFigures) -> dict[str, tuple[float, float | None, float | None]]:
    return {row.what: (row.value, row.low, row.high) for row in figures.rows}


def test_a_map_of_what_counts_beats_chance_and_another_patients_map() -> None:
    figures = measured(without=np.zeros((3, SIDE, SIDE), np.float32))
    rows = by_name(figures)
    for game in ("deletion", "insertion"):
        for other in ("random", "another patient's heat map"):
            value, low, high = rows[f"{game}, heat map against {other}"]
            assert low is not None
            assert high is not None
            assert 0 < low <= value <= high
    assert rows["deletion, heat map"][0] < 0.1
    assert rows["insertion, heat map"][0] > 0.9
    assert (figures.method, figures.fold) == ("activation map", "test")
    assert all(row.n == 8 for row in figures.rows)


def test_a_map_of_everything_else_loses() -> None:
    rows = by_name(measured(honest=False, without=np.zeros((1, SIDE, SIDE), np.float32)))
    for game in ("deletion", "insertion"):
        assert rows[f"{game}, heat map against random"][0] < 0
        assert rows[f"{game}, heat map against occlusion map"][0] < 0


def test_without_other_images_grey_takes_their_place_and_the_figures_say_so() -> None:
    assert "mean grey" in measured(count=2).notes[0]
    assert "without the finding" in measured(count=2, without=spots(1) * 0).notes[0]


def test_one_seed_gives_one_answer_and_the_work_is_bounded() -> None:
    told: list[tuple[int, int]] = []
    first = measured(count=MOST_IMAGES + 6, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (MOST_IMAGES, MOST_IMAGES)
    assert first == measured(count=MOST_IMAGES + 6)


def test_an_occlusion_map_is_not_compared_with_itself() -> None:
    changed = {**MANIFEST, "output": {**MANIFEST["output"], "activation_map": None}}  # type: ignore[dict-item]
    changed["explanation"] = {"kind": "occlusion", "grid": 5}
    figures = faithfulness(
        spots(3),
        model(honest=True),
        Manifest.model_validate(changed),
        "spot",
        patients=["a", "a", "a"],
        fold="test",
        without=spots(1) * 0,
    )
    names = {row.what for row in figures.rows}
    assert names == {
        f"{game}, {what}"
        for game in ("deletion", "insertion")
        for what in ("heat map", "random", "heat map against random")
    }
    assert figures.method == "occlusion"


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        measured(count=0)
