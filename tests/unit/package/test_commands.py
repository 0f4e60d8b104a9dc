"""`stepwedge package` from an ONNX file to a signed package and back, as somebody types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from graphs import write_model
from labelled import write_images, write_manifest
from stepwedge.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with a description and labelled images, and the package that was built from them."""
    folder = tmp_path_factory.mktemp("commands")
    write_model(folder / "in.onnx")
    write_manifest(folder / "model.yaml")
    write_images(folder / "data")
    assert main(build_arguments(folder, folder / "bright")) == 0
    return folder


def build_arguments(folder: Path, out: Path) -> list[str]:
    quick = ["--no-content-gate", "--no-tamper-check", "--heat-maps", "0"]
    data = ["--data", str(folder / "data"), "--labels", str(folder / "data" / "labels.csv")]
    return [
        "package",
        "build",
        str(folder / "in.onnx"),
        *data,
        *quick,
        "--out",
        str(out),
        "--key",
        str(folder / "key.pem"),
    ]


def test_a_draft_a_description_and_a_package(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = tmp_path / "draft.yaml"
    labels = folder / "data" / "labels.csv"
    assert main(["package", "init", str(folder / "in.onnx"), "--labels", str(labels), "--out", str(draft)]) == 0
    assert "To be filled in: description, licence" in capsys.readouterr().err
    assert yaml.safe_load(draft.read_text(encoding="utf-8"))["output"]["classes"][1:] == ["ill", "normal"]
    assert main([*build_arguments(folder, tmp_path / "out"), "--manifest", str(draft)]) == 2
    assert "not finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_built_package_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    public = folder / "key.pub"
    assert main(["package", "verify", str(folder / "bright"), "--json", "--trusted", str(public)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["valid"]
    assert found["signer"]
    assert found["golden_error"] < 2e-3
    assert main(["package", "verify", str(folder / "bright")]) == 0
    assert "signed by" in capsys.readouterr().out


def test_a_changed_byte_does_not_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder / "bright", copy], check=True)
    card = copy / "CARD.md"
    card.write_text(card.read_text(encoding="utf-8").replace("Illness", "Wellness") + " ", encoding="utf-8")
    assert main(["package", "verify", str(copy), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["valid"]
    assert "CARD.md is not the file that the package was built with" in found["error"]
    assert main(["package", "verify", str(copy)]) == 2
    assert "CARD.md" in capsys.readouterr().err


def test_a_package_by_somebody_else_can_be_signed_anew(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, key = tmp_path / "copy", tmp_path / "other.pem"
    subprocess.run(["cp", "-r", folder / "bright", copy], check=True)
    assert main(["package", "sign", str(copy), "--key", str(key)]) == 0
    assert "signed by" in capsys.readouterr().out
    assert main(["package", "verify", str(copy), "--trusted", str(key.with_suffix(".pub"))]) == 0
    assert main(["package", "verify", str(copy), "--trusted", str(folder / "key.pub")]) == 2


def test_an_altered_package_is_not_signed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder / "bright", copy], check=True)
    (copy / "model.yaml").write_text("schema: 1")
    assert main(["package", "sign", str(copy), "--key", str(tmp_path / "other.pem")]) == 2
    assert "model.yaml" in capsys.readouterr().err


def test_the_card_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", "card", str(folder / "bright")]) == 0
    assert capsys.readouterr().out.startswith("# bright 1.0.0")


def test_a_package_is_measured_on_other_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_images(tmp_path / "data", patients=40, seed=7, folds=("test", "train"))
    arguments = [
        "package",
        "evaluate",
        str(folder / "bright"),
        "--data",
        str(tmp_path / "data"),
        "--labels",
        str(labels),
    ]
    assert main([*arguments, "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--json", "--fold", "test"]) == 0
    test = json.loads(capsys.readouterr().out)
    assert everything["images"] > test["images"]
    assert everything["findings"]["ill"]["auroc"]["value"] > 0.9
    assert main(arguments) == 0
    assert "AUROC" in capsys.readouterr().out


def test_a_false_rejection_rate_is_a_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*build_arguments(folder, folder / "no"), "--false-rejection", "1.5"])
    assert "wanted a share between 0 and 0.5" in capsys.readouterr().err


def test_a_terminated_build_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stepwedge", *build_arguments(folder, tmp_path / "out")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, text=True
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "calibrate fold" in line:
                assert list(tmp_path.iterdir())
                run.send_signal(signal.SIGTERM)
                break
        said = run.stderr.read()
        status = run.wait()
    assert status == 130
    assert "interrupted; nothing was written" in said
    assert list(tmp_path.iterdir()) == []
