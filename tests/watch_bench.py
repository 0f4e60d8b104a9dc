"""A sidecar with stand-in detectors on a real database."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from stand_in_detectors import StandInDetectors, StandInMonitor
from stepwatch.database import Database
from stepwatch.settings import Settings
from stepwatch.sidecar import Sidecar
from stepwedge.observation import Observation
from watched import department, write_rows

START = datetime(2026, 3, 2, tzinfo=UTC)
NOW = START + timedelta(days=60)


@dataclass
class Bench:
    """Everything that a test of the sidecar needs."""

    folder: Path
    digest: str
    engine: sa.Engine
    database: Database
    settings: Settings
    detectors: StandInDetectors
    sidecar: Sidecar

    def again(self) -> Sidecar:
        """A sidecar that starts on what the last one saved."""
        self.sidecar = Sidecar(self.settings, self.database, self.detectors, now=lambda: NOW)
        return self.sidecar

    def monitor(self, version: str = "1.1.0") -> StandInMonitor:
        return self.detectors.monitors[version]

    def rows(self, count: int, *, seed: int = 2) -> list[Observation]:
        found = department(count, start=START, seed=seed, digest=self.digest)
        return [replace(row, pixel_mean=0.4) for row in found]

    def write(self, rows: list[Observation]) -> None:
        write_rows(self.engine, rows)
