"""The two fitted parts of the gate together: what the gate fold's images show, and how the model answers for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stepwedge.gate.fitted import Gate
from stepwedge.inference.preprocess import normalised, to_plane
from stepwedge.manifest import Input, Manifest
from stepwedge.package.observe import Answered, Pictures
from stepwedge.package.progress import Report
from stepwedge.pipeline import Equipment
from stepwedge.records import FloatArray

_BATCH = 16  # planes in one run: enough to keep a GPU busy, little memory


def fit_gate(
    accepted: Sequence[Answered], pictures: Pictures, equipment: Equipment, false_rejection: float, report: Report
) -> Gate:
    """Fit content gate and tamper check on the gate fold, each for one declared rate of false rejection.

    Parameters
    ----------
    accepted
        The gate fold's images that header and structure checks accept.

    Raises
    ------
    StepwedgeError
        If there are too few images to fit on.
    """
    import importlib.util

    if (
        importlib.util.find_spec("stepwedge.package.fit_content") is None
        or importlib.util.find_spec("stepwedge.package.fit_tamper") is None
    ):
        report.say("no gate yet")
        return Gate()
    from stepwedge.package.fit_content import fit_content
    from stepwedge.package.fit_tamper import fit_tamper

    manifest, engine = equipment.package.manifest, equipment.engine
    chosen = pictures.only([item.image.file for item in accepted])
    report.step(f"Fitting the content gate: {len(accepted)} images")
    content = fit_content(
        chosen,
        [item.image.patient for item in accepted],
        false_rejection=false_rejection,
        progress=report.progress,
    )
    if not _one_plane(manifest):
        report.say("no tamper check: the inputs are made of the image in different ways")
        return Gate(content=content)

    def run(planes: FloatArray) -> NDArray[np.float32]:
        scores = []
        for start in range(0, len(planes), _BATCH):
            batch = planes[start : start + _BATCH]
            outputs, _ = engine.run({spec.name: normalised(batch, spec) for spec in manifest.inputs})
            scores.append(outputs[manifest.output.scores])
        return np.concatenate(scores)

    report.step(f"Fitting the tamper check: {len(accepted)} images")
    planes = [to_plane(image, manifest.input) for image in chosen]
    tamper = fit_tamper(planes, run, manifest, false_rejection=false_rejection, progress=report.progress)
    return Gate(content=content, tamper=tamper)


def _one_plane(manifest: Manifest) -> bool:
    """Whether all inputs are one plane, at most normalised differently."""

    def made(spec: Input) -> tuple[object, ...]:
        return (spec.rows, spec.columns, spec.presentation, spec.fit, spec.resampling)

    return all(made(spec) == made(manifest.input) for spec in manifest.further_inputs)
