"""From answered images to a package's figures: of its findings, its gate and its tamper check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from stepwedge.casefile import open_case
from stepwedge.inference.preprocess import to_plane
from stepwedge.manifest import Manifest
from stepwedge.package.dataset import LabelledImage
from stepwedge.package.evaluate import Scored, evaluate
from stepwedge.package.faithfulness import faithfulness
from stepwedge.package.figures import (
    EVALUATION,
    Evaluation,
    FaithfulnessFigures,
    Fold,
    GateFigures,
    Measured,
    Notes,
    TamperFigures,
)
from stepwedge.package.fit_gate import one_plane, plane_runner
from stepwedge.package.observe import Answered, Progress, class_outputs, require_accepted, subgroups
from stepwedge.package.statistics import bootstrap, share
from stepwedge.pipeline import Equipment
from stepwedge.records import FloatArray, Verdict

# What each fold is for, unless the notes say it better.
_USES = {
    "train": "the model's own training, as the table of labels says",
    "calibrate": "calibration; baseline of the monitor",
    "gate": "validity gate and tamper check; baseline of the monitor",
    "test": "the figures below; nothing was fitted or chosen on it",
}
_SUSPECTED = "tamper_suspected"
_SEED = 0  # which images heat maps are measured on


def scored(answered: Sequence[Answered], manifest: Manifest) -> Scored:
    """The images of one fold as figures and calibration take them; all must be accepted."""
    return Scored(
        patients=[item.image.patient for item in answered],
        labels=[item.image.labels for item in answered],
        outputs=class_outputs(answered, manifest),
        subgroups=subgroups(answered),
    )


def evaluation_of(
    answered: Sequence[Answered],
    equipment: Equipment,
    *,
    fold: str = "test",
    folds: Mapping[str, Fold] | None = None,
    declared: float | None = None,
    heat_maps: FaithfulnessFigures | None = None,
    notes: Notes | None = None,
) -> Evaluation:
    """Every figure of a package on images that nothing was fitted on.

    Parameters
    ----------
    declared
        The share of proper images that gate and tamper check were each fitted to refuse; None: not known.

    Raises
    ------
    DatasetError
        If the gate accepts none of them.
    """
    package = equipment.package
    return evaluate(
        scored(require_accepted(answered, fold), package.manifest),
        package.manifest,
        package.calibration,
        equipment.policy,
        fold=fold,
        folds=folds,
        gate=_gate(answered, fold, declared) if declared is not None and equipment.gate.content else None,
        tamper=_tamper(answered, fold, declared) if declared is not None and equipment.gate.tamper else None,
        faithfulness=heat_maps,
        notes=notes,
    )


def heat_map_figures(
    answered: Sequence[Answered], equipment: Equipment, *, fold: str, images: int, progress: Progress | None = None
) -> FaithfulnessFigures | None:
    """Whether heat maps mark what the answers rest on; None where it cannot be measured.

    Measured on the conclusive finding that most images have and are found to have: that the probability is above the
    prevalence. ``images`` of them are drawn, and as many without it to exchange parts with.
    """
    manifest, calibration = equipment.package.manifest, equipment.package.calibration
    accepted = [item for item in answered if item.accepted]
    shown: dict[str, tuple[list[Answered], list[Answered]]] = {}
    for spec in manifest.findings:
        if not calibration.findings[spec.name].inconclusive:
            having = [item for item in accepted if item.image.labels & set(spec.positive) and _found(item, spec.name)]
            lacking = [
                item for item in accepted if not item.image.labels & set(spec.positive) and not _found(item, spec.name)
            ]
            shown[spec.name] = having, lacking
    name = max(shown, key=lambda finding: len(shown[finding][0]), default=None)
    unmeasured = manifest.explanation.kind == "none" or images == 0 or not one_plane(manifest)
    if name is None or unmeasured or not all(shown[name]):
        return None
    having, lacking = (_drawn(items, images) for items in shown[name])
    return faithfulness(
        _planes(having, manifest),
        plane_runner(equipment),
        manifest,
        name,
        patients=[item.image.patient for item in having],
        fold=fold,
        without=_planes(lacking, manifest),
        progress=progress,
    )


def _found(item: Answered, name: str) -> bool:
    return any(f.probability > f.prevalence for f in item.result.findings if f.name == name)


def _drawn(items: Sequence[Answered], count: int) -> list[Answered]:
    order = np.random.default_rng(_SEED).permutation(len(items))[:count]
    return [items[index] for index in np.sort(order)]


def _planes(items: Sequence[Answered], manifest: Manifest) -> FloatArray:
    return np.stack([to_plane(open_case(item.image.file).decode(), manifest.input) for item in items])


def declared_rate(folder: Path) -> float | None:
    """The rate of false rejection that a package's gate was fitted for, by its ``evaluation.json``; None: not known."""
    try:
        written = Evaluation.model_validate_json((folder / EVALUATION).read_bytes())
    except (OSError, ValidationError):
        return None
    return written.gate.declared if written.gate else written.tamper.declared if written.tamper else None


def fold_table(
    folds: Mapping[str, Sequence[LabelledImage]], left_out: Mapping[str, int], manifest: Manifest, notes: Notes
) -> dict[str, Fold]:
    """Use and size of each fold that has images; ``left_out`` are those that the gate did not accept, by fold."""
    uses: dict[str, str] = _USES | {name: use for name, use in notes.uses.items() if use}
    table = {}
    for name, images in folds.items():
        if not images:
            continue
        labels = Counter(label for image in images for label in image.labels)
        table[name] = Fold(
            use=uses[name],
            patients=len({image.patient for image in images}),
            images={label: labels[label] for label in manifest.output.classes},
            total=len(images),
            left_out=left_out.get(name, 0),
        )
    return table


def _gate(answered: Sequence[Answered], fold: str, declared: float) -> GateFigures:
    judged = [item for item in answered if not item.unreadable]
    codes = Counter(reason.code for item in judged for reason in item.result.gate.reasons)
    codes.pop(_SUSPECTED, None)
    listed = ", ".join(f"{code} {count}" for code, count in codes.most_common())
    return GateFigures(
        declared=declared,
        fold=fold,
        rows=[
            _rate("images of the data set rejected", judged, lambda item: item.result.gate.verdict is Verdict.REJECT),
            _rate("images of the data set deferred by the gate", judged, _deferred),
        ],
        notes=[f"By reason, in images: {listed}."] if listed else [],
    )


def _tamper(answered: Sequence[Answered], fold: str, declared: float) -> TamperFigures:
    judged = [item for item in answered if item.result.tamper.measure is not None]
    flagged = _rate("untouched images flagged", judged, lambda item: item.result.tamper.verdict == "flagged")
    return TamperFigures(declared=declared, fold=fold, rows=[flagged])


def _deferred(item: Answered) -> bool:
    """Deferred for what the image shows or says, not for a suspicion of tampering."""
    gate = item.result.gate
    return gate.verdict is Verdict.DEFER and any(reason.code != _SUSPECTED for reason in gate.reasons)


def _rate(what: str, items: Sequence[Answered], hit: Callable[[Answered], bool]) -> Measured:
    if not items:
        return Measured(what=what, n=0, value=0.0, note="no image came so far")
    found = share(bootstrap([item.image.patient for item in items]), np.array([hit(item) for item in items], bool))
    assert found is not None  # there are images
    return Measured(what=what, n=len(items), value=found.value, low=found.low, high=found.high)
