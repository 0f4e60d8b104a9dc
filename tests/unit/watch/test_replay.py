"""``stepwatch replay``: one object for each alarm, then one that sums up; errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from drifting import PIXELS, Change, stream
from stepwatch.cli import main

CONFIG = {
    "time": "day",
    "source": "scanner",
    "families": {
        "patient": {"numbers": ["age"], "levels": ["sex"], "tells_of": "population"},
        "pixels": {"numbers": list(PIXELS), "together": True},
    },
}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A baseline of 3,000 studies, then 1,500 of which a fifth come from a new scanner from the 500th on."""
    parts = [
        stream(np.random.default_rng(1), 3000),
        stream(np.random.default_rng(2), 1500, Change(kind="new_tag", at=500)),
    ]
    first = int(parts[0].days[-1]) + 1 - int(parts[1].days[0])
    first += -first % 7
    days = np.concatenate([parts[0].days, parts[1].days + first]).astype("datetime64[D]")
    columns = {name: np.concatenate([part.numbers[name] for part in parts]) for name in ("age", *PIXELS)}
    columns |= {name: np.concatenate([part.levels[name] for part in parts]) for name in ("scanner", "sex")}
    table = pa.table({"day": pa.array(days), **columns})
    pyarrow.parquet.write_table(table, tmp_path / "stream.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "stream.csv")
    last = str(days[2999])
    config = CONFIG | {"baseline": {"until": last}, "watch": {"from": str(days[3000])}}
    (tmp_path / "watch.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["stream.parquet", "stream.csv"])
def test_a_recorded_change_is_told_with_its_row(recorded: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded / name), "--config", str(recorded / "watch.yaml"), "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    alarm, last = objects[0], objects[-1]
    assert alarm["type"] == "alarm"
    assert alarm["signal"] == "scanner unseen"
    assert 3500 <= alarm["row"] < 3600
    assert alarm["study_count"] == alarm["row"] - 3000 + 1
    assert {"time", "shift", "attribution", "evidence", "class"} <= alarm.keys()
    assert last["type"] == "summary"
    assert last["studies"] == 1500
    assert last["alarms"] == len(objects) - 1


def test_days_are_those_of_the_place(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.parquet.read_table(recorded / "stream.parquet")
    midnight = pc.assume_timezone(pc.cast(table["day"], pa.timestamp("us")), "Europe/Madrid")
    pyarrow.parquet.write_table(table.set_column(0, "day", midnight), recorded / "local.parquet")
    told = []
    for name in ("stream.parquet", "local.parquet"):
        assert main(["replay", str(recorded / name), "--config", str(recorded / "watch.yaml"), "--json"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_it_reads_well_for_people(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(recorded / "stream.parquet"), "--config", str(recorded / "watch.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "scanner unseen" in shown
    assert "1500 studies from" in shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time": "when"}, "has no column when"),
        ({"baseline": {}}, "names no baseline"),
        ({"baseline": {"until": "2026-01-06"}}, "at least 400 are needed"),
        ({"watch": {"from": "2031-01-01"}}, "no row lies in the stretch"),
        ({"families": {"a": {"numbers": ["sex"]}}}, "sex is declared as numbers"),
    ],
)
def test_what_cannot_be_done_is_said(
    recorded: Path, change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recorded / "watch.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    assert main(["replay", str(recorded / "stream.parquet"), "--config", str(file), "--json"]) == 2
    assert said in capsys.readouterr().err


def test_rows_out_of_order_are_refused(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.parquet.read_table(recorded / "stream.parquet")
    pyarrow.parquet.write_table(table.take(pa.array(range(len(table))[::-1])), recorded / "stream.parquet")
    assert main(["replay", str(recorded / "stream.parquet"), "--config", str(recorded / "watch.yaml")]) == 2
    assert "not in the order of day" in capsys.readouterr().err
