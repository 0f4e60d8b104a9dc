"""What a machine must have: studies an hour, CPU seconds a study and memory, by role and by how many cores there are.

``make bench-capacity``. Prints a table, and JSON as its last line. The same studies go to the service on one core and
on each larger number of cores that the machine has (powers of two); senders and the receiving PACS run on the same
cores and are counted apart. CPU seconds a study hardly depend on what else the machine does; studies an hour do.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "acceptance")]

from peers import free_ports  # noqa: E402 - after the path to it
from traffic import MODELS, Receiver, burst, write_studies  # noqa: E402

from service import Service, destination, settings_for  # noqa: E402

STUDIES, WARM_UP = 80, 8
QUIET_SECONDS = 1.0
ROLES = ("listen", "work", "infer", "watch")
LOOK_SECONDS = 0.5


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="stepwedge-capacity-"))
    all_cores = sorted(psutil.Process().cpu_affinity() or ())
    counts = [2**n for n in range(8) if 2**n <= len(all_cores)]
    try:
        rows = [_measured(folder / str(count), all_cores[:count]) for count in counts]
    finally:
        psutil.Process().cpu_affinity(all_cores)
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        _print(row)
    print(json.dumps(rows))
    return 0


def _measured(folder: Path, cores: list[int]) -> dict[str, Any]:
    """One run of the whole service on some cores; children inherit them."""
    print(f"{len(cores)} core(s) …", file=sys.stderr)
    psutil.Process().cpu_affinity(cores)
    receiver = Receiver()
    folder.mkdir()
    [port] = free_ports(1)
    (folder / "stepwatch.yaml").write_text(f"http: {{port: {port}}}\nsnapshot: {{every_hours: 24}}\n")
    values = settings_for(
        MODELS / "1.1.0",
        MODELS / "policy.yaml",
        [destination(receiver.port, ae_title="BENCH")],
        completeness={"quiet_seconds": QUIET_SECONDS, "poll_seconds": 0.05},
        worker={"concurrency": max(2, len(cores))},
        watch={"enabled": True, "config": str(folder / "stepwatch.yaml")},
        log={"level": "warning"},
    )
    service = Service(folder / "service", values)
    studies = write_studies(folder / "studies", WARM_UP + STUDIES)
    try:
        # At the level of the log that names the processes of the roles.
        service.start()
        families = _families(service)
        burst(service, receiver, studies[:WARM_UP])
        with _peaks(families) as peaks:
            before = {role: _cpu_seconds(family) for role, family in families.items()}
            seconds = burst(service, receiver, studies[WARM_UP:]) - QUIET_SECONDS
            used = {role: _cpu_seconds(family) - before[role] for role, family in families.items()}
    finally:
        service.stop()
        receiver.stop()
    return {
        "cores": len(cores),
        "studies": STUDIES,
        "studies_an_hour": round(3600 * STUDIES / seconds),
        "cpu_seconds_a_study": {role: round(value / STUDIES, 3) for role, value in used.items()},
        "largest_memory_mib": {role: round(value / 2**20) for role, value in peaks.items()},
    }


def _families(service: Service) -> dict[str, psutil.Process]:
    assert service.process is not None
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process(service.process.pid).children():
        words = child.cmdline()
        for role in ROLES:
            if role in words or (role == "watch" and "stepwatch" in words):
                found[role] = child
    assert set(found) == set(ROLES), f"not every role runs: {sorted(found)}"
    return found


def _processes(family: psutil.Process) -> Iterator[psutil.Process]:
    yield family
    yield from family.children(recursive=True)


def _cpu_seconds(family: psutil.Process) -> float:
    total = 0.0
    for each in _processes(family):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def _peaks(families: dict[str, psutil.Process]) -> Iterator[dict[str, int]]:
    """The largest proportional set size of each role with its children, in bytes, as far as it was looked at."""
    peaks = dict.fromkeys(families, 0)
    ended = threading.Event()

    def look() -> None:
        while True:
            for role, family in families.items():
                total = 0
                for each in _processes(family):
                    try:
                        total += each.memory_full_info().pss
                    except psutil.NoSuchProcess:
                        continue
                peaks[role] = max(peaks[role], total)
            if ended.wait(LOOK_SECONDS):
                return

    looking = threading.Thread(target=look, name="memory", daemon=True)
    looking.start()
    try:
        yield peaks
    finally:
        ended.set()
        looking.join()


def _print(row: dict[str, Any]) -> None:
    total = sum(row["cpu_seconds_a_study"].values())
    print(f"{row['cores']} of {os.cpu_count()} cores: {row['studies_an_hour']} studies an hour, {total:.3f} CPU s each")
    for role in ROLES:
        print(f"  {role:<8}{row['cpu_seconds_a_study'][role]:>8.3f} CPU s{row['largest_memory_mib'][role]:>8} MiB")


if __name__ == "__main__":
    sys.exit(main())
