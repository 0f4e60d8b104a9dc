"""What the demo sends, and what has to become of it: real files, and a morning of a simulated department."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pydicom

from stepwedge.errors import StepwedgeError
from stepwedge.records import Decision, Finding, State
from stepwedge.simulate.children import load_simulator
from stepwedge.simulate.department import Department, Examination, examinations, radiograph
from stepwedge.simulate.events import Event
from stepwedge.simulate.sending import into_folder, run

# Later that day a new scanner takes the place of the wall stand.
_LATER, _CHANGE = 48, 5
# A morning with more ill children than usual, so that both kinds are among few.
_CHILDREN, _SEED, _RATE, _PREVALENCE = 16, 3, 8.0, 0.35


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is sent, and what has to become of it."""

    name: str
    file: Path
    study_uid: str
    expected: tuple[State, ...]  # any of them; none: refused at receipt, and in quarantine
    reason: str | None = None
    child: Examination | None = None  # of the simulated department


@dataclass
class Outcome:
    """What became of it."""

    status: int = -1  # of the C-STORE
    sent_at: float = 0.0
    state: str = "no answer"
    reasons: str = ""
    findings: tuple[Finding, ...] = ()
    seconds: float | None = None
    objects: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def decision(self, finding: str) -> Decision | None:
        """What was decided on a finding, if anything."""
        return next((item.decision for item in self.findings if item.name == finding), None)


def make_studies(folder: Path, simulated: Path) -> list[Study]:
    """The real files first, then the children in the order of time. Raises StepwedgeError if a source is missing."""
    folder.mkdir()
    adult, tibia, ct = (_real_file(name) for name in ("RG1_UNCR.dcm", "RG3_UNCR.dcm", "693_UNCR.dcm"))
    broken = folder / "broken.dcm"
    content = adult.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    return [
        Study(name="real chest CR of an adult (RG1)", file=adult, study_uid=_study_uid(adult),
              expected=(State.DEFERRED,), reason="age_not_intended"),
        Study(name="real CR of a tibia (RG3)", file=tibia, study_uid=_study_uid(tibia),
              expected=(State.REJECTED,), reason="body_part_not_intended"),
        Study(name="real CT slice", file=ct, study_uid=_study_uid(ct), expected=(State.NOT_ROUTED,)),
        Study(name="the same chest, cut in half", file=broken, study_uid="", expected=()),
        *_morning(folder / "department", simulated),
    ]  # fmt: skip


def make_later(folder: Path, simulated: Path) -> list[Study]:
    """More children of the same department, most of them from a new scanner."""
    return _children(folder, simulated, _LATER, (Event(name="scanner-change", study=_CHANGE, size=0.0),), "later child")


def _morning(folder: Path, simulated: Path) -> list[Study]:
    return _children(folder, simulated, _CHILDREN, (), "simulated child")


def _children(folder: Path, simulated: Path, count: int, events: tuple[Event, ...], name: str) -> list[Study]:
    simulator = load_simulator(simulated)
    department = Department(
        studies=count,
        events=events,
        seed=_SEED,
        rate=_RATE,
        prevalence=_PREVALENCE,
        generator=hashlib.sha256(simulated.read_bytes()).hexdigest(),
    )
    children = list(examinations(department, simulator))
    with into_folder(folder) as take:
        run(((child, partial(radiograph, child, department, simulator)) for child in children), take,
            folder / "truth.csv")  # fmt: skip
    return [
        Study(
            name=f"{name} {child.number:02}",
            file=folder / "studies" / f"{child.number:06}.dcm",
            study_uid=child.study_uid,
            # Which of the three is the model's and the gate's to say. That it is one of them is the promise.
            expected=(State.REPORTED, State.DEFERRED, State.REJECTED),
            child=child,
        )
        for child in children
    ]


def _real_file(name: str) -> Path:
    """A file of pydicom-data."""
    try:
        import data_store
    except ImportError:
        raise StepwedgeError("the demo needs the package pydicom-data; install stepwedge[demo]") from None
    return Path(data_store.__file__).parent / "data" / name


def _study_uid(file: Path) -> str:
    return str(pydicom.dcmread(file, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
