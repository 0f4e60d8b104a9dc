from __future__ import annotations

from pathlib import Path

import pytest
from packages import write_package
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import Package, load_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The tiny package. Tests that alter one write their own."""
    return load_package(write_package(tmp_path_factory.mktemp("package") / "tiny"))


@pytest.fixture(scope="session")
def engine(package: Package) -> OnnxEngine:
    return OnnxEngine(package, "cpu", threads=1)


@pytest.fixture
def own_package(tmp_path: Path) -> Path:
    """A package to alter."""
    return write_package(tmp_path / "own")
