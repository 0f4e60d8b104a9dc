"""The two fitted parts of the gate together: what the gate fold's images show, and how the model answers for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stepwedge.gate.fitted import Gate
from stepwedge.inference.preprocess import normalised, to_plane
from stepwedge.manifest import Input, Manifest
from stepwedge.package.fit_content import fit_content
from stepwedge.package.fit_tamper import fit_tamper
from stepwedge.package.observe import Answered, Pictures
from stepwedge.package.progress import Report
from stepwedge.pipeline import Equipment
from stepwedge.records import FloatArray

_BATCH = 16  # planes in one run: enough to keep a GPU busy, little memory


def fit_gate(
    accepted: Sequence[Answered],
    pictures: Pictures,
    equipment: Equipment,
    false_rejection: float,
    report: Report,
    *,
    content: bool = True,
    tamper: bool = True,
) -> Gate:
    """Fit content gate and tamper check on the gate fold, each for one declared rate of false rejection.

    Parameters
    ----------
    accepted
        The gate fold's images that header and structure checks accept.
    content, tamper
        Whether each part is fitted; one that is not says so in every answer.

    Raises
    ------
    StepwedgeError
        If there are too few images to fit on.
    """
    chosen = pictures.only([item.image.file for item in accepted])
    fitted = Gate()
    if content:
        report.step(f"Fitting the content gate: {len(accepted)} images")
        patients = [item.image.patient for item in accepted]
        fitted = Gate(content=fit_content(chosen, patients, false_rejection=false_rejection, progress=report.progress))
    manifest = equipment.package.manifest
    if tamper and not one_plane(manifest):
        report.say("no tamper check: the inputs are made of the image in different ways")
    elif tamper:
        report.step(f"Fitting the tamper check: {len(accepted)} images")
        planes = [to_plane(image, manifest.input) for image in chosen]
        run = plane_runner(equipment)
        check = fit_tamper(
            planes,
            lambda given: run(given)[manifest.output.scores],
            manifest,
            false_rejection=false_rejection,
            progress=report.progress,
        )
        fitted = Gate(content=fitted.content, tamper=check)
    return fitted


def plane_runner(equipment: Equipment) -> Callable[[FloatArray], dict[str, NDArray[np.float32]]]:
    """The model on planes (n, rows, columns) on 0…1, as it is shown them before normalisation: its outputs by name."""
    manifest, engine = equipment.package.manifest, equipment.engine

    def run(planes: FloatArray) -> dict[str, NDArray[np.float32]]:
        parts = []
        for start in range(0, len(planes), _BATCH):
            batch = planes[start : start + _BATCH]
            parts.append(engine.run({spec.name: normalised(batch, spec) for spec in manifest.inputs})[0])
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return run


def one_plane(manifest: Manifest) -> bool:
    """Whether all inputs are one plane, at most normalised differently."""

    def made(spec: Input) -> tuple[object, ...]:
        return (spec.rows, spec.columns, spec.presentation, spec.fit, spec.resampling)

    return all(made(spec) == made(manifest.input) for spec in manifest.further_inputs)
