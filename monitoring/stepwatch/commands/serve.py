"""``stepwatch serve`` and ``stepwatch settings``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import signal
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from stepwatch.settings import Settings, load_settings

_PAGES = "pages"  # folder of Evidently's pages in the data folder


def add(commands: Any) -> None:
    """Add the commands."""
    serve = commands.add_parser("serve", help="watch the models: tail the observations, export metrics, take alerts")
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    serve.set_defaults(run=_serve)
    settings = commands.add_parser("settings", help="print every setting with its default and what it means")
    settings.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML), to print their values instead")
    settings.set_defaults(run=_settings)


def _serve(options: argparse.Namespace) -> int:
    import structlog

    from stepwatch import logs
    from stepwatch.cohort import follow
    from stepwatch.commands.alarms import ask as ask_sidecar
    from stepwatch.database import Database
    from stepwatch.detecting import detectors
    from stepwatch.errors import WatchError
    from stepwatch.labels import take
    from stepwatch.pages import Pages
    from stepwatch.sidecar import Sidecar
    from stepwatch.web import Doors, HttpServer, build_app, read_token

    settings = load_settings(options.config)
    logs.configure(settings.log)
    if not settings.models:
        raise WatchError("models is empty: there is nothing to watch; name a package in the settings")
    token = read_token(settings.http)
    database = Database.open(settings.database_url)
    sidecar = Sidecar(
        settings,
        database,
        detectors(settings.detection),
        performance=follow(settings),
        pages=Pages(settings, database),
    )

    def open_request(alert: Mapping[str, Any]) -> object:
        return _part("requests").open_from_alert(database, alert, now=datetime.now(UTC), settings=settings)

    def read_labels(body: bytes, kind: str) -> tuple[int, Mapping[str, int]]:
        share = settings.performance.audit_share or None
        return take(database, body, kind, _findings(settings), audit_share=share)

    def acknowledge(alarm: str, by: str, adopt: bool) -> object:
        return ask_sidecar(database, alarm, by, adopt=adopt)

    doors = Doors(
        overview=lambda: sidecar.overview,
        database=database,
        pages=settings.data_dir / _PAGES,
        token=token,
        open_request=open_request,
        read_labels=read_labels,
        acknowledge=acknowledge,
    )
    server = HttpServer(settings.http, build_app(doors))
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    port = server.start()
    log = structlog.get_logger()
    log.info("serving", host=settings.http.host, port=port, takes_messages=token is not None)
    try:
        sidecar.run(stop)
    finally:
        server.stop()
        database.close()
        log.info("stopped")
    return 0


def _findings(settings: Settings) -> set[str]:
    """The findings of every package that can be read now."""
    from stepwatch.errors import WatchError
    from stepwatch.packages import read_package

    found: set[str] = set()
    for model in settings.models:
        with contextlib.suppress(WatchError):
            found |= set(read_package(model).findings)
    return found


def _part(name: str) -> Any:
    """A part of the monitor that a message needs. Raises WatchError where this version lacks it."""
    try:
        return importlib.import_module(f"stepwatch.{name}")
    except ModuleNotFoundError:
        from stepwatch.errors import WatchError

        raise WatchError(f"this version of stepwatch has no {name}") from None


def _settings(options: argparse.Namespace) -> int:
    if options.config is not None:
        print(yaml.safe_dump(load_settings(options.config).model_dump(mode="json"), sort_keys=False), end="")  # noqa: T201
        return 0
    for line in reference(Settings):
        print(line)  # noqa: T201
    return 0


def reference(kind: Any, indent: str = "") -> list[str]:
    """Each setting as YAML, with what it means above it."""
    lines = []
    for name, info in kind.model_fields.items():
        value = info.get_default(call_default_factory=True)
        inner = value.__class__ if hasattr(value.__class__, "model_fields") else None
        if inner is not None:
            lines += [
                f"{indent}# {(inner.__doc__ or '').strip()}",
                f"{indent}{name}:",
                *reference(inner, indent + "  "),
            ]
            continue
        lines.append(f"{indent}# {info.description}")
        shown = value if isinstance(value, bool | int | float | list | None) else str(value)
        lines.append(f"{indent}{name}: {json.dumps(shown)}")
    return lines
