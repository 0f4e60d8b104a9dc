"""The reference set through the real service: constant, moved by one change at a time, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper
from packages import seal, write_policy
from referenced import BRIGHTNESSES, write_referenced, write_studies
from stepwedge.errors import StepwedgeError
from stepwedge.manifest import GOLDEN, load_package
from stepwedge.observation import ConstancyRun

from service import Service, settings_for, until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    package = write_referenced(tmp_path / "package", write_studies(tmp_path / "studies"))
    policy = write_policy(tmp_path / "policy.yaml")
    values = settings_for(package, policy, [], data_dir=str(tmp_path / "data"), node={"allowed_callers": ["MODALITY"]})
    running = Service(tmp_path / "service", values)
    running.start()
    yield running
    running.stop()


def test_a_run_is_constant_and_leaves_nothing_but_its_row(service: Service) -> None:
    answer = _run(service, status=0)
    assert (answer["verdict"], answer["stage"]) == ("constant", "")
    assert answer["answered"] == answer["studies"] == len(BRIGHTNESSES)
    assert answer["provider"] == "CPUExecutionProvider"
    assert max(answer["differences"].values()) <= 1
    assert set(answer["differences"]) == {
        "decode", "gate", "preprocessing", "scores", "calibration", "thresholds", "report"
    }  # fmt: skip
    data = service.settings.data_dir
    with service.store() as store:
        assert not store.observations()
        assert not store.studies()
        assert not store.units()
        assert not store.deliveries()
    assert not list((data / "spool" / "studies").glob("*/*"))
    assert not list((data / "results").glob("*/*"))
    assert not list((data / "constancy" / "studies").iterdir())
    assert [run.run for run in _rows(service)] == [answer["run"]]
    page = service.get("/metrics")
    assert "stepwedge_units_total{" not in page
    assert "stepwedge_studies_completed_total{" not in page


def test_a_service_makes_a_run_by_itself_once_it_is_ready(service: Service, tmp_path: Path) -> None:
    service.stop()
    values = yaml.safe_load(service.file.read_text())
    again = Service(tmp_path / "again", values | {"constancy": {"enabled": True}})
    again.start()
    try:
        until(lambda: _rows(again), "a run is kept", again)
        assert [run.verdict for run in _rows(again)] == ["constant"]
    finally:
        assert again.stop() == 0


def test_changed_costs_move_the_thresholds_until_a_person_accepts_them(service: Service, tmp_path: Path) -> None:
    assert _run(service, status=0)["verdict"] == "constant"
    service.stop()
    write_policy(tmp_path / "policy.yaml", miss=4)
    service.start()
    moved = _run(service, status=1)
    assert (moved["verdict"], moved["stage"]) == ("moved", "thresholds")
    assert _moved(moved) == {"thresholds"}
    assert _run(service, "--accept", status=0)["verdict"] == "constant"
    assert _run(service, status=0)["verdict"] == "constant"


def test_another_kernel_moves_preprocessing_first(service: Service, tmp_path: Path) -> None:
    service.stop()
    manifest = tmp_path / "package" / "model.yaml"
    contents = yaml.safe_load(manifest.read_text())
    contents["input"]["resampling"] = "lanczos"
    manifest.write_text(yaml.safe_dump(contents))
    seal(tmp_path / "package")
    service.start()
    moved = _run(service, status=1)
    assert moved["stage"] == "preprocessing"
    assert moved["differences"]["decode"] == 0


def test_another_arithmetic_moves_the_scores_and_nothing_before_them(service: Service, tmp_path: Path) -> None:
    """A stand-in for another driver or library: the same graph with slightly another slope, and golden cases to fit."""
    service.stop()
    package = tmp_path / "package"
    _steepen(package, 1.02)
    service.start()
    moved = _run(service, status=1)
    assert moved["stage"] == "scores"
    assert {"decode", "gate", "preprocessing", "thresholds"}.isdisjoint(_moved(moved))


def test_studies_that_do_not_end_in_time_make_a_run_incomplete_and_are_cleared_by_the_next(service: Service) -> None:
    arguments = {"STEPWEDGE_CONSTANCY__TIMEOUT_SECONDS": "0"}
    assert _run(service, status=1, **arguments)["verdict"] == "incomplete"
    assert _run(service, status=0)["verdict"] == "constant"
    with service.store() as store:
        assert not store.observations()
        assert [run.verdict for run in _rows(service)] == ["incomplete", "constant"]
        assert not [unit for unit in store.units() if unit.ended_at is None]


def test_a_package_that_the_service_has_not_loaded_is_said_and_nothing_is_left(
    service: Service, tmp_path: Path
) -> None:
    _steepen(tmp_path / "package", 1.02)
    found = _command(service)
    assert found.returncode == 2
    assert "`stepwedge reload` makes it load them" in found.stderr
    with service.store() as store:
        assert not store.studies()
    assert not list((service.settings.data_dir / "constancy" / "studies").iterdir())


def test_a_service_that_does_not_run_is_said(service: Service) -> None:
    service.stop()
    for role in ("listen", "work"):
        (service.settings.data_dir / "run" / f"{role}.json").unlink(missing_ok=True)
    found = _command(service)
    assert found.returncode == 2
    assert "no stepwedge listen is running" in found.stderr


def _run(service: Service, *arguments: str, status: int, **environment: str) -> dict[str, Any]:
    found = _command(service, *arguments, **environment)
    assert found.returncode == status, found.stdout + found.stderr + service.log()[-3000:]
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer


def _command(service: Service, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stepwedge", "constancy", "--json", *arguments, "--config", str(service.file)],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def _moved(answer: dict[str, Any]) -> set[str]:
    return {stage for stage, value in answer["differences"].items() if value > 1}


def _rows(service: Service) -> list[ConstancyRun]:
    with service.store() as store:
        return [ConstancyRun.from_json(text) for text in store.constancy()]


def _steepen(package: Path, factor: float) -> None:
    """Another slope in the graph, and the golden cases that go with it."""
    model = onnx.load(package / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "slope":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), "slope"))
    onnx.save(model, package / "model.onnx")
    with np.load(package / GOLDEN) as arrays:
        golden = dict(arrays)
    golden["output.logits"] = golden["output.logits"] * np.float32(factor)
    np.savez(package / GOLDEN, **golden)
    seal(package)
    try:
        load_package(package)
    except StepwedgeError as error:  # pragma: no cover - a fault of the test
        raise AssertionError(str(error)) from None
