"""A small training program, as a site would name it in ``retrain.command``: refits the tiny model on labelled pictures.

It reads the request, fits slope and middle of a logistic curve over the mean brightness (Newton's method), and leaves
a release in CANDIDATE_DIR: the package with the new graph and the baseline that it was given, and the site's policy.

    python refit.py CHAMPION_RELEASE PICTURES LABELS.csv BASELINE.parquet VERSION
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import yaml
from onnx import numpy_helper
from PIL import Image
from pyarrow import parquet

MINIMUM_SLOPE = 4.0  # pictures that a brightness tells apart without fail have no finite slope


def main(champion: Path, pictures: Path, labels: Path, baseline: Path, version: str) -> None:
    request = json.loads(Path(os.environ["REQUEST_FILE"]).read_text())
    out = Path(os.environ["CANDIDATE_DIR"])
    print(f"{request['request']}: {len(request['studies'])} studies were named as worth labelling")
    shutil.copytree(champion, out, dirs_exist_ok=True, symlinks=False)
    package = out / "package"
    means, ill = [], []
    with labels.open(newline="") as table:
        for row in csv.DictReader(table):
            means.append(float(np.asarray(Image.open(pictures / row["file"]), dtype=np.float64).mean() / 255))
            ill.append(float(row["label"] == "ill"))
    slope, middle = fit(np.array(means), np.array(ill))
    print(f"fitted on {len(ill)} pictures: slope {slope:.2f}, middle {middle:.3f}")
    model = onnx.load(package / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "slope":
            tensor.CopyFrom(numpy_helper.from_array(np.array([[-slope / 2, slope / 2]], np.float32), "slope"))
        if tensor.name == "half":
            tensor.CopyFrom(numpy_helper.from_array(np.array(middle, np.float32), "half"))
    onnx.save(model, package / "model.onnx")
    with np.load(package / "golden.npz") as arrays:
        golden = dict(arrays)
    half = slope / 2 * (golden["input.image"].mean(axis=(1, 2, 3), dtype=np.float64) - middle)
    golden["output.logits"] = np.stack([-half, half], axis=1).astype(np.float32)
    np.savez(package / "golden.npz", **golden)
    contents = yaml.safe_load((package / "model.yaml").read_text())
    (package / "model.yaml").write_text(yaml.safe_dump(contents | {"version": version}, sort_keys=False))
    # The new model's answers are nearly the old one's, so that its baseline is that of the old one under its name.
    table = parquet.read_table(baseline)
    named = pa.array([version] * table.num_rows)
    table = table.set_column(table.schema.get_field_index("model_version"), "model_version", named)
    parquet.write_table(table, package / "baseline.parquet")
    from stepwedge.manifest import SUMS, digest_list

    (package / SUMS).write_text(digest_list(package), encoding="utf-8")


def fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and middle of the logistic curve, by ridged Newton steps."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (p - y) + 1e-3 * weights
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-3 * np.eye(2)
        weights -= np.linalg.solve(hessian, gradient)
    slope = max(float(weights[0]), MINIMUM_SLOPE)
    return slope, -float(weights[1]) / slope


if __name__ == "__main__":
    main(*(Path(value) for value in sys.argv[1:5]), sys.argv[5])
