"""From trained weights to the package: graph, golden cases, calibration, baseline, figures, card, digests."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from evaluate import evaluation
from figures import Floats, Labels
from folds import Row, label_index, read_image, tensors
from learn import SIDE, answers, input_spec
from network import Network
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from stepwedge.decision.calibrate import finding_scores
from stepwedge.gate.validity import pixel_statistics
from stepwedge.inference.engine import OnnxEngine
from stepwedge.inference.preprocess import to_tensor
from stepwedge.manifest import (
    MANIFEST,
    Calibration,
    FindingCalibration,
    Manifest,
    Package,
    read_manifest,
    write_calibration,
)
from stepwedge.observation import Observation
from stepwedge.package.build import Tensors, seal, write_golden
from stepwedge.package.card import CARD, EVALUATION, card
from stepwedge.pipeline import Equipment, combine, decide_findings, observation_of
from stepwedge.policy import load_policy
from stepwedge.records import GateVerdict, Header, Image, ImageResult, State, UnitResult, Verdict
from stepwedge.simulate import load_simulator, simulate

HERE = Path(__file__).parent
BASELINE = "baseline.parquet"
_GOLDEN_SEED = 1
_GOLDEN_OF_EACH = 2
_OPSET = 17
_BASELINE_TIME = "2026-11-23T00:00:00+00:00"  # the data set has no times; one for all, so that a rebuild is the same


def release(model: Network, data: Path, rows: Sequence[Row], simulated: Path, policy_file: Path, out: Path) -> Package:
    """Write the package's folder anew and give the sealed package."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copy(HERE / MANIFEST, out / MANIFEST)
    manifest = read_manifest(out / MANIFEST)
    if manifest.input != input_spec():
        raise SystemExit(f"{HERE / MANIFEST}: the input is not the one that the network was trained on")
    _export(model, out / "model.onnx")
    write_golden(out, lambda inputs: _torch_outputs(model, inputs), {"image": _golden_inputs(simulated, manifest)})
    # Loading compares the graph in ONNX Runtime with the golden outputs, which are the trained network's own.
    engine = OnnxEngine(Package(path=out, manifest=manifest, calibration=Calibration(findings={}), digest=""))
    print(f"the graph differs from the trained network by {engine.golden_error:.1e} at most")

    folds = {name: [row for row in rows if row.fold == name] for name in dict.fromkeys(row.fold for row in rows)}
    outputs = {
        name: engine.run({"image": tensors(data, folds[name], manifest.input)})[0]
        for name in ("calibrate", "gate", "test")
    }
    calibration = _calibration(manifest, folds["calibrate"], outputs["calibrate"]["logits"])
    write_calibration(out, calibration)
    policy = load_policy(policy_file, manifest)
    package = Package(path=out, manifest=manifest, calibration=calibration, digest="")
    equipment = Equipment(package=package, engine=engine, policy=policy)
    baseline = [
        _observation(data, row, logits, embedding, equipment)
        for name in ("calibrate", "gate")
        for row, logits, embedding in zip(folds[name], outputs[name]["logits"], outputs[name]["embedding"], strict=True)
    ]
    pq.write_table(_table(baseline), out / BASELINE, compression="zstd")
    figures = evaluation(data, folds, outputs["test"]["logits"], engine, equipment)
    (out / EVALUATION).write_text(figures.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / CARD).write_text(card(manifest, calibration, figures), encoding="utf-8")
    return seal(out)


def _table(baseline: Sequence[Observation]) -> pa.Table:
    """Observations as columns. Times by stage are left out: Parquet has no records without fields, and none exist."""
    rows = [asdict(observation) for observation in baseline]
    table = pa.Table.from_pylist([{name: value for name, value in row.items() if name != "ms"} for row in rows])
    # A column of nothing but blanks has no type of its own.
    typed = {pa.null(): pa.float64(), pa.list_(pa.null()): pa.list_(pa.string())}
    return table.cast(pa.schema([pa.field(f.name, typed.get(f.type, f.type)) for f in table.schema]))


def _export(model: Network, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, SIDE, SIDE),),
        str(path),
        input_names=["image"],
        output_names=["logits", "embedding"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}, "embedding": {0: "batch"}},
        opset_version=_OPSET,
        dynamo=False,
    )


def _torch_outputs(model: Network, inputs: Tensors) -> Tensors:
    logits, embedding = answers(model, inputs["image"])
    return {"logits": logits, "embedding": embedding}


def _golden_inputs(simulated: Path, manifest: Manifest) -> NDArray[np.float32]:
    """Simulated patients of every class: no patient's image travels with the package."""
    rng = np.random.default_rng(_GOLDEN_SEED)
    simulator = load_simulator(simulated)
    images = [simulate(simulator, label, rng) for label in manifest.output.classes for _ in range(_GOLDEN_OF_EACH)]
    return np.concatenate(
        [to_tensor(Image(pixels=pixels, value_range=(0.0, 1.0)), manifest.input) for pixels in images]
    )


def _calibration(manifest: Manifest, rows: Sequence[Row], logits: NDArray[np.float32]) -> Calibration:
    findings = {}
    for finding in manifest.findings:
        among = [manifest.output.classes.index(name) for name in finding.among or manifest.output.classes]
        positive = [manifest.output.classes.index(name) for name in finding.positive]
        labels = label_index(rows)
        counted = np.isin(labels, among)
        truth = np.isin(labels[counted], positive)
        slope, intercept = _platt(finding_scores(logits[counted], manifest.output, finding), truth)
        findings[finding.name] = FindingCalibration(
            method="sigmoid",
            slope=round(slope, 6),
            intercept=round(intercept, 6),
            prevalence=round(float(truth.mean()), 6),
            positives=int(truth.sum()),
            negatives=int((~truth).sum()),
        )
    return Calibration(findings=findings)


def _platt(scores: Floats, truth: Labels) -> tuple[float, float]:
    """Slope and intercept of the likeliest sigmoid (Platt 1999), practically without a penalty."""
    fitted = LogisticRegression(C=1e6).fit(scores[:, None], truth)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


def _observation(
    data: Path, row: Row, logits: NDArray[np.float32], embedding: NDArray[np.float32], equipment: Equipment
) -> Observation:
    """What the monitor would have been told of this image. The data set knows no header, so there is none."""
    manifest, policy = equipment.package.manifest, equipment.policy
    assert policy is not None
    scores = {
        finding.name: float(finding_scores(logits[None], manifest.output, finding)[0]) for finding in manifest.findings
    }
    key = hashlib.sha256(f"stepwedge baseline/{row.file}".encode()).hexdigest()[:32]
    image = ImageResult(
        instance=key,
        state=State.REPORTED,
        reasons=(),
        header=Header(present=False),
        gate=GateVerdict(verdict=Verdict.ACCEPT),
        statistics=pixel_statistics(read_image(data / "images" / row.file)),
        findings=decide_findings(scores, equipment),
        scores=dict(zip(manifest.output.classes, (round(float(x), 4) for x in logits), strict=True)),
        embedding=tuple(round(float(x), 4) for x in embedding),
        provider="CPUExecutionProvider",
    )
    state, reasons, findings = combine([image], equipment)
    result = UnitResult(
        unit=key,
        study=key,
        revision=1,
        state=state,
        reasons=reasons,
        findings=findings,
        images=(image,),
        model=equipment.package.reference,
        policy=policy.reference,
        created_at=_BASELINE_TIME,
    )
    # A data set of pictures: frames and the like would be made up.
    return replace(observation_of(result, {}), images=1)
