"""A heat map marks what speaks for a finding, and nothing where nothing may be read into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from packages import write_package
from stepwedge import explain
from stepwedge.decision.calibrate import finding_scores
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Explanation, FindingSpec, Manifest, Output, load_package
from stepwedge.records import Code, Decision, Finding, FloatArray, ModelReference

CLASSES = ["normal", "bacterial", "viral"]
ACT, CLEAR, DEFER, NONE, INCONCLUSIVE = (
    Decision.ACT,
    Decision.CLEAR,
    Decision.DEFER,
    Decision.NONE,
    Decision.INCONCLUSIVE,
)


def manifest(**output: Any) -> Manifest:
    exclusive = output.get("kind", "exclusive") == "exclusive"
    findings = [
        {"name": "pneumonia", "positive": ["bacterial", "viral"] if exclusive else ["bacterial"]},
        {"name": "viral", "positive": ["viral"], "among": ["bacterial", "viral"] if exclusive else []},
    ]
    for entry in findings:
        entry["code"] = {"value": "1", "scheme": "SCT", "meaning": "x"}  # type: ignore[assignment]
    return Manifest.model_validate(
        {
            "schema": 1,
            "name": "three",
            "version": "1.0.0",
            "description": "",
            "licence": "",
            "intended_use": {"summary": "", "modality": ["DX"]},
            "input": {"name": "image", "rows": 20, "columns": 30, "presentation": {"kind": "range"}},
            "output": {"scores": "scores", "activation_map": "maps", "classes": CLASSES, "kind": "exclusive"} | output,
            "explanation": {"kind": "activation_map"},
            "findings": findings,
        }
    )


def findings(*decisions: Decision) -> list[Finding]:
    code = Code(value="1", scheme="SCT", meaning="x")
    return [
        Finding(name=name, code=code, score=0, probability=0.5, prevalence=0.5, decision=decision)
        for name, decision in zip(("pneumonia", "viral"), decisions, strict=False)
    ]


@pytest.mark.parametrize(
    ("decisions", "explained"),
    [
        ((ACT, ACT), "pneumonia"),
        ((CLEAR, ACT), "viral"),
        ((DEFER, ACT), "viral"),
        ((CLEAR, DEFER), "viral"),
        ((CLEAR, CLEAR), None),
        ((DEFER, NONE), None),
        ((DEFER, INCONCLUSIVE), None),
        ((INCONCLUSIVE, INCONCLUSIVE), None),
        ((NONE,), None),
        ((), None),
    ],
)
def test_what_is_acted_upon_is_explained_before_what_is_left_open(
    decisions: tuple[Decision, ...], explained: str | None
) -> None:
    assert explain.explained_finding(findings(*decisions)) == explained
    made = explain.from_activation_map(
        np.ones((3, 4, 4), np.float32), findings(*decisions), manifest(), scores=np.zeros(3, np.float32)
    )
    assert (made.finding if made else None) == explained


KINDS = [
    {"kind": "exclusive", "activation": "none"},
    {"kind": "exclusive", "activation": "softmax"},
    {"kind": "independent", "activation": "none"},
    {"kind": "independent", "activation": "sigmoid"},
]


def activated(logits: NDArray[np.float64], output: Output) -> NDArray[np.float32]:
    if output.activation == "softmax":
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    elif output.activation == "sigmoid":
        logits = 1 / (1 + np.exp(-logits))
    return logits.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("index", [0, 1])
def test_the_evidence_is_the_derivative_of_the_log_odds(kind: dict[str, str], index: int) -> None:
    made = manifest(**kind)
    spec: FindingSpec = made.findings[index]
    rng = np.random.default_rng(index)
    maps = rng.normal(size=(3, 4, 5)).astype(np.float32)
    logits = rng.normal(size=(1, 3))
    step = 1e-3
    for row, column in ((0, 0), (2, 4)):
        moved = [
            explain.finding_log_odds(
                activated(logits + sign * step * maps[:, row, column], made.output), spec, made.output
            )
            for sign in (1, -1)
        ]
        slope = float((moved[0] - moved[1])[0]) / (2 * step)
        found = explain.evidence(maps, spec, made, activated(logits, made.output)[0])
        assert found[row, column] == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_log_odds_are_those_that_are_decided_on(kind: dict[str, str]) -> None:
    made = manifest(**kind)
    scores = activated(np.random.default_rng(0).normal(scale=3, size=(20, 3)), made.output)
    for spec in made.findings:
        assert explain.finding_log_odds(scores, spec, made.output) == pytest.approx(
            finding_scores(scores, made.output, spec), abs=1e-6
        )


def test_heat_runs_from_zero_to_one_and_evidence_against_is_none() -> None:
    assert explain.scaled(np.array([[-3.0, 0.0], [1.0, 4.0]], np.float32)).tolist() == [[0, 0], [0.25, 1]]
    for nothing in (np.zeros((2, 2)), np.full((2, 2), -1.0), np.full((2, 2), np.nan), np.full((2, 2), 1e-44)):
        values = explain.scaled(nothing.astype(np.float32))
        assert values.dtype == np.float32
        assert (values == 0).all()


class Counted:
    """An engine whose score of the finding is the brightness of one place of every input."""

    model = ModelReference(name="m", version="1", digest="")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(
        self, inputs: Mapping[str, FloatArray], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        self.batches.append(len(next(iter(inputs.values()))))
        bright = sum(
            values[:, :, int(values.shape[2] * 0.3), int(values.shape[3] * 0.8)].mean(axis=1)
            for values in inputs.values()
        )
        scores = np.zeros((self.batches[-1], 3), np.float32)
        scores[:, 1] = bright
        return {"scores": scores}, "test"


def occluding(grid: int) -> Manifest:
    return manifest().model_copy(update={"explanation": Explanation(kind="occlusion", grid=grid)})


@pytest.mark.parametrize("grid", [2, 7, 16])
def test_covering_what_counts_makes_the_only_heat(grid: int) -> None:
    image = np.random.default_rng(0).random((1, 1, 20, 30), dtype=np.float32)
    image[0, 0, 6, 24] = 3.0
    more = np.zeros((1, 3, 20, 30), np.float32)
    more[0, :, 6, 24] = 3.0
    engine = Counted()
    made = explain.by_occlusion({"image": image, "more": more}, findings(ACT), occluding(grid), engine)
    assert made is not None
    assert (made.method, made.values.shape) == ("occlusion", (grid, grid))
    (row,) = [i for i, (start, end) in enumerate(explain.cell_bounds(20, grid)) if start <= 6 < end]
    (column,) = [i for i, (start, end) in enumerate(explain.cell_bounds(30, grid)) if start <= 24 < end]
    assert made.values[row, column] == 1
    assert engine.batches == [grid * grid + 1]
    assert image[0, 0, 6, 24] == 3.0, "the input is left as it was"


def test_what_would_not_fit_into_memory_runs_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).random((1, 1, 20, 30), dtype=np.float32)
    whole = explain.by_occlusion({"image": image}, findings(ACT), occluding(4), Counted())
    monkeypatch.setattr(explain, "_LARGEST_BATCH_BYTES", 5 * image.nbytes)
    engine = Counted()
    parts = explain.by_occlusion({"image": image}, findings(ACT), occluding(4), engine)
    assert engine.batches == [5, 5, 5, 2]
    assert whole is not None
    assert parts is not None
    assert (whole.values == parts.values).all()


def test_what_deserves_no_heat_map_costs_nothing() -> None:
    engine = Counted()
    assert explain.by_occlusion({}, findings(CLEAR, CLEAR), occluding(4), engine) is None
    assert engine.batches == []


def test_a_real_model_is_explained_by_covering(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path, manifest={"explanation": {"kind": "occlusion", "grid": 4}}))
    image = np.full((1, 1, 32, 32), 0.2, np.float32)
    image[0, 0, 8:16, 24:32] = 1.0
    ill = findings(ACT)[0]
    made = explain.by_occlusion(
        {"image": image},
        [Finding(**{name: getattr(ill, name) for name in ill.__slots__} | {"name": "ill"})],
        package.manifest,
        OnnxEngine(package, "cpu", 1),
    )
    assert made is not None
    assert made.values[1, 3] == 1
    assert (np.delete(made.values.ravel(), 7) == 0).all()


@pytest.mark.parametrize(("size", "grid"), [(128, 7), (16, 16), (33, 10)])
def test_cells_cover_a_side_without_gaps(size: int, grid: int) -> None:
    bounds = explain.cell_bounds(size, grid)
    assert len(bounds) == grid
    assert [start for start, _ in bounds[1:]] == [end for _, end in bounds[:-1]]
    assert (bounds[0][0], bounds[-1][1]) == (0, size)
    assert all(end > start for start, end in bounds)
