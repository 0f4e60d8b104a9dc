"""One exposure of the reference set: read ``expose`` first.

The studies go the way of a patient's: by C-STORE to the running node, through spool, queue, worker and inference
server, to a report in their result folder. They are registered before they are sent (``reference``), and so they are
never observed, delivered or counted. When the run has ended, nothing is left of them but its row.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pydicom
import structlog
from pydicom.uid import generate_uid

from stepwedge import reference, rundir
from stepwedge.analysis import Published, read_published, results_dir
from stepwedge.constancy.accepted import Answer, ReferenceCase, answer_of
from stepwedge.constancy.compare import CHANGED, STAGES, Decided, compare, compare_decided, first_moved, gate_said
from stepwedge.constancy.site_answers import SiteAnswers, is_of_today, read_site_answers, write_site_answers
from stepwedge.dicom.deliver import send
from stepwedge.errors import StepwedgeError
from stepwedge.identity import Site
from stepwedge.manifest import Package
from stepwedge.observation import ConstancyRun
from stepwedge.policy import Policy
from stepwedge.records import State
from stepwedge.reference import ReferenceStudy
from stepwedge.settings import Destination, Settings
from stepwedge.store import Store

log = structlog.get_logger()

_POLL_SECONDS = 0.25
_ENDED = frozenset({State.REPORTED, State.DEFERRED, State.REJECTED, State.FAILED, State.SUPERSEDED})
_ABANDONED_SECONDS = 24 * 3600.0  # after which a study that has not ended is dropped all the same
_NVIDIA = Path("/proc/driver/nvidia/version")
_DRIVER = re.compile(r"\b\d+\.\d+(\.\d+)*\b")
_LIBRARIES = ("stepwedge", "numpy", "pydicom", "onnxruntime", "onnxruntime-gpu", "pillow", "highdicom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What one reference study showed."""

    case: int
    state: str  # of its unit of work; empty if it did not come to an end
    stages: Mapping[str, float] = field(default_factory=dict)  # in units of the tolerance


def expose(
    settings: Settings,
    package: Package,
    policy: Policy,
    cases: Sequence[ReferenceCase],
    *,
    store: Store,
    site: Site,
    accept: bool = False,
) -> tuple[ConstancyRun, list[Difference]]:
    """Send the reference set through the running service and compare. The run is kept before this returns.

    Parameters
    ----------
    accept
        Take what the site's policy makes of the set today as accepted from now on.

    Raises
    ------
    StepwedgeError
        If another run is going on, or the node takes no studies.
    """
    with _alone(settings.data_dir):
        _clear_ended(settings, store)
        run = uuid4().hex
        try:
            studies = _send(settings, package, cases, site, run)
            ended = _wait(settings, store, studies, package)
            row, differences = _judge(settings, package, policy, cases, ended, run, accept)
            store.add_constancy(row.run, row.to_json())
        finally:
            _clear_ended(settings, store)
    (log.info if row.verdict == "constant" else log.error)(
        "constancy_run",
        run=run,
        model=row.model_name,
        verdict=row.verdict,
        stage=row.stage,
        answered=row.answered,
        studies=row.studies,
        differences=row.differences,
    )
    return row, differences


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """One run at a time, of all models together."""
    try:
        handle = rundir.take(reference.folder(data_dir) / "run.lock")
    except BlockingIOError:
        raise StepwedgeError(f"{data_dir}: another constancy run is going on; wait for it to end") from None
    try:
        yield
    finally:
        os.close(handle)


# --- Through the live path ----------------------------------------------------------------------------------------


def _send(
    settings: Settings, package: Package, cases: Sequence[ReferenceCase], site: Site, run: str
) -> list[ReferenceStudy]:
    """Register each case as a study of its own and send it as any modality would."""
    node = settings.node
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(node.host, node.host)  # noqa: S104 - not bound
    to = Destination(name="this-node", host=host, port=node.port, ae_title=node.ae_title)
    studies = []
    with tempfile.TemporaryDirectory(dir=reference.folder(settings.data_dir), prefix="sending-") as name:
        files = []
        for index, case in enumerate(cases):
            dataset = pydicom.dcmread(BytesIO(case.contents))
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            file = Path(name) / f"{index:03}.dcm"
            dataset.save_as(file)
            files.append(file)
            entry = ReferenceStudy(
                study=site.hash(str(dataset.StudyInstanceUID)),
                run=run,
                case=index,
                model_name=package.manifest.name,
                registered_at=time.time(),
            )
            reference.register(settings.data_dir, entry)
            studies.append(entry)
        send(to, site.own_caller, files)
    return studies


def _wait(
    settings: Settings, store: Store, studies: Sequence[ReferenceStudy], package: Package
) -> dict[int, Published | None]:
    """By case, what became of the studies that ended in time: a result, or None for one without."""
    deadline = time.monotonic() + settings.constancy.timeout_seconds
    ended: dict[int, Published | None] = {}
    while True:
        for study in studies:
            if study.case in ended:
                continue
            units = [u for u in store.units(study=study.study) if u.model_name == package.manifest.name]
            done = [unit for unit in units if unit.state in _ENDED]
            if units and len(done) == len(units):
                published = [read_published(settings, unit.unit) for unit in done]
                ended[study.case] = next((item for item in published if item is not None), None)
        if len(ended) == len(studies) or time.monotonic() >= deadline:
            return ended
        time.sleep(_POLL_SECONDS)


# --- Comparing ----------------------------------------------------------------------------------------------------


def _judge(
    settings: Settings,
    package: Package,
    policy: Policy,
    cases: Sequence[ReferenceCase],
    ended: Mapping[int, Published | None],
    run: str,
    accept: bool,
) -> tuple[ConstancyRun, list[Difference]]:
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    model = package.manifest.name
    answers = {case: _answer(published) for case, published in ended.items() if published is not None}
    todays = SiteAnswers(
        model_digest=package.digest,
        policy_digest=policy.digest,
        time=now,
        run=run,
        decided=_decided(ended.values()),
        gates={case: gate_said(answer) for case, answer in answers.items()},
    )
    accepted = None if accept else read_site_answers(settings.data_dir, model)
    held = accepted
    if not is_of_today(
        accepted,
        model_digest=package.digest,
        policy_digest=policy.digest,
        approved=not policy.reference.demonstration,
    ):
        held = todays
    assert held is not None
    differences = [
        _difference(index, case, ended, answers, package, held.gates if policy.gate_file else {})
        for index, case in enumerate(cases)
    ]
    moved = {stage: max((d.stages.get(stage, 0.0) for d in differences), default=0.0) for stage in STAGES}
    moved["thresholds"] = compare_decided(held.decided, todays.decided)
    complete = len(answers) == len(cases)
    if held is todays and complete:
        write_site_answers(settings.data_dir, model, todays)
    verdict = "moved" if first_moved(moved) else "constant"
    providers = {image.provider for item in ended.values() if item for image in item.result.images if image.provider}
    row = ConstancyRun(
        run=run,
        time=now,
        model_name=model,
        model_version=package.manifest.version,
        model_digest=package.digest,
        policy_digest=policy.digest,
        provider=", ".join(sorted(providers)),
        studies=len(cases),
        answered=len(answers),
        verdict=verdict if complete or verdict == "moved" else "incomplete",
        stage=first_moved(moved),
        differences={stage: round(value, 3) for stage, value in moved.items()},
        versions=_versions(),
    )
    return row, differences


def _difference(
    index: int,
    case: ReferenceCase,
    ended: Mapping[int, Published | None],
    answers: Mapping[int, Answer],
    package: Package,
    site_gates: Mapping[int, tuple[str, str, tuple[str, ...], str]],
) -> Difference:
    published = ended.get(index)
    if published is None:
        return Difference(case=index, state=str(State.FAILED) if index in ended else "")
    if published.result.model.digest != package.digest:
        raise StepwedgeError(
            "the service answers with another package than the settings name; `stepwedge reload` makes it load them"
        )
    answer = answers[index]
    prevalences = {finding.name: finding.prevalence for finding in published.result.images[0].findings}
    stages = compare(case.answer, answer, package, prevalences)
    if index in site_gates:
        # The gate in use was fitted by the site, so what the package's own gate said is not to be expected of it.
        stages["gate"] = CHANGED if gate_said(answer) != tuple(site_gates[index]) else 0.0
        if answer.state == "rejected" or case.answer.state == "rejected":
            stages = {stage: stages[stage] for stage in ("decode", "gate")}
    elif stages["gate"] and "rejected" in {answer.state, case.answer.state}:
        # Behind a gate that rejects, nothing is there to compare.
        stages = {stage: stages[stage] for stage in ("decode", "gate")}
    kinds = {item.kind for item in published.objects}
    stages["report"] = 0.0 if "sr" in kinds and all(item.path.is_file() for item in published.objects) else CHANGED
    return Difference(case=index, state=str(published.result.state), stages=stages)


def _answer(published: Published) -> Answer:
    image = published.result.images[0]
    return answer_of(image, {finding.name: finding.probability for finding in image.findings})


def _decided(results: Iterable[Published | None]) -> dict[str, Decided]:
    """What the policy brought to each finding: the same in every study that was answered."""
    found: dict[str, Decided] = {}
    for item in results:
        for finding in item.result.images[0].findings if item else ():
            found[finding.name] = Decided.of(finding)
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine(), "kernel": platform.release()}
    with contextlib.suppress(OSError):
        # Of this machine. The first line names the kernel module with its version.
        said = _DRIVER.search(_NVIDIA.read_text(encoding="utf-8", errors="replace"))
        found["nvidia-driver"] = said.group() if said else "unknown"
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# --- Leaving nothing behind ---------------------------------------------------------------------------------------


def _clear_ended(settings: Settings, store: Store) -> None:
    """Clear every study that has ended, of this run or of one that was cut short."""
    for study in reference.all_registered(settings.data_dir):
        units = store.units(study=study.study)
        waiting = not units or any(unit.state not in _ENDED for unit in units)
        if waiting and time.time() - study.registered_at < _ABANDONED_SECONDS:
            continue
        _clear(settings, store, study)
    for left in reference.folder(settings.data_dir).glob("sending-*"):
        shutil.rmtree(left, ignore_errors=True)


def _clear(settings: Settings, store: Store, study: ReferenceStudy) -> None:
    """Everything of a study, its entry last: until then it is known for what it is."""
    for unit in store.units(study=study.study):
        shutil.rmtree(results_dir(settings) / unit.unit, ignore_errors=True)
    shutil.rmtree(settings.data_dir / "spool" / "studies" / study.study[:2] / study.study, ignore_errors=True)
    store.forget_study(study.study)
    reference.forget(settings.data_dir, study.study)
