"""The main job, once, on this machine: studies in by C-STORE, reports back, and the promises checked.

It plays the PACS at both ends. The real DICOM comes from the package pydicom-data, the children are simulated. Every
promise that is broken is named, and the exit status says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pydicom
import yaml
from PIL import Image as Pillow
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import StoragePresentationContexts
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage
from rich import box
from rich.console import Console
from rich.table import Table

from stepwedge.analysis import read_published
from stepwedge.errors import StepwedgeError
from stepwedge.records import Decision, State
from stepwedge.settings import Settings, load_settings
from stepwedge.simulate import load_simulator, simulate, to_dicom
from stepwedge.store import Store

_MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"
_PACKAGE, _POLICY, _SIMULATED = _MODELS / "1.1.0", _MODELS / "policy.yaml", _MODELS / "simulated.npz"
_CALLER, _RECEIVER = "DEMO-SENDER", "DEMO-PACS"
_QUIET_SECONDS = 2.0
# Far more than any of it takes; a promise is not broken by a slow machine.
_READY_SECONDS, _ANSWER_SECONDS, _STOP_SECONDS = 180.0, 180.0, 90.0
_WIDTH_IN_A_FILE = 120  # characters
# Six typical children. Not every simulated child is typical: the model's card says how many it calls wrongly.
_SEED = 21
_COLOURS = {"reported": "green", "deferred": "yellow"}
_UNDER_WAY = {"no answer", "waiting"}


@dataclass(frozen=True, kw_only=True)
class _Study:
    """What is sent, and what has to become of it."""

    name: str
    file: Path
    study_uid: str
    expected: State | None  # None: refused at receipt, and in quarantine
    reason: str | None = None
    decision: Decision | None = None  # on pneumonia


@dataclass
class _Outcome:
    """What became of it."""

    status: int = -1  # of the C-STORE
    sent_at: float = 0.0
    state: str = "no answer"
    reasons: str = ""
    findings: list[str] = field(default_factory=list)
    decisions: dict[str, Decision] = field(default_factory=dict)
    seconds: float | None = None
    objects: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Arrival:
    """An object that came back to the receiving node."""

    study_uid: str
    kind: str
    at: float
    file: Path


def run(folder: Path) -> int:
    """Run the demo in a folder, which it empties first. 0 if every promise was kept."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_IN_A_FILE)
    if not _PACKAGE.is_dir():
        raise StepwedgeError(f"{_PACKAGE}: the demo needs the default model; run it from a clone of the repository")
    _empty(folder)
    console.print("[bold]Stepwedge: a PACS pushes studies and finds the reports in them[/bold]")
    studies = _make_studies(folder / "studies")
    receiver = _Receiver(folder / "received")
    settings = _write_settings(folder, receiver.port)
    service = _start(folder)
    try:
        with console.status("Starting: DICOM node, worker, inference server (BentoML, ONNX Runtime) …") as status:
            _wait_ready(settings, service, status.update)
        console.print(f"Ready: {settings.node.ae_title} on port {settings.node.port}; results go to {_RECEIVER}")
        outcomes = [_Outcome() for _ in studies]
        with console.status("Sending …") as status:
            for study, outcome in zip(studies, outcomes, strict=True):
                status.update(f"C-STORE: {study.name}")
                outcome.status, outcome.sent_at = _send(study.file, settings.node.port)
                answer = "stored" if outcome.status == 0 else f"refused with {outcome.status:#06x}"
                console.print(f"  sent {study.name}: {answer}")
            _wait_answers(studies, outcomes, settings, receiver, status.update)
    finally:
        clean = _stop(service, settings)
        receiver.stop()
    _judge(studies, outcomes)
    console.print(_table(studies, outcomes))
    _show_places(console, folder, receiver)
    broken = [f"{study.name}: {text}" for study, o in zip(studies, outcomes, strict=True) for text in o.broken]
    if not clean:
        broken.append("the service did not stop cleanly")
    for text in broken:
        console.print(f"[red]promise broken[/red]  {text}")
    if not broken:
        console.print("[green]Every promise was kept.[/green] Not for clinical use: this is a demonstration.")
    return 1 if broken else 0


class _Receiver:
    """Our end of the PACS: a Storage SCP that keeps what comes back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.arrivals: list[_Arrival] = []
        self._lock = threading.Lock()
        application = AE(ae_title=_RECEIVER)
        application.supported_contexts = StoragePresentationContexts
        self._server = application.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )
        self.port = int(self._server.socket.getsockname()[1])

    def of_study(self, study_uid: str) -> list[_Arrival]:
        """What has come back for a study."""
        with self._lock:
            return [arrival for arrival in self.arrivals if arrival.study_uid == study_uid]

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def _keep(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        kinds = {ComprehensiveSRStorage: "SR", SecondaryCaptureImageStorage: "picture"}
        kind = kinds.get(dataset.SOPClassUID, str(dataset.SOPClassUID))
        file = self.folder / f"{dataset.SOPInstanceUID}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        if kind == "picture":
            Pillow.fromarray(dataset.pixel_array).save(file.with_suffix(".png"))
        with self._lock:
            self.arrivals.append(
                _Arrival(study_uid=str(dataset.StudyInstanceUID), kind=kind, at=time.time(), file=file)
            )
        return 0x0000


def _empty(folder: Path) -> None:
    """An empty folder; one that is not an earlier demo's is left alone."""
    marker = folder / ".stepwedge-demo"
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise StepwedgeError(f"{folder}: is not empty and not from an earlier demo; name another folder with --keep")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    marker.touch()


def _write_settings(folder: Path, receiver_port: int) -> Settings:
    dicom, http, inference = _free_ports(3)
    values = {
        "data_dir": "data",
        "node": {"port": dicom, "allowed_callers": [_CALLER]},
        "completeness": {"quiet_seconds": _QUIET_SECONDS, "quiet_seconds_by_modality": {"CT": _QUIET_SECONDS}},
        "http": {"port": http},
        "inference": {"port": inference},
        "spool": {"reserve_bytes": 0},
        "models": [{"package": str(_PACKAGE), "policy": str(_POLICY)}],
        "destinations": [
            {
                "name": "demo-pacs",
                "host": "127.0.0.1",
                "port": receiver_port,
                "ae_title": _RECEIVER,
                "accepts_demonstration": True,
            }
        ],
    }
    file = folder / "stepwedge.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_settings(file)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _make_studies(folder: Path) -> list[_Study]:
    folder.mkdir()
    adult, tibia, ct = (_real_file(name) for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm", "693_UNCR.dcm"))
    studies = [
        _Study(name="real chest CR of an adult (RG1)", file=adult, study_uid=_study_uid(adult),
               expected=State.DEFERRED, reason="age_not_intended"),
        _Study(name="real CR of a tibia (RG3)", file=tibia, study_uid=_study_uid(tibia),
               expected=State.REJECTED, reason="body_part_not_intended"),
        _Study(name="real CT slice", file=ct, study_uid=_study_uid(ct), expected=State.NOT_ROUTED),
    ]  # fmt: skip
    broken = folder / "broken.dcm"
    content = _real_file("RG1_UNCR.dcm").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    studies.append(_Study(name="the same chest, cut in half", file=broken, study_uid="", expected=None))
    rng = np.random.default_rng(_SEED)
    simulator = load_simulator(_SIMULATED)
    for number, label in enumerate(("bacterial", "normal", "viral", "normal", "bacterial", "normal"), start=1):
        child = to_dicom(
            simulate(simulator, label, rng),
            rng=rng,
            age_years=1 + number % 5,
            patient_name=f"Simulated^Child {number:02}",
            modality="DX" if number % 2 else "CR",
        )
        file = folder / f"child-{number:02}.dcm"
        child.save_as(file, enforce_file_format=True)
        ill = label != "normal"
        studies.append(
            _Study(
                name=f"simulated child {number:02}, {'ill' if ill else 'well'}",
                file=file,
                study_uid=str(child.StudyInstanceUID),
                expected=State.REPORTED,
                decision=Decision.ACT if ill else Decision.CLEAR,
            )
        )
    return studies


def _real_file(name: str) -> Path:
    """A file of pydicom-data."""
    try:
        import data_store
    except ImportError:
        raise StepwedgeError("the demo needs the package pydicom-data; install stepwedge[demo]") from None
    return Path(data_store.__file__).parent / "data" / name


def _study_uid(file: Path) -> str:
    return str(pydicom.dcmread(file, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / "service.log").open("wb")
    command = [sys.executable, "-m", "stepwedge", "serve", "--config", str(folder / "stepwedge.yaml")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWEDGE_")}
    with log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own command


def _wait_ready(settings: Settings, service: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < _READY_SECONDS:
        if service.poll() is not None:
            raise StepwedgeError("the service ended while starting; its log is service.log in the demo's folder")
        try:
            answer = httpx.get(f"http://{settings.http.host}:{settings.http.port}/readyz", timeout=5)
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return
        missing = ", ".join(name for name, is_ready in answer.json().items() if not is_ready) if answer else "all"
        say(f"Starting: waiting for {missing} ({time.monotonic() - started:.0f} s) …")
        time.sleep(0.3)
    raise StepwedgeError("the service did not become ready; its log is service.log in the demo's folder")


def _send(file: Path, port: int) -> tuple[int, float]:
    """C-STORE a file as it is, broken or not; the status, and when it was answered."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    meta = pydicom.filereader.read_file_meta_info(file)
    application = AE(ae_title=_CALLER)
    application.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    association = application.associate("127.0.0.1", port, ae_title="STEPWEDGE")
    if not association.is_established:
        return -1, time.time()
    try:
        answer = association.send_c_store(file)
        return int(getattr(answer, "Status", -1)), time.time()
    finally:
        association.release()


def _wait_answers(
    studies: Sequence[_Study],
    outcomes: Sequence[_Outcome],
    settings: Settings,
    receiver: _Receiver,
    say: Callable[[str], None],
) -> None:
    """Wait until every study has come to its end, or for as long as an answer may take."""
    store = Store.open_file(settings.database_file)
    try:
        until = time.monotonic() + _ANSWER_SECONDS
        while time.monotonic() < until:
            waiting = []
            for study, outcome in zip(studies, outcomes, strict=True):
                if outcome.state in _UNDER_WAY:
                    _look_up(study, outcome, store, settings, receiver)
                if outcome.state in _UNDER_WAY:
                    waiting.append(study.name)
            if not waiting:
                return
            say(f"Waiting for {len(waiting)} of {len(studies)}: {waiting[0]} …")
            time.sleep(0.2)
    finally:
        store.close()


def _look_up(study: _Study, outcome: _Outcome, store: Store, settings: Settings, receiver: _Receiver) -> None:
    if study.expected is None:
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
    arrivals = receiver.of_study(study.study_uid)
    failed = units[-1].state is State.FAILED
    if not failed and (published is None or len(arrivals) < len(published.objects)):
        outcome.state = "waiting"
        return
    outcome.state = str(units[-1].state)
    outcome.reasons = ", ".join(units[-1].reasons)
    outcome.objects = sorted(arrival.kind for arrival in arrivals)
    if arrivals:
        outcome.seconds = max(arrival.at for arrival in arrivals) - outcome.sent_at
    for finding in published.result.findings if published else ():
        outcome.decisions[finding.name] = finding.decision
        if finding.decision is Decision.NONE:
            continue  # it depends on a finding that was not acted upon
        limits = finding.thresholds
        shown = f" \\[{limits.clear_below:.2f}, {limits.act_from:.2f}]" if limits else ""
        outcome.findings.append(f"{finding.name} {finding.probability:.3f} {finding.decision}{shown}")


def _judge(studies: Sequence[_Study], outcomes: Sequence[_Outcome]) -> None:
    """Name every promise that was broken."""
    for study, outcome in zip(studies, outcomes, strict=True):
        expected = str(study.expected) if study.expected else "quarantined"
        if outcome.state != expected:
            outcome.broken.append(f"is {outcome.state}, has to be {expected}")
        if study.expected is None and outcome.status == 0:
            outcome.broken.append("was acknowledged though it cannot be read")
        if study.expected is not None and outcome.status != 0:
            outcome.broken.append(f"was refused with {outcome.status:#06x}")
        if study.reason is not None and study.reason not in outcome.reasons:
            outcome.broken.append(f"gives {outcome.reasons or 'no reason'}, has to give {study.reason}")
        if study.decision is not None and outcome.decisions.get("pneumonia") != study.decision:
            outcome.broken.append(f"has to be decided {study.decision}")
        wanted = ["SR", "picture"] if study.expected in {State.REPORTED, State.DEFERRED, State.REJECTED} else []
        if outcome.objects != wanted:
            outcome.broken.append(f"got back {outcome.objects or 'nothing'}, has to get {wanted or 'nothing'}")


def _table(studies: Sequence[_Study], outcomes: Sequence[_Outcome]) -> Table:
    table = Table(title="What came in, and what became of it", title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("study")
    table.add_column("state, reasons")
    table.add_column("probability, decision \\[clear below, act from]", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("came back", no_wrap=True)
    for study, outcome in zip(studies, outcomes, strict=True):
        colour = "red" if outcome.broken else _COLOURS.get(outcome.state, "default")
        reasons = [outcome.reasons] if outcome.reasons else []
        if outcome.status != 0:
            reasons.append(f"C-STORE {outcome.status:#06x}")
        table.add_row(
            study.name,
            "\n".join([f"[{colour}]{outcome.state}[/{colour}]", *reasons]),
            "\n".join(outcome.findings),
            "" if outcome.seconds is None else f"{outcome.seconds:.1f}",
            " + ".join(outcome.objects),
        )
    table.caption = f"s: seconds from the last instance to the last object, {_QUIET_SECONDS:.0f} of them quiet period"
    table.caption_justify = "left"
    return table


def _show_places(console: Console, folder: Path, receiver: _Receiver) -> None:
    pictures = sorted(receiver.folder.glob("*.png"))
    console.print("Where to look:")
    console.print(
        f"  {receiver.folder}: what came back; the pictures also as PNG"
        + (f", e.g. {pictures[0].name}" if pictures else ""),
        soft_wrap=True,
    )
    console.print(f"  {folder / 'data'}: spool, results, database; {folder / 'service.log'}: the log")
    program = os.path.relpath(Path(sys.executable).parent / "stepwedge")
    console.print(
        f"  {program} status --config {folder / 'stepwedge.yaml'}: every study and unit of work", soft_wrap=True
    )


def _stop(service: subprocess.Popen[bytes], settings: Settings) -> bool:
    """Ask the service to stop; whether it did by itself, with status 0, and gave back its ports."""
    if service.poll() is not None:
        return False
    service.send_signal(signal.SIGTERM)
    try:
        status = service.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()
        return False
    ports = (settings.node.port, settings.http.port, settings.inference.port)
    return status == 0 and not any(_answers(port) for port in ports if port is not None)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
