"""A clock that a test sets, for processes that it starts: libfaketime, whose file says how far it is off.

The clock that nobody can set (CLOCK_MONOTONIC) stays as it is, and so do the times of files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Python sleeps until a time on CLOCK_MONOTONIC, which libfaketime 0.9.10 answers with EINVAL.
_SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class FakedClock:
    """How far the clock of some processes is off, from now on."""

    def __init__(self, file: Path, seconds: float = 0.0) -> None:
        self._file = file
        library = _library()
        scripts = file.with_suffix(".site")
        scripts.mkdir()
        (scripts / "sitecustomize.py").write_text(_SLEEP)
        self.variables = {
            "PYTHONPATH": str(scripts),
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Set the clock, while the processes run."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+.0f}\n")
        temporary.replace(self._file)


def _library() -> Path:
    # Not the variant for threads: it locks at every look at the clock, and a child forked meanwhile waits for ever.
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if found:
        return found[0]
    if os.environ.get("STEPWEDGE_REQUIRE_TOOLS") == "1":
        pytest.fail("faketime is not installed, and STEPWEDGE_REQUIRE_TOOLS=1 asks for it")
    pytest.skip("faketime is not installed")
