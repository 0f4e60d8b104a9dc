"""The content gate, fitted on a few real radiographs, on others that are changed in ways it has not learned from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from changes import Change, Pixels, exposed, narrow_window, noise, on_part, out_of_focus, part
from stepwedge.errors import PackageError
from stepwedge.gate.content import ContentGate, judge_content
from stepwedge.gate.validity import pixel_statistics
from stepwedge.package import fit_content as fitting
from stepwedge.records import FloatArray, GateVerdict, Image, Verdict

MODEL = Path(__file__).parents[2] / "models" / "chest-pneumonia"
FITTED, TESTED, CHANGED = 120, 60, 16  # images

Planes = list[FloatArray]


@pytest.fixture(scope="module")
def folds(shared: Path) -> dict[str, tuple[Planes, list[str]]]:
    """By fold: radiographs on 0…1, and the patient of each."""
    sys.path.insert(0, str(MODEL))
    try:
        from folds import read_image, read_rows
    finally:
        sys.path.remove(str(MODEL))
    data = shared / "data" / "pneumonia"
    rows = read_rows(data)
    found = {}
    for fold, count in (("gate", FITTED), ("test", TESTED)):
        of_fold = [row for row in rows if row.fold == fold]
        chosen = of_fold[:: len(of_fold) // count][:count]
        planes = [read_image(data / "images" / row.file).pixels / np.float32(255) for row in chosen]
        found[fold] = planes, [row.patient for row in chosen]
    return found


@pytest.fixture(scope="module")
def gate(folds: dict[str, tuple[Planes, list[str]]]) -> Iterator[ContentGate]:
    planes, patients = folds["gate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_CHANGED_IMAGES", 80)
        patch.setattr(fitting, "_LEAST_FOREIGN", 100)
        yield fitting.fit_content(map(image_of, planes), patients)


def image_of(plane: Pixels) -> Image:
    return Image(pixels=np.ascontiguousarray(plane, np.float32), value_range=(0.0, 1.0))


def judge(image: Image, gate: ContentGate) -> GateVerdict:
    return judge_content(image, pixel_statistics(image), gate)


def test_other_patients_pass(gate: ContentGate, folds: dict[str, tuple[Planes, list[str]]]) -> None:
    verdicts = [judge(image_of(plane), gate).verdict for plane in folds["test"][0]]
    assert verdicts.count(Verdict.REJECT) <= 3  # of 60 at 1 %: more come by chance three times in a thousand
    assert verdicts.count(Verdict.ACCEPT) >= 0.9 * TESTED


@pytest.mark.parametrize(
    ("change", "share", "code"),
    [
        (lambda image, _: 1 - image, 1.0, "image_inverted"),
        (lambda image, _: np.rot90(image), 1.0, "image_rotated"),
        (lambda image, _: np.rot90(image, 2), 0.95, "image_rotated"),
        (part(0.25, 0.25, 0.5, 0.5), 0.95, "image_cropped"),
        (out_of_focus, 0.6, "image_blurred"),
        (exposed(3.0, 0.0), 0.95, "image_saturated"),
        (narrow_window, 0.95, "image_saturated"),
        (on_part(0.0, 0.25), 0.8, "image_grey_scale"),
    ],
)
def test_a_changed_radiograph_is_refused_and_the_change_named(
    change: Change, share: float, code: str, gate: ContentGate, folds: dict[str, tuple[Planes, list[str]]]
) -> None:
    rng = np.random.default_rng(3)
    verdicts = [judge(image_of(change(plane, rng)), gate) for plane in folds["test"][0][:CHANGED]]
    refused = [verdict for verdict in verdicts if verdict.verdict is not Verdict.ACCEPT]
    assert len(refused) >= share * CHANGED
    assert sum(code in {reason.code for reason in verdict.reasons} for verdict in refused) >= 0.75 * len(refused)


@pytest.mark.parametrize("kind", ["uniform", "Gaussian", "salt and pepper", "coarse"])
def test_noise_is_rejected(kind: str, gate: ContentGate) -> None:
    rng = np.random.default_rng(4)
    verdicts = [judge(image_of(noise(kind, rng)), gate).verdict for _ in range(CHANGED)]
    assert verdicts == [Verdict.REJECT] * CHANGED


@pytest.mark.parametrize("rate", [0.0, 0.5, -1.0])
def test_a_rate_that_cannot_be_fitted_is_refused(rate: float) -> None:
    with pytest.raises(PackageError, match="cannot be fitted"):
        fitting.fit_content([], ["p"] * 200, false_rejection=rate)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(PackageError, match="at least 100 images"):
        fitting.fit_content([], ["p"] * 99)
