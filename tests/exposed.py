"""A program that shows Prometheus every metric of ours, from the real registries and exporters, with counts that grow.

Each of the three programs has a path of its own: /stepwedge, /stepwedge-inference and /stepwatch.

Also shown are three of NVIDIA's exporter, which cannot be had here: a stand-in for it.
``python tests/exposed.py PORT``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from stepwatch import metrics as watch
from stepwatch.exporter import OverviewCollector
from stepwatch.figures import MEASURES, Figure, GroupFigure, Performance, Prevalence
from stepwatch.overview import Overview
from stepwatch.watch import View
from stepwedge import metrics as service
from stepwedge.inference.plane import DataPlane
from stepwedge.observation import ConstancyRun
from stepwedge.page.gauges import ConstancyGauges, ReadyGauges, StoreGauges
from stepwedge.records import State
from stepwedge.settings import Constancy, Inference
from stepwedge.store import Store, Unit

MODEL = "chest"
_NVIDIA = b"".join(
    f'{name}{{gpu="0"}} {value}\n'.encode()
    for name, value in (("DCGM_FI_DEV_GPU_UTIL", 40), ("DCGM_FI_DEV_FB_USED", 900), ("DCGM_FI_DEV_FB_FREE", 7000))
)


@dataclass(frozen=True)
class Signal:
    """A signal's state."""

    signal: str
    evidence: float
    present_value: float
    family: str = "pixels"
    stratum: str = ""
    baseline_value: float = 0.0
    low: float = -0.4
    high: float = 0.4
    studies: int = 900


def stored(folder: str) -> Store:
    """A store in the middle of a morning."""
    store = Store.open_file(Path(folder) / "stepwedge.sqlite")
    at = time.time() - 40
    for number, state in enumerate([State.QUEUED] * 2 + [State.REPORTED] * 90):
        store.restore_unit(
            Unit(
                unit=str(number), study=str(number), revision=1, model_name=MODEL, model_digest="0" * 64, state=state,
                created_at=at, last_instance_at=at,
            )
        )  # fmt: skip
    store.set_delivery("2", "PACS", "pending", at=at)
    return store


def overview() -> Overview:
    """A model with one alarm, figures, a constancy run and a request."""
    now = datetime.now(UTC)
    alarm = {"signal": "pixel_mean", "shift": "acquisition", "kind_of_alarm": "drift", "acknowledged_by": ""}
    view = View(
        model=MODEL,
        version="1",
        digest="0" * 64,
        usable=True,
        has_reference=True,
        baseline_rows=1000,
        studies=900,
        saved_studies=int(time.time()) % 1_000_000,
        saved_at=time.time(),
        last_row=now,
        limit=6.0,
        alarms=(alarm,),
        signals=(Signal("pixel_mean", 7.1, 0.9), Signal("age_years", 0.2, 0.1)),
    )
    run = ConstancyRun(
        run="r", time=now.isoformat(), model_name=MODEL, model_version="1", model_digest="0" * 64, policy_digest="",
        studies=24, answered=24, verdict="constant", differences={"decode": 0.0, "scores": 0.2},
    )  # fmt: skip
    figures = tuple(
        Figure(finding="pneumonia", measure=measure, how=how, value=0.8, low=0.7, high=0.9)
        for measure in MEASURES
        for how in ("measured", "estimated")
    )
    group = GroupFigure(
        finding="pneumonia", group="sex", level="F", measure="sensitivity", value=0.8, verdict="too_few"
    )
    known = Performance(
        figures=figures,
        groups=(group,),
        worst_gaps={("pneumonia", "sensitivity"): 0.1},
        prevalences=(Prevalence(finding="pneumonia", how="baseline", value=0.2),),
        labelled={"pneumonia": 300},
    )
    return Overview(
        database="",
        models=(view,),
        constancy=(run,),
        requests=({"event": "open"},),
        pages=({"at": time.time()},),
        performance={MODEL: known},
        labels={"csv": 300},
    )


def count() -> None:
    """One more of everything that is counted."""
    service.ASSOCIATIONS.labels("accepted").inc()
    service.INSTANCES.labels("0000").inc(2)
    service.STORE_SECONDS.observe(0.02)
    service.STUDIES_COMPLETED.labels("routed").inc()
    for state in ("reported", "deferred", "rejected", "failed"):
        service.UNITS.labels(MODEL, state).inc()
    service.REASONS.labels(MODEL, "uncertain").inc()
    service.STAGE_SECONDS.labels("decode").observe(0.1)
    service.TURNAROUND_SECONDS.labels("PACS").observe(12)
    service.STUDY_END_SECONDS.labels("urgent", "reported").observe(40)
    service.STUDY_END_SECONDS.labels("routine", "reported").observe(90)
    service.DELIVERIES.labels("PACS", "delivered").inc()
    service.ROLE_RESTARTS.labels("infer").inc(0)
    service.SPOOL_FREE_BYTES.labels("listen").set(80e9)
    watch.UPDATE_SECONDS.observe(0.0004)
    watch.WEBHOOK_REQUESTS.labels("taken").inc()
    watch.DATABASE_UP.set(1)


def of(product: str, registry: CollectorRegistry) -> bytes:
    """The metrics of one of the two: here both are in one process."""
    families = [family for family in registry.collect() if family.name.startswith(product)]
    return b"".join(generate_latest(_One(family)) for family in families)


class _One(CollectorRegistry):
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return (self._family,)


def main() -> None:
    """Serve until ended."""
    watch.start_model(MODEL)
    inference, read, watched = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    plane = DataPlane([], Inference(), give_up=lambda _: None, registry=inference)
    watched.register(OverviewCollector(overview))
    folder = TemporaryDirectory()
    read.register(StoreGauges(stored(folder.name)))
    read.register(ConstancyGauges(Constancy()))
    read.register(ReadyGauges({"listen": lambda: True, "work": lambda: True}))
    provider = inference._names_to_collectors["stepwedge_inference_provider"]
    provider.labels(MODEL, "1", "0" * 12, "CPUExecutionProvider", "cpu").set(1)  # type: ignore[attr-defined]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count()
            plane._requests.labels(MODEL, "answered").inc()
            plane._seconds.labels(MODEL).observe(0.03)
            body = {
                "/stepwedge": lambda: of("stepwedge", REGISTRY) + generate_latest(read),
                "/stepwedge-inference": lambda: generate_latest(inference) + _NVIDIA,
                "/stepwatch": lambda: of("stepwatch", REGISTRY) + generate_latest(watched),
            }[self.path]()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
