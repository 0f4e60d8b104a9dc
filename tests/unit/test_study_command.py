"""A study is found by its UID and by the node's name of it; nothing is made up for a node that is not there."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import yaml
from instances import make_instance, received
from spooled import Spooled, open_spool
from stepwedge.cli import main
from stepwedge.dicom.verified import reader_code
from stepwedge.page.sessions import name_of


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands set the environment, the log and the umask of their process, which here is the tests'."""
    monkeypatch.setenv("STEPWEDGE_CONFIG", "")
    monkeypatch.setattr("stepwedge.logs.configure", lambda *_: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)
    (tmp_path / "stepwedge.yaml").write_text(yaml.safe_dump({"data_dir": str(tmp_path / "data")}))
    monkeypatch.chdir(tmp_path)


def study(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, object]], str]:
    status = main(["study", "--config", "stepwedge.yaml", "--json", *words])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def a_study(node: Spooled) -> str:
    dataset = make_instance()
    node.spool.store(received(dataset))
    return str(dataset.StudyInstanceUID)


def test_a_uid_becomes_the_hash_and_the_hash_the_uid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_spool(tmp_path / "data") as node:
        uid = a_study(node)
        expected = {"study_uid": uid, "study": node.site.hash(uid), "received": 1}
        assert study(capsys, uid, node.site.hash(uid)) == (0, [expected, expected], "")
        # A study that is still to come has its name already.
        status, [row], _ = study(capsys, "1.2.3")
        assert (status, row["study"], row["received"]) == (0, node.site.hash("1.2.3"), 0)


def test_many_come_by_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_spool(tmp_path / "data") as node:
        uids = [a_study(node) for _ in range(3)]
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(node.site.hash(uid) for uid in uids) + "\n\n"))
        _, rows, _ = study(capsys, "-")
        assert [row["study_uid"] for row in rows] == uids
        assert main(["study", "--config", "stepwedge.yaml", uids[0]]) == 0
        assert capsys.readouterr().out == f"{uids[0]}  {node.site.hash(uids[0])}  1\n"


def test_a_hash_that_the_node_does_not_know_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_spool(tmp_path / "data") as node:
        uid = a_study(node)
        status, rows, said = study(capsys, "0" * 32, uid)
        assert status == 1
        assert [row["study_uid"] for row in rows] == [uid]
        assert "0" * 32 in said


@pytest.mark.parametrize("name", ["Doe^Jane", "1.2." + "3" * 70, "abc", "", "12"])
def test_what_is_neither_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_spool(tmp_path / "data"):
        assert study(capsys, name)[0] == 2


@pytest.mark.parametrize("words", [["1.2.3"], ["--reader", "Doe^Jane"], ["--person", "jane"]])
def test_where_there_is_no_node_none_is_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, said = study(capsys, *words)
    assert status == 2
    assert "has the service run" in said
    assert not (tmp_path / "data").exists()


def test_a_reader_has_the_code_that_labels_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_spool(tmp_path / "data") as node:
        _, [row], _ = study(capsys, "--reader", "Doe^Jane")
        assert row == {"name": "Doe^Jane", "reader": reader_code(node.site, "Doe^Jane")}


def test_who_signed_in_through_a_provider_has_the_name_that_actions_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_spool(tmp_path / "data") as node:
        before = name_of(node.site, "https://id.example|jane")
        assert study(capsys, "--person", "jane")[0] == 2
        for name, value in (
            ("PAGE__URL", "https://a.example"),
            ("PAGE__OIDC__ISSUER", "https://id.example/"),
            ("PAGE__OIDC__CLIENT_ID", "a"),
            ("PAGE__OIDC__ROLES", '{"it": "operator"}'),
        ):
            monkeypatch.setenv(f"STEPWEDGE_{name}", value)
        _, [row], _ = study(capsys, "--person", "jane")
        assert row == {"subject": "jane", "who": before}
