"""Metric names follow Prometheus; no label holds an identifier, and none grows with what studies say."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from stepwatch import tables
from stepwatch.database import Database
from stepwatch.detecting import detectors
from stepwatch.exporter import OverviewCollector
from stepwatch.figures import Figure, GroupFigure, Performance, Prevalence
from stepwatch.overview import Overview
from stepwatch.packages import read_package
from stepwatch.settings import Detection, Model, Settings
from stepwatch.sidecar import Sidecar
from stepwatch.subgroups import AS_OTHERS, MISCALIBRATED, NOT_JUDGED, WORSE
from stepwatch.watch import View
from stepwedge.observation import ConstancyRun, Label, Observation
from watched import (
    FINDINGS,
    MODEL,
    MONDAY,
    SHIPPED,
    brighter,
    department,
    insert_event,
    make_service_tables,
    write_rows,
    write_watched_package,
)

# Every label that any metric may have. A new one is a decision: is it bounded, and by what?
LABELS = {
    "model", "signal", "shift", "kind", "reason", "direction", "outcome", "source", "state", "finding", "measure",
    "how", "group", "level", "verdict", "stage", "le", "path",
}  # fmt: skip
_PROMISED = """
stepwatch_observations_total stepwatch_rows_refused_total stepwatch_lag_rows
stepwatch_last_row_timestamp_seconds stepwatch_signal_evidence stepwatch_signal_limit
stepwatch_signal_value stepwatch_signal_baseline stepwatch_signal_low stepwatch_signal_high
stepwatch_alarm_active stepwatch_alarms_total stepwatch_alarms_unacknowledged
stepwatch_baseline_rows stepwatch_baseline_usable stepwatch_prevalence stepwatch_performance
stepwatch_performance_low stepwatch_performance_high stepwatch_labelled_studies
stepwatch_estimate_parted stepwatch_performance_labelled_only stepwatch_labels_bet_on_total
stepwatch_labels_total stepwatch_labels_refused_total stepwatch_subgroup_value
stepwatch_subgroup_worst_gap stepwatch_subgroup_verdict stepwatch_constancy_verdict
stepwatch_constancy_difference stepwatch_constancy_last_timestamp_seconds stepwatch_requests
stepwatch_webhook_requests_total stepwatch_page_timestamp_seconds stepwatch_page_failures_total
stepwatch_state_saved_timestamp_seconds stepwatch_update_seconds_bucket stepwatch_http_requests_total
"""
PROMISED = frozenset(_PROMISED.split())


def text_of(overview: Overview) -> str:
    registry = CollectorRegistry()
    registry.register(OverviewCollector(lambda: overview))
    return (generate_latest(REGISTRY) + generate_latest(registry)).decode()


def samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    families = text_string_to_metric_families(text)
    found = [(s.name, s.labels, s.value) for family in families for s in family.samples]
    return [sample for sample in found if sample[0].startswith("stepwatch_")]


def value(text: str, name: str, **labels: str) -> float | None:
    return next((v for n, found, v in samples(text) if n == name and found == labels), None)


def performance(_database: Database, _package: object) -> Performance:
    finding = FINDINGS[0]
    return Performance(
        figures=(Figure(finding=finding, measure="auroc", how="measured", value=0.9, low=0.85, high=0.95),),
        groups=(
            GroupFigure(finding=finding, group="sex", level="F", measure="ppv", value=0.9, verdict="as_others"),
            GroupFigure(finding=finding, group="sex", level="M", measure="ppv", value=float("nan"), verdict="too_few"),
        ),
        worst_gaps={(finding, "ppv"): 0.1},
        prevalences=(Prevalence(finding=finding, how="estimated", value=0.2),),
        labelled={finding: 40},
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Overview, list[Observation], Sidecar, sa.Engine]:
    """A department in which one scanner becomes brighter, seen by the real detectors."""
    folder = tmp_path_factory.mktemp("watched")
    digest = write_watched_package(folder / "package", department(2000, start=MONDAY))
    later = department(700, start=MONDAY + timedelta(days=90), seed=2, digest=digest)
    rows = later[:300] + [brighter(row, 0.15) if row.scanner == "DX-2" else row for row in later[300:]]
    engine = make_service_tables(folder / "db.sqlite")
    write_rows(engine, rows)
    run = ConstancyRun(
        run="run-of-secret-name", time=MONDAY.isoformat(), model_name=MODEL, model_version="1.1.0",
        model_digest=digest, policy_digest="", studies=24, answered=24, verdict="moved", stage="scores",
        differences={"scores": 2.5},
    )  # fmt: skip
    with engine.begin() as db:
        db.execute(sa.insert(tables.CONSTANCY).values(run=run.run, body=run.to_json()))
    settings = Settings(
        database_url=f"sqlite:///{folder / 'db.sqlite'}",
        models=[Model(package=folder / "package")],
        detection=Detection(save_seconds=0),
    )
    database = Database.open(settings.database_url)
    database.prepare()
    insert_event(database, "request-1", "open")
    database.add_page("page.html", "alarm")
    label = Label(label="l", study=rows[0].study, finding=FINDINGS[0], value=1.0, time=rows[0].time, source="http")
    database.add_label(label)
    sidecar = Sidecar(
        settings, database, detectors(settings.detection), performance=performance,
        now=lambda: MONDAY + timedelta(days=200),
    )  # fmt: skip
    sidecar.look()
    yield sidecar.overview, rows, sidecar, engine
    database.close()
    engine.dispose()


Watched = tuple[Overview, list[Observation], Sidecar, sa.Engine]


def test_promtool_finds_nothing_wrong_with_any_name(watched: Watched) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed; the package `prometheus` has it")
    ours = [line for line in text_of(watched[0]).splitlines() if re.match(r"(# (HELP|TYPE) )?stepwatch_", line)]
    answer = subprocess.run(
        [program, "check", "metrics"], input="\n".join(ours) + "\n", capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_promised_metric_is_there(watched: Watched) -> None:
    names = {name for name, _, _ in samples(text_of(watched[0]))}
    assert PROMISED - names == set()


def test_no_label_is_an_identifier(watched: Watched) -> None:
    overview, rows, _, _ = watched
    secrets = {value for row in rows for value in (row.unit, row.study, row.station, row.content) if value}
    secrets |= {overview.models[0].digest, "run-of-secret-name", "request-1", "page.html"}
    for name, labels, _ in samples(text_of(overview)):
        assert set(labels) <= LABELS, name
        assert not secrets & set(labels.values()), name
        assert not any(re.search(r"[0-9a-f]{16}", text) for text in labels.values()), name


def test_no_label_grows_with_what_studies_say(watched: Watched) -> None:
    _, rows, sidecar, engine = watched
    before = {(name, *sorted(labels.items())) for name, labels, _ in samples(text_of(sidecar.overview))}
    strange = [
        replace(
            row, unit=f"strange{n}", scanner=f"scanner {n}", manufacturer=f"maker {n}", senders=(f"AE{n}",),
            view_position=f"view {n}", gate_reasons=(f"reason {n}",), sex=f"sex {n}", transfer_syntax=f"1.2.{n}",
            state=f"state {n}", probabilities={f"finding {n}": 0.5}, ms={f"stage {n}": 1.0},
        )
        for n, row in enumerate(rows[:60])
    ]  # fmt: skip
    write_rows(engine, strange)
    sidecar.look()
    after = {(name, *sorted(labels.items())) for name, labels, _ in samples(text_of(sidecar.overview))}
    assert sidecar.overview.models[0].studies == len(rows) + len(strange)
    new = {item for item in after - before if item[0] != "stepwatch_alarm_active"}
    assert new == set()


def test_a_change_that_the_detectors_find_can_be_asked_for(watched: Watched) -> None:
    overview = watched[0]
    text = text_of(overview)
    active = [labels for name, labels, _ in samples(text) if name == "stepwatch_alarm_active"]
    assert active
    assert all(labels["model"] == MODEL for labels in active)
    assert any("pixel" in labels["signal"] for labels in active)
    assert value(text, "stepwatch_observations_total", model=MODEL) == 700
    assert value(text, "stepwatch_alarms_unacknowledged", model=MODEL) == len(overview.models[0].alarms)
    assert value(text, "stepwatch_constancy_verdict", model=MODEL, verdict="moved") == 1
    assert value(text, "stepwatch_constancy_verdict", model=MODEL, verdict="constant") == 0
    assert value(text, "stepwatch_labels_total", source="http") == 1
    assert value(text, "stepwatch_requests", state="open") == 1


def test_what_was_saved_is_what_is_counted_so_that_a_restart_counts_no_study_again() -> None:
    view = View(model="m", version="1", digest="d", usable=True, studies=120, saved_studies=100, limit=5.0)
    assert value(text_of(Overview(models=(view,))), "stepwatch_observations_total", model="m") == 100


def test_a_constancy_run_is_awaited_from_the_last_one_on_or_from_the_first_study() -> None:
    def awaited(*runs: ConstancyRun, **values: Any) -> float | None:
        view = View(model="m", version="1", digest="d", usable=True, **values)
        return value(
            text_of(Overview(models=(view,), constancy=runs)),
            "stepwatch_constancy_awaited_timestamp_seconds",
            model="m",
        )

    later = MONDAY + timedelta(days=3)
    run = ConstancyRun(
        run="r", time=later.isoformat(), model_name="m", model_version="1", model_digest="d", policy_digest="",
        studies=24, answered=24, verdict="constant", differences={},
    )  # fmt: skip
    assert awaited(has_reference=True) is None
    assert awaited(has_reference=True, first_row=MONDAY) == MONDAY.timestamp()
    assert awaited(run, has_reference=True, first_row=MONDAY) == later.timestamp()
    assert awaited(run, first_row=MONDAY) is None


def test_a_model_without_a_usable_baseline_says_so() -> None:
    text = text_of(Overview(models=(View(model="m", version="", digest="", usable=False, problem="too small"),)))
    assert value(text, "stepwatch_baseline_usable", model="m") == 0
    assert value(text, "stepwatch_observations_total", model="m") is None
    assert value(text, "stepwatch_last_row_timestamp_seconds") is None


def test_the_shipped_package_can_be_watched() -> None:
    package = read_package(Model(package=SHIPPED))
    assert package.findings == FINDINGS
    assert detectors(Settings().detection)(package).baseline_rows > 1000


def test_the_worst_of_many_verdicts_is_exported_and_is_what_the_rule_asks_for() -> None:
    rules = yaml.safe_load((Path(__file__).parents[3] / "monitoring/prometheus/rules/stepwatch.yaml").read_text())
    [rule] = [r for g in rules["groups"] for r in g["rules"] if r.get("alert") == "StepwatchSubgroupGap"]
    assert rule["expr"].strip() == f'stepwatch_subgroup_verdict{{verdict="{WORSE}"}} == 1'
    groups = [
        GroupFigure(finding="a", group="scanner", level=f"S{n}", measure="auroc", value=0.9, verdict=NOT_JUDGED)
        for n in range(2000)
    ]
    groups += [
        GroupFigure(finding="a", group="sex", level="F", measure=name, value=0.5, verdict=verdict)
        for name, verdict in (("specificity", AS_OTHERS), ("sensitivity", WORSE), ("calibration", MISCALIBRATED))
    ]
    text = text_of(Overview(performance={MODEL: Performance(groups=tuple(groups))}))
    found = [
        labels["verdict"] for name, labels, _ in samples(text) if labels.get("level") == "F" and "verdict" in labels
    ]
    assert found == [WORSE]
    kept = [labels for name, labels, _ in samples(text) if name == "stepwatch_subgroup_value"]
    assert len(kept) == 1000
    assert {labels["measure"] for labels in kept if labels["level"] == "F"} == {
        "specificity", "sensitivity", "calibration",
    }  # fmt: skip
