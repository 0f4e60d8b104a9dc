"""The site key is rotated while nothing runs, and whatever comes of a study that is held finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from instances import make_instance, received
from spooled import open_spool
from stepwedge.cli import main
from stepwedge.identity import load_site
from stepwedge.rundir import Heartbeat


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands set the environment, the log and the umask of their process, which here is the tests'."""
    monkeypatch.setenv("STEPWEDGE_CONFIG", "")
    monkeypatch.setattr("stepwedge.logs.configure", lambda *_: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)
    (tmp_path / "stepwedge.yaml").write_text(yaml.safe_dump({"data_dir": "data"}))
    monkeypatch.chdir(tmp_path)


def keys(*words: str) -> int:
    return main(["keys", *words, "--config", "stepwedge.yaml"])


def test_late_images_and_repeated_sends_of_a_study_find_it_after_a_rotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_instance()
    late = make_instance(study=first.StudyInstanceUID, series=first.SeriesInstanceUID, seed=1)
    with open_spool(tmp_path / "data") as node:
        old = node.spool.store(received(first))
    assert keys("rotate") == 0
    with open_spool(tmp_path / "data") as node:
        assert node.spool.store(received(first)) == type(old)(study=old.study, instance=old.instance, new=False)
        assert node.spool.store(received(late)).study == old.study
        other = make_instance()
        new = node.spool.store(received(other))
        assert new.study == node.site.hash(other.StudyInstanceUID)
        assert node.store.count_contents(old.study) == 2
        assert len(list((node.spool.root / "studies").glob("*/*"))) == 2
    capsys.readouterr()
    assert keys("list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["current"], row["studies"]) for row in rows] == [(True, 1), (False, 1)]
    assert main(["study", "--config", "stepwedge.yaml", first.StudyInstanceUID, old.study, new.study]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in shown] == [old.study, old.study, new.study]
    assert shown[1][0] == first.StudyInstanceUID
    # The index is made again from the files alone, with the same names.
    assert main(["index", "rebuild", "--config", "stepwedge.yaml"]) == 0
    with open_spool(tmp_path / "data") as node:
        assert {study.study for study in node.store.studies()} == {old.study, new.study}


@pytest.mark.parametrize("role", ["listen", "work", "page"])
def test_no_key_is_changed_under_a_role_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    before = load_site(tmp_path / "data")
    beat = Heartbeat(tmp_path / "data", role)
    beat.start()
    try:
        assert keys("rotate") == 2
        assert f"stepwedge {role} is using this data folder" in capsys.readouterr().err
    finally:
        beat.stop()
    assert load_site(tmp_path / "data") == before
    assert keys("rotate") == 0


def test_no_key_is_changed_while_a_backup_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_site(tmp_path / "data")
    (tmp_path / "data" / "run" / "backup-1").mkdir(parents=True)
    assert keys("rotate") == 2
    assert "a backup is being made" in capsys.readouterr().err


def test_where_there_is_no_node_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("rotate") == keys("list") == 2
    assert "there is no node here yet" in capsys.readouterr().err
    assert not (tmp_path / "data" / "keys").exists()


def test_keys_for_a_secret_are_made_and_rotated_into_a_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "secret.json"]) == 0
    assert main(["keys", "new", "secret.json"]) == 2
    (tmp_path / "stepwedge.yaml").write_text(yaml.safe_dump({"data_dir": "data", "site_key_file": "secret.json"}))
    assert keys("rotate", "--to", "new.json") == 0
    assert keys("rotate", "--to", "new.json") == 2
    assert "new.json: is there already" in capsys.readouterr().err
    assert (tmp_path / "new.json").stat().st_mode & 0o077 == 0
    old, new = load_site(tmp_path / "x", tmp_path / "secret.json"), load_site(tmp_path / "y", tmp_path / "new.json")
    assert (new.node, new.older) == (old.node, (old.key,))


def test_a_readers_codes_are_told_under_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_site(tmp_path / "data")
    read = ["study", "--config", "stepwedge.yaml", "--json", "--reader", "Invented^Reader"]
    assert main(read) == 0
    before = json.loads(capsys.readouterr().out)
    assert keys("rotate") == 0
    capsys.readouterr()
    assert main(read) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["older"] == [before["reader"]] != [after["reader"]]
