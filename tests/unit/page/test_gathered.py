"""What the roles of one machine counted is kept when they end, in a folder that does not grow with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stepwedge.page.gathered import Gathered

ROLE = """
from stepwedge import metrics
metrics.INSTANCES.labels("0000").inc(3)
metrics.STORE_SECONDS.observe(0.02)
metrics.SPOOL_FREE_BYTES.labels("listen").set({free})
metrics.WORK_HELD.labels("work").set(1)
"""


def role(folder: Path, free: float) -> int:
    """A process that counts and ends; its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", ROLE.format(free=free)], env={"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    )
    assert process.wait(60) == 0
    return process.pid


def shown(gathered: Gathered) -> dict[str, float]:
    """Samples without labels that grow."""
    return {
        sample.name: sample.value
        for family in gathered.collect()
        for sample in family.samples
        if "le" not in sample.labels and sample.labels.get("status", "0000") == "0000"
    }


def test_what_ended_roles_counted_is_kept_in_as_many_files_however_often_they_end(tmp_path: Path) -> None:
    gathered = Gathered(tmp_path)
    sizes = []
    for number in range(1, 4):
        pid = role(tmp_path, free=1000.0 * number)
        before = shown(gathered)
        gathered.put_away(pid)
        after = shown(gathered)
        assert before.pop("stepwedge_work_held") == 1  # which ends with the one that said it
        assert after == before
        assert after["stepwedge_instances_total"] == 3 * number
        assert after["stepwedge_store_seconds_count"] == number
        assert after["stepwedge_store_seconds_sum"] == pytest.approx(0.02 * number)
        assert after["stepwedge_spool_free_bytes"] == 1000 * number
        sizes.append(sorted((file.name, file.stat().st_blocks) for file in tmp_path.iterdir()))
    assert sizes[0] == sizes[1] == sizes[2]
    assert not [name for name, _ in sizes[0] if str(pid) in name]


def test_a_file_that_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "counter_7.db").write_bytes(b"")
    Gathered(tmp_path).put_away(7)
    assert (tmp_path / "counter_7.db").exists()
