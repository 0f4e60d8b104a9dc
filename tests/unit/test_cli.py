"""The command line: what is misused is said in one line, with the exit status that a script can act on."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packages import write_package, write_policy
from radiographs import BRIGHT, DARK, write_picture, write_radiograph
from stepwedge import __version__
from stepwedge.cli import UNUSABLE, main
from stepwedge.settings_reference import reference
from stepwedge.store import Store

COMMANDS = [
    *("serve", "listen", "work", "infer", "predict", "status", "retry", "index", "settings", "demo"),
    *("package", "policy", "simulate", "study"),
]


@pytest.fixture(autouse=True)
def _this_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands set the environment, the log and the umask of their process, which here is the tests'."""
    for name in list(os.environ):
        if name.startswith("STEPWEDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("STEPWEDGE_CONFIG", "")
    monkeypatch.setattr("stepwedge.logs.configure", lambda *_: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with no policy beside it."""
    return write_package(tmp_path_factory.mktemp("alone") / "tiny")


@pytest.fixture
def own_package(tmp_path: Path) -> Path:
    """A package to alter, in a folder of its own."""
    return write_package(tmp_path / "packages" / "tiny")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "stepwedge.yaml"
    file.write_text(yaml.safe_dump({"data_dir": "data"}))
    return file


def run(*arguments: object) -> int:
    """The exit status, whether it is returned or raised as argparse does."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that cannot be done says on standard error."""
    assert run(*arguments) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(command, "--help") == 0
        assert f"usage: stepwedge {command}" in capsys.readouterr().out

    def test_all_commands_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--help") == 0
        listed = capsys.readouterr().out
        for command in COMMANDS:
            assert f"\n    {command} " in listed

    def test_the_version_is_the_packages(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--version") == 0
        assert capsys.readouterr().out.strip() == __version__

    @pytest.mark.parametrize("arguments", [[], ["dance"], ["predict"], ["index"], ["index", "burn"], ["status", "x"]])
    def test_what_is_no_command_shows_the_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert "usage: stepwedge" in refusal(capsys, *arguments)

    def test_it_starts_as_a_program_and_as_a_module(self) -> None:
        for command in ([str(Path(sys.executable).with_name("stepwedge"))], [sys.executable, "-m", "stepwedge"]):
            result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
            assert result.stdout.strip() == __version__


class TestPredict:
    def test_it_answers_one_json_object_a_line_in_order(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_radiograph(tmp_path / "images" / "a.dcm", BRIGHT)
        write_picture(tmp_path / "images" / "b.png", DARK)
        (tmp_path / "images" / "c.dcm").write_text("rubbish")
        assert run("predict", tmp_path / "images", "--package", package, "--json", "--device", "cpu") == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [Path(answer["path"]).name for answer in answers] == ["a.dcm", "b.png", "c.dcm"]
        assert [answer["state"] for answer in answers] == ["reported", "reported", "rejected"]

    def test_without_a_policy_nothing_is_decided(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        assert run("predict", file, "--package", package, "--json", "--device", "cpu") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["policy"] is None
        assert answer["findings"][0]["decision"] == "none"

    def test_the_policy_beside_the_package_is_found(
        self, own_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_policy(own_package.parent / "policy.yaml")
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        monkeypatch.chdir(own_package)  # and from inside the package's folder, too
        for given in (own_package, "."):
            assert run("predict", file, "--package", given, "--json", "--device", "cpu") == 0
            answer = json.loads(capsys.readouterr().out)
            assert answer["policy"]["name"] == "test"
            assert answer["findings"][0]["decision"] == "act"

    def test_a_policy_that_is_named_goes_before_the_one_beside(
        self, own_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (own_package.parent / "policy.yaml").write_text("not even a policy")
        named = write_policy(tmp_path / "other.yaml", deferral=0.9, miss=1, false_alarm=1000)
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        assert run("predict", file, "--package", own_package, "--policy", named, "--json", "--device", "cpu") == 0
        assert json.loads(capsys.readouterr().out)["findings"][0]["decision"] == "defer"

    def test_for_people_it_is_a_line_an_image(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        assert run("predict", file, "--package", package, "--device", "cpu") == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"{file}  reported  ill 0.99")

    def test_a_package_that_is_not_there_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = refusal(capsys, "predict", tmp_path, "--package", tmp_path / "nowhere")
        assert said.startswith(f"stepwedge: {tmp_path / 'nowhere'}: no model package here (model.yaml is missing)")
        assert len(said.splitlines()) == 1

    def test_an_altered_package_is_refused_and_the_file_named(
        self, own_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (own_package / "model.onnx").open("ab") as file:
            file.write(b"\0")
        said = refusal(capsys, "predict", tmp_path, "--package", own_package)
        assert "model.onnx is not the file that the package was built with" in said

    def test_a_policy_for_another_model_is_refused(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy = write_policy(tmp_path / "policy.yaml", model="large")
        said = refusal(capsys, "predict", tmp_path, "--package", package, "--policy", policy, "--device", "cpu")
        assert "this policy is for the model large, not for tiny" in said

    def test_a_policy_that_is_not_there_is_refused(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy = tmp_path / "nowhere.yaml"
        said = refusal(capsys, "predict", tmp_path, "--package", package, "--policy", policy, "--device", "cpu")
        assert f"{policy}: the site policy cannot be read" in said

    def test_a_path_that_is_not_there_is_refused_before_any_answer(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        there = write_radiograph(tmp_path / "a.dcm", BRIGHT)
        said = refusal(capsys, "predict", there, tmp_path / "gone", "--package", package, "--device", "cpu")
        assert said == f"stepwedge: {tmp_path / 'gone'}: no such file or folder\n"

    def test_a_name_that_is_no_text_is_answered_for(
        self, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = write_radiograph(tmp_path / "gr\udce4uel.dcm", BRIGHT)
        program = [sys.executable, "-m", "stepwedge", "predict", file, "--package", package, "--device", "cpu"]
        for extra in ([], ["--json"]):
            result = subprocess.run([*program, *extra], capture_output=True, check=False)
            assert result.returncode == 0, result.stderr
            assert result.stdout.count(b"\n") == 1

    def test_a_reader_that_leaves_early_is_no_error(self, package: Path, tmp_path: Path) -> None:
        for index in range(300):
            (tmp_path / "images" / f"{index}.dcm").parent.mkdir(exist_ok=True)
            (tmp_path / "images" / f"{index}.dcm").write_text("rubbish")
        program = [sys.executable, "-m", "stepwedge", "predict", "images", "--package", package, "--json"]
        with subprocess.Popen(
            [*program, "--device", "cpu"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"{")
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 0


class TestSettings:
    def test_it_prints_the_reference(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("settings") == 0
        assert capsys.readouterr().out == reference()

    def test_a_good_file_is_said_to_be_valid(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("settings", "--check", config) == 0
        assert capsys.readouterr().out == f"{config}: valid\n"

    def test_a_wrong_file_is_refused_with_each_wrong_field(
        self, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config.write_text("node: {port: often}\nspol: {}\n")
        said = refusal(capsys, "settings", "--check", config)
        assert f"{config}: node.port: " in said
        assert f"{config}: spol: " in said

    @pytest.mark.parametrize(
        "command",
        [["status"], ["retry", "--all"], ["index", "rebuild"], ["serve"], ["listen"], ["work"], ["infer"]],
        ids=lambda command: command[0],
    )
    def test_every_command_that_takes_settings_refuses_wrong_ones(
        self, command: list[str], config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config.write_text("node: {host: 0.0.0.0}\n")
        assert "node.allowed_callers" in refusal(capsys, *command, "--config", config)
        assert "cannot be read" in refusal(capsys, *command, "--config", config.with_name("gone.yaml"))

    @pytest.mark.parametrize("command", ["listen", "work"])
    def test_a_role_refuses_an_altered_package(
        self, command: str, config: Path, own_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        policy = write_policy(tmp_path / "policy.yaml")
        models = [{"package": str(own_package), "policy": str(policy)}]
        config.write_text(yaml.safe_dump({"data_dir": "data", "models": models}))
        with (own_package / "model.onnx").open("ab") as file:
            file.write(b"\0")
        result = subprocess.run(
            [sys.executable, "-m", "stepwedge", command, "--config", config],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == UNUSABLE
        assert result.stderr.startswith("stepwedge: ")
        assert "model.onnx is not the file that the package was built with" in result.stderr


class TestStatus:
    def test_a_new_node_has_no_studies(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Store.open_file(tmp_path / "data" / "db" / "stepwedge.sqlite").close()
        assert run("status", "--config", config) == 0
        assert capsys.readouterr().out == "no studies yet\n"

    def test_as_json_it_is_one_object(self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Store.open_file(tmp_path / "data" / "db" / "stepwedge.sqlite").close()
        assert run("status", "--json", "--config", config) == 0
        assert json.loads(capsys.readouterr().out) == {"studies": [], "quarantine": []}

    def test_where_no_service_has_run_it_says_so(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no database here" in refusal(capsys, "status", "--config", config)

    def test_a_database_of_another_schema_is_refused_with_what_to_do(
        self, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Store.open_file(tmp_path / "data" / "db" / "stepwedge.sqlite").close()
        with sqlite3.connect(tmp_path / "data" / "db" / "stepwedge.sqlite") as database:
            database.execute("update schema set version = 99, works_from = 99")
        database.close()
        assert "stepwedge index rebuild" in refusal(capsys, "status", "--config", config)


class TestRetry:
    def test_it_wants_to_know_which(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "name the units to retry" in refusal(capsys, "retry", "--config", config)

    def test_a_unit_that_nobody_knows_is_refused_by_name(
        self, config: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = refusal(capsys, "retry", "no-such-unit", "--config", config)
        assert "no-such-unit: no failed unit has this name; `stepwedge status` shows them" in said

    def test_with_nothing_failed_all_of_them_are_none(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("retry", "--all", "--config", config) == 0
        assert capsys.readouterr().out == "0 put back into the queue\n"


class TestRebuild:
    def test_it_says_what_it_found(self, config: Path) -> None:
        # In a process of its own: it holds the data folder until it ends.
        program = [sys.executable, "-m", "stepwedge", "index", "rebuild", "--config", str(config)]
        result = subprocess.run(program, capture_output=True, text=True, check=True)
        assert result.stdout == "rebuilt: 0 instances, 0 revisions, 0 results, 0 labels; there was no database\n"
