"""The command line: parses, calls, prints. Commands import what they need when they run, so that each starts fast."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stepwedge import __version__
from stepwedge.commands import backup, constancy, database, keys, package, page_token, policy, reload, simulate, study
from stepwedge.commands.config_option import add_config, configured
from stepwedge.errors import ClockError, StepwedgeError
from stepwedge.settings import load_settings
from stepwedge.settings_reference import reference

# Exit statuses: 0 done; 1 done, and something in it failed; 2 cannot be done as asked, and the message says why;
# 75 (EX_TEMPFAIL of sysexits.h) not now, and the same again later may succeed.
FAILED, UNUSABLE, NOT_NOW = 1, 2, 75


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except StepwedgeError as error:
        print(f"stepwedge: {error}", file=sys.stderr)  # noqa: T201
        return NOT_NOW if isinstance(error, ClockError) else UNUSABLE
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepwedge", description="Production inference for radiology that never stops proving it still works."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_text: str, description: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=description or help_text)
        sub.set_defaults(run=run)
        return sub

    for name, run, help_text in (
        ("serve", _serve, "run everything on this machine: DICOM node, worker and inference server"),
        ("listen", _listen, "run the DICOM node alone"),
        ("work", _work, "run a worker alone"),
        ("infer", _infer, "run the inference server alone"),
        ("page", _page, "run the operator's page alone"),
    ):
        add_config(command(name, run, help_text))

    predict = command(
        "predict",
        _predict,
        "answer for files or folders, with the same pipeline as the service",
        "Answers for DICOM or image files (PNG, JPEG, TIFF). With --json one object per image: path, state (reported, "
        "deferred, rejected, failed), reasons (codes), findings (name, probability, threshold, clear_below, decision), "
        "gate, tamper, model, policy, ms by stage. A plain image file has no header: the intended use is not checked "
        "on it. Exit status 1 says that a file failed, e.g. because it cannot be read.",
    )
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    predict.add_argument("--package", required=True, type=Path, metavar="DIR", help="folder of the model package")
    predict.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="site policy; without it, policy.yaml beside the package's folder where there is one, and otherwise "
        "nothing is decided",
    )
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    status = command("status", _status, "show studies, units of work, deliveries and quarantine")
    add_config(status)
    status.add_argument("--json", action="store_true", help="one JSON object")

    retry = command("retry", _retry, "put failed units of work back into the queue")
    add_config(retry)
    retry.add_argument("units", nargs="*", metavar="UNIT", help="units as `stepwedge status` names them")
    retry.add_argument("--all", action="store_true", help="every failed unit")

    index = command("index", _rebuild, "rebuild the database from the spool and the results")
    index.add_argument("action", choices=["rebuild"])
    add_config(index)

    settings = command("settings", _settings, "print the reference of all settings, or check a settings file")
    settings.add_argument("--check", type=Path, metavar="FILE", help="check this file, with the environment")

    package.add(commands)
    policy.add(commands)
    simulate.add(commands)
    constancy.add(commands)
    reload.add(commands)
    study.add(commands)
    backup.add(commands)
    database.add(commands)
    keys.add(commands)
    page_token.add(commands)

    demo = command("demo", _demo, "run the main job once on this machine and show what became of each study")
    demo.add_argument("--keep", type=Path, metavar="DIR", help="folder for the demo's data (default: ./demo-data)")
    return parser


def _serve(options: argparse.Namespace) -> int:
    settings = configured(options, "serve")
    from stepwedge import rundir

    rundir.hold(settings.data_dir)
    with rundir.gathered_metrics(settings.data_dir):
        from stepwedge.roles import load_models
        from stepwedge.supervise import Supervisor

        return Supervisor(settings, load_models(settings)).run()


def _listen(options: argparse.Namespace) -> int:
    settings = configured(options, "listen")
    from stepwedge.roles import listen

    return listen(settings)


def _work(options: argparse.Namespace) -> int:
    settings = configured(options, "work")
    from stepwedge.roles import work

    return work(settings)


def _infer(options: argparse.Namespace) -> int:
    settings = configured(options, "infer")
    from stepwedge.inference.server import serve

    return serve(settings)


def _page(options: argparse.Namespace) -> int:
    settings = configured(options, "page")
    from stepwedge.roles import page

    return page(settings)


def _predict(options: argparse.Namespace) -> int:
    from stepwedge.inference.engine import OnnxEngine
    from stepwedge.manifest import load_package
    from stepwedge.pipeline import equip
    from stepwedge.policy import load_policy
    from stepwedge.predict import answers, as_line, dump
    from stepwedge.settings import Worker

    loaded = load_package(options.package)
    beside = options.package.resolve().parent / "policy.yaml"
    policy_file = options.policy or (beside if beside.is_file() else None)
    site = load_policy(policy_file, loaded) if policy_file else None
    equipment = equip(loaded, OnnxEngine(loaded, options.device), site, explain=False)
    maximum_bytes = Worker().maximum_decoded_bytes
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text that the terminal can show.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    for answer in answers(options.paths, equipment, maximum_bytes=maximum_bytes):
        print(dump(answer) if options.json else as_line(answer), flush=True)  # noqa: T201
        if answer["state"] == "failed":
            status = FAILED
    return status


def _status(options: argparse.Namespace) -> int:
    settings = configured(options, "status")
    from stepwedge.status import describe, snapshot

    state = snapshot(settings)
    print(state.to_json() if options.json else describe(state), flush=True)  # noqa: T201
    return 0


def _retry(options: argparse.Namespace) -> int:
    settings = configured(options, "retry")
    from stepwedge.roles import retry_units

    retried = retry_units(settings, options.units, every=options.all)
    print(f"{retried} put back into the queue", flush=True)  # noqa: T201
    return 0


def _rebuild(options: argparse.Namespace) -> int:
    settings = configured(options, "index")
    from stepwedge.rebuild import rebuild_index

    print(rebuild_index(settings), flush=True)  # noqa: T201
    return 0


def _settings(options: argparse.Namespace) -> int:
    if options.check is None:
        print(reference(), end="")  # noqa: T201
    else:
        load_settings(options.check)
        print(f"{options.check}: valid")  # noqa: T201
    return 0


def _demo(options: argparse.Namespace) -> int:
    from stepwedge.demo import run

    return run(options.keep or Path("demo-data"))
