"""What several acceptance tests send to: a real PACS, and an address where none answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peers import Orthanc, free_ports


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc.started(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture
def away() -> int:
    """A port that nobody listens on."""
    return free_ports(1)[0]
