"""What all tests share: where the real data are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import PostgreSQL


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, beside the project or where STEPWEDGE_SHARED points."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("STEPWEDGE_SHARED", root.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the shared test data are not at {folder}; STEPWEDGE_SHARED can name another place")
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """One PostgreSQL for all tests that need one; each makes a database of its own in it."""
    with PostgreSQL.started() as server:
        yield server
