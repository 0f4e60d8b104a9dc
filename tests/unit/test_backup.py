"""A node's data in one file, and again from it: whole, verified, and never over another node's."""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from stepwedge import backup
from stepwedge.backup import back_up, restore
from stepwedge.errors import StepwedgeError
from stepwedge.identity import load_site
from stepwedge.settings import Settings
from stepwedge.store import Store


@pytest.fixture
def node(tmp_path: Path) -> Settings:
    """A data folder with an identity, a database in use, a queue and files."""
    settings = Settings(data_dir=tmp_path / "data")
    load_site(settings.data_dir)
    with closing(Store.open_file(settings.database_file)) as store:
        store.add_label("l1", "s1", "{}")
    with closing(sqlite3.connect(settings.queue_file)) as db:
        db.execute("create table waiting (id integer)")
    for name in ("spool/studies/ab/abc/one.dcm", "results/u1/report.dcm", "watch/requests/newest.json", "run/x.json"):
        file = settings.data_dir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return settings


@pytest.fixture(autouse=True)
def unheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process ends after the tests only, and so would its hold on the folder."""
    monkeypatch.setattr(backup, "hold", lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_comes_back_and_nothing_of_the_moment_does(node: Settings, tmp_path: Path) -> None:
    # As while the service runs: the last rows are in the write-ahead log.
    with closing(Store.open_file(node.database_file)) as store:
        store.add_label("l2", "s1", "{}")
        saved = back_up(node, tmp_path / "one.tar")
    assert (tmp_path / "one.tar").stat().st_mode & 0o777 == 0o600
    again = Settings(data_dir=tmp_path / "again")
    assert restore(again, tmp_path / "one.tar") == saved
    before, after = contents(node.data_dir), contents(again.data_dir)
    same = {"keys/site.json", "spool/studies/ab/abc/one.dcm", "results/u1/report.dcm", "watch/requests/newest.json"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after.keys() == same | {"db/stepwedge.sqlite", "db/queue.sqlite"}
    with closing(sqlite3.connect(again.database_file)) as db:
        assert [row[0] for row in db.execute("select label from labels order by label")] == ["l1", "l2"]
    assert saved.files == len(after)
    assert load_site(again.data_dir) == load_site(node.data_dir)
    assert not list((node.data_dir / "run").glob("backup-*"))


def test_no_backup_is_written_over_another_or_of_no_node(node: Settings, tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_text("kept")
    with pytest.raises(StepwedgeError, match="is there already"):
        back_up(node, tmp_path / "one.tar")
    assert (tmp_path / "one.tar").read_text() == "kept"
    with pytest.raises(StepwedgeError, match="no node here"):
        back_up(Settings(data_dir=tmp_path / "nowhere"), tmp_path / "two.tar")
    with pytest.raises(StepwedgeError, match="cannot be written"):
        back_up(node, tmp_path / "no" / "folder.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one.tar"]


def test_a_folder_that_is_not_empty_is_left_alone(node: Settings, tmp_path: Path) -> None:
    back_up(node, tmp_path / "one.tar")
    before = contents(node.data_dir)
    with pytest.raises(StepwedgeError, match="is not empty"):
        restore(node, tmp_path / "one.tar")
    assert contents(node.data_dir) == before


@pytest.mark.parametrize("damage", ["flipped", "cut", "another", "lacking", "later"])
def test_a_damaged_backup_puts_nothing_in_place(node: Settings, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "one.tar"
    back_up(node, file)
    data = file.read_bytes()
    if damage == "flipped":
        at = data.index(b"spool/studies/ab/abc/one.dcm", data.index(b"spool/studies/ab/abc/one.dcm") + 1)
        file.write_bytes(data[:at] + b"X" + data[at + 1 :])
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "another":
        file.write_bytes(b"no tar file")
    elif damage == "later":
        file.write_bytes(data.replace(b'{"format": 1', b'{"format": 2'))
    else:
        with tarfile.open(file) as old, tarfile.open(tmp_path / "two.tar", "w") as new:
            for entry in old:
                if entry.name != "results/u1/report.dcm":
                    new.addfile(entry, old.extractfile(entry))
        (tmp_path / "two.tar").replace(file)
    again = Settings(data_dir=tmp_path / "again")
    with pytest.raises(StepwedgeError):
        restore(again, file)
    assert contents(again.data_dir) == {}


def test_a_backup_cannot_write_outside_the_folder(node: Settings, tmp_path: Path) -> None:
    inside = tmp_path / "evil"
    inside.write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(inside, arcname="../outside")
    with pytest.raises(StepwedgeError, match="cannot be restored"):
        restore(Settings(data_dir=tmp_path / "again"), tmp_path / "evil.tar")
    assert not (tmp_path / "outside").exists()
    assert not list((tmp_path / "again").iterdir())
