"""Where a department's studies go: into a folder, or to a node by C-STORE, with the truth about each in a CSV file."""

from __future__ import annotations

import csv
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from stepwedge.errors import DeliveryError, StepwedgeError
from stepwedge.seams import ResultSink
from stepwedge.simulate.department import Examination

COLUMNS = (
    "study", "time", "study_uid", "accession", "patient", "label", "shows", "scanner", "events", "changed_by",
    "age_years", "sex", "view", "file", "outcome",
)  # fmt: skip

# A node that is out of resources (0xA700) is asked again, and so is one that breaks off. The waits double.
_ATTEMPTS = 5
_ATTEMPTS_AT_FIRST = 3  # nothing says yet that the node is there at all
_FIRST_WAIT_SECONDS = 1.0
_REFUSED_IN_A_ROW = 5  # studies after which sending is given up: the node is gone, or takes none of them

Study = tuple[Examination, Callable[[], Dataset]]


# Takes one study, and gives what the truth says of it: ``file`` and ``outcome``.
Taker = Callable[[Examination, Dataset], Mapping[str, str]]


@contextmanager
def into_folder(folder: Path) -> Iterator[Taker]:
    """Write each study to ``folder``/studies. Raises StepwedgeError if there are files already."""
    place = folder / "studies"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StepwedgeError(f"{folder}: is not an empty folder; name another with --out")
    _make(place)

    def take(examination: Examination, dataset: Dataset) -> Mapping[str, str]:
        file = place / f"{examination.number:06}.dcm"
        _write(dataset, file)
        return {"file": file.relative_to(folder).as_posix(), "outcome": "written"}

    yield take


@contextmanager
def to_node(sink: ResultSink, *, wait: Callable[[float], None] = time.sleep) -> Iterator[Taker]:
    """Send each study over an association of its own, again after a wait where that fails.

    A study that is not stored in the end is noted as refused, with the reason. The first study of all, and several in
    a row, raise instead.

    Raises
    ------
    DeliveryError
        If the node cannot be reached or takes nothing.
    """
    stored, in_a_row = 0, 0
    with tempfile.TemporaryDirectory(prefix="stepwedge-simulate-") as name:
        file = Path(name) / "study.dcm"

        def take(_: Examination, dataset: Dataset) -> Mapping[str, str]:
            nonlocal stored, in_a_row
            _write(dataset, file)
            try:
                _send(sink, file, _ATTEMPTS if stored else _ATTEMPTS_AT_FIRST, wait)
            except DeliveryError as error:
                in_a_row += 1
                if not stored or in_a_row >= _REFUSED_IN_A_ROW:
                    raise
                return {"file": "", "outcome": f"refused: {error}"}
            stored, in_a_row = stored + 1, 0
            return {"file": "", "outcome": "stored"}

        yield take


def paced(studies: Iterable[Study], speed: float, *, wait: Callable[[float], None] = time.sleep) -> Iterator[Study]:
    """The studies as they come, the first at once; ``speed`` simulated seconds pass in one.

    Whoever takes a study may be slow: one that is due already comes at once.
    """
    began: datetime | None = None
    started = time.monotonic()
    for examination, make in studies:
        began = began or examination.taken
        due = (examination.taken - began).total_seconds() / speed
        late = due - (time.monotonic() - started)
        if late > 0 and math.isfinite(late):
            wait(late)
        yield examination, make


def run(
    studies: Iterable[Study], take: Taker, truth: Path | None, say: Callable[[int], None] = lambda _: None
) -> Counter[str]:
    """Hand every study over and write the truth as it goes; how many were written, stored and refused.

    Raises StepwedgeError if the truth cannot be written, and what ``take`` raises.
    """
    counts: Counter[str] = Counter()
    with _truth(truth) as note:
        for examination, make in studies:
            told = take(examination, make())
            note(examination, told)
            counts[told["outcome"].split(":")[0]] += 1
            say(counts.total())
    return counts


@contextmanager
def _truth(file: Path | None) -> Iterator[Callable[[Examination, Mapping[str, str]], None]]:
    if file is None:
        yield lambda _examination, _told: None
        return
    try:
        opened = file.open("x", newline="", encoding="utf-8")
    except FileExistsError:
        raise StepwedgeError(f"{file}: is there already; name another file with --truth") from None
    except OSError as error:
        raise StepwedgeError(f"{file}: the truth cannot be written: {error.strerror}") from None
    with opened:
        writer = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        writer.writeheader()

        def note(examination: Examination, told: Mapping[str, str]) -> None:
            writer.writerow({**_row(examination), **told})
            opened.flush()

        yield note


def _row(examination: Examination) -> dict[str, object]:
    return {
        "study": examination.number,
        "time": examination.taken.isoformat(),
        "study_uid": examination.study_uid,
        "accession": examination.accession,
        "patient": examination.patient,
        "label": examination.label,
        "shows": examination.shows,
        "scanner": examination.scanner.name,
        "events": " ".join(examination.in_force),
        "changed_by": " ".join(examination.changed_by),
        "age_years": f"{examination.age_years:.2f}",
        "sex": examination.sex,
        "view": examination.view,
    }


def _send(sink: ResultSink, file: Path, attempts: int, wait: Callable[[float], None]) -> None:
    for attempt in range(1, attempts + 1):
        try:
            sink.send([file])
        except DeliveryError:
            if attempt == attempts:
                raise
            wait(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        else:
            return


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise StepwedgeError(f"{folder}: the folder cannot be made: {error.strerror}") from None


def _write(dataset: Dataset, file: Path) -> None:
    try:
        dataset.save_as(file, enforce_file_format=True)
    except OSError as error:
        raise StepwedgeError(f"{file}: the study cannot be written: {error.strerror}") from None
