"""What the integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sidecars import SECONDS, Process


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A sidecar's process that is not started yet, and is ended if the test leaves it running."""
    process = Process(tmp_path)
    yield process
    if process.running is not None and process.running.poll() is None:
        process.running.kill()
        process.running.wait(SECONDS)
