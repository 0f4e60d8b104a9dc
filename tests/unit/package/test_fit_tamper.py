"""Fitting the tamper check: the rate it keeps to, what it says of itself, what it catches with the shipped model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import deepfool, pgd, runner, target_of
from numpy.typing import NDArray
from stepwedge.errors import PackageError
from stepwedge.gate.tamper import measure
from stepwedge.inference.preprocess import to_plane
from stepwedge.manifest import Manifest, load_package
from stepwedge.package.fit_tamper import (
    NOISE,
    answers,
    compressed_copy,
    fit_tamper,
    measure_tamper,
    noisy_copies,
    order_statistic,
    share,
)
from stepwedge.records import FloatArray

MODELS = Path(__file__).parents[3] / "models" / "chest-pneumonia"
SIDE = 16
FINE = np.where(np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2, 1, -1).astype(np.float32)  # a chequerboard


def manifest(*findings: dict[str, Any]) -> Manifest:
    code = {"value": "1", "scheme": "99TEST", "meaning": "ill"}
    return Manifest.model_validate(
        {
            "schema": 1,
            "name": "tiny",
            "version": "1.0.0",
            "description": "Two classes.",
            "licence": "CC0",
            "intended_use": {"summary": "Tests only", "modality": ["DX"]},
            "input": {"name": "image", "rows": SIDE, "columns": SIDE, "presentation": {"kind": "range"}},
            "output": {"scores": "scores", "classes": ["normal", "mild", "severe"], "kind": "exclusive"},
            "findings": [
                {"name": "ill", "code": code, "positive": ["mild", "severe"]},
                *({"code": code, **finding} for finding in findings),
            ],
        }
    )


def images(count: int, seed: int = 0) -> list[FloatArray]:
    """Bright and dark ones with a little noise."""
    rng = np.random.default_rng(seed)
    grey = rng.uniform(0.2, 0.8, (count, 1, 1))
    return list(np.clip(grey + 0.03 * rng.standard_normal((count, SIDE, SIDE)), 0, 1).astype(np.float32))


def brightness(planes: FloatArray) -> NDArray[np.float32]:
    """A model that goes by brightness, and is a little too fond of a chequerboard."""
    odds = 10 * (planes.mean(axis=(1, 2)) - 0.5) + 200 * (planes * FINE).mean(axis=(1, 2))
    return np.stack([np.zeros_like(odds), odds, odds - 1], axis=1).astype(np.float32)


def test_untouched_images_are_flagged_no_more_often_than_declared() -> None:
    """On average over fits, as the bound says; 40 fits, each asked about 200 other images."""
    described = manifest()
    rates = []
    for seed in range(40):
        check = fit_tamper(images(100, seed), brightness, described, false_rejection=0.1)
        others = measure(answers(images(200, 1000 + seed), brightness, check), described, check)
        rates.append((others > check.threshold).mean())
    assert 0.02 < np.mean(rates) < 0.12


def test_a_chequerboard_that_turns_the_answer_is_flagged() -> None:
    described = manifest()
    check = fit_tamper(images(200), brightness, described)
    others = np.stack(images(50, seed=9))
    attacked = np.clip(others - 8 / 255 * FINE * np.sign(others.mean(axis=(1, 2)) - 0.5)[:, None, None], 0, 1)
    turned = (brightness(attacked)[:, 1] > 0) != (brightness(others)[:, 1] > 0)
    caught = measure(answers(attacked[turned], brightness, check), described, check) > check.threshold
    assert turned.sum() >= 10
    assert caught.all()


def test_few_images_vouch_for_a_rate_of_their_own() -> None:
    check = fit_tamper(images(20), brightness, manifest(), false_rejection=0.01)
    assert check.false_rejection == pytest.approx(1 / 21)
    assert check.images == 20
    assert not (measure(answers(images(20), brightness, check), manifest(), check) > check.threshold).any()


def test_an_answer_that_never_changes_leaves_a_threshold_above_zero() -> None:
    def same(planes: FloatArray) -> NDArray[np.float32]:
        return np.tile(np.array([0.0, 1.0, 0.0], np.float32), (len(planes), 1))

    check = fit_tamper(images(10), same, manifest())
    assert check.threshold > 0
    assert (check.scale > 0).all()


def test_a_finding_that_waits_for_another_has_the_rarer_unit() -> None:
    """The same scores as a finding of its own, and as one that is read only after another was acted upon."""

    def two(planes: FloatArray) -> NDArray[np.float32]:
        scores = brightness(planes)
        return np.stack([scores[:, 0], scores[:, 1], scores[:, 0]], axis=1)

    alone = {"name": "kind", "positive": ["mild"], "among": ["mild", "severe"]}
    check = fit_tamper(images(200), two, manifest(alone))
    waiting = fit_tamper(images(200), two, manifest({**alone, "given": "ill"}))
    assert waiting.scale[0] == check.scale[0]
    assert waiting.scale[1] > check.scale[1]


def test_the_middle_of_a_rare_finding_is_where_its_outer_images_begin() -> None:
    def rare(planes: FloatArray) -> NDArray[np.float32]:
        return brightness(planes) - np.array([0, 20, 20], np.float32)

    common, seldom = (fit_tamper(images(200), run, manifest()) for run in (brightness, rare))
    assert common.middle[0] == 0
    assert -20 < seldom.middle[0] < -10


def test_progress_counts_the_copies_too() -> None:
    told: list[tuple[int, int]] = []
    fit_tamper(images(10), brightness, manifest(), progress=lambda done, of: told.append((done, of)))
    assert told == [(done, 30) for done in range(1, 31)]


def test_a_fit_without_images_or_with_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(PackageError, match="no image"):
        fit_tamper([], brightness, manifest())
    with pytest.raises(PackageError, match="wanted 0 to 1"):
        fit_tamper(images(3), brightness, manifest(), false_rejection=0.0)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(PackageError, match="not finite"):
        fit_tamper(images(3), lambda planes: brightness(planes) * np.float32(np.nan), manifest())


@pytest.mark.parametrize(
    ("count", "rate", "place"), [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (524, 0.01, 520), (10, 0.01, 10)]
)
def test_the_order_statistic_is_the_one_that_bounds_the_rate(count: int, rate: float, place: int) -> None:
    assert order_statistic(np.arange(1.0, count + 1), rate) == place


def test_copies_are_of_the_kind_that_must_pass() -> None:
    planes = images(5)
    noisy = np.stack(list(noisy_copies(planes, 3)))
    assert 0 < np.abs(noisy - np.stack(planes)).max() <= NOISE + 1e-6
    assert np.array_equal(noisy, np.stack(list(noisy_copies(planes, 3))))
    assert 0 < np.abs(compressed_copy(planes[0]) - planes[0]).mean() < 0.1


def test_a_share_has_wilsons_interval() -> None:
    """By the example of Newcombe 1998: 81 of 263."""
    row = share("x", np.arange(263) < 81)
    assert (row.value, row.low, row.high) == pytest.approx((0.308, 0.2553, 0.3662), abs=1e-4)
    assert (share("x", np.zeros(0, bool)).low, share("x", np.zeros(0, bool)).high) == (0, 1)


def test_what_is_measured_is_three_rows_of_the_fold() -> None:
    described = manifest()
    check = fit_tamper(images(100), brightness, described)
    rows = measure_tamper(check, images(60, seed=5), brightness, described)
    assert [row.n for row in rows] == [60, 60, 60]
    assert all(row.value <= 0.1 for row in rows)
    assert measure_tamper(check, [], brightness, described) == []


def test_the_shipped_model_is_defended_on_real_radiographs(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted on 104 images of the gate fold, asked about 12 of the test fold; ``make bench-gates`` has the figures."""
    monkeypatch.syspath_prepend(MODELS)
    folds = importlib.import_module("folds")
    package = load_package(max(file.parent for file in MODELS.glob("*.*.*/model.yaml")))
    data = shared / "data" / "pneumonia"

    def planes(fold: str, count: int) -> FloatArray:
        rows = [row for row in folds.read_rows(data) if row.fold == fold][::5][:count]
        return np.stack([to_plane(folds.read_image(data / "images" / r.file), package.manifest.input) for r in rows])

    run = runner(package.model_file, package.manifest)
    check = fit_tamper(list(planes("gate", 104)), run, package.manifest)
    target = target_of(package.model_file, package.manifest, package.manifest.findings[0])
    clean = planes("test", 12)

    def flagged(chosen: FloatArray) -> NDArray[np.bool_]:
        return measure(answers(chosen, run, check), package.manifest, check) > check.threshold

    assert flagged(clean).sum() <= 1
    for attacked in (pgd(target, clean, 8 / 255), pgd(target, clean, 8 / 255, stop=True), deepfool(target, clean, 1.0)):
        turned = attacked[target.succeeded(clean, attacked)]
        assert len(turned) >= 8
        assert flagged(turned).mean() >= 0.9
