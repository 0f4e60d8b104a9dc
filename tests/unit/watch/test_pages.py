"""Evidently's pages: when they are drawn, and that a failure is counted and forgotten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packages import write_package
from stepwatch import metrics, pages
from stepwatch.pages import ALARM, ORIGINAL, SCHEDULED, Pages
from stepwatch.settings import Settings, Snapshot

ROW = SimpleNamespace(model_digest="d", to_json=lambda: "{}")
OTHER = SimpleNamespace(model_digest="e", to_json=lambda: "{}")


class KeptPages:
    """A database of rows, and of the pages that were noted (a stand-in)."""

    def __init__(self, rows: int) -> None:
        self.rows, self.read, self.noted = rows, 0, []
        self.own: int | None = None  # how many rows are of the model, of all
        self.events: list[dict[str, Any]] = []

    def last_observation(self) -> int:
        return self.rows

    def observations(self, after: int, limit: int) -> list[tuple[int, Any]]:
        self.read += 1
        places = range(after + 1, min(self.rows, after + limit) + 1)
        return [(i, ROW if self.own is None or i - after <= self.own else OTHER) for i in places]

    def request_events(self) -> list[dict[str, Any]]:
        return self.events

    def add_page(self, path: str, reason: str) -> int:
        self.noted.append((path, reason))
        return len(self.noted)


class WatchedModel:
    """A watch with given alarms (a stand-in)."""

    def __init__(self) -> None:
        self.alarms: tuple[dict[str, str], ...] = ()
        self.package = SimpleNamespace(name="chest", digest="d", baseline=Path("baseline.parquet"))

    def view(self) -> Any:
        return SimpleNamespace(alarms=self.alarms)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pages are written by a small program in place of Evidently; its exit status can be set."""
    told = {"status": 0}

    def start(_baseline: Path, _rows: Path, out: Path, *, timeout_seconds: float) -> subprocess.Popen[bytes]:
        assert timeout_seconds > 0
        text = f"import pathlib, sys; s = {told['status']}; s or pathlib.Path({str(out)!r}).touch(); sys.exit(s)"
        return subprocess.Popen([sys.executable, "-c", text])

    monkeypatch.setattr(pages, "start_page", start)
    return told


def write_baselined(folder: Path) -> Path:
    """A package's folder, as far as the monitor reads it."""
    write_package(folder)
    (folder / "baseline.parquet").touch()
    return folder


def keeper(folder: Path, rows: int, keep: int = 5) -> tuple[Pages, KeptPages]:
    kept = KeptPages(rows)
    settings = Settings(data_dir=folder, snapshot=Snapshot(keep=keep))
    return Pages(settings, kept), kept  # type: ignore[arg-type]


def finish(found: Pages, watch: WatchedModel) -> None:
    assert found._drawing is not None
    found._drawing.process.wait()
    found.look([watch])  # type: ignore[list-item]


def test_a_page_is_drawn_at_first_and_then_on_an_alarm(tmp_path: Path, drawn: dict[str, int]) -> None:
    found, kept = keeper(tmp_path, 200)
    watch = WatchedModel()
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert [reason for _, reason in kept.noted] == [SCHEDULED]
    found.look([watch])  # type: ignore[list-item]
    assert found._drawing is None
    watch.alarms = ({"alarm": "1"},)
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert [reason for _, reason in kept.noted] == [SCHEDULED, ALARM]
    found.look([watch])  # type: ignore[list-item]
    assert found._drawing is None
    assert not list(tmp_path.rglob("*.rows"))


def test_a_page_waits_for_studies_enough(tmp_path: Path, drawn: dict[str, int]) -> None:
    found, kept = keeper(tmp_path, 10)
    watch = WatchedModel()
    watch.alarms = ({"alarm": "1"},)
    found.look([watch])  # type: ignore[list-item]
    assert found._drawing is None
    kept.rows = 49
    found.look([watch])  # type: ignore[list-item]
    assert found._drawing is None
    assert kept.noted == []
    kept.rows = 50
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert [reason for _, reason in kept.noted] == [ALARM]


def test_too_few_studies_are_not_read_again_at_each_look(tmp_path: Path, drawn: dict[str, int]) -> None:
    found, kept = keeper(tmp_path, 10)
    watch = WatchedModel()
    for _ in range(5):
        found.look([watch])  # type: ignore[list-item]
        kept.rows += 1
    assert kept.read == 1


def test_a_table_that_begins_anew_is_looked_at_again(tmp_path: Path, drawn: dict[str, int]) -> None:
    found, kept = keeper(tmp_path, 5000)
    kept.own = 40
    watch = WatchedModel()
    found.look([watch])  # type: ignore[list-item]
    assert found._drawing is None
    kept.rows, kept.own = 200, None
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert [reason for _, reason in kept.noted] == [SCHEDULED]


def test_a_failure_is_counted(tmp_path: Path, drawn: dict[str, int]) -> None:
    drawn["status"] = 2
    found, kept = keeper(tmp_path, 200)
    watch = WatchedModel()
    before = metrics.PAGE_FAILURES._value.get()
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert metrics.PAGE_FAILURES._value.get() == before + 1
    assert kept.noted == []


def test_a_page_under_way_ends_with_the_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(pages, "start_page", lambda *_, **__: sleeping)
    found, _ = keeper(tmp_path, 200)
    found.look([WatchedModel()])  # type: ignore[list-item]
    found.stop()
    assert sleeping.poll() is not None


def test_after_a_promotion_there_is_a_page_beside_the_baseline_before_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_baselined(tmp_path / "releases" / "1.0.0" / "package")
    asked = []

    def start(baseline: Path, _rows: Path, out: Path, *, timeout_seconds: float) -> subprocess.Popen[bytes]:
        asked.append(baseline)
        return subprocess.Popen([sys.executable, "-c", f"import pathlib; pathlib.Path({str(out)!r}).touch()"])

    monkeypatch.setattr(pages, "start_page", start)
    found, kept = keeper(tmp_path / "data", 200)
    kept.events = [
        {"event": "promoting", "body": {"digest": "other", "from": str(tmp_path / "nowhere")}},
        {"event": "promoting", "body": {"digest": "d", "from": str(before.parent)}},
        {"event": "promoted", "body": {"digest": "d"}},
    ]
    watch = WatchedModel()
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    finish(found, watch)
    assert asked == [Path("baseline.parquet"), before / "baseline.parquet"]
    assert [reason for _, reason in kept.noted] == [SCHEDULED, ORIGINAL]
    assert len({name for name, _ in kept.noted}) == 2


def test_a_package_that_was_replaced_and_is_gone_makes_no_page(tmp_path: Path, drawn: dict[str, int]) -> None:
    found, kept = keeper(tmp_path, 200)
    kept.events = [{"event": "promoting", "body": {"digest": "d", "from": str(tmp_path / "gone")}}]
    watch = WatchedModel()
    found.look([watch])  # type: ignore[list-item]
    finish(found, watch)
    assert found._drawing is None
    assert [reason for _, reason in kept.noted] == [SCHEDULED]
