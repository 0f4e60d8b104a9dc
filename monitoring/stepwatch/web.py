"""The HTTP port: health, metrics, the status page, Alertmanager's webhook, labels, alarms seen, Evidently's pages."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from stepwatch import metrics
from stepwatch.database import Database, DatabaseAwayError
from stepwatch.errors import WatchError
from stepwatch.exporter import OverviewCollector
from stepwatch.logs import where
from stepwatch.overview import Overview
from stepwatch.page import render
from stepwatch.settings import Http
from stepwatch.status import brief

log = structlog.get_logger()

Given = ParamSpec("Given")
Taken = TypeVar("Taken")

_WEBHOOK = "/webhook"
_BACKLOG = 128  # connections that wait to be accepted
_WEBHOOK_BYTES = 1 << 20
_LABELS_BYTES = 8 << 20
_ACKNOWLEDGE_BYTES = 1 << 12
# Alertmanager repeats what still fires after hours, in the same bytes. The same bytes within minutes are a replay.
_REPLAY_SECONDS = 600.0
_LEAST_TOKEN = 16  # characters: below that it can be guessed
_ALERTMANAGER_VERSION = "4"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Nothing is fetched from elsewhere, and nothing runs. Evidently's pages hold their own programs, so they are apart.
_OWN_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_DRAWN_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


@dataclass(frozen=True, kw_only=True)
class Doors:
    """What the application hands on, and to whom."""

    overview: Callable[[], Overview]
    database: Database
    pages: Path  # folder of Evidently's pages
    token: str | None  # that whatever is sent has to bear; None: all of it is refused
    open_request: Callable[[Mapping[str, Any]], object]  # takes one alert of Alertmanager
    read_labels: Callable[[bytes, str], tuple[int, Mapping[str, int]]]  # body, kind: taken, and refused by reason
    acknowledge: Callable[[str, str, bool], object]  # alarm, who has seen it, whether it is normal now
    registry: CollectorRegistry = field(default_factory=lambda: REGISTRY)


class _RefusedError(Exception):
    """A message that is not taken: how it is counted, the status, and what is said."""

    def __init__(self, outcome: str, status: int, said: str) -> None:
        super().__init__(said)
        self.outcome, self.status, self.said = outcome, status, said


def read_token(settings: Http) -> str | None:
    """The bearer token from its file.

    Raises
    ------
    WatchError
        If the file cannot be read or its token can be guessed; or if there is none and the port is open to others.
    """
    if settings.token_file is None:
        if settings.host not in _LOOPBACK:
            raise WatchError(
                f"http.host: {settings.host} is open to other machines, and there is no http.token_file; write a "
                "token into a file (`openssl rand -hex 32`) and name it, or listen on 127.0.0.1"
            )
        return None
    try:
        token = settings.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WatchError(f"http.token_file: {settings.token_file} cannot be read: {type(error).__name__}") from None
    if len(token) < _LEAST_TOKEN:
        raise WatchError(
            f"http.token_file: {settings.token_file} holds fewer than {_LEAST_TOKEN} characters; "
            "`openssl rand -hex 32` makes a token"
        )
    return token


def build_app(doors: Doors) -> Starlette:
    """The application."""
    own = CollectorRegistry()
    own.register(OverviewCollector(doors.overview))

    def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_: Request) -> Response:
        overview = doors.overview()
        state = {
            "database": not overview.database,
            # For information: one model without a baseline does not keep others from being watched.
            "baselines": {view.model: view.usable for view in overview.models},
        }
        return JSONResponse(state, status_code=503 if overview.database else 200)

    def metrics_text(_: Request) -> Response:
        return Response(generate_latest(doors.registry) + generate_latest(own), media_type=CONTENT_TYPE_LATEST)

    def status_page(_: Request) -> Response:
        return HTMLResponse(render(doors.overview()), headers=_headers(_OWN_POLICY))

    def status(_: Request) -> Response:
        return JSONResponse(brief(doors.overview()), headers=_headers(_OWN_POLICY))

    def drawn_page(request: Request) -> Response:
        # A name, never a path: what lies elsewhere cannot be asked for.
        name = request.path_params["name"]
        file = doors.pages / name
        if Path(name).name != name or not name.endswith(".html") or file.is_symlink() or not file.is_file():
            return PlainTextResponse("there is no such page\n", status_code=404)
        return FileResponse(file, media_type="text/html", headers=_headers(_DRAWN_POLICY))

    async def webhook(request: Request) -> Response:
        try:
            _check_token(request, doors.token)
            body = await _read(request, _WEBHOOK_BYTES)
            taken = await _handed_on(_WEBHOOK, _take_alerts, body, doors)
        except _RefusedError as refused:
            log.warning("webhook_refused", outcome=refused.outcome)
            return _refuse(_WEBHOOK, refused)
        _count(_WEBHOOK, "taken")
        return JSONResponse({"taken": taken})

    async def labels(request: Request) -> Response:
        try:
            _check_token(request, doors.token)
            body = await _read(request, _LABELS_BYTES)
            kind = "csv" if request.headers.get("content-type", "").startswith("text/csv") else "json"
            taken, refused = await _handed_on(metrics.LABELS_PATH, _take_labels, body, kind, doors)
        except _RefusedError as error:
            return _refuse(metrics.LABELS_PATH, error)
        for reason, count in refused.items():
            metrics.LABELS_REFUSED.labels(reason).inc(count)
        none = bool(refused) and not taken
        _count(metrics.LABELS_PATH, "refused" if none else "taken")
        return JSONResponse({"taken": taken, "refused": refused}, status_code=400 if none else 200)

    async def acknowledge(request: Request) -> Response:
        try:
            _check_token(request, doors.token)
            body = await _read(request, _ACKNOWLEDGE_BYTES)
            await _handed_on(metrics.ACKNOWLEDGE_PATH, _take_acknowledgement, body, doors)
        except _RefusedError as error:
            return _refuse(metrics.ACKNOWLEDGE_PATH, error)
        _count(metrics.ACKNOWLEDGE_PATH, "taken")
        return JSONResponse({"taken": 1}, status_code=202)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics_text),
            Route("/", status_page),
            Route("/status.json", status),
            Route("/pages/{name}", drawn_page),
            Route(_WEBHOOK, webhook, methods=["POST"]),
            Route(metrics.LABELS_PATH, labels, methods=["POST"]),
            Route(metrics.ACKNOWLEDGE_PATH, acknowledge, methods=["POST"]),
        ]
    )


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }


def _check_token(request: Request, token: str | None) -> None:
    given = request.headers.get("authorization", "")
    scheme, _, credentials = given.partition(" ")
    if token is None:
        raise _RefusedError("no_token", 401, "refused: no http.token_file is set, so nothing is taken here")
    if scheme.lower() != "bearer" or not credentials:
        raise _RefusedError("no_token", 401, "refused: send `Authorization: Bearer TOKEN`")
    # Equal lengths, and a comparison whose time tells nothing of how much was right.
    ours, theirs = (hashlib.sha256(text.encode()).digest() for text in (token, credentials.strip()))
    if not hmac.compare_digest(ours, theirs):
        raise _RefusedError("wrong_token", 401, "refused: this is not the token in http.token_file")


async def _read(request: Request, most: int) -> bytes:
    said = _RefusedError("too_large", 413, f"refused: more than {most} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise said
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise said
        parts.append(part)
    return b"".join(parts)


async def _handed_on(path: str, take: Callable[Given, Taken], *given: Given.args, **named: Given.kwargs) -> Taken:
    """Deal with a message in a thread. Of an error of ours the log says where, and the sender is told to send again."""
    try:
        return await run_in_threadpool(take, *given, **named)
    except _RefusedError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge of the process
        log.error("message_failed", path=path, error=type(error).__name__, where=where(error))
        raise _RefusedError("failed", 500, "not taken: an error of ours; see the log of stepwatch") from None


def _take_alerts(body: bytes, doors: Doors) -> int:
    """Open a request for each firing alert; how many were handed on."""
    malformed = _RefusedError("malformed", 400, "refused: not a message of Alertmanager's webhook, version 4")
    try:
        message = json.loads(body)
        alerts = message["alerts"]
        if str(message["version"]) != _ALERTMANAGER_VERSION or not isinstance(alerts, list):
            raise malformed
        for alert in alerts:
            if alert["status"] not in ("firing", "resolved") or not all(
                isinstance(key, str) and isinstance(value, str)
                for part in ("labels", "annotations")
                for key, value in alert.get(part, {}).items()
            ):
                raise malformed
            if not isinstance(alert["labels"]["alertname"], str) or not isinstance(alert["startsAt"], str):
                raise malformed
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise malformed from None
    digest = hashlib.sha256(body).hexdigest()
    try:
        if not doors.database.first_delivery(digest, _REPLAY_SECONDS):
            raise _RefusedError("replayed", 409, "refused: this message has been taken before")
        try:
            firing = [alert for alert in alerts if alert["status"] == "firing"]
            for alert in firing:
                doors.open_request(alert)
        except BaseException:
            doors.database.forget_delivery(digest)
            raise
    except DatabaseAwayError as error:
        raise _RefusedError("failed", 503, f"not taken: {error}; send it again") from None
    except WatchError as error:
        raise _RefusedError("failed", 500, f"not taken: {error}") from None
    return len(firing)


def _take_labels(body: bytes, kind: str, doors: Doors) -> tuple[int, Mapping[str, int]]:
    try:
        return doors.read_labels(body, kind)
    except DatabaseAwayError as error:
        raise _RefusedError("database_away", 503, f"not taken: {error}; send them again") from None
    except WatchError as error:
        raise _RefusedError("malformed", 400, f"refused: {error}") from None


def _take_acknowledgement(body: bytes, doors: Doors) -> None:
    try:
        message = json.loads(body)
        alarm, who, adopt = message["alarm"], message["by"], message.get("adopt", False)
        if not isinstance(alarm, str) or not isinstance(who, str) or not isinstance(adopt, bool):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _RefusedError("malformed", 400, 'refused: wanted {"alarm": …, "by": …, "adopt": false}') from None
    try:
        doors.acknowledge(alarm, who, adopt)
    except DatabaseAwayError as error:
        raise _RefusedError("database_away", 503, f"not taken: {error}; send it again") from None
    except WatchError as error:
        raise _RefusedError("refused", 409, f"refused: {error}") from None


def _refuse(path: str, refused: _RefusedError) -> Response:
    _count(path, refused.outcome)
    return PlainTextResponse(refused.said + "\n", status_code=refused.status, headers=_challenge(refused))


def _count(path: str, outcome: str) -> None:
    """Count a message by what became of it; those to the webhook have a counter of their own."""
    if path == _WEBHOOK:
        metrics.WEBHOOK_REQUESTS.labels(outcome).inc()
    else:
        metrics.HTTP_REQUESTS.labels(path, outcome).inc()


def _challenge(refused: _RefusedError) -> dict[str, str] | None:
    return {"WWW-Authenticate": 'Bearer realm="stepwatch"'} if refused.status == 401 else None


class HttpServer:
    """Serves the application in a thread of its own."""

    def __init__(self, settings: Http, app: Starlette) -> None:
        self._address = (settings.host, settings.port)
        config = uvicorn.Config(
            app, host=settings.host, port=settings.port, log_level="error", access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; the port. Raises WatchError if the address cannot be had."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server(self._address, family=family, backlog=_BACKLOG)
        except OSError as error:
            raise WatchError(
                f"http.port: cannot listen on {host}:{port} ({error.strerror}); is another program using it?"
            ) from None
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.02)
        return int(listening.getsockname()[1])

    def stop(self) -> None:
        """Stop listening."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
