"""Work begins where there is room for its bytes and its files, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_volumes import small_volume
from prometheus_client import REGISTRY
from stepwedge import metrics, room
from stepwedge.room import Room


def held() -> float | None:
    return REGISTRY.get_sample_value("stepwedge_work_held", {"role": "work"})


def test_a_volume_without_bytes_has_no_room_until_they_are_given_back(tmp_path: Path) -> None:
    with small_volume(tmp_path / "volume", megabytes=64) as volume:
        here = Room(volume.folder)
        assert here.look()
        volume.fill()
        assert not here.look()
        assert held() == 1
        volume.make_room()
        assert here.look()
        assert held() == 0


def test_a_volume_that_takes_no_more_files_has_no_room(tmp_path: Path) -> None:
    with small_volume(tmp_path / "volume", megabytes=64, files=room._ENOUGH_FILES + 10) as volume:
        here = Room(volume.folder)
        assert here.look()
        for number in range(20):
            (volume.folder / str(number)).touch()
        assert not here.look()


def test_a_volume_that_does_not_count_its_files_has_room(tmp_path: Path) -> None:
    with small_volume(tmp_path / "volume", megabytes=64, files=0) as volume:
        assert Room(volume.folder).look()


def test_a_volume_that_does_not_answer_has_no_room(tmp_path: Path) -> None:
    assert not Room(tmp_path / "away").look()


def test_what_a_worker_that_died_said_last_is_said_anew_by_the_next(tmp_path: Path) -> None:
    metrics.WORK_HELD.labels("work").set(1)
    assert Room(tmp_path).look()
    assert held() == 0


def test_nobody_is_held_by_a_worker_that_is_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ENOUGH_BYTES", 1 << 62)
    here = Room(tmp_path)
    here.close()
    here.wait()
