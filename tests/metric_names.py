"""Which metrics there are, by the names and labels that Prometheus sees; and which of them an expression asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from stepwatch import metrics as watch_metrics
from stepwatch.exporter import OverviewCollector
from stepwatch.overview import Overview
from stepwedge import metrics as service_metrics
from stepwedge.inference.plane import DataPlane
from stepwedge.page.gauges import ConstancyGauges, ReadyGauges, StoreGauges
from stepwedge.settings import Constancy, Inference
from stepwedge.store import Store

MONITORING = Path(__file__).parents[1] / "monitoring"
RULES = sorted((MONITORING / "prometheus" / "rules").glob("*.yaml"))

# Of exporters that are not ours.
_FOREIGN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity", "model"}}
_NVIDIA = {"DCGM_FI_DEV_GPU_UTIL": {"gpu"}, "DCGM_FI_DEV_FB_USED": {"gpu"}, "DCGM_FI_DEV_FB_FREE": {"gpu"}}
_EVERYWHERE = {"job", "instance", "site"}
_NAME = re.compile(r"\b(?:stepwedge|stepwatch|up|ALERTS|DCGM_FI)[A-Za-z0-9_:]*\b")


def defined_metrics() -> dict[str, set[str]]:
    """Every name that a series of ours can have, with its labels."""
    families: list[tuple[Metric, Iterable[str]]] = []
    for module in (service_metrics, watch_metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                families.append((family, metric._labelnames))
    registry = CollectorRegistry()
    DataPlane([], Inference(), give_up=lambda _: None, registry=registry)
    for metric in registry._collector_to_names:
        assert isinstance(metric, MetricWrapperBase)
        (family,) = metric.describe()
        families.append((family, metric._labelnames))
    with TemporaryDirectory() as folder, closing(Store.open_file(Path(folder) / "empty.sqlite")) as store:
        gauges = (StoreGauges(store), ReadyGauges({}), ConstancyGauges(Constancy()), OverviewCollector(Overview))
        read = [family for each in gauges for family in each.collect()]
    families += [(family, family._labelnames) for family in read]  # type: ignore[attr-defined]
    names = {name: set(labels) | _EVERYWHERE for name, labels in (_FOREIGN | _NVIDIA).items()}
    for family, labels in families:
        own = set(labels) | _EVERYWHERE
        if family.type == "counter":
            names[f"{family.name}_total"] = own
        elif family.type == "histogram":
            names |= {f"{family.name}_count": own, f"{family.name}_sum": own, f"{family.name}_bucket": own | {"le"}}
        else:
            names[family.name] = own
    return names | recorded_names()


def recorded_names() -> dict[str, set[str]]:
    """The names of recording rules; what stands before the first colon says by which labels."""
    names = {}
    for file in RULES:
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    level = rule["record"].partition(":")[0]
                    names[rule["record"]] = set(level.split("_")) | {"site"}
    return names


def unknown_names(expression: str, known: dict[str, set[str]]) -> set[str]:
    """Metrics, and labels of their selectors, that an expression asks for and the code does not define."""
    bare = re.sub(r"#.*", "", expression)
    without_strings = re.sub(r'"[^"]*"', '""', bare)
    found = set()
    for match in re.finditer(r"([A-Za-z_:][A-Za-z0-9_:]*)\s*(\{[^}]*\})?", without_strings):
        name, selector = match.groups()
        name_found = _NAME.fullmatch(name) or ":" in name
        if name_found and name not in known:
            found.add(name)
        elif name_found:
            labels = set(re.findall(r"([A-Za-z_]\w*)\s*(?:=~|!~|!=|=)", selector or ""))
            found |= {f"{name}{{{label}}}" for label in labels - known[name]}
    return found
