"""``stepwatch retrain``: what each step prints, and the status that it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from packages import write_package
from stepwatch.cli import main
from stepwedge.signing import ensure_key
from watched import make_service_tables


@pytest.fixture
def config(tmp_path: Path) -> Path:
    make_service_tables(tmp_path / "db.sqlite").dispose()
    ensure_key(tmp_path / "jane.pem")
    write_package(tmp_path / "one", version="1.0.0")
    write_package(tmp_path / "two", version="1.1.0")
    (tmp_path / "live").symlink_to(tmp_path / "one")
    file = tmp_path / "stepwatch.yaml"
    retrain = {"keys": ["jane.pub"], "live_link": str(tmp_path / "live"), "reload_command": ["true"]}
    retrain["keys"] = [str(tmp_path / "jane.pub")]
    values = {
        "database_url": f"sqlite:///{tmp_path / 'db.sqlite'}",
        "data_dir": str(tmp_path / "w"),
        "retrain": retrain,
    }
    file.write_text(yaml.safe_dump(values))
    return file


def said(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str, status: int = 0) -> str:
    assert main(["retrain", *arguments, "--config", str(config)]) == status
    shown = capsys.readouterr()
    return shown.out + shown.err


def opened(capsys: pytest.CaptureFixture[str], config: Path) -> tuple[str, list[str]]:
    key = ["--key", str(config.parent / "jane.pem")]
    said(capsys, config, "open", "--cause", "the ward was rebuilt", *key)
    [line] = said(capsys, config, "list", "--json").splitlines()
    return json.loads(line)["request"], key


def test_a_request_by_hand_is_listed_shown_and_declined(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert "no retraining requests" in said(capsys, config, "list")
    name, key = opened(capsys, config)
    assert "the ward was rebuilt" in said(capsys, config, "list")
    assert "open by jane, signed" in said(capsys, config, "show", name)
    assert f"{name}: declined: no budget" in said(capsys, config, "decline", name, "--because", "no budget", *key)
    assert json.loads(said(capsys, config, "show", name, "--json"))["state"] == "declined"
    assert "only a request that is" in said(capsys, config, "approve", name, *key, status=2)


def test_an_unknown_request_and_a_step_out_of_turn_are_said(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    name, key = opened(capsys, config)
    assert "there is no such retraining request" in said(capsys, config, "show", "20260101-nothing", status=2)
    assert "only a candidate can be validated" in said(capsys, config, "validate", name, *key, status=2)
    assert "has no candidate" in said(capsys, config, "promote", name, *key, status=2)
    assert "was never promoted" in said(capsys, config, "rollback", name, *key, status=2)
    assert "name what makes a candidate" in said(capsys, config, "run", name, *key, status=2)


def test_a_key_of_nobody_decides_nothing(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    name, _ = opened(capsys, config)
    ensure_key(config.parent / "mallory.pem")
    key = ["--key", str(config.parent / "mallory.pem")]
    assert "none of retrain.keys" in said(capsys, config, "approve", name, *key, status=2)
    assert "open" in said(capsys, config, "show", name)


@pytest.mark.parametrize("action", ["approve", "run", "validate", "promote", "decline", "rollback"])
def test_every_step_asks_for_a_key(capsys: pytest.CaptureFixture[str], config: Path, action: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["retrain", action, "x", "--config", str(config)])
    assert ended.value.code == 2
    assert "--key" in capsys.readouterr().err


def test_a_package_of_another_system_is_taken_only_for_a_run(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    name, key = opened(capsys, config)
    said(capsys, config, "approve", name, *key)
    folder = config.parent
    assert "no run of it is going on" in said(capsys, config, "take", name, str(folder / "two"), *key, status=2)
    assert "no package here" in said(capsys, config, "take", name, str(folder), *key, status=2)


def test_a_failed_run_ends_with_one_and_can_be_run_again(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["retrain"]["command"] = ["sh", "-c", "echo out of memory; exit 9"]
    config.write_text(yaml.safe_dump(values))
    name, key = opened(capsys, config)
    said(capsys, config, "approve", name, *key)
    for _ in range(2):
        assert "status 9: out of memory" in said(capsys, config, "run", name, *key, status=1)
    assert "failed by stepwatch: the program failed" in said(capsys, config, "show", name)


def test_a_job_is_printed_and_what_it_makes_is_taken(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    """The Job itself is stood in for: there is no cluster here."""
    values = yaml.safe_load(config.read_text())
    values["retrain"]["command"] = ["train"]
    config.write_text(yaml.safe_dump(values))
    name, key = opened(capsys, config)
    asked = ["job", name, "--image", "site/train:1", "--volume", "monitor"]
    assert "only a request that is" in said(capsys, config, *asked, *key, status=2)
    said(capsys, config, "approve", name, *key)
    job = json.loads(said(capsys, config, *asked, *key))
    assert job["metadata"]["name"] == f"stepwatch-retrain-{name}-run-1"
    folder = config.parent / "w" / "requests" / name / "run-1"
    assert json.loads((folder / "request.json").read_text())["approved_by"] == "jane"
    assert "another system was told" in said(capsys, config, *asked, *key, status=2)
    write_package(folder / "candidate", version="1.1.0")
    assert f"{name}: candidate" in said(capsys, config, "take", name, str(folder / "candidate"), *key)
