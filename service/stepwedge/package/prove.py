"""Proof by running: that a graph answers as it did before it was changed, and as its description says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwedge.errors import InferenceRefusedError, InferenceUnavailableError, PackageError
from stepwedge.manifest import Manifest, Output
from stepwedge.package.golden import Tensors, synthetic_inputs
from stepwedge.package.graph import Prepared
from stepwedge.package.head import Head
from stepwedge.seams import Engine

# A sum of products in another order differs by this share of its size in float32.
_ROUNDING = 1e-3
# Where features are quantised between map and scores, the map's mean differs from them by steps of that.
_QUANTISED = 0.1
_SUM_OF_PROBABILITIES = 1e-3  # how far from 1
_ENOUGH_IMAGES = 20  # so many logits of real images do not all fall between 0 and 1 by chance


def check_graph(before: Engine, after: Engine, manifest: Manifest, prepared: Prepared) -> None:
    """Run a graph before and after its surgery on synthetic images, one by one and together.

    Raises
    ------
    PackageError
        If an answer changed, depends on the images beside it, is not finite, or if the activation map does not
        average to the scores.
    """
    inputs = synthetic_inputs(manifest)
    count = len(next(iter(inputs.values())))
    scores, tolerance = manifest.output.scores, manifest.golden_tolerance
    single = [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]
    originally = [_run(before, one, "as it came") for one in single]
    alone = [_run(after, one, "with the outputs that were added") for one in single]
    together = _run(after, inputs, "for several images at once")
    for name, values in together.items():
        if not np.isfinite(values).all():
            raise PackageError(f"output {name} of the graph is not finite on synthetic images; mend the model")
    changed = max(_difference(a[scores], b[scores]) for a, b in zip(originally, alone, strict=True))
    if changed > tolerance:
        raise PackageError(
            f"adding outputs changed the scores by {changed:.2g}, more than golden_tolerance {tolerance:.2g}; name "
            "output.embedding and an explanation in model.yaml so that nothing has to be added, or allow for more"
        )
    for name, values in together.items():
        apart = _difference(values, np.concatenate([one[name] for one in alone]))
        if apart > tolerance:
            raise PackageError(
                f"output {name} of the graph is another for an image alone and among others, by {apart:.2g} (more than "
                f"golden_tolerance {tolerance:.2g}): its answers depend on the batch, or on chance; export it for any "
                "batch size and in evaluation mode, and quantise it statically"
            )
    if prepared.activation_map is not None and prepared.head is not None and manifest.output.activation_map:
        _check_activation_map(together, prepared.head, manifest)


def check_activation(outputs: NDArray[np.float32], output: Output) -> None:
    """Hold the outputs for real images, (n, classes), against the declared activation. Raises PackageError."""
    between = bool(((outputs >= 0) & (outputs <= 1)).all())
    sums_to_one = bool((np.abs(outputs.sum(axis=1) - 1) < _SUM_OF_PROBABILITIES).all())
    wanted = f"model.yaml: output.activation: found {output.activation}"
    if output.activation == "softmax" and not (between and sums_to_one):
        raise PackageError(f"{wanted}, but the outputs do not add up to 1 over the classes; wanted none")
    if output.activation == "sigmoid" and not between:
        raise PackageError(f"{wanted}, but outputs lie outside 0 to 1; wanted none")
    if output.activation == "none" and between and len(outputs) >= _ENOUGH_IMAGES:
        looks = "softmax" if sums_to_one and output.kind == "exclusive" else "sigmoid"
        raise PackageError(
            f"{wanted}, but all outputs for {len(outputs)} images lie between 0 and 1: they look like probabilities; "
            f"wanted {looks}"
        )


def _run(engine: Engine, inputs: Tensors, how: str) -> dict[str, NDArray[np.float32]]:
    try:
        return engine.run(inputs)[0]
    except (InferenceRefusedError, InferenceUnavailableError) as error:
        raise PackageError(
            f"the graph does not run {how}: {error}; export it with a batch dimension of any size"
        ) from None


def _difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.abs(first - second).max()) if first.shape == second.shape else float("inf")


def _check_activation_map(outputs: Tensors, head: Head, manifest: Manifest) -> None:
    assert manifest.output.activation_map is not None
    maps = outputs[manifest.output.activation_map]
    logits = maps.mean(axis=(2, 3)) + (head.bias if head.bias is not None else 0.0)
    scores = outputs[manifest.output.scores].astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    if manifest.output.activation == "softmax":  # known but for a constant of each image
        scores = np.log(np.maximum(scores, tiny))
        scores, logits = (values - values.mean(axis=1, keepdims=True) for values in (scores, logits))
    elif manifest.output.activation == "sigmoid":
        clipped = np.clip(scores, 1e-6, 1 - 1e-6)  # saturated probabilities carry no logits
        scores, logits = np.log(clipped / (1 - clipped)), np.clip(logits, np.log(1e-6), -np.log(1e-6))
    allowed = (_ROUNDING if head.exact else _QUANTISED) * max(1.0, float(np.abs(scores).max()))
    apart = float(np.abs(logits - scores).max())
    if apart > allowed:
        raise PackageError(
            f"the activation map averages to scores that differ by {apart:.2g} from the graph's own (allowed "
            f"{allowed:.2g}); set explanation: {{kind: occlusion}} in model.yaml"
        )
