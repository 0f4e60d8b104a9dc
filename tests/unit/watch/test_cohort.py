"""Performance from the database: the sidecar's, and the commands'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client import REGISTRY
from stepwatch import cohort as cohort_module
from stepwatch.audit import auditing, is_drawn
from stepwatch.cli import main
from stepwatch.cohort import Cohort, follow, read_terms
from stepwatch.errors import WatchError
from stepwatch.packages import read_package
from stepwatch.performance import CANNOT_SEE, LABELS_FOLLOW, NOT_BELIEVED
from stepwatch.settings import Model, Performance
from stepwedge.observation import Label, Observation
from watch_bench import Bench
from watched import reading, write_labels

POLICY = Path(__file__).parents[3] / "models" / "chest-pneumonia" / "policy.yaml"


as_it_is = auditing([], 0)


def labelled(rows: list[Observation]) -> str:
    random = np.random.default_rng(4)
    lines = ["study,finding,value,time"]
    for row in rows:
        ill = random.random() < row.probabilities["pneumonia"]
        lines.append(f"{row.study},pneumonia,{'present' if ill else 'absent'},{row.time}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def config(bench: Bench) -> Path:
    file = bench.folder / "watch.yaml"
    model = {"package": str(bench.folder / "package"), "policy": str(POLICY)}
    file.write_text(yaml.safe_dump({"database_url": bench.settings.database_url, "models": [model]}))
    return file


def test_labels_come_in_by_csv_and_performance_comes_out(
    bench: Bench, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench.rows(200)
    bench.write(rows)
    file = bench.folder / "labels.csv"
    file.write_text(labelled(rows))
    assert main(["labels", "import", str(file), "--config", str(config)]) == 0
    assert capsys.readouterr().out == "200 labels taken, 0 were there already\n"
    assert main(["labels", "import", str(file), "--config", str(config)]) == 0
    assert capsys.readouterr().out == "0 labels taken, 200 were there already\n"
    assert main(["performance", "--json", "--config", str(config)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["labelled"]["pneumonia"] == 200
    assert {(f["measure"], f["how"]) for f in row["figures"]} >= {("auroc", "measured"), ("expected_cost", "estimated")}
    assert row["only_labelled"] == []  # every study has a label
    assert row["notes"] == [CANNOT_SEE]
    assert {item["group"] for item in row["groups"]} == {"sex", "age", "scanner", "sender", "view"}
    assert row["worst_gaps"]
    assert main(["performance", "--config", str(config)]) == 0
    assert "pneumonia: 200 labelled studies" in capsys.readouterr().out


def test_what_is_not_to_be_believed_is_said(bench: Bench, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench.rows(400)
    bench.write(rows)
    file = bench.folder / "labels.csv"
    lines = ["study,finding,value,time"]
    lines += [f"{row.study},pneumonia,{number % 2},{row.time}" for number, row in enumerate(rows[:300])]
    file.write_text("\n".join(lines))
    assert main(["labels", "import", str(file), "--config", str(config)]) == 0
    capsys.readouterr()
    assert main(["performance", "--json", "--config", str(config)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert {"finding": "pneumonia", "measure": "auroc"} in row["parted"]
    assert row["only_labelled"] == ["pneumonia"]
    assert row["notes"] == [NOT_BELIEVED, LABELS_FOLLOW, CANNOT_SEE]
    assert main(["performance", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "which do not stand for the others" in said
    assert NOT_BELIEVED in said
    assert LABELS_FOLLOW in said


def test_one_wrong_row_and_no_label_is_taken(bench: Bench, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench.rows(3)
    bench.write(rows)
    file = bench.folder / "labels.csv"
    file.write_text(labelled(rows) + f"{rows[0].study},gout,present,{rows[0].time}\n")
    assert main(["labels", "import", str(file), "--config", str(config)]) == 2
    assert "row 4: finding: no model has 'gout'" in capsys.readouterr().err
    assert bench.database.labels() == []


def test_the_queue_names_studies(bench: Bench, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench.rows(100)
    bench.write(rows)
    assert main(["labels", "queue", "--json", "--budget", "5", "--config", str(config)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {item["study"] for item in found} <= {row.study for row in rows}
    assert sum(item["finding"] == "pneumonia" for item in found) <= 5


def test_rows_of_other_models_and_rejected_ones_are_no_cases(bench: Bench) -> None:
    rows = bench.rows(5)
    bench.write([rows[0], replace(rows[1], model_digest="other"), replace(rows[2], state="rejected")])
    cohort = Cohort(bench.database, read_package(bench.settings.models[0]), as_it_is)
    cohort.refresh()
    assert [case.study for case in cohort.cases()] == [rows[0].study]
    bench.write(rows[3:])
    cohort.refresh()
    assert len(cohort.cases()) == 3


def test_a_label_before_its_study_waits_for_it(bench: Bench) -> None:
    row = bench.rows(1)[0]
    label = Label(label="a", study=row.study, finding="pneumonia", value=1.0, time=row.time, source="sr")
    bench.database.prepare()
    bench.database.add_label(label)
    package = read_package(bench.settings.models[0])
    cohort = Cohort(bench.database, package, as_it_is)
    cohort.refresh()
    bench.write([row])
    cohort.refresh()
    assert (len(cohort.cases()), cohort.labels()) == (1, [label])


def test_a_policy_that_cannot_be_read_leaves_the_rest(bench: Bench, tmp_path: Path) -> None:
    bench.write(bench.rows(100))
    bench.database.prepare()
    broken = tmp_path / "policy.yaml"
    broken.write_text("findings: 3")
    models = [Model(package=bench.folder / "package", policy=broken)]
    settings = bench.settings.model_copy(update={"models": models})
    package = replace(read_package(bench.settings.models[0]))
    found = follow(settings)(bench.database, package)
    assert {figure.measure for figure in found.figures} >= {"auroc", "sensitivity"}
    assert not any(figure.measure == "expected_cost" for figure in found.figures)
    with pytest.raises(WatchError, match="is no site policy"):
        read_terms(broken)


def test_costs_and_prevalence_are_the_policys() -> None:
    terms = read_terms(POLICY)["pneumonia"]
    assert terms.costs is not None
    assert (terms.costs.miss, terms.costs.deferral, terms.prevalence) == (10, 0.3, 0.10)


def test_the_oldest_labels_go_and_that_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_module, "_KEEP_LABELS", 5)
    monkeypatch.setattr(cohort_module, "_LOOK_BACK", 2)
    rows = bench.rows(12)
    bench.write(rows)
    package = read_package(bench.settings.models[0])
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[:4]])
    cohort = Cohort(bench.database, package, as_it_is)
    cohort.refresh()
    before = dropped()
    write_labels(bench.engine, [reading(row, 1.0) for row in rows[4:]])
    for _ in range(2):
        cohort.refresh()
        assert [label.study for label in cohort.labels()] == [row.study for row in rows[-5:]]
    assert dropped() == before + 7
    late = Cohort(bench.database, package, as_it_is)
    late.refresh()
    assert late.labels() == cohort.labels()
    assert dropped() == before + 14


def dropped() -> float:
    return REGISTRY.get_sample_value("stepwatch_labels_dropped_total", {"reason": "too_many"}) or 0.0


def test_reports_of_readers_of_the_audit_make_figures_honest(bench: Bench) -> None:
    share = 0.3
    rows = bench.rows(600)
    bench.write(rows)
    bench.database.prepare()
    plain: dict[str, Any] = {"audit": False, "probability_drawn": None, "source": "sr", "reader": "blind"}
    random = np.random.default_rng(2)
    write_labels(
        bench.engine,
        [
            reading(row, float(random.random() < row.probabilities["pneumonia"]), **plain)
            for row in rows
            if "pneumonia" in row.probabilities and is_drawn(row.study, share)
        ],
    )
    package = read_package(bench.settings.models[0])
    for readers, only in ((["blind"], ()), ([], ("pneumonia",))):
        settings = bench.settings.model_copy(
            update={"performance": Performance(audit_share=share, audit_readers=readers)}
        )
        assert follow(settings)(bench.database, package).only_labelled == only
