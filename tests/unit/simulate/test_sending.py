"""Where studies go, and the truth that is kept about each."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pydicom
import pytest
from stepwedge.errors import DeliveryError, StepwedgeError
from stepwedge.simulate import Simulator, load_simulator
from stepwedge.simulate.department import Department, examinations, radiograph
from stepwedge.simulate.sending import Study, into_folder, paced, run, to_node

MODEL = Path(__file__).parents[3] / "models" / "chest-pneumonia"


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return load_simulator(MODEL / "simulated.npz")


def studies(simulator: Simulator, count: int) -> Iterator[Study]:
    department = Department(studies=count, rows=256)
    for child in examinations(department, simulator):
        yield child, partial(radiograph, child, department, simulator)


def truth_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


class Sink:
    """A node that answers as it is told to: None stores."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.taken: list[str] = []

    def send(self, files: list[Path]) -> None:
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise DeliveryError(answer)
        self.taken += [str(pydicom.dcmread(file).StudyInstanceUID) for file in files]


class TestAFolder:
    def test_it_holds_the_studies_and_the_truth_that_names_them(self, simulator: Simulator, tmp_path: Path) -> None:
        with into_folder(tmp_path / "out") as take:
            counts = run(studies(simulator, 3), take, tmp_path / "out" / "truth.csv")
        assert counts == {"written": 3}
        rows = truth_of(tmp_path / "out" / "truth.csv")
        assert [row["file"] for row in rows] == [f"studies/{number:06}.dcm" for number in (1, 2, 3)]
        for row in rows:
            dataset = pydicom.dcmread(tmp_path / "out" / row["file"])
            assert (dataset.StudyInstanceUID, dataset.PatientID, dataset.AccessionNumber) == (
                row["study_uid"],
                row["patient"],
                row["accession"],
            )

    def test_one_with_something_in_it_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(StepwedgeError, match="is not an empty folder"), into_folder(tmp_path):
            pass
        assert [file.name for file in tmp_path.iterdir()] == ["precious"]

    def test_a_truth_that_is_there_already_is_not_written_over(self, simulator: Simulator, tmp_path: Path) -> None:
        (tmp_path / "truth.csv").write_text("precious")
        with pytest.raises(StepwedgeError, match="is there already"), into_folder(tmp_path / "out") as take:
            run(studies(simulator, 1), take, tmp_path / "truth.csv")
        assert (tmp_path / "truth.csv").read_text() == "precious"


class TestANode:
    def test_a_study_that_is_refused_for_the_moment_is_sent_again_after_growing_waits(
        self, simulator: Simulator, tmp_path: Path
    ) -> None:
        sink, waits = Sink("answered 0xA700", "answered 0xA700"), []
        with to_node(sink, wait=waits.append) as take:
            counts = run(studies(simulator, 2), take, tmp_path / "truth.csv")
        rows = truth_of(tmp_path / "truth.csv")
        assert (counts, waits) == ({"stored": 2}, [1.0, 2.0])
        assert sink.taken == [row["study_uid"] for row in rows]

    def test_one_that_is_refused_to_the_end_is_noted_and_the_next_is_sent(
        self, simulator: Simulator, tmp_path: Path
    ) -> None:
        sink = Sink(None, *["answered 0xC000: cannot understand"] * 5)
        with to_node(sink, wait=lambda _: None) as take:
            counts = run(studies(simulator, 3), take, tmp_path / "truth.csv")
        assert counts == {"stored": 2, "refused": 1}
        outcomes = [row["outcome"] for row in truth_of(tmp_path / "truth.csv")]
        assert outcomes == ["stored", "refused: answered 0xC000: cannot understand", "stored"]

    def test_a_node_that_takes_not_even_the_first_ends_it(self, simulator: Simulator) -> None:
        with pytest.raises(DeliveryError, match="0x0122"), to_node(Sink(*["0x0122"] * 5), wait=lambda _: None) as take:
            run(studies(simulator, 2), take, None)

    def test_a_node_that_goes_away_ends_it_after_a_few_studies(self, simulator: Simulator, tmp_path: Path) -> None:
        sink = Sink(None, *["does not answer"] * 100)
        with pytest.raises(DeliveryError, match="does not answer"), to_node(sink, wait=lambda _: None) as take:
            run(studies(simulator, 50), take, tmp_path / "truth.csv")
        assert len(truth_of(tmp_path / "truth.csv")) == 5  # one stored, four noted; the fifth refusal ended it

    def test_studies_come_as_far_apart_as_they_were_taken_only_faster(self, simulator: Simulator) -> None:
        planned = list(studies(simulator, 4))
        waits: list[float] = []
        list(paced(planned, 60.0, wait=waits.append))
        due = [(child.taken - planned[0][0].taken).total_seconds() / 60 for child, _ in planned]
        assert waits == pytest.approx(due[1:], abs=0.5)  # this clock stands still: each waits from the start
