"""One service holds the data, and each role says that it is alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stepwedge import rundir
from stepwedge.errors import StepwedgeError

HOLDER = """
import sys, time
from pathlib import Path
from stepwedge.rundir import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the data until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def is_held(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


class TestHold:
    def test_a_second_service_on_the_same_data_is_refused_with_a_message(self, tmp_path: Path) -> None:
        with holder(tmp_path) as first:
            assert is_held(first)
            with pytest.raises(StepwedgeError, match="another stepwedge serve is using this data folder; stop it"):
                rundir.hold(tmp_path)
            with holder(tmp_path) as second:
                assert not is_held(second)
                assert second.wait(60) != 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_however_the_first_one_ends_the_next_one_may_start(self, tmp_path: Path, number: signal.Signals) -> None:
        with holder(tmp_path) as first:
            assert is_held(first)
            first.send_signal(number)
            first.wait(60)
        with holder(tmp_path) as second:
            assert is_held(second)

    def test_another_data_folder_is_free(self, tmp_path: Path) -> None:
        with holder(tmp_path / "one") as first, holder(tmp_path / "two") as second:
            assert is_held(first)
            assert is_held(second)


class TestHeartbeat:
    def test_a_role_is_alive_from_start_to_stop(self, tmp_path: Path) -> None:
        heartbeat = rundir.Heartbeat(tmp_path, "work")
        assert not rundir.is_beating(tmp_path, "work")
        heartbeat.start()
        assert rundir.is_beating(tmp_path, "work")
        assert not rundir.is_beating(tmp_path, "listen")
        heartbeat.stop()
        assert not rundir.is_beating(tmp_path, "work")
        assert list((tmp_path / "run").iterdir()) == []

    def test_a_role_that_has_not_written_for_long_is_not_ready(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heartbeat = rundir.Heartbeat(tmp_path, "work")
        heartbeat.start()
        heartbeat.stop()
        file = tmp_path / "run" / "work.json"
        for age, alive in ((0, True), (rundir.STALE_SECONDS / 2, True), (rundir.STALE_SECONDS + 1, False)):
            file.write_text(json.dumps({"pid": 1, "at": time.time() - age}))
            assert rundir.is_beating(tmp_path, "work") is alive

    def test_a_clock_that_was_set_back_does_not_keep_a_dead_role_alive(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "work.json").write_text(json.dumps({"pid": 1, "at": time.time() + 3600}))
        assert not rundir.is_beating(tmp_path, "work")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"at": "now"}', '{"at": null}'])
    def test_a_file_that_says_nothing_is_not_ready(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "work.json").write_text(text)
        assert not rundir.is_beating(tmp_path, "work")

    def test_it_goes_on_writing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rundir, "_INTERVAL_SECONDS", 0.01)
        heartbeat = rundir.Heartbeat(tmp_path, "work")
        heartbeat.start()
        file = tmp_path / "run" / "work.json"
        first = json.loads(file.read_text())
        assert first["pid"] == os.getpid()
        deadline = time.monotonic() + 60
        while json.loads(file.read_text())["at"] == first["at"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        heartbeat.stop()

    def test_a_full_disk_does_not_silence_it_for_good(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rundir, "_INTERVAL_SECONDS", 0.01)
        heartbeat = rundir.Heartbeat(tmp_path, "work")
        heartbeat.start()
        failed = threading.Event()
        write = heartbeat._write

        def full() -> None:
            failed.set()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(heartbeat, "_write", full)
        assert failed.wait(30)
        (tmp_path / "run" / "work.json").unlink()
        monkeypatch.setattr(heartbeat, "_write", write)
        deadline = time.monotonic() + 30
        while not rundir.is_beating(tmp_path, "work") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rundir.is_beating(tmp_path, "work")
        heartbeat.stop()

    def test_a_living_role_whose_clock_is_a_day_off_is_not_silent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rundir, "_INTERVAL_SECONDS", 0.01)
        monkeypatch.setattr(rundir, "_CHANGES_WITHIN_SECONDS", 0.5)
        heartbeat = rundir.Heartbeat(tmp_path, "work.off", queue="7")
        write = heartbeat._write
        file = tmp_path / "run" / "work.off.json"

        def a_day_off() -> None:
            write()
            said = json.loads(file.read_text())
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(said | {"at": said["at"] - 86400}))
            temporary.replace(file)

        monkeypatch.setattr(heartbeat, "_write", a_day_off)
        heartbeat.start()
        (tmp_path / "run" / "work.dead.json").write_text(json.dumps({"pid": 1, "at": time.time() - 86400}))
        assert rundir.silent(tmp_path, ["work.off", "work.dead", "work.never"]) == {"work.dead", "work.never"}
        heartbeat.stop()

    def test_others_read_what_living_roles_say(self, tmp_path: Path) -> None:
        heartbeat = rundir.Heartbeat(tmp_path, "work.one", queue="7")
        heartbeat.start()
        (tmp_path / "run" / "work.dead.json").write_text(json.dumps({"pid": 1, "at": 1.0, "queue": "6"}))
        (tmp_path / "run" / "work.older.json").write_text(json.dumps({"pid": 1, "at": time.time()}))
        (tmp_path / "run" / "listen.json").write_text(json.dumps({"pid": 1, "at": time.time()}))
        said = rundir.said_by_living(tmp_path, "work.", ["work.never"])
        assert {role: values.get("queue") for role, values in said.items()} == {"work.one": "7", "work.older": None}
        heartbeat.stop()

    def test_what_a_living_role_says_is_read_however_wrong_its_clock_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heartbeat = rundir.Heartbeat(tmp_path, "work.off", queue="7")
        heartbeat.start()
        monkeypatch.setattr(rundir, "is_beating", lambda *_: False)  # as a clock a day off has it
        assert rundir.said_by_living(tmp_path, "work.")["work.off"]["queue"] == "7"
        heartbeat.stop()

    def test_what_a_dead_role_said_can_be_forgotten(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "work.json").write_text(json.dumps({"pid": 1, "at": time.time()}))
        rundir.clear(tmp_path, "work")
        assert not rundir.is_beating(tmp_path, "work")
        rundir.clear(tmp_path, "work")


def test_metrics_start_from_zero_in_a_folder_that_the_roles_inherit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "elsewhere")
    with rundir.gathered_metrics(tmp_path):
        folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        (folder / "counter_1.db").write_text("of a service that is killed")
        with rundir.gathered_metrics(tmp_path):
            assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(folder)
            assert list(folder.iterdir()) == []
        with rundir.gathered_metrics(tmp_path / "another"):
            assert os.environ["PROMETHEUS_MULTIPROC_DIR"] != str(folder)
    assert not folder.exists()


def test_what_is_mapped_into_memory_does_not_lie_on_the_volume_of_the_data(tmp_path: Path) -> None:
    with rundir.scratch(tmp_path, "metrics") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        if os.access("/dev/shm", os.W_OK):
            assert folder.parent == Path("/dev/shm")


def test_a_folder_that_another_user_made_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "_MEMORY", tmp_path)
    with rundir.scratch(tmp_path, "metrics") as folder:
        pass
    folder.write_text("not a folder")
    with pytest.raises(StepwedgeError, match="cannot be made"), rundir.scratch(tmp_path, "metrics"):
        pass
    folder.unlink()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StepwedgeError, match="cannot be made"), rundir.scratch(tmp_path, "metrics"):
        pass
