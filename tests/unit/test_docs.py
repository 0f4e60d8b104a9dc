"""What is written down is what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client import Gauge
from prometheus_client.metrics import MetricWrapperBase
from stepwedge import metrics
from stepwedge.records import REASONS
from stepwedge.settings_reference import reference

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service"

METRICS = {name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)}
IDENTIFYING = {"study", "series", "instance", "patient", "uid", "unit", "accession", "sender", "caller", "path"}


def test_the_settings_page_is_the_reference_that_the_code_gives() -> None:
    page = (SERVICE / "SETTINGS.md").read_text(encoding="utf-8")
    assert page == reference(), "write it again: stepwedge settings > service/SETTINGS.md"


def family(metric: MetricWrapperBase) -> tuple[str, str]:
    """The metric's name and help, as Prometheus gets them."""
    (described,) = metric.describe()
    return described.name, described.documentation


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_named_after_the_product_and_explained(name: str) -> None:
    exported, explanation = family(METRICS[name])
    assert re.fullmatch(r"stepwedge(_[a-z]+)+", exported)
    assert exported == f"stepwedge_{name.lower()}"
    assert len(explanation) > 15
    assert explanation[0].isupper()
    assert explanation.endswith(".")


@pytest.mark.parametrize("name", METRICS)
def test_no_metric_has_a_label_that_could_hold_an_identifier(name: str) -> None:
    assert not set(METRICS[name]._labelnames) & IDENTIFYING


def test_no_gauge_is_shown_by_a_role_that_never_set_it() -> None:
    shown = [name for name, metric in METRICS.items() if isinstance(metric, Gauge) and not metric._labelnames]
    assert shown == [], "a gauge without labels is 0 in every role from the start"


def test_times_and_sizes_are_in_base_units() -> None:
    exported = [family(metric)[0] for metric in METRICS.values()]
    assert not [name for name in exported if name.endswith(("_ms", "_milliseconds", "_minutes", "_mb", "_kb"))]


def code_words() -> set[str]:
    """Every string in the service's code, but for the table of reasons itself."""
    words: set[str] = set()
    for path in SERVICE.rglob("*.py"):
        if path.name == "records.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return words


def composed_reasons() -> set[str]:
    """The gate makes these of an attribute's name."""
    attributes = ("modality", "body_part", "view")
    return {f"{attribute}_{what}" for attribute in attributes for what in ("not_intended", "missing")}


def test_every_reason_is_given_somewhere() -> None:
    unused = REASONS.keys() - code_words() - composed_reasons()
    assert unused == set()


def test_every_metric_is_used_somewhere() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SERVICE.rglob("*.py") if path.name != "metrics.py")
    assert [name for name in METRICS if f"metrics.{name}" not in code] == []
