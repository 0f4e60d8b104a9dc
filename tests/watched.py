"""What the monitor watches: a database as the service leaves it, a package, and the observations of a department.

The department's observations are those of the shipped model's baseline, drawn again and again, with days, scanners and
patients given to them; so images, embeddings and probabilities belong together as they do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import sqlalchemy as sa
import yaml
from stepwatch import tables
from stepwatch.database import Database
from stepwedge.observation import Label, Observation

SHIPPED = Path(__file__).parents[1] / "models" / "chest-pneumonia" / "1.1.0"
MODEL, FINDINGS = "chest-pneumonia", ("pneumonia", "bacterial_pneumonia")
SCANNERS = (("Acme", "DX-1"), ("Acme", "DX-2"), ("Borealis", "Ray 7"))


def make_service_tables(file: Path) -> sa.Engine:
    """The tables as the service makes them."""
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as db:
        db.exec_driver_sql("PRAGMA journal_mode=WAL")
    tables.SERVICE.create_all(engine)
    return engine


def insert_event(
    database: Database, request: str, event: str, *, who: str = "", signature: str = "", body: object = None
) -> None:
    """A line in the log of retraining requests, outside its chain: for those who only show it."""
    values = {"request": request, "event": event, "at": time.time(), "who": who, "signature": signature}
    with database.engine.begin() as db:
        db.execute(sa.insert(tables.REQUESTS).values(**values, body=body or {}))


@cache
def shipped_rows() -> tuple[Observation, ...]:
    """The shipped baseline."""
    rows = pyarrow.parquet.read_table(SHIPPED / "baseline.parquet").to_pylist()
    known = Observation.__dataclass_fields__
    maps = ("gate_measures", "scores", "probabilities", "decisions", "ms")
    found = []
    for row in rows:
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items() if name in known}
        values |= {name: {k: v for k, v in (row.get(name) or {}).items() if v is not None} for name in maps}
        found.append(Observation(**values))
    return tuple(found)


def department(count: int, *, start: datetime, per_day: int = 40, seed: int = 1, digest: str = "") -> list[Observation]:
    """Studies in the order of time; on days off a third as many."""
    rng = np.random.default_rng(seed)
    rows = shipped_rows()
    found: list[Observation] = []
    day = start
    while len(found) < count:
        today = per_day if day.weekday() < 5 else per_day // 3
        for minute in np.sort(rng.integers(0, 12 * 60, today)):
            number = len(found)
            row = rows[int(rng.integers(len(rows)))]
            manufacturer, scanner = SCANNERS[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
            name = hashlib.sha256(f"{seed}.{number}".encode()).hexdigest()[:32]
            found.append(
                replace(
                    row,
                    unit=f"{name}.1",
                    study=name,
                    time=(day + timedelta(hours=7, minutes=int(minute))).isoformat(),
                    model_name=MODEL,
                    model_digest=digest,
                    senders=("MODALITY",),
                    modality="DX",
                    body_part="CHEST",
                    view_position=str(rng.choice(["AP", "PA"], p=[0.7, 0.3])),
                    age_years=round(float(rng.uniform(1, 6)), 1),
                    sex=str(rng.choice(["F", "M"])),
                    manufacturer=manufacturer,
                    scanner=scanner,
                    exposure=round(float(rng.lognormal(0.5, 0.3)), 2),
                    kvp=float(rng.choice([60.0, 66.0, 70.0])),
                    pixel_spacing=0.15,
                    rows=2048,
                    columns=2048,
                    bits_stored=12,
                    photometric="MONOCHROME2",
                    transfer_syntax="1.2.840.10008.1.2.1",
                    ms={"infer": round(float(rng.lognormal(3, 0.2)), 1)},
                )
            )
        day += timedelta(days=1)
    return found[:count]


def brighter(observation: Observation, by: float) -> Observation:
    """The same with more light."""
    assert observation.pixel_mean is not None
    assert observation.pixel_p50 is not None
    return replace(observation, pixel_mean=observation.pixel_mean + by, pixel_p50=min(observation.pixel_p50 + by, 1.0))


def write_watched_package(
    folder: Path, baseline: Sequence[Observation], *, version: str = "1.1.0", findings: Sequence[str] = FINDINGS
) -> str:
    """A package as far as the monitor reads one; its digest."""
    folder.mkdir(parents=True)
    manifest = {"name": MODEL, "version": version, "findings": [{"name": name} for name in findings]}
    (folder / "model.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    pyarrow.parquet.write_table(pa.Table.from_pylist([asdict(row) for row in baseline]), folder / "baseline.parquet")
    digests = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("baseline.parquet", "model.yaml")
    )
    (folder / "SHA256SUMS").write_text(digests, encoding="utf-8")
    return hashlib.sha256(digests.encode()).hexdigest()


def write_rows(
    engine: sa.Engine, rows: Sequence[Observation], text: Callable[[Observation], str] = Observation.to_json
) -> None:
    """Write observations as the service does."""
    with engine.begin() as db:
        for row in rows:
            db.execute(sa.insert(tables.OBSERVATIONS).values(unit=row.unit, body=text(row)))


def write_labels(engine: sa.Engine, labels: Sequence[Label]) -> None:
    """Write labels as the service does."""
    with engine.begin() as db:
        for label in labels:
            values = {"label": label.label, "study": label.study, "body": label.to_json()}
            db.execute(sa.insert(tables.LABELS).values(**values))


def readings(rows: Sequence[Observation], *, decayed: bool, seed: int = 5, finding: str = FINDINGS[0]) -> list[Label]:
    """A reading of the audit for each study that has an answer: as its probability says, or as a decayed model's."""
    rng = np.random.default_rng(seed)
    rows = [row for row in rows if finding in row.probabilities]
    mean = float(np.mean([row.probabilities[finding] for row in rows]))
    return [
        reading(row, float(rng.random() < (mean if decayed else row.probabilities[finding])), finding=finding)
        for row in rows
    ]


def reading(row: Observation, value: float | None, **changes: object) -> Label:
    """A reading of the audit, a day after the study."""
    values: dict[str, object] = {
        "study": row.study,
        "finding": FINDINGS[0],
        "value": value,
        "reader": "r1",
        "time": (datetime.fromisoformat(row.time) + timedelta(days=1)).isoformat(),
        "source": "csv",
        "audit": True,
        "probability_drawn": 0.3,
    } | changes
    name = hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()
    return Label(**({"label": name} | values))  # type: ignore[arg-type]


MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
