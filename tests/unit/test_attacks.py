"""The attacks that measure the tamper check do what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attacks import (
    Target,
    adaptive,
    blind,
    carlini_wagner,
    deepfool,
    fgsm,
    patch,
    pgd,
    pgd_before_resizing,
    target_of,
)
from numpy.typing import NDArray
from stepwedge.gate.tamper import TamperCheck
from stepwedge.inference.preprocess import to_plane
from stepwedge.manifest import GOLDEN, Input, Package, load_package
from stepwedge.records import FloatArray, Image

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"
EPS = 8 / 255
CHECK = TamperCheck(
    findings=("pneumonia",), middle=np.zeros(1), scale=np.ones(1), threshold=1.0, false_rejection=0.01, images=100
)


@pytest.fixture(scope="module")
def package() -> Package:
    return load_package(max(file.parent for file in MODELS.glob("*.*.*/model.yaml")))


@pytest.fixture(scope="module")
def target(package: Package) -> Target:
    return target_of(package.model_file, package.manifest, package.manifest.findings[0])


@pytest.fixture(scope="module")
def planes(package: Package) -> FloatArray:
    """The golden cases, six of them, as planes."""
    spec = package.manifest.input
    with np.load(package.path / GOLDEN) as golden:
        inputs = golden[f"input.{spec.name}"][:6]
    return np.clip(inputs[:, 0] * spec.sd[0] + spec.mean[0], 0, 1).astype(np.float32)


def test_attacks_stay_within_their_bounds_and_carry_the_answer_across(target: Target, planes: FloatArray) -> None:
    made = {
        "fgsm": fgsm(target, planes, EPS),
        "pgd": pgd(target, planes, EPS),
        "stopping": pgd(target, planes, EPS, stop=True),
        "deepfool": deepfool(target, planes, EPS),
    }
    for name, attacked in made.items():
        assert attacked.dtype == np.float32, name
        assert np.abs(attacked - planes).max() <= EPS + 1e-6, name
        assert attacked.min() >= 0, name
        assert attacked.max() <= 1, name
    assert target.succeeded(planes, made["pgd"]).sum() >= 5
    assert target.succeeded(planes, made["pgd"]).sum() >= target.succeeded(planes, made["fgsm"]).sum()
    crossed = target.succeeded(planes, made["stopping"])
    beyond = np.abs(target.score(made["stopping"]))[crossed]
    assert (beyond <= np.abs(target.score(made["pgd"]))[crossed]).mean() > 0.5


def test_least_changes_are_smaller_than_strong_ones(target: Target, planes: FloatArray) -> None:
    strong = np.square(pgd(target, planes, EPS) - planes).sum(axis=(1, 2))
    for attacked in (deepfool(target, planes, 1.0, euclidean=True), carlini_wagner(target, planes, steps=30)):
        assert target.succeeded(planes, attacked).sum() >= 5
        assert (np.square(attacked - planes).sum(axis=(1, 2)) < strong).mean() > 0.8


def test_a_patch_changes_nothing_outside_its_square(target: Target, planes: FloatArray) -> None:
    changed = np.abs(patch(target, planes, side=0.125, steps=3) - planes) > 0
    rows, columns = planes.shape[1:]
    for mask in changed:
        place = np.argwhere(mask)
        assert (np.ptp(place, axis=0) < [round(0.125 * rows), round(0.125 * columns)]).all()


def test_what_lies_between_the_limits_is_not_attacked(target: Target, planes: FloatArray) -> None:
    between = Target(score=target.score, gradient=target.gradient, low=-50.0, high=50.0)
    way, _ = between.aim(planes)
    assert not way.any()
    assert not between.succeeded(planes, pgd(between, planes, EPS, steps=2)).any()


def test_the_blind_attack_asks_for_scores_only(target: Target, planes: FloatArray) -> None:
    def refuse(_: FloatArray) -> tuple[NDArray[np.float64], FloatArray]:
        raise AssertionError("asked for a gradient")

    only = Target(score=target.score, gradient=refuse)
    way, _ = only.aim(planes)
    attacked = blind(only, planes, EPS, queries=10)
    assert np.abs(attacked - planes).max() <= EPS + 1e-6
    assert ((target.score(attacked) - target.score(planes)) * way > 0).mean() > 0.5


def test_the_adaptive_attack_stays_within_its_bound(target: Target, planes: FloatArray) -> None:
    attacked = adaptive(target, planes[:2], EPS, CHECK, steps=4)
    assert np.abs(attacked - planes[:2]).max() <= EPS + 1e-6


def test_an_attack_on_stored_pixels_arrives_through_the_resize(
    package: Package, target: Target, planes: FloatArray
) -> None:
    spec = package.manifest.input
    large = np.repeat(np.repeat(planes[0], 3, axis=0), 3, axis=1)
    image = Image(pixels=np.round(large * 4095), value_range=(0.0, 4095.0))
    pixels = pgd_before_resizing(target, image, spec, EPS, steps=5)
    assert np.abs(pixels - image.pixels).max() <= EPS * 4095 + 0.5
    assert (pixels == np.round(pixels)).all()
    before, after = (
        target.score(to_plane(each, spec)[None])[0] for each in (image, Image(pixels=pixels, value_range=(0.0, 4095.0)))
    )
    way, _ = target.aim(to_plane(image, spec)[None])
    assert (after - before) * way[0] > 1


def test_the_resize_that_is_attacked_is_the_one_that_serves() -> None:
    from attacks import _weights

    spec = Input(name="image", rows=16, columns=20, presentation={"kind": "range"})
    pixels = np.random.default_rng(0).random((50, 70), dtype=np.float32)
    resized = _weights(50, 16, spec) @ pixels @ _weights(70, 20, spec).T
    assert resized == pytest.approx(to_plane(Image(pixels=pixels, value_range=(0.0, 1.0)), spec), abs=1e-3)
