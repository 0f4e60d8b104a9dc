"""Rules, routes and runbook: each alert fires when it should, asks for metrics that exist, and says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_names import MONITORING, RULES, defined_metrics, unknown_names
from peers import require_tool

ROUTES = MONITORING / "alertmanager" / "alertmanager.yml"
RULE_TESTS = sorted((MONITORING / "prometheus" / "tests").glob("*.yaml"))


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


ALERTS = [rule for rule in rules() if "alert" in rule]


def sections() -> dict[str, str]:
    parts = re.split(r"^## ", (MONITORING / "RUNBOOK.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.split("\n", 1)[0].strip(): part for part in parts[1:]}


def run(*arguments: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=cwd, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_prometheus_takes_the_rules_and_the_example_settings() -> None:
    promtool = require_tool("promtool")
    run(promtool, "check", "rules", *RULES)
    run(promtool, "check", "config", MONITORING / "prometheus" / "prometheus.yml")


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_each_alert_fires_when_it_should_and_only_then(file: Path) -> None:
    run(require_tool("promtool"), "test", "rules", file, cwd=file.parent)


def test_every_alert_is_tested() -> None:
    tests = "\n".join(file.read_text(encoding="utf-8") for file in RULE_TESTS)
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tests] == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_what_happened_and_where_it_is_explained(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert "for" in rule
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")
    assert len(rule["annotations"]["description"]) > 80


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    assert sorted(sections()) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.parametrize("name", sections())
def test_a_section_says_what_to_do_and_how_it_ends(name: str) -> None:
    text = sections()[name]
    for part in ("What it means", "What to look at", "What to do", "Whom to call", "How it clears"):
        assert f"**{part}.**" in text
    for link in re.findall(r"\]\(#([a-z]+)\)", text):
        assert link in {section.lower() for section in sections()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_metrics_and_labels_that_the_code_defines(rule: dict[str, Any]) -> None:
    assert unknown_names(rule["expr"], defined_metrics()) == set()


def test_what_is_asked_for_and_does_not_exist_is_noticed() -> None:
    known = defined_metrics()
    assert unknown_names("rate(stepwedge_unit_total[5m])", known) == {"stepwedge_unit_total"}
    assert unknown_names('stepwedge_units_total{sate="failed"}', known) == {"stepwedge_units_total{sate}"}


@pytest.mark.parametrize(
    ("alert", "severity", "receivers"),
    [
        ("StepwatchSignalDrifted", "warning", "stepwatch,model-owners"),
        ("StepwatchDataMissing", "warning", "stepwatch,model-owners"),
        ("StepwatchPerformanceDecayed", "critical", "stepwatch,model-owners,on-call"),
        ("StepwatchSubgroupGap", "warning", "stepwatch,model-owners"),
        ("StepwatchSubgroupMiscalibrated", "warning", "model-owners"),
        ("StepwatchRetrainFailed", "warning", "model-owners"),
        ("StepwatchBaselineUnusable", "warning", "model-owners"),
        ("StepwatchConstancyMoved", "critical", "model-owners,on-call"),
        ("StepwatchConstancyOverdue", "warning", "model-owners"),
        ("StepwatchSourceStopped", "info", "nobody"),
        ("StepwatchDown", "warning", "operations"),
        ("StepwatchStale", "warning", "operations"),
        ("StepwedgeDown", "critical", "on-call"),
        ("StepwedgeDatabaseDown", "critical", "on-call"),
        ("StepwedgeReplicaDown", "warning", "operations"),
        ("StepwedgeInferenceDown", "critical", "on-call"),
        ("StepwedgeQueueOld", "critical", "on-call"),
    ],
)
def test_an_alert_goes_to_whom_the_runbook_has_called(alert: str, severity: str, receivers: str) -> None:
    assert {rule["alert"]: rule["labels"]["severity"] for rule in ALERTS}[alert] == severity
    assert receivers_of(alert, severity) == receivers


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_nobody_is_called_at_night_for_what_can_wait_for_the_day(rule: dict[str, Any]) -> None:
    called = re.search(r"\*\*Whom to call\.\*\* (.*)", sections()[rule["alert"]])
    assert called
    waits = re.search(r"not at night|nobody at night|working (day|hours)|next working", called[1], re.IGNORECASE)
    at_once = re.search(r"at once|same day", called[1], re.IGNORECASE)
    if waits and not at_once:
        assert "on-call" not in receivers_of(rule["alert"], rule["labels"]["severity"])


def receivers_of(alert: str, severity: str) -> str:
    labels = (f"alertname={alert}", f"severity={severity}", "model=chest", "site=a")
    said = run(require_tool("amtool"), "config", "routes", "test", f"--config.file={ROUTES}", *labels)
    return said.splitlines()[0]


def test_what_happens_at_one_site_silences_nothing_at_another() -> None:
    config = yaml.safe_load(ROUTES.read_text(encoding="utf-8"))
    assert [rule for rule in config["inhibit_rules"] if "site" not in rule.get("equal", ())] == []
    assert "site" in config["route"]["group_by"]
    assert [route for route in config["route"]["routes"] if "group_by" in route] == []


def test_alertmanager_takes_the_example_and_reads_its_token_from_a_file() -> None:
    run(require_tool("amtool"), "check-config", ROUTES)
    receivers = {item["name"]: item for item in yaml.safe_load(ROUTES.read_text(encoding="utf-8"))["receivers"]}
    (webhook,) = receivers["stepwatch"]["webhook_configs"]
    assert webhook["http_config"]["authorization"]["credentials_file"]
    assert "credentials" not in webhook["http_config"]["authorization"]
