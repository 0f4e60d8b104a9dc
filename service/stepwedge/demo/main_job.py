"""The demo from start to end, and the promises it checks."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from stepwedge.analysis import read_published
from stepwedge.database import open_store
from stepwedge.demo.peer import RECEIVER, Receiver, send
from stepwedge.demo.service import QUIET_SECONDS, start, stop, wait_ready, write_settings
from stepwedge.demo.studies import Outcome, Study, make_later, make_studies
from stepwedge.demo.tables import Pair, children_table, end, files_table, is_ill, summary_table
from stepwedge.demo.watching import of_the_new_scanner, wait_named
from stepwedge.errors import StepwedgeError
from stepwedge.records import State
from stepwedge.settings import Settings
from stepwedge.store import Store

_MODELS = Path(__file__).parents[3] / "models" / "chest-pneumonia"
_POLICY, _SIMULATED = _MODELS / "policy.yaml", _MODELS / "simulated.npz"
_DEPARTMENT = _MODELS / "department"  # a baseline of the simulated department, for the monitor
# Far more than an answer takes; a promise is not broken by a slow machine.
_ANSWER_SECONDS = 180.0
_WIDTH_IN_A_FILE = 120  # characters
# Of the children that are acted on or cleared, so many have to be rightly so: a morning is few children, and some
# labels are of what no image shows.
_LEAST_RIGHT = 0.8
_UNDER_WAY = {"no answer", "waiting"}
_KINDS = {"sr": "SR", "sc": "picture", "heat": "heat", "pr": "PR"}  # of the objects that come back
_ALWAYS = ("SR", "picture")


def run(folder: Path) -> int:
    """Run the demo in a folder, which it empties first. 0 if every promise was kept."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_IN_A_FILE)
    package = newest_package(_MODELS)
    _empty(folder)
    console.print("[bold]Stepwedge: a PACS pushes studies and finds the reports in them[/bold]")
    studies = make_studies(folder / "studies", _SIMULATED)
    receiver = Receiver(folder / "received")
    settings = write_settings(folder, receiver.port, package, _POLICY, _DEPARTMENT)
    service = start(folder)
    try:
        with console.status("Starting: DICOM node, worker, inference server (BentoML, ONNX Runtime) …") as status:
            wait_ready(settings, service, status.update)
        console.print(f"Ready: {settings.node.ae_title} on port {settings.node.port}; results go to {RECEIVER}")
        pairs = [(study, Outcome()) for study in studies]
        with console.status("Sending …") as status:
            _send_all(console, pairs, settings, status.update)
            _wait_answers(pairs, settings, receiver, status.update)
            later = make_later(folder / "later", _SIMULATED)
            named = _watch_a_change(console, later, settings, status.update)
    finally:
        clean = stop(service, settings)
        receiver.stop()
    for study, outcome in pairs:
        outcome.broken = _broken(study, outcome)
    children = [(study, outcome) for study, outcome in pairs if study.child is not None]
    console.print(files_table([(study, outcome) for study, outcome in pairs if study.child is None]))
    console.print(children_table(children, QUIET_SECONDS))
    console.print(summary_table(children))
    _show_places(console, folder, receiver)
    broken = [f"{study.name}: {text}" for study, outcome in pairs for text in outcome.broken]
    broken += _broken_by_all(children)
    broken += [] if named else ["a new scanner came, and the monitor did not name it"]
    if not clean:
        broken.append("the service did not stop cleanly")
    for text in broken:
        console.print(f"[red]promise broken[/red]  {text}")
    if not broken:
        console.print("[green]Every promise was kept.[/green] Not for clinical use: this is a demonstration.")
    return 1 if broken else 0


def newest_package(models: Path) -> Path:
    """The highest version among the packages in a folder. Raises StepwedgeError if there is none."""
    versions = [file.parent for file in models.glob("*.*.*/model.yaml") if file.parent.name.replace(".", "").isdigit()]
    if not versions:
        raise StepwedgeError(f"{models}: the demo needs the default model; run it from a clone of the repository")
    return max(versions, key=lambda folder: tuple(int(part) for part in folder.name.split(".")))


def _empty(folder: Path) -> None:
    """An empty folder; one that is not an earlier demo's is left alone."""
    marker = folder / ".stepwedge-demo"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise StepwedgeError(f"{folder}: is not empty and not from an earlier demo; name another folder with --keep")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()


def _send_all(console: Console, pairs: Sequence[Pair], settings: Settings, say: Callable[[str], None]) -> None:
    stored = 0
    for study, outcome in pairs:
        say(f"C-STORE: {study.name}")
        outcome.status, outcome.sent_at = send(study.file, settings.node.port)
        if study.child is not None and outcome.status == 0:
            stored += 1
            continue
        answer = "stored" if outcome.status == 0 else f"refused with {outcome.status:#06x}"
        console.print(f"  sent {study.name}: {answer}")
    console.print(f"  sent a morning of a simulated department: {stored} children stored")


def _watch_a_change(console: Console, later: Sequence[Study], settings: Settings, say: Callable[[str], None]) -> bool:
    """Send studies among which a new scanner comes; whether the monitor names it."""
    for study in later:
        say(f"C-STORE: {study.name}")
        send(study.file, settings.node.port)
    console.print(f"  sent {len(later)} more children; a new scanner replaces the wall stand among them")
    alarm = wait_named(settings, say)
    if alarm is None:
        return False
    told = of_the_new_scanner(later, settings, alarm["raised_count"])
    console.print(
        f"[bold]The monitor names it[/bold]: {alarm['signal']} ({alarm['shift']}), after {told} studies of the new "
        "scanner. An alarm waits for a person; nothing is changed by it."
    )
    return True


def _wait_answers(pairs: Sequence[Pair], settings: Settings, receiver: Receiver, say: Callable[[str], None]) -> None:
    """Wait until every study has come to its end, or for as long as an answer may take."""
    store = open_store(settings)
    try:
        until = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < until:
            waiting = []
            for study, outcome in pairs:
                if outcome.state in _UNDER_WAY:
                    _look_up(study, outcome, store, settings, receiver)
                if outcome.state in _UNDER_WAY:
                    waiting.append(study.name)
            if not waiting:
                return
            say(f"Waiting for {len(waiting)} of {len(pairs)}: {waiting[0]} …")
            time.sleep(0.2)
    finally:
        store.close()


def _look_up(study: Study, outcome: Outcome, store: Store, settings: Settings, receiver: Receiver) -> None:
    if not study.expected:
        outcome.state = "quarantined" if store.quarantined() else "waiting"
        outcome.reasons = ", ".join(item.reason for item in store.quarantined())
        return
    known = store.study_by_uid(study.study_uid)
    if known is None:
        return
    units = store.units(study=known.study)
    if not units:
        outcome.state = "waiting" if known.open else str(State.NOT_ROUTED)
        return
    published = read_published(settings, units[-1].unit)
    arrivals = {arrival.instance_uid: arrival for arrival in receiver.of_study(study.study_uid)}
    made = published.objects if published else ()
    failed = units[-1].state is State.FAILED
    if not failed and (published is None or any(item.sop_instance_uid not in arrivals for item in made)):
        outcome.state = "waiting"
        return
    outcome.state = str(units[-1].state)
    outcome.reasons = ", ".join(units[-1].reasons)
    outcome.objects = [_KINDS.get(item.kind, item.kind) for item in made if item.sop_instance_uid in arrivals]
    outcome.objects += ["unknown"] * (len(arrivals) - len(outcome.objects))
    if arrivals:
        outcome.seconds = max(arrival.at for arrival in arrivals.values()) - outcome.sent_at
    outcome.findings = published.result.findings if published else ()


def _broken(study: Study, outcome: Outcome) -> list[str]:
    """Every promise that was broken to a study."""
    broken = []
    expected = [str(state) for state in study.expected] or ["quarantined"]
    if outcome.state not in expected:
        broken.append(f"is {outcome.state}, has to be {' or '.join(expected)}")
    if not study.expected and outcome.status == 0:
        broken.append("was acknowledged though it cannot be read")
    if study.expected and outcome.status != 0:
        broken.append(f"was refused with {outcome.status:#06x}")
    if study.reason is not None and study.reason not in outcome.reasons:
        broken.append(f"gives {outcome.reasons or 'no reason'}, has to give {study.reason}")
    answered = outcome.state in {State.REPORTED, State.DEFERRED, State.REJECTED}
    missing = [kind for kind in _ALWAYS if kind not in outcome.objects] if answered else []
    if missing:
        broken.append(f"got back {', '.join(outcome.objects) or 'nothing'}, lacks {', '.join(missing)}")
    if "unknown" in outcome.objects or (not answered and outcome.objects):
        broken.append(f"got back {', '.join(outcome.objects)}, which nothing announced")
    return broken


def _broken_by_all(children: Sequence[Pair]) -> list[str]:
    """Whether the decisions have to do with the truth."""
    decided = [(is_ill(study), end(outcome)) for study, outcome in children if end(outcome) in {"act", "clear"}]
    right = sum(decision == ("act" if ill else "clear") for ill, decision in decided)
    if decided and right >= _LEAST_RIGHT * len(decided):
        return []
    return [f"{right} of {len(decided)} decisions agree with the truth, has to be {_LEAST_RIGHT:.0%} of some"]


def _show_places(console: Console, folder: Path, receiver: Receiver) -> None:
    pictures = sorted(receiver.folder.glob("*.png"))
    console.print("Where to look:")
    console.print(
        f"  {receiver.folder}: what came back; the pictures also as PNG"
        + (f", e.g. {pictures[0].name}" if pictures else ""),
        soft_wrap=True,
    )
    console.print(f"  {folder / 'studies'}: what was sent; the truth about the children in department/truth.csv")
    console.print(f"  {folder / 'data'}: spool, results, database; {folder / 'service.log'}: the log")
    program = os.path.relpath(Path(sys.executable).parent / "stepwedge")
    console.print(
        f"  {program} status --config {folder / 'stepwedge.yaml'}: every study and unit of work", soft_wrap=True
    )
