"""The operator's page on a real port over a database of its own, with whatever settings a test wants."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from peers import free_ports
from prometheus_client import REGISTRY
from stepwedge.database import open_store
from stepwedge.entries import Delivery, Revision, StoredInstance, Study, Unit
from stepwedge.identity import Site, load_site
from stepwedge.page.app import HttpServer, build_app
from stepwedge.page.desk import Desk, open_desk
from stepwedge.page.routes import page_routes
from stepwedge.records import State
from stepwedge.settings import Settings
from stepwedge.store import Store
from stepwedge.workflow import prepare_queue

HTML = {"Accept": "text/html"}
_SECRET = re.compile(r'name="secret" value="([^"]+)"')


@dataclass(frozen=True)
class Served:
    """A running page, and a browser's place before it."""

    desk: Desk
    base: str
    client: httpx.Client

    @property
    def store(self) -> Store:
        return self.desk.store

    @property
    def site(self) -> Site:
        return self.desk.site

    def get(self, path: str, **words: Any) -> httpx.Response:
        return self.client.get(path, headers=HTML | words.pop("headers", {}), **words)

    def secret(self, path: str = "/studies") -> str:
        """What stands in the forms of a page."""
        found = _SECRET.search(self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, fields: Mapping[str, str] | None = None, **words: Any) -> httpx.Response:
        """As a form of ours is sent; ``headers`` are added or, with None, left out."""
        headers = {**HTML, "Origin": self.base, **words.pop("headers", {})}
        form = {"secret": words.pop("secret", None) or self.secret(), **(fields or {})}
        sent = {name: value for name, value in headers.items() if value is not None}
        return self.client.post(path, data=form, headers=sent, **words)


@cache
def _empty_queue() -> bytes:
    """A queue's database without work: making its tables takes longer than all else here."""
    with TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        prepare_queue(settings)
        return settings.queue_file.read_bytes()


@contextmanager
def page(folder: Path, *, watch: dict[str, Any] | None = None, **groups: Any) -> Iterator[Served]:
    """Serve it; ``groups`` are groups of settings. Without ``watch`` there is no monitor, else one that is away."""
    port, monitor, inference = free_ports(3)
    http = {"port": port, **groups.pop("http", {})}
    own = {
        "watch": {"enabled": watch is not None, "url": f"http://127.0.0.1:{monitor}", **(watch or {})},
        "inference": {"port": inference},
        "spool": {"reserve_bytes": 0},
    }
    settings = Settings(data_dir=folder / "data", http=http, **(own | groups))  # type: ignore[arg-type]
    store = open_store(settings)
    settings.queue_file.write_bytes(_empty_queue())
    desk = open_desk(settings, load_site(settings.data_dir), store)
    server = HttpServer(settings.http, build_app({}, store, None, settings.constancy, routes=page_routes(desk)))
    server.start()
    base = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as client:
            yield Served(desk, base, client)
    finally:
        server.stop()
        desk.close()
        store.close()


def refusals(outcome: str) -> float:
    return REGISTRY.get_sample_value("stepwedge_page_requests_refused_total", {"outcome": outcome}) or 0.0


def put(
    store: Store,
    name: str,
    state: State | None = State.REPORTED,
    *,
    at: float | None = None,
    uid: str | None = None,
    model: str = "tiny",
    reasons: tuple[str, ...] = (),
    deliveries: Mapping[str, str] | None = None,
    is_open: bool = False,
) -> Unit | None:
    """A study of one image; without a state no model has selected it. The unit."""
    at = time.time() - 60 if at is None else at
    uid = uid or f"1.2.{int(name[:8], 16)}"
    instance = StoredInstance(
        study=name, instance=name, digest="d" * 64, path=f"spool/{name}", study_uid=uid, series_uid="1.2",
        sop_uid="1.2", sop_class_uid="1.2", transfer_syntax_uid="1.2", modality="DX", size=1000,
        routed=state is not None, received_at=at, sender="PACS",
    )  # fmt: skip
    store.add_instance(instance)
    study = Study(study=name, study_uid=uid, first_instance_at=at, last_instance_at=at, revision=0, open=True)
    if is_open:
        return None
    if state is None:
        store.close_study(study, None)
        return None
    revision = Revision(study=name, revision=1, closed_at=at + 10, last_instance_at=at, paths=("x",))
    ended = state not in (State.QUEUED, State.RUNNING)
    unit = Unit(
        unit=f"{name}.1.{model}", study=name, revision=1, model_name=model, model_digest="a" * 64, state=state,
        reasons=reasons, created_at=at + 10, last_instance_at=at, ended_at=at + 12 if ended else None,
    )  # fmt: skip
    store.close_study(study, revision, [unit])
    for destination, stands in (deliveries or {}).items():
        error = "demonstration results do not go there" if stands == "withheld" else ""
        store.set_delivery(unit.unit, destination, stands, at=at + 13, error=error)
    return unit


def name_of(number: int) -> str:
    """A study's name."""
    return f"{number:08x}" + "0" * 24


def delivery(store: Store, unit: str, destination: str) -> Delivery:
    return next(item for item in store.deliveries(unit=unit) if item.destination == destination)
