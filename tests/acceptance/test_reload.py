"""A running service takes another package under load: nothing is lost, doubled or refused; a bad one is left out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packages import write_package, write_policy
from peers import dcmtk
from radiographs import write_radiograph
from stepwedge.manifest import load_package
from stepwedge.records import State

from service import PATIENCE_SECONDS, Service, settings_for, until

FURTHER = 4  # studies sent once the new package is loaded


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    write_package(tmp_path / "one", version="1.0.0")
    write_package(tmp_path / "two", version="1.1.0")
    (tmp_path / "live").symlink_to(tmp_path / "one")
    policy = write_policy(tmp_path / "policy.yaml")
    values = settings_for(tmp_path / "live", policy, [], data_dir=str(tmp_path / "data"))
    running = Service(tmp_path / "service", values)
    running.start()
    yield running
    assert running.stop() == 0


def test_studies_that_arrive_meanwhile_are_all_answered_once(service: Service, tmp_path: Path) -> None:
    sent_files: list[Path] = []
    failures: list[str] = []
    loaded = threading.Event()

    def send() -> None:
        """From before the reload until some time after it."""
        after = 0
        while after < FURTHER:
            after += loaded.is_set()
            file = write_radiograph(tmp_path / f"{len(sent_files):04}.dcm", 0.2 + 0.02 * (len(sent_files) % 30))
            sent_files.append(file)
            sent = subprocess.run(
                [dcmtk("storescu"), "-aec", "STEPWEDGE", "127.0.0.1", str(service.settings.node.port), str(file)],
                capture_output=True, text=True, timeout=PATIENCE_SECONDS,
            )  # fmt: skip
            if sent.returncode:
                failures.append(sent.stderr)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        until(lambda: _ended(service) >= 2, "the first studies are answered", service)
        _turn(tmp_path, "two")
        answer = json.loads(_reload(service, "--json").stdout)
    finally:
        loaded.set()
    sender.join(PATIENCE_SECONDS)
    assert not sender.is_alive()
    assert failures == []
    assert (answer["outcome"], answer["models"][0]["version"]) == ("done", "1.1.0")
    studies = len(sent_files)
    until(lambda: _ended(service) == studies, "every study is answered", service)
    with service.store() as store:
        answered = [unit for unit in store.units() if unit.state is not State.SUPERSEDED]
        assert len({unit.study for unit in answered}) == len(answered) == studies
        rows = [json.loads(body) for _, body in store.observations()]
    versions = [row["model_version"] for row in rows if row["state"] != "superseded"]
    assert set(versions) == {"1.0.0", "1.1.0"}
    assert (
        sum('stepwedge_reloads_total{outcome="done"} 1.0' in line for line in service.get("/metrics").splitlines()) == 1
    )


def test_a_package_that_does_not_verify_changes_nothing(service: Service, tmp_path: Path) -> None:
    with (tmp_path / "two" / "model.onnx").open("ab") as out:
        out.write(b"\0")
    _turn(tmp_path, "two")
    found = _reload(service)
    assert found.returncode == 2
    assert "model.onnx" in found.stderr
    # The signal alone verifies just the same.
    assert service.process is not None
    before = {role: service.pid(role) for role in ("listen", "work", "infer")}
    os.kill(service.process.pid, signal.SIGHUP)
    until(lambda: service.events("reload"), "the service says what became of it", service)
    assert service.events("reload")[-1]["outcome"] == "refused"
    assert {role: service.pid(role) for role in before} == before
    assert _answered_by(service, tmp_path) == load_package(tmp_path / "one").digest


def test_the_signal_alone_loads_what_the_link_names(service: Service, tmp_path: Path) -> None:
    _turn(tmp_path, "two")
    assert service.process is not None
    os.kill(service.process.pid, signal.SIGHUP)
    until(lambda: service.events("reload"), "the service says what became of it", service)
    assert service.events("reload")[-1]["outcome"] == "done"
    assert _answered_by(service, tmp_path) == load_package(tmp_path / "two").digest


def test_a_clinical_model_does_not_become_a_demonstration_by_itself(service: Service, tmp_path: Path) -> None:
    """What the service says of itself is written by hand here: no policy of the tests is approved."""
    said = service.settings.data_dir / "run" / "said.serve.json"
    state = json.loads(said.read_text())
    state["models"][0]["demonstration"] = False
    said.write_text(json.dumps(state))
    found = _reload(service)
    assert found.returncode == 2
    assert "clinical use" in found.stderr
    assert _reload(service, "--allow-demonstration").returncode == 0


def test_no_service_no_reload(service: Service) -> None:
    assert service.stop() == 0
    found = _reload(service)
    assert found.returncode == 2
    assert "no stepwedge serve is running" in found.stderr


def _reload(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stepwedge", "reload", *arguments, "--config", str(service.file)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def _turn(folder: Path, name: str) -> None:
    beside = folder / "turning"
    beside.symlink_to(folder / name)
    beside.replace(folder / "live")


def _ended(service: Service) -> int:
    with service.store() as store:
        return sum(unit.state in {State.REPORTED, State.DEFERRED, State.REJECTED} for unit in store.units())


def _answered_by(service: Service, tmp_path: Path) -> Any:
    """The digest of the package that answers for a study sent now."""
    before = _ended(service)
    file = write_radiograph(tmp_path / "now.dcm", 0.7)
    subprocess.run(
        [dcmtk("storescu"), "-aec", "STEPWEDGE", "127.0.0.1", str(service.settings.node.port), str(file)],
        check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    until(lambda: _ended(service) > before, "the study is answered", service)
    with service.store() as store:
        return json.loads(store.observations()[-1][1])["model_digest"]
