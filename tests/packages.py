"""A complete tiny model package and its policy, for tests that need a real one.

The graph looks at mean brightness only, so a test decides what the model says by what it draws:

====================  ==================  ===========================  ==========================
mean of the input     log-odds of `ill`   calibrated probability       under ``write_policy``
====================  ==================  ===========================  ==========================
0.75                  +5                  0.993                        act
0.50                   0                  0.500                        defer
0.25                  −5                  0.007                        clear
====================  ==================  ===========================  ==========================

The presentation is ``range``: an image's brightness is its mean over what its stored bits can represent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper
from stepwedge.manifest import (
    GOLDEN,
    MANIFEST,
    SUMS,
    Calibration,
    FindingCalibration,
    digest_list,
    write_calibration,
)

# Log-odds of `ill` per unit of mean brightness beyond one half.
STEEPNESS = 20.0

INPUT, LOGITS, EMBEDDING = "image", "logits", "embedding"
CLASSES = ("normal", "ill")


def write_package(
    folder: Path,
    *,
    name: str = "tiny",
    rows: int = 32,
    columns: int = 32,
    version: str = "1.0.0",
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Write a package that ``load_package`` and ``OnnxEngine`` accept, and give its folder.

    The graph takes ``image``, float32 (batch, 1, rows, columns) on 0…1, and gives ``logits`` (batch, 2) of the
    exclusive classes normal and ill, and ``embedding`` (batch, 4): mean, largest, smallest, mean of squares.

    Parameters
    ----------
    folder
        Made where it is missing; files of the same names are overwritten.
    manifest
        Top-level keys of ``model.yaml`` to replace, e.g. ``{"intended_use": {…}}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(rows, columns), folder / "model.onnx")
    contents = {**_manifest(name, rows, columns, version), **(manifest or {})}
    (folder / MANIFEST).write_text(yaml.safe_dump(contents, sort_keys=False, allow_unicode=True), encoding="utf-8")
    images = np.random.default_rng(0).random((3, 1, rows, columns), dtype=np.float32)
    images *= np.array([0.2, 1.0, 1.8], np.float32)[:, None, None, None]
    golden = {f"input.{INPUT}": np.clip(images, 0, 1)}
    golden |= {f"output.{k}": v for k, v in expected_outputs(golden[f"input.{INPUT}"]).items()}
    np.savez(folder / GOLDEN, allow_pickle=False, **golden)
    fitted = FindingCalibration(method="none", prevalence=0.5, positives=100, negatives=100)
    write_calibration(folder, Calibration(findings={"ill": fitted}))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write ``SHA256SUMS`` for the files as they are, after a test has changed one of them on purpose."""
    (folder / SUMS).write_text(digest_list(folder), encoding="utf-8")


def expected_outputs(images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What the graph must give for ``images``, float32 (batch, 1, rows, columns), worked out without it."""
    mean = images.mean(axis=(1, 2, 3), dtype=np.float64)
    half = STEEPNESS / 2 * (mean - 0.5)
    embedding = [mean, images.max(axis=(1, 2, 3)), images.min(axis=(1, 2, 3)), np.square(images).mean(axis=(1, 2, 3))]
    return {
        LOGITS: np.stack([-half, half], axis=1).astype(np.float32),
        EMBEDDING: np.stack(embedding, axis=1).astype(np.float32),
    }


def write_policy(
    path: Path,
    *,
    model: str = "tiny",
    finding: str = "ill",
    miss: float = 10,
    false_alarm: float = 1,
    deferral: float = 0.3,
    prevalence: float = 0.5,
) -> Path:
    """Write a policy for the package and give its path. By default: clear below 0.03, act from 0.7, else defer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    costs = {"miss": miss, "false_alarm": false_alarm, "deferral": deferral, "prevalence": prevalence}
    contents = {"schema": 1, "name": "test", "version": "1", "model": model, "findings": {finding: costs}}
    path.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
    return path


def graph(rows: int, columns: int) -> onnx.ModelProto:
    """The graph of the tiny model."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    slope = helper.make_tensor("slope", TensorProto.FLOAT, [1, 2], [-STEEPNESS / 2, STEEPNESS / 2])
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    nodes = [
        helper.make_node("Flatten", [INPUT], ["flat"], axis=1),
        helper.make_node("ReduceMean", ["flat", "one"], ["mean"], keepdims=1),
        helper.make_node("ReduceMax", ["flat", "one"], ["largest"], keepdims=1),
        helper.make_node("ReduceMin", ["flat", "one"], ["smallest"], keepdims=1),
        helper.make_node("Mul", ["flat", "flat"], ["squared"]),
        helper.make_node("ReduceMean", ["squared", "one"], ["power"], keepdims=1),
        helper.make_node("Sub", ["mean", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "slope"], [LOGITS]),
        helper.make_node("Concat", ["mean", "largest", "smallest", "power"], [EMBEDDING], axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, rows, columns])],
            [
                helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", len(CLASSES)]),
                helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["batch", 4]),
            ],
            initializer=[one, slope, half],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model


def _manifest(name: str, rows: int, columns: int, version: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": name,
        "version": version,
        "description": "Tells bright images from dark ones.",
        "licence": "Apache-2.0",
        "intended_use": {"summary": "Tests only", "modality": ["CR", "DX"]},
        "input": {"name": INPUT, "rows": rows, "columns": columns, "presentation": {"kind": "range"}},
        "output": {"scores": LOGITS, "embedding": EMBEDDING, "classes": list(CLASSES), "kind": "exclusive"},
        "findings": [
            {
                "name": "ill",
                "code": {"value": "39104002", "scheme": "SCT", "meaning": "Illness"},
                "positive": ["ill"],
            }
        ],
    }
