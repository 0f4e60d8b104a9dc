"""A full volume under a working service: nothing that was acknowledged is lost, and it goes on when there is room."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from full_volumes import Volume, small_volume
from packages import write_package, write_policy
from peers import Orthanc
from sender import make_study, send, send_once
from stepwedge.inference.client import ready

from service import Service, destination, settings_for, until

COUNT = 12
_FULL_SECONDS = 40.0  # longer than two looks for lost work


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with small_volume(tmp_path / "volume", megabytes=128) as mounted:
        yield mounted


@pytest.fixture
def values(orthanc: Orthanc, away: int, volume: Volume, tmp_path: Path) -> dict[str, Any]:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    to = [destination(orthanc.dicom_port), destination(away, name="away")]
    return settings_for(package, policy, to, data_dir=str(volume.folder / "data"), worker={"concurrency": 1})


def _counts(service: Service) -> dict[str, dict[str, int]]:
    with service.store() as store:
        return store.counts()


def test_work_that_meets_a_full_volume_waits_and_goes_on_by_itself(
    orthanc: Orthanc, values: dict[str, Any], away: int, volume: Volume, tmp_path: Path
) -> None:
    service = Service(tmp_path / "service", values)
    service.start()
    try:
        sent = [make_study(tmp_path / "studies", 700 + number) for number in range(COUNT)]
        for each in sent[:2]:
            send(service.settings.node.port, each.file)
        until(lambda: service.events("delivery_failed"), "deliveries wait for a destination that is away", service)
        for each in sent[2:]:
            send(service.settings.node.port, each.file)
        until(lambda: _counts(service)["units"].get("reported", 0) >= 3, "studies are under way", service)
        volume.fill()
        # The sender keeps what is refused.
        assert send_once(service.settings.node.port, make_study(tmp_path / "refused", 720).file) == 0xA700
        until(lambda: service.get("/readyz", "status") == 503, "it is not ready", service)
        folder = tmp_path / "away"
        folder.mkdir()
        with Orthanc.started(folder, dicom_port=away) as back:
            time.sleep(_FULL_SECONDS)
            assert not service.events("role_ended")
            assert service.events("no_room_to_work")
            assert 'stepwedge_work_held{role="work"} 1.0' in service.get("/metrics")
            assert "failed" not in _counts(service)["units"]
            # Roles that have to start again meanwhile: the server of models can, the worker once there is room.
            for role in ("infer", "work"):
                service.kill(role)
            until(lambda: len(service.events("role_started")) >= 5, "both are started again", service)
            until(lambda: ready(service.settings.inference.base_url), "models answer on a full volume", service)
            volume.make_room()
            until(lambda: _counts(service)["units"] == {"reported": COUNT}, "every study is reported", service)
            until(
                lambda: _counts(service)["deliveries"] == {"delivered": 2 * COUNT}, "every result is delivered", service
            )
            for pacs in (orthanc, back):
                assert [len(pacs.instances(each.study_uid)) for each in sent] == [2] * COUNT
        until(lambda: service.get("/readyz", "status") == 200, "it is ready again", service)
        assert 'stepwedge_work_held{role="work"} 0.0' in service.get("/metrics")
        # Killed by us, or ended for want of room; never by the kernel for what they had mapped (SIGBUS).
        assert {event["status"] for event in service.events("role_ended")} <= {-signal.SIGKILL, 1}
        with service.store() as store:
            assert len(store.observations()) == COUNT
    finally:
        assert service.stop() == 0


@pytest.mark.parametrize("to_volume", [True, False])
def test_a_backup_that_finds_no_room_says_so_and_leaves_nothing(
    values: dict[str, Any], volume: Volume, tmp_path: Path, to_volume: bool
) -> None:
    """No room where it is written to, or none for the copies of the databases beside them."""
    service = Service(tmp_path / "service", values)
    service.start()
    assert service.stop() == 0
    folder = volume.folder / "backups" if to_volume else tmp_path / "backups"
    folder.mkdir()
    volume.fill()
    command = [sys.executable, "-m", "stepwedge", "backup", str(folder / "node.tar"), "--config", str(service.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "node.tar: the backup cannot be written:" in done.stderr
    assert "full" in done.stderr or "No space" in done.stderr
    assert list(folder.iterdir()) == []
    volume.make_room()
    subprocess.run(command, check=True, capture_output=True)
    assert [file.name for file in folder.iterdir()] == ["node.tar"]
