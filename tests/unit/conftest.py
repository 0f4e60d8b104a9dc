"""What the unit tests share: the two databases, which one contract holds for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql import PostgreSQL, with_password
from stepwedge.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty store in a new file, and one in a new database of a real PostgreSQL."""
    if request.param == "sqlite":
        opened = Store.open_file(tmp_path / "db" / "index.sqlite")
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        opened = Store(with_password(server.new_database()))
    yield opened
    opened.close()
