"""The Evidently page: what it compares, what it leaves out, and that it tells of nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepwatch.errors import WatchError
from stepwatch.snapshot import (
    drifted,
    level_distance,
    limit_of,
    number_distance,
    prepare,
    read_observations,
    start_page,
)
from stepwedge.observation import Observation

SECRETS = ("SENDERAE", "hash-of-a-study", "hash-of-a-station", "hash-of-a-unit")


def observation(number: int, generator: np.random.Generator, **changes: Any) -> Observation:
    made = Observation(
        unit=f"hash-of-a-unit-{number}", study="hash-of-a-study", revision=1, station="hash-of-a-station",
        time=f"2026-01-{1 + number // 100:02d}T10:{number // 60 % 60:02d}:{number % 60:02d}+00:00", model_name="chest",
        model_version="1", model_digest="0" * 64, policy_digest="", state="reported", gate="accept", tamper="pass",
        senders=("SENDERAE",), manufacturer=str(generator.choice(["Acme", "Other"], p=[0.7, 0.3])), modality="DX",
        kvp=90.0, pixel_mean=float(generator.normal(0.5, 0.1)), pixel_sd=float(generator.normal(0.2, 0.02)),
        age_years=float(generator.integers(20, 90)), probabilities={"pneumonia": float(generator.random())},
        decisions={"pneumonia": "clear"},
    )  # fmt: skip
    return replace(made, **changes)


def write(file: Path, rows: list[Observation]) -> Path:
    file.write_text("\n".join(row.to_json() for row in rows), encoding="utf-8")
    return file


def rows(count: int, seed: int, **changes: Any) -> list[Observation]:
    generator = np.random.default_rng(seed)
    return [observation(number, generator, **changes) for number in range(count)]


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    return write(tmp_path / "baseline.jsonl", rows(600, 1))


def prepared(baseline: Path, present: list[Observation], folder: Path) -> Any:
    return prepare(read_observations(baseline), read_observations(write(folder / "rows.jsonl", present)))


def test_more_of_the_same_is_not_called_drift(baseline: Path, tmp_path: Path) -> None:
    assert drifted(prepared(baseline, rows(200, 2), tmp_path)) == []


def test_a_brighter_image_and_another_manufacturer_are(baseline: Path, tmp_path: Path) -> None:
    changed = [replace(row, pixel_mean=(row.pixel_mean or 0) + 0.1, manufacturer="Third") for row in rows(200, 2)]
    assert [name for name, _ in drifted(prepared(baseline, changed, tmp_path))] == ["pixel_mean", "manufacturer"]


def test_columns_without_a_value_and_constant_ones_are_left_out_and_named(baseline: Path, tmp_path: Path) -> None:
    found = prepared(baseline, rows(200, 2, age_years=None, pixel_mean=0.3), tmp_path)
    left_out = dict(found.left_out)
    assert left_out["age_years"] == "no value in latest"
    assert left_out["exposure"] == "no value in baseline and latest"
    assert left_out["kvp"] == "the same everywhere: 90"
    assert left_out["modality"] == "the same everywhere: DX"
    assert [name for name, _ in drifted(found)] == ["pixel_mean"]


def test_too_few_studies_are_refused(baseline: Path, tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="latest rows have 20 studies; a page needs at least 50"):
        prepared(baseline, rows(20, 2), tmp_path)


def test_limits_hold_for_windows_that_nothing_has_changed_in() -> None:
    """Measured on 2,000 windows: 1.5 in a thousand. Here few windows, fixed seeds."""
    generator = np.random.default_rng(5)
    beyond = 0
    for _ in range(5):
        values = generator.normal(size=1000)
        limit = limit_of(values.tolist(), 300)
        beyond += sum(number_distance(values, generator.normal(size=300)) > limit for _ in range(40))
    assert beyond <= 2


def test_a_window_of_few_studies_has_a_wider_limit() -> None:
    values = np.random.default_rng(6).normal(size=1000).tolist()
    assert limit_of(values, 60) > limit_of(values, 1000)


def test_what_comes_in_runs_has_a_wider_limit() -> None:
    generator = np.random.default_rng(7)
    alone = generator.normal(size=1000)
    in_runs = np.repeat(generator.normal(size=100), 10)
    assert limit_of(in_runs.tolist(), 200) > 1.5 * limit_of(alone.tolist(), 200)


def test_distances_are_those_that_evidently_draws() -> None:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import wasserstein_distance

    generator = np.random.default_rng(8)
    before, now = generator.normal(size=500), generator.normal(0.3, 1.2, size=200)
    assert number_distance(before, now) == pytest.approx(wasserstein_distance(before, now) / np.std(before))
    first, second = generator.choice(["a", "b", "c"], 500), generator.choice(["a", "b"], 200)
    shares = [[np.mean(side == name) for name in "abc"] for side in (first, second)]
    assert level_distance(first, second) == pytest.approx(jensenshannon(*shares))


def command(baseline: Path, present: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "stepwatch", "snapshot"]
    files = ["--baseline", baseline, "--rows", present, "--out", out]
    return subprocess.run([*program, *files, *more], capture_output=True, text=True, check=False, timeout=250)


def test_a_page_is_drawn_in_a_process_of_its_own_and_holds_no_identifier(baseline: Path, tmp_path: Path) -> None:
    changed = [replace(row, pixel_mean=(row.pixel_mean or 0) + 0.1) for row in rows(200, 2)]
    out = tmp_path / "page.html"
    process = start_page(baseline, write(tmp_path / "rows.jsonl", changed), out, timeout_seconds=240)
    assert process.wait(250) == 0
    page = out.read_text(encoding="utf-8")
    assert "Beyond their limits:</p><ul><li>pixel_mean" in page
    assert "Drift in column" in page
    assert not [secret for secret in SECRETS if secret in page]
    assert len(page) < 12_000_000
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_a_column_of_rounding_errors_is_the_same_everywhere_and_does_not_stop_the_page(tmp_path: Path) -> None:
    nearly = np.nextafter(0.1, 1.0)
    sides = [
        [
            replace(row, pixel_sd=0.1 if index % 3 else float(nearly), pixel_p50=0.5 + 1e-16 * (index % 2))
            for index, row in enumerate(rows(count, seed))
        ]
        for count, seed in ((300, 1), (100, 2))
    ]
    files = [write(tmp_path / f"{name}.jsonl", side) for name, side in zip(("before", "now"), sides, strict=True)]
    done = command(files[0], files[1], tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<li>pixel_sd: the same everywhere: 0.1</li>" in page
    assert "<li>pixel_p50: the same everywhere: 0.5</li>" in page


def test_a_page_with_a_number_that_is_the_same_in_the_latest_studies_only(baseline: Path, tmp_path: Path) -> None:
    same = [
        replace(row, pixel_sd=0.1 if index % 2 else float(np.nextafter(0.1, 1.0)))
        for index, row in enumerate(rows(100, 2))
    ]
    done = command(baseline, write(tmp_path / "now.jsonl", same), tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "<li>pixel_sd: distance" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_takes_too_long_is_ended_and_leaves_no_page(baseline: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    ended = command(baseline, write(tmp_path / "rows.jsonl", rows(100, 2)), out, "--timeout", "0.2")
    assert ended.returncode == 2
    assert "the page was not drawn within 0.2 seconds" in ended.stderr
    assert not out.exists()


def test_a_file_that_is_none_of_observations_is_refused(baseline: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "rows.jsonl"
    wrong.write_text(json.dumps({"a": 1}), encoding="utf-8")
    ended = command(baseline, wrong, tmp_path / "page.html")
    assert ended.returncode == 2
    assert f"{wrong}: holds what is no observation of this version" in ended.stderr
    missing = command(baseline, tmp_path / "nowhere.parquet", tmp_path / "page.html")
    assert missing.returncode == 2
    assert "cannot be read" in missing.stderr


def test_the_command_line_without_a_page_to_draw_imports_no_evidently() -> None:
    code = (
        "import sys, stepwatch.cli, stepwatch.snapshot; print([m for m in ('evidently', 'pandas') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
