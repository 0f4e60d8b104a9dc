"""A sidecar with stand-in detectors on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_detectors import StandInDetectors
from stepwatch.database import Database
from stepwatch.settings import Detection, Model, Settings
from stepwatch.sidecar import Sidecar
from watch_bench import NOW, START, Bench
from watched import department, make_service_tables, write_watched_package


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    digest = write_watched_package(tmp_path / "package", department(3, start=START))
    engine = make_service_tables(tmp_path / "db.sqlite")
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'db.sqlite'}",
        models=[Model(package=tmp_path / "package")],
        detection=Detection(save_seconds=0),
    )
    database = Database.open(settings.database_url)
    detectors = StandInDetectors()
    sidecar = Sidecar(settings, database, detectors, now=lambda: NOW)
    yield Bench(tmp_path, digest, engine, database, settings, detectors, sidecar)
    database.close()
    engine.dispose()
