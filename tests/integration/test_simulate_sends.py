"""`stepwedge simulate` against a real Storage SCP, and as a program."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation

SMALL = ("--size", "256")


@dataclass
class Node:
    """A Storage SCP that keeps what it gets, and may answer other than success first."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    associations: int = 0
    calling: set[str] = field(default_factory=set)

    def store(self, event: evt.Event) -> int:
        status = self.answers.pop(0) if self.answers else 0x0000
        if status == 0x0000:
            self.stored.append(str(event.dataset.StudyInstanceUID))
        return status

    def accepted(self, event: evt.Event) -> None:
        self.associations += 1
        self.calling.add(event.assoc.requestor.ae_title)


@contextmanager
def listening(*answers: int, called: str = "NODE") -> Iterator[Node]:
    node = Node(answers=list(answers))
    application = AE(ae_title=called)
    application.require_called_aet = True
    application.add_supported_context(DigitalXRayImageStorageForPresentation)
    handlers = [(evt.EVT_C_STORE, node.store), (evt.EVT_ACCEPTED, node.accepted)]
    server = application.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    node.port = int(server.socket.getsockname()[1])
    try:
        yield node
    finally:
        server.shutdown()


def simulate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stepwedge", "simulate", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def truth_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_each_study_is_sent_over_an_association_of_its_own_and_the_truth_names_them(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    with listening() as node:
        done = simulate("--send", f"127.0.0.1:{node.port}", "--called", "NODE", "--calling", "WARD", "--studies", 3,
                        "--no-wait", "--truth", truth, *SMALL)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "3 stored\n"), done.stderr
    assert (node.associations, node.calling) == (3, {"WARD"})
    assert node.stored == [row["study_uid"] for row in truth_of(truth)]


def test_a_node_that_is_out_of_resources_is_asked_again(tmp_path: Path) -> None:
    with listening(0xA700) as node:
        done = simulate("--send", f"127.0.0.1:{node.port}", "--called", "NODE", "--studies", 1, "--no-wait", *SMALL)
    assert (done.returncode, done.stdout) == (0, "1 stored\n"), done.stderr
    assert len(node.stored) == 1


def test_a_node_under_another_name_ends_it_with_its_reason() -> None:
    with listening(called="OTHER") as node:
        done = simulate("--send", f"127.0.0.1:{node.port}", "--called", "NODE", "--studies", 1, "--no-wait", *SMALL)
    assert done.returncode == 2
    assert "refused the association" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--send", "127.0.0.1"), "wanted HOST:PORT"),
        (("--send", "127.0.0.1:99999"), "port"),
        (("--send", "127.0.0.1:104", "--called", "FAR TOO LONG A TITLE"), "ae_title"),
        (("--out", "out", "--event", "earthquake@1"), "no event is called"),
        (("--out", "out", "--event", "tamper@9"), "there are only 1 studies"),
        (("--out", "out", "--model", "nowhere"), "cannot be read as simulated patients"),
        (("--out", "out", "--speed", "0"), "--speed 0"),
        (("--out", "/dev/null/out"), "cannot be made"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = simulate(*arguments, "--studies", 1, *SMALL)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_them_is_the_same_when_it_is_made_again(tmp_path: Path) -> None:
    for name in ("first", "second"):
        done = simulate("--out", tmp_path / name, "--studies", 2, "--event", "tamper@2:1", *SMALL)
        assert (done.returncode, done.stdout) == (0, "2 written\n"), done.stderr
    first, second = ({f.name: f.read_bytes() for f in (tmp_path / n).rglob("*.*")} for n in ("first", "second"))
    assert sorted(first) == ["000001.dcm", "000002.dcm", "truth.csv"]
    assert first == second


def test_the_help_names_every_event() -> None:
    done = simulate("--help")
    assert done.returncode == 0
    for name in ("scanner-change-hidden", "scanner-stop", "brightness", "concept", "population", "tamper"):
        assert f"  {name}" in done.stdout
