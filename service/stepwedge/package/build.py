"""Making a package from anybody's graph, a description and labelled images: read ``build_package`` first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from stepwedge.errors import EngineError, PackageError
from stepwedge.gate.fitted import save_gate
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import (
    GATE,
    MANIFEST,
    MODEL,
    SUMS,
    Calibration,
    FindingCalibration,
    Manifest,
    Package,
    digest_list,
    load_package,
    read_manifest,
    write_calibration,
)
from stepwedge.package.card import CARD, card
from stepwedge.package.dataset import FOLDS, Columns, LabelledImage, of_fold, read_labels
from stepwedge.package.figures import EVALUATION, Evaluation, Notes, read_notes
from stepwedge.package.fit_calibration import fit_calibration
from stepwedge.package.fit_gate import fit_gate
from stepwedge.package.folder import beside
from stepwedge.package.golden import inputs_from, synthetic_inputs, write_golden
from stepwedge.package.graph import Prepared, prepare, read_model, write_model
from stepwedge.package.init import refuse_unfinished
from stepwedge.package.measure import evaluation_of, fold_table, heat_map_figures, scored
from stepwedge.package.observe import (
    Answered,
    Pictures,
    answers,
    baseline,
    refuse_failed,
    refuse_unreadable,
    require_accepted,
    write_baseline,
)
from stepwedge.package.progress import Report, Silence
from stepwedge.package.prove import check_activation, check_graph
from stepwedge.package.reference_set import put_reference
from stepwedge.pipeline import Equipment
from stepwedge.policy import Policy, load_policy
from stepwedge.signing import ensure_key, sign_folder

FALSE_REJECTION = 0.01  # of proper images, by the content gate and by the tamper check each, unless asked otherwise
HEAT_MAPS = 20  # images on which they are measured: some 360 forward passes each
_DATE_VARIABLE = "SOURCE_DATE_EPOCH"  # seconds since 1970: reproducible-builds.org, so that a rebuild is the same
_THREADS = 1  # within one run: several images run beside each other


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a package is made of, and how."""

    model: Path  # ONNX
    manifest: Path  # model.yaml
    data: Path  # folder of images
    labels: Path  # CSV
    out: Path
    columns: Columns = field(default_factory=Columns)
    policy: Path | None = None  # for the card's section on decisions
    notes: Path | None = None  # what no program can measure, for the card
    golden: Path | None = None  # folder of images of nobody; None: synthetic fields
    constancy: Path | None = None  # folder of DICOM files of nobody; None: no reference set
    key: Path | None = None  # None: the user's own
    sign: bool = True
    false_rejection: float = FALSE_REJECTION
    content_gate: bool = True  # whether each is fitted
    tamper_check: bool = True
    heat_maps: int = HEAT_MAPS  # images on which they are measured
    allow_unreadable: int = 0  # images
    force: bool = False  # replace what is at ``out``


class _Unproven(OnnxEngine):
    """The engine before there are golden outputs: it is what gives them."""

    def check_golden(self) -> float:
        return 0.0


def build_package(recipe: Recipe, report: Report | None = None) -> Package:
    """Make a package and put it at ``recipe.out``: complete, signed, and loaded once as the service loads it.

    Nothing is at ``recipe.out`` until all of it is done, and nothing is left elsewhere.

    Raises
    ------
    StepwedgeError
        Whatever is wrong with graph, description, data, policy, notes or key; each says what to do.
    """
    report = report or Silence()
    report.step("Reading the description, the labels and the graph")
    _refuse_existing(recipe)
    refuse_unfinished(recipe.manifest)
    manifest = read_manifest(recipe.manifest)
    if manifest.input.unit != "instance":
        raise PackageError(
            f"{recipe.manifest}: input.unit: found {manifest.input.unit}; packages are built for instance so far"
        )
    images = read_labels(
        recipe.labels,
        recipe.data,
        manifest.output.classes,
        exclusive=manifest.output.kind == "exclusive",
        columns=recipe.columns,
    )
    notes = read_notes(recipe.notes) if recipe.notes else Notes()
    policy = load_policy(recipe.policy, manifest) if recipe.policy else None
    key = ensure_key(recipe.key) if recipe.sign else None
    prepared = prepare(read_model(recipe.model), manifest)
    with beside(recipe.out) as folder:
        manifest = _write_graph(recipe, folder, prepared, report)
        engine = _Unproven(_package(folder, manifest, _uncalibrated(manifest)), "cpu", _THREADS)
        golden = inputs_from(recipe.golden, manifest) if recipe.golden else synthetic_inputs(manifest)
        write_golden(folder, lambda inputs: engine.run(inputs)[0], golden)
        evaluation, calibration = _fit(recipe, folder, engine, manifest, images, policy, notes, report)
        (folder / EVALUATION).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card(manifest, calibration, evaluation), encoding="utf-8")
        if recipe.constancy is not None:
            report.step("Answering for the reference set")
            put_reference(_package(folder, manifest, calibration), engine, recipe.constancy)
        report.step("Sealing, signing and loading the package")
        seal(folder)
        if key is not None:
            sign_folder(folder, key)
        package = load_package(folder)
        OnnxEngine(package, "cpu", _THREADS)
    return package.model_copy(update={"path": recipe.out})


def seal(path: Path) -> Package:
    """Write the list of digests for the files as they are, and give the package as the service will load it.

    Raises
    ------
    PackageError
        If the package is incomplete or a description in it is wrong; the list stays, so that the message can be
        acted upon and the package sealed again.
    """
    (path / SUMS).write_text(digest_list(path), encoding="utf-8")
    return load_package(path)


# --- The graph ----------------------------------------------------------------------------------------------------


def _write_graph(recipe: Recipe, folder: Path, prepared: Prepared, report: Report) -> Manifest:
    """Write ``model.onnx`` and ``model.yaml`` into the folder, once the graph is proven to answer as it did."""
    report.step("Proving that the graph answers as it did, alone and among others")
    declared = read_manifest(recipe.manifest)
    write_model(prepared.model, folder)
    manifest = _write_manifest(recipe.manifest, folder, declared, prepared)
    with tempfile.TemporaryDirectory(dir=folder.parent) as kept:
        original = Path(kept)
        write_model(read_model(recipe.model), original)
        try:
            before = _Unproven(_package(original, declared, _uncalibrated(declared)), "cpu", _THREADS)
        except EngineError as error:
            raise PackageError(str(error).replace(str(original / MODEL), str(recipe.model))) from None
        after = _Unproven(_package(folder, manifest, _uncalibrated(manifest)), "cpu", _THREADS)
        check_graph(before, after, manifest, prepared)
    for note in prepared.notes:
        report.say(note)
    return manifest


def _write_manifest(source: Path, folder: Path, declared: Manifest, prepared: Prepared) -> Manifest:
    """The description with what was added to the graph; as it was where nothing was."""
    contents: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    output, added = declared.output, {}
    if prepared.embedding and output.embedding is None:
        added["embedding"] = prepared.embedding
    if prepared.activation_map and output.activation_map is None:
        added["activation_map"] = prepared.activation_map
    unexplained = "explanation" not in declared.model_fields_set and declared.input.unit == "instance"
    if not added and not unexplained:
        shutil.copyfile(source, folder / MANIFEST)
        return read_manifest(folder / MANIFEST)
    contents["output"] |= added
    if unexplained:
        contents["explanation"] = {"kind": "activation_map" if prepared.activation_map else "occlusion"}
    text = yaml.safe_dump(contents, sort_keys=False, allow_unicode=True, width=120)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return read_manifest(folder / MANIFEST)


def _package(folder: Path, manifest: Manifest, calibration: Calibration) -> Package:
    """The package as it stands; it has no digest before it is sealed."""
    return Package(path=folder, manifest=manifest, calibration=calibration, digest="")


def _uncalibrated(manifest: Manifest) -> Calibration:
    nothing = FindingCalibration(method="none", prevalence=0.5, positives=0, negatives=0)
    return Calibration(findings={finding.name: nothing for finding in manifest.findings})


# --- What is fitted and measured ----------------------------------------------------------------------------------


def _fit(
    recipe: Recipe,
    folder: Path,
    engine: OnnxEngine,
    manifest: Manifest,
    images: Sequence[LabelledImage],
    policy: Policy | None,
    notes: Notes,
    report: Report,
) -> tuple[Evaluation, Calibration]:
    """Write calibration, gate and baseline; measure on the test fold. Each fold serves what it is named for."""
    folds = {name: of_fold(images, name) for name in FOLDS}
    pictures = Pictures([image.file for image in (*folds["calibrate"], *folds["gate"])])  # looked at twice
    package = _package(folder, manifest, _uncalibrated(manifest))
    bare = Equipment(package=package, engine=engine, policy=None, explain=False)

    def answer(title: str, chosen: Sequence[LabelledImage], equipment: Equipment) -> list[Answered]:
        report.step(f"{title}: {len(chosen)} images")
        kept = pictures if chosen is not folds["test"] else None
        found = answers(chosen, equipment, pictures=kept, progress=report.progress)
        refuse_unreadable(found, allowed=recipe.allow_unreadable)
        refuse_failed(found)
        return found

    calibrate = answer("Scoring the calibrate fold", folds["calibrate"], bare)
    accepted = scored(require_accepted(calibrate, "calibrate"), manifest)
    check_activation(accepted.outputs, manifest.output)
    calibration = fit_calibration(accepted, manifest)
    write_calibration(folder, calibration)
    for name, fitted in calibration.findings.items():
        if fitted.inconclusive:
            report.say(f"{name} is inconclusive: {fitted.inconclusive}")

    gate_fold = require_accepted(answer("Scoring the gate fold", folds["gate"], bare), "gate")
    gate = fit_gate(
        gate_fold,
        pictures,
        bare,
        recipe.false_rejection,
        report,
        content=recipe.content_gate,
        tamper=recipe.tamper_check,
    )
    save_gate(folder / GATE, gate)

    full = replace(bare, package=_package(folder, manifest, calibration), policy=policy, gate=gate)
    reference = answer("Observing the baseline", [*folds["calibrate"], *folds["gate"]], full)
    write_baseline(folder, baseline(reference, full, created_at=_date()))
    tested = answer("Measuring on the test fold", folds["test"], full)
    left_out = Counter(item.image.fold for item in (*reference, *tested) if not item.accepted)
    report.step(f"Measuring heat maps: {recipe.heat_maps} images")
    maps = heat_map_figures(tested, full, fold="test", images=recipe.heat_maps, progress=report.progress)
    evaluation = evaluation_of(
        tested,
        full,
        folds=fold_table(folds, left_out, manifest, notes),
        declared=recipe.false_rejection,
        heat_maps=maps,
        notes=notes,
    )
    return evaluation, calibration


def _date() -> str:
    """When the baseline is said to be of: today, as labelled images know no times. ISO 8601, midnight."""
    given = os.environ.get(_DATE_VARIABLE, "")
    now = datetime.fromtimestamp(int(given), UTC) if given.isdigit() else datetime.now(UTC)
    return now.replace(hour=0, minute=0, second=0, microsecond=0).isoformat()


# --- The folder ---------------------------------------------------------------------------------------------------


def _refuse_existing(recipe: Recipe) -> None:
    out = recipe.out
    if not out.parent.is_dir():
        raise PackageError(f"{out.parent}: there is no such folder to put the package in; make it first")
    if not out.exists():
        return
    if not recipe.force:
        raise PackageError(f"{out}: there is something already; give another --out, or --force to replace a package")
    if not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise PackageError(f"{out}: is not a model package, so it is not replaced; give another --out")
