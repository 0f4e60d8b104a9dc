"""``stepwedge simulate``: a department that does not exist."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepwedge.settings import Destination
    from stepwedge.simulate.department import Department
    from stepwedge.simulate.sending import Study

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_MODEL = Path(__file__).parents[3] / "models" / "chest-pneumonia"  # in a clone of the repository
_REFUSED = 1  # exit status where the node refused studies
_PROGRESS_STUDIES = 25  # between two lines of progress where there is no terminal

_DESCRIPTION = """\
Simulates a department and writes its studies to a folder, or sends them by C-STORE. The radiographs are drawn from a
generator and belong to nobody; each is a DX object with a full header. Two scanners with looks of their own, children
of one to five years, working and off days, and days that differ by themselves as those of a real department do. The
same options and seed give the same studies, to the last bit.
"""
_EPILOG = """\
events [unit of SIZE, its default]:
{events}

The truth is a CSV file, a line a study: what the label is and what the image shows, which events are in force, and by
which of them this study is another than it would have been. With --out it is DIR/truth.csv, beside DIR/studies, and
can serve as the labels of `stepwedge package build`.

example: stepwedge simulate --send localhost:11112 --called STEPWEDGE --studies 600 --speed 60 --truth truth.csv
         --event scanner-change@300 --event prevalence@450:0.3
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    from stepwedge.simulate.events import describe  # imports nothing heavy

    parser = commands.add_parser(
        "simulate",
        help="simulate a department: studies into a folder, or to a node by C-STORE",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(events=describe().replace("%", "%%")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="write the studies to this folder, which must be empty")
    where.add_argument("--send", metavar="HOST:PORT", help="send the studies to this node")
    parser.add_argument("--called", default="STEPWEDGE", metavar="AE", help="AE title to call (default: STEPWEDGE)")
    parser.add_argument("--calling", default="SIMULATOR", metavar="AE", help="our AE title (default: SIMULATOR)")
    parser.add_argument("--studies", required=True, type=int, metavar="N", help="how many; one image each")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which department (default: 0)")
    parser.add_argument(
        "--start", type=_date, default=date(2026, 1, 5), metavar="DATE",
        help="first day, from 7:00 on (default: 2026-01-05, a Monday)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", type=float, default=12.0, metavar="R",
        help="studies an hour between 8:00 and 16:00 of an average working day (default: 12)",
    )  # fmt: skip
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed", type=float, default=1.0, metavar="F",
        help="with --send: how many simulated seconds pass in one (default: 1, as it happens)",
    )  # fmt: skip
    pace.add_argument("--no-wait", action="store_true", help="with --send: as fast as the node takes them")
    parser.add_argument(
        "--prevalence", type=float, default=0.1, metavar="P", help="share of ill children on an average day (0.1)"
    )
    parser.add_argument(
        "--event", action="append", default=[], metavar="NAME@STUDY[:SIZE]",
        help="something happens at a study, counted from 1 (see below); may be repeated",
    )  # fmt: skip
    parser.add_argument("--truth", type=Path, metavar="FILE", help="where the truth goes (with --out: DIR/truth.csv)")
    parser.add_argument(
        "--size", type=int, metavar="ROWS",
        help="about how many rows the images have (default: as the scanners make them, 900 to 1700)",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=Path, default=_MODEL, metavar="DIR",
        help="folder with simulated.npz, the generator (default: that of chest-pneumonia)",
    )  # fmt: skip


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2026-01-05") from None


def _run(options: argparse.Namespace) -> int:
    from stepwedge.dicom.deliver import DicomSink
    from stepwedge.simulate.children import load_simulator
    from stepwedge.simulate.department import examinations, radiograph
    from stepwedge.simulate.sending import into_folder, paced, run, to_node

    destination = _destination(options) if options.send else None
    simulator = load_simulator(options.model / "simulated.npz")
    department = _department(options)
    studies: Iterator[Study] = (
        (examination, partial(radiograph, examination, department, simulator))
        for examination in examinations(department, simulator)
    )
    say = _progress(department.studies)
    if destination is None:
        with into_folder(options.out) as take:
            counts = run(studies, take, options.truth or options.out / "truth.csv", say)
    else:
        if not options.no_wait:
            studies = paced(studies, options.speed)
        with to_node(DicomSink(destination, calling_ae=options.calling)) as take:
            counts = run(studies, take, options.truth, say)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), flush=True)  # noqa: T201
    return _REFUSED if counts["refused"] else 0


def _department(options: argparse.Namespace) -> Department:
    from stepwedge.errors import StepwedgeError
    from stepwedge.simulate.department import Department
    from stepwedge.simulate.events import parse_event

    if not (math.isfinite(options.speed) and options.speed > 0):
        raise StepwedgeError(f"--speed {options.speed:g}: a number above 0; to send without waiting, use --no-wait")
    return Department(
        studies=options.studies,
        seed=options.seed,
        start=options.start,
        rate=options.rate,
        prevalence=options.prevalence,
        events=tuple(parse_event(text) for text in options.event),
        rows=options.size,
        generator=hashlib.sha256((options.model / "simulated.npz").read_bytes()).hexdigest(),
    )


def _destination(options: argparse.Namespace) -> Destination:
    from pydantic import ValidationError

    from stepwedge.errors import StepwedgeError, describe_validation
    from stepwedge.settings import Destination

    host, _, port = options.send.rpartition(":")
    if not host or not port.isdecimal():
        raise StepwedgeError(f"--send {options.send}: wanted HOST:PORT, such as localhost:11112")
    try:
        return Destination(name="simulated", host=host.strip("[]"), port=int(port), ae_title=options.called)
    except ValidationError as error:
        raise StepwedgeError(describe_validation(f"--send {options.send}", error)) from None


def _progress(total: int) -> Callable[[int], None]:
    """Say on standard error how far it is."""
    terminal = sys.stderr.isatty()

    def say(done: int) -> None:
        if terminal:
            print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)  # noqa: T201
        elif done % _PROGRESS_STUDIES == 0 or done == total:
            print(f"{done} of {total}", file=sys.stderr, flush=True)  # noqa: T201

    return say
