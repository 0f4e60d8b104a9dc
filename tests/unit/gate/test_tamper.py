"""The tamper check: which variants are run beside an image, and how far an answer may go under them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from stepwedge.errors import PackageError
from stepwedge.gate.fitted import Gate, load_gate, save_gate
from stepwedge.gate.tamper import (
    TamperCheck,
    judge_tamper,
    log_odds,
    measure,
    moved,
    variants,
    weighted_changes,
    without_fine_detail,
)
from stepwedge.manifest import Manifest
from stepwedge.records import FloatArray

CHECK = TamperCheck(
    findings=("ill",),
    middle=np.zeros(1),
    scale=np.ones(1),
    threshold=1.0,
    false_rejection=0.01,
    images=200,
)


def manifest(**output: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "schema": 1,
            "name": "tiny",
            "version": "1.0.0",
            "description": "Two classes.",
            "licence": "CC0",
            "intended_use": {"summary": "Tests only", "modality": ["DX"]},
            "input": {"name": "image", "rows": 16, "columns": 16, "presentation": {"kind": "range"}},
            "output": {"scores": "scores", "classes": ["normal", "ill"], "kind": "exclusive", **output},
            "findings": [
                {"name": "ill", "code": {"value": "1", "scheme": "99TEST", "meaning": "ill"}, "positive": ["ill"]}
            ],
        }
    )


def picture(rows: int = 40, columns: int = 52) -> FloatArray:
    """Smooth shades with some fine detail."""
    rng = np.random.default_rng(2)
    down, across = np.mgrid[0:rows, 0:columns]
    smooth = 0.5 + 0.3 * np.sin(down / 9) * np.cos(across / 7)
    return np.clip(smooth + 0.03 * rng.standard_normal((rows, columns)), 0, 1).astype(np.float32)


def scores(*odds: float) -> NDArray[np.float32]:
    """Scores with these log-odds of ill, (1 + variants, 2), the image's own first."""
    return np.array([[0.0, value] for value in odds], np.float32)


# --- Variants


def test_three_variants_are_run_at_most() -> None:
    made = variants(picture(), CHECK)
    assert made.shape == (3, 40, 52)
    assert made.dtype == np.float32
    with pytest.raises(ValueError, match="wanted one or two"):
        replace(CHECK, moves=(1, -1, 2))


def test_the_same_image_has_the_same_variants() -> None:
    assert np.array_equal(variants(picture(), CHECK), variants(picture(), CHECK))


def test_a_moved_image_repeats_its_edge() -> None:
    plane = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert np.array_equal(moved(plane, 1), plane[[0, 0, 1, 2]])
    assert np.array_equal(moved(plane, -1), plane[[1, 2, 3, 3]])


def test_what_is_left_out_is_what_jpeg_leaves_out() -> None:
    plane = np.round(picture() * 255).astype(np.float32) / 255
    stored = io.BytesIO()
    Pillow.fromarray(np.round(plane * 255).astype(np.uint8)).save(stored, format="JPEG", quality=75)
    codec = np.asarray(Pillow.open(stored), np.float32) / 255
    own = without_fine_detail(plane)
    assert np.abs(own - codec).mean() < 1 / 255  # the codec rounds its steps, its grey levels and the middle grey
    assert np.abs(own - plane).mean() > 4 / 255


@given(st.floats(0, 1))
def test_an_even_image_stays_as_it_is_but_for_a_step(grey: float) -> None:
    plane = np.full((16, 16), grey, np.float32)
    for variant in variants(plane, CHECK):
        assert np.abs(variant - plane).max() <= 1 / 255


# --- The measure


def test_an_answer_that_goes_back_over_the_middle_is_flagged() -> None:
    judged = judge_tamper(scores(2.0, -1.0, -1.0, -1.0), manifest(), CHECK)
    assert judged.verdict == "flagged"
    assert judged.measure == pytest.approx(3.0 / 1.6)
    assert judged.threshold == CHECK.threshold


def test_an_answer_that_holds_passes() -> None:
    assert judge_tamper(scores(2.0, 2.1, 1.9, 2.0), manifest(), CHECK).verdict == "pass"


def test_what_is_no_number_is_flagged() -> None:
    assert judge_tamper(scores(2.0, np.nan, 2.0, 2.0), manifest(), CHECK).verdict == "flagged"


def test_changes_to_both_sides_cancel_out() -> None:
    assert measure(scores(2.0, 4.0, 0.0, 2.0)[None], manifest(), CHECK)[0] == pytest.approx(0.0)


@given(own=st.floats(-6, 6).filter(bool), change=st.floats(0.1, 5))
def test_a_change_towards_the_other_side_counts_more_than_one_away(own: float, change: float) -> None:
    side = np.sign(own)
    towards, away = (
        weighted_changes(np.array([[[own], [own + way * side * change]]]), np.zeros(1))[0, 0] for way in (-1, 1)
    )
    assert towards > away > 0
    surer = weighted_changes(np.array([[[own + side], [own + side - side * change]]]), np.zeros(1))[0, 0]
    assert towards > surer > 0


def test_the_largest_finding_counts_in_units_of_its_own_scale() -> None:
    both = manifest().model_dump(by_alias=True)
    both["findings"].append({**both["findings"][0], "name": "well", "positive": ["normal"]})
    check = replace(CHECK, findings=("ill", "well"), middle=np.zeros(2), scale=np.array([10.0, 0.5]))
    value = measure(scores(1.0, 0.0, 0.0, 0.0)[None], Manifest.model_validate(both), check)[0]
    assert value == pytest.approx(1.0 / 1.3 / 0.5)


@pytest.mark.parametrize(
    ("output", "values"),
    [
        ({"activation": "none"}, [0.5, 2.5]),
        ({"activation": "softmax"}, [1 / (1 + np.e**2), 1 / (1 + np.e**-2)]),
        ({"kind": "independent"}, [0.0, 2.0]),
        ({"kind": "independent", "activation": "sigmoid"}, [0.5, 1 / (1 + np.e**-2)]),
    ],
)
def test_log_odds_are_the_same_however_the_graph_states_them(output: dict[str, str], values: list[float]) -> None:
    outputs = np.array([[values]], np.float32)
    assert log_odds(outputs, manifest(**output), ("ill",))[0, 0, 0] == pytest.approx(2.0, abs=1e-5)


# --- What is stored


def test_a_check_is_the_same_after_it_was_stored(tmp_path: Path) -> None:
    save_gate(tmp_path / "gate.npz", Gate(tamper=CHECK))
    loaded = load_gate(tmp_path / "gate.npz").tamper
    assert loaded is not None
    for name, value in CHECK.to_arrays().items():
        assert np.array_equal(loaded.to_arrays()[name], value), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": np.zeros(1)}, "above 0"),
        ({"scale": np.ones(2)}, "one scale and one middle"),
        ({"middle": np.array([np.nan])}, "finite"),
        ({"threshold": np.inf}, "threshold"),
        ({"moves": (0,)}, "none of them 0"),
        ({"false_rejection": 1.0}, "false rejection"),
    ],
)
def test_values_that_no_fit_gives_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CHECK, **wrong)
    stored = {**CHECK.to_arrays(), **{name: np.asarray(value) for name, value in wrong.items()}}
    np.savez(tmp_path / "gate.npz", **{f"tamper.{name}": value for name, value in stored.items()})
    with pytest.raises(PackageError, match=message):
        load_gate(tmp_path / "gate.npz")
