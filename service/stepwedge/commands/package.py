"""``stepwedge package``: from an ONNX file and labelled images to a signed package, and what can be asked of one."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from stepwedge.errors import PackageError, StepwedgeError

if TYPE_CHECKING:
    from stepwedge.package.dataset import Columns
    from stepwedge.package.figures import Evaluation

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Run = Callable[[argparse.Namespace], int]

UNUSABLE, INTERRUPTED = 2, 130  # exit statuses; the second is what shells give for Ctrl-C


def add(commands: Commands) -> None:
    """Add the group's parsers."""
    group = commands.add_parser(
        "package",
        help="make, check and measure model packages",
        description="From an ONNX file and labelled images to a signed model package, and what can be asked of one.",
    )
    verbs = group.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Run, help_text: str, description: str | None = None) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help_text, description=description or help_text)
        sub.set_defaults(run=run)
        return sub

    init = command(
        "init",
        _init,
        "write a commented model.yaml for an ONNX file",
        "Writes a commented model.yaml: what the graph and the labels say is filled in, every other choice explained. "
        "An existing file is not overwritten.",
    )
    init.add_argument("model", type=Path, metavar="MODEL.onnx")
    init.add_argument("--labels", type=Path, metavar="CSV", help="table of labels, for the names of the classes")
    init.add_argument("--label-column", metavar="NAME", help="column of labels (default: label)")
    init.add_argument("--out", type=Path, metavar="FILE", help="where to (default: model.yaml beside the ONNX file)")

    build = command(
        "build",
        _build,
        "make a signed package from an ONNX file, model.yaml and labelled images",
        "Checks the graph and adds the embedding and activation map that its head allows; calibrates on the calibrate "
        "fold, fits the validity gate and the tamper check on the gate fold, measures on the test fold, writes golden "
        "cases, the monitor's baseline and the card, and signs. Nothing is at --out until all of it is done.",
    )
    build.add_argument("model", type=Path, metavar="MODEL.onnx")
    _add_data(build)
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the package")
    build.add_argument("--manifest", type=Path, metavar="FILE", help="model.yaml (default: beside the ONNX file)")
    build.add_argument("--policy", type=Path, metavar="FILE", help="site policy for the card's section on decisions")
    build.add_argument("--notes", type=Path, metavar="FILE", help="what no program can measure, for the card (YAML)")
    build.add_argument(
        "--golden",
        type=Path,
        metavar="DIR",
        help="images for the golden cases, of nobody: they travel with the package (default: synthetic fields)",
    )
    build.add_argument(
        "--constancy",
        type=Path,
        metavar="DIR",
        help="DICOM files of nobody, a study each, that become the reference set of `stepwedge constancy`",
    )
    build.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with (default: your own)")
    build.add_argument("--no-sign", action="store_true", help="leave the package unsigned: results stay demonstrations")
    build.add_argument(
        "--false-rejection",
        type=_share,
        metavar="SHARE",
        help="of proper images, that the content gate and the tamper check may each refuse (default: 0.01)",
    )
    build.add_argument(
        "--allow-unreadable", type=int, default=0, metavar="N", help="images that may be unreadable (default: 0)"
    )
    build.add_argument("--no-content-gate", action="store_true", help="leave the content gate unfitted")
    build.add_argument("--no-tamper-check", action="store_true", help="leave the tamper check unfitted")
    build.add_argument(
        "--heat-maps",
        type=int,
        metavar="N",
        help="images on which the faithfulness of heat maps is measured, some 360 forward passes each (default: 20)",
    )
    build.add_argument("--force", action="store_true", help="replace the package that is at --out")

    verify = command(
        "verify",
        _verify,
        "check a package: digests, signature, description, golden cases",
        "Checks every byte against the list of digests and the signature, the descriptions against their format, and "
        "the model's answers against the golden cases, on this machine.",
    )
    _add_package(verify)
    verify.add_argument(
        "--trusted", type=Path, action="append", metavar="FILE", help="public key that must have signed (repeatable)"
    )
    verify.add_argument("--json", action="store_true", help="one JSON object")
    verify.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    sign = command("sign", _sign, "sign a package with a key of your own")
    _add_package(sign)
    sign.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with (default: your own)")

    constancy = command(
        "constancy",
        _constancy,
        "give a package a reference set, for constancy runs",
        "Answers for DICOM files of nobody (phantoms or simulated studies, one image each, Quality Control Subject "
        "(0010,0200) set to YES) with the package's own model and gate, puts files and answers into the package, and "
        "seals and signs it anew. Its digest changes, so that policies have to be approved for it again.",
    )
    _add_package(constancy)
    constancy.add_argument(
        "--from", required=True, type=Path, metavar="DIR", dest="studies", help="folder of the files"
    )
    constancy.add_argument("--key", type=Path, metavar="FILE", help="private key to sign with (default: your own)")
    constancy.add_argument("--no-sign", action="store_true", help="leave the package unsigned")

    _add_package(command("card", _card, "print a package's card"))

    evaluate = command(
        "evaluate",
        _evaluate,
        "measure a package on labelled images",
        "Figures of a package on any labelled images, with 95 %% intervals by bootstrap over patients. Figures on "
        "images that it was trained or fitted on are too good.",
    )
    _add_package(evaluate)
    _add_data(evaluate)
    evaluate.add_argument(
        "--fold", choices=["train", "calibrate", "gate", "test"], help="only this fold (default: all)"
    )
    evaluate.add_argument("--policy", type=Path, metavar="FILE", help="site policy whose costs and prevalence decide")
    evaluate.add_argument("--json", action="store_true", help="one JSON object instead of a card")
    evaluate.add_argument(
        "--cases",
        type=Path,
        metavar="FILE",
        help="write what was decided for each image (JSON lines, patients by number), to compare packages case by case",
    )
    evaluate.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    evaluate.add_argument(
        "--allow-unreadable", type=int, default=0, metavar="N", help="images that may be unreadable (default: 0)"
    )


def _add_package(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", type=Path, metavar="DIR", help="folder of the package")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder of images (PNG, JPEG, TIFF, DICOM)"
    )
    parser.add_argument(
        "--labels",
        required=True,
        type=Path,
        metavar="CSV",
        help="table with a row for each image: file, patient, label (several separated by |) or a 0/1 column for each "
        "class, and optionally fold (train, calibrate, gate, test)",
    )
    parser.add_argument("--file-column", default="file", metavar="NAME", help="column of files (default: file)")
    parser.add_argument("--label-column", metavar="NAME", help="column of labels (default: label)")
    parser.add_argument("--patient-column", metavar="NAME", help="column of patients (default: patient)")
    parser.add_argument("--fold-column", default="fold", metavar="NAME", help="column of folds (default: fold)")
    parser.add_argument(
        "--subgroup", action="append", metavar="NAME", help="column of a subgroup (repeatable; default: by known names)"
    )
    parser.add_argument(
        "--ignore-label", action="append", metavar="LABEL", help="label that is no class of the model (repeatable)"
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"found {text}, wanted a share between 0 and 0.5, e.g. 0.01")
    return value


def _columns(options: argparse.Namespace) -> Columns:
    from stepwedge.package.dataset import Columns

    return Columns(
        file=options.file_column,
        label=options.label_column,
        patient=options.patient_column,
        fold=options.fold_column,
        subgroups=options.subgroup,
        ignored_labels=frozenset(options.ignore_label or ()),
    )


def _init(options: argparse.Namespace) -> int:
    from stepwedge.package.dataset import Columns
    from stepwedge.package.init import write_draft

    out = options.out or options.model.parent / "model.yaml"
    fields = write_draft(options.model, out, labels=options.labels, columns=Columns(label=options.label_column))
    _say(f"{out} written. To be filled in: {', '.join(fields)}")
    return 0


def _build(options: argparse.Namespace) -> int:
    from stepwedge.package.build import FALSE_REJECTION, HEAT_MAPS, Recipe, build_package

    recipe = Recipe(
        model=options.model,
        manifest=options.manifest or options.model.parent / "model.yaml",
        data=options.data,
        labels=options.labels,
        out=options.out,
        columns=_columns(options),
        policy=options.policy,
        notes=options.notes,
        golden=options.golden,
        constancy=options.constancy,
        key=options.key,
        sign=not options.no_sign,
        false_rejection=options.false_rejection or FALSE_REJECTION,
        content_gate=not options.no_content_gate,
        tamper_check=not options.no_tamper_check,
        heat_maps=HEAT_MAPS if options.heat_maps is None else options.heat_maps,
        allow_unreadable=options.allow_unreadable,
        force=options.force,
    )
    try:
        with _interruptible(), Shown() as shown:
            package = build_package(recipe, shown)
    except KeyboardInterrupt:
        _say("stepwedge: interrupted; nothing was written")
        return INTERRUPTED
    signed = f"signed by {package.signer}" if package.signer else "not signed"
    _print(f"{recipe.out}: {package.manifest.name} {package.manifest.version}, digest {package.digest}, {signed}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    try:
        found = _verified(options)
    except StepwedgeError as error:
        if not options.json:
            raise
        _print(json.dumps({"package": str(options.package), "valid": False, "error": str(error)}))
        return UNUSABLE
    if options.json:
        _print(json.dumps(found))
        return 0
    signed = f"signed by {found['signer']}" if found["signer"] else "not signed: results stay demonstrations"
    _print(
        f"{options.package}: valid. {found['name']} {found['version']}, digest {found['digest']}, {signed}. Golden "
        f"outputs differ by {found['golden_error']:.2g} at most on {found['provider']}. "
        f"Content gate {found['gate']['content']}, tamper check {found['gate']['tamper']}."
    )
    return 0


def _verified(options: argparse.Namespace) -> dict[str, Any]:
    from stepwedge.inference.engine import OnnxEngine
    from stepwedge.manifest import load_package
    from stepwedge.pipeline import equip
    from stepwedge.signing import load_trust

    package = load_package(options.package, load_trust(options.trusted or ()))
    engine = OnnxEngine(package, options.device)
    gate = equip(package, engine, None, explain=False).gate
    return {
        "package": str(options.package),
        "valid": True,
        "name": package.manifest.name,
        "version": package.manifest.version,
        "digest": package.digest,
        "signer": package.signer,
        "golden_error": engine.golden_error,
        "provider": engine.provider,
        "gate": {
            "content": "fitted" if gate.content else "not fitted",
            "tamper": "fitted" if gate.tamper else "not fitted",
        },
    }


def _sign(options: argparse.Namespace) -> int:
    from stepwedge.manifest import verify_digests
    from stepwedge.signing import ensure_key, sign_folder

    verify_digests(options.package)
    signer = sign_folder(options.package, ensure_key(options.key))
    _print(f"{options.package}: signed by {signer}, digest {verify_digests(options.package)}")
    return 0


def _constancy(options: argparse.Namespace) -> int:
    from stepwedge.package.reference_set import add_reference
    from stepwedge.signing import ensure_key

    package = add_reference(options.package, options.studies, None if options.no_sign else ensure_key(options.key))
    _print(f"{options.package}: has a reference set now, digest {package.digest}")
    return 0


def _card(options: argparse.Namespace) -> int:
    from stepwedge.manifest import load_package
    from stepwedge.package.card import CARD

    package = load_package(options.package)
    try:
        _print((package.path / CARD).read_text(encoding="utf-8").rstrip())
    except FileNotFoundError:
        raise PackageError(f"{options.package}: has no {CARD}; build the package again") from None
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from stepwedge.manifest import load_package
    from stepwedge.package.card import card

    package = load_package(options.package)
    with Shown() as shown:
        evaluation = _evaluation(options, shown)
    if options.json:
        _print(evaluation.model_dump_json())
    else:
        _print(card(package.manifest, package.calibration, evaluation).rstrip())
    return 0


def _evaluation(options: argparse.Namespace, shown: Shown) -> Evaluation:
    from stepwedge.inference.engine import OnnxEngine
    from stepwedge.manifest import load_package
    from stepwedge.package.cases import write_cases
    from stepwedge.package.dataset import of_fold, read_labels
    from stepwedge.package.measure import declared_rate, evaluation_of
    from stepwedge.package.observe import answers, refuse_failed, refuse_unreadable
    from stepwedge.pipeline import equip
    from stepwedge.policy import load_policy

    package = load_package(options.package)
    output = package.manifest.output
    images = read_labels(
        options.labels, options.data, output.classes, exclusive=output.kind == "exclusive", columns=_columns(options)
    )
    policy = load_policy(options.policy, package) if options.policy else None
    equipment = equip(package, OnnxEngine(package, options.device, threads=1), policy, explain=False)
    chosen = of_fold(images, options.fold) if options.fold else images
    shown.step(f"Answering for {len(chosen)} images")
    answered = answers(chosen, equipment, progress=shown.progress)
    refuse_unreadable(answered, allowed=options.allow_unreadable)
    refuse_failed(answered)
    if options.cases:
        write_cases(options.cases, answered, equipment)
    shown.step("Measuring")
    return evaluation_of(answered, equipment, fold=options.fold or "given", declared=declared_rate(package.path))


class Shown:
    """Shows what is being done on standard error: bars on a terminal, a line for each step elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self._bars.stop()

    def step(self, title: str) -> None:
        """A new step begins."""
        self._finish()
        if self._console.is_terminal:
            self._task = self._bars.add_task(title, total=None)
        else:
            self.say(title)

    def progress(self, done: int, total: int) -> None:
        """So much of the step is done."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Something worth knowing."""
        self._console.print(text, soft_wrap=True, markup=False)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[-1]
            total = task.total or 1
            self._bars.update(self._task, completed=total, total=total)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A request to end leaves nothing half-written, just as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201
