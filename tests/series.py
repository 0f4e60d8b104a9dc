"""A package whose model takes a whole CT series at two sizes and looks at its mean brightness, and such series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import yaml
from instances import CT, make_instance
from onnx import TensorProto, helper
from packages import CLASSES, LOGITS, STEEPNESS, seal
from pydicom import Dataset
from pydicom.uid import generate_uid
from stepwedge.manifest import GOLDEN, MANIFEST, Calibration, FindingCalibration, write_calibration

SIDE, SMALL = 32, 16
MINIMUM, MAXIMUM = 3, 8
_GREY = 4095  # 12 bits


def write_series_package(folder: Path, *, name: str = "tiny-series", unit: str = "series") -> Path:
    """A package for series (or studies) of CT with ``MINIMUM`` slices or more; beyond ``MAXIMUM`` they are thinned."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_graph(), folder / "model.onnx")
    presentation = {"kind": "range"}
    manifest = {
        "schema": 1,
        "name": name,
        "version": "1.0.0",
        "description": "Tells bright series from dark ones.",
        "licence": "Apache-2.0",
        "intended_use": {"summary": "Tests only", "modality": ["CT"]},
        "input": {"name": "slices", "unit": unit, "rows": SIDE, "columns": SIDE, "presentation": presentation},
        "further_inputs": [
            {"name": "small", "unit": unit, "rows": SMALL, "columns": SMALL, "presentation": presentation}
        ],
        "stack": {"order": "position", "minimum": MINIMUM, "maximum": MAXIMUM},
        "output": {"scores": LOGITS, "classes": list(CLASSES), "kind": "exclusive"},
        "findings": [
            {
                "name": "ill",
                "code": {"value": "39104002", "scheme": "SCT", "meaning": "Illness"},
                "positive": ["ill"],
            }
        ],
    }
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    bright = np.full((1, 4, 1, SIDE, SIDE), 0.75, np.float32)
    logit = STEEPNESS / 2 * 0.25
    golden = {
        "input.slices": bright,
        "input.small": bright[..., :SMALL, :SMALL],
        f"output.{LOGITS}": np.array([[-logit, logit]], np.float32),
    }
    np.savez(folder / GOLDEN, allow_pickle=False, **golden)
    fitted = FindingCalibration(method="none", prevalence=0.5, positives=100, negatives=100)
    write_calibration(folder, Calibration(findings={"ill": fitted}))
    seal(folder)
    return folder


def ct_series(
    brightness: float, slices: int = 5, *, study: str | None = None, series: str | None = None, gradient: float = 0.0
) -> list[Dataset]:
    """Slices 2 mm apart; ``gradient`` makes each brighter than the one below it."""
    study, series = study or generate_uid(), series or generate_uid()
    rng = np.random.default_rng(0)
    made = []
    for number in range(slices):
        dataset = make_instance(modality="CT", sop_class=CT, study=study, series=series, rows=SIDE, columns=SIDE)
        level = brightness + gradient * (number - (slices - 1) / 2)
        # Smooth within the slice and never blank: a ramp, and a little noise.
        ramp = np.linspace(-0.2, 0.2, SIDE)[None, :] + 0.01 * rng.standard_normal((SIDE, SIDE))
        values = np.round(np.clip(level + ramp, 0, 1) * _GREY).astype("<u2")
        dataset.PixelData = values.tobytes()
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 2.0 * number]
        dataset.InstanceNumber = number + 1
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        made.append(dataset)
    return made


def _graph() -> onnx.ModelProto:
    axes = helper.make_tensor("axes", TensorProto.INT64, [4], [1, 2, 3, 4])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1])
    slope = helper.make_tensor("slope", TensorProto.FLOAT, [1, 2], [-STEEPNESS / 4, STEEPNESS / 4])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    nodes = [
        helper.make_node("ReduceMean", ["slices", "axes"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["small", "axes"], ["mean_of_small"], keepdims=0),
        helper.make_node("Add", ["mean", "mean_of_small"], ["sum"]),
        helper.make_node("Sub", ["sum", "one"], ["centred"]),
        helper.make_node("Reshape", ["centred", "shape"], ["column"]),
        helper.make_node("Mul", ["column", "slope"], [LOGITS]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "images", 1, side, side])
        for name, side in (("slices", SIDE), ("small", SMALL))
    ]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", len(CLASSES)])]
    model = helper.make_model(
        helper.make_graph(nodes, "series", inputs, outputs, initializer=[axes, shape, slope, one]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model
