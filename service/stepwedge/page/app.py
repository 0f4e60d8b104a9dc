"""The HTTP port: /livez, /readyz and /metrics, and the operator's page where the role has one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from stepwedge.errors import SettingsError
from stepwedge.page.gathered import Gathered
from stepwedge.page.gauges import ConstancyGauges, ReadyGauges, StoreGauges
from stepwedge.settings import Constancy, Http
from stepwedge.store import Store

_BACKLOG = 128  # connections that wait to be accepted

Checks = Mapping[str, Callable[[], bool]]


def build_app(
    checks: Checks,
    store: Store,
    gathered: Gathered | None,
    constancy: Constancy,
    *,
    information: Checks = MappingProxyType({}),
    routes: Sequence[Route] = (),
) -> Starlette:
    """The application.

    ``checks`` say by name what has to be true for the role to be ready; ``information`` is only told beside it.
    ``gathered`` are the metrics of all roles of this machine; without it those of this process are shown.
    ``constancy`` is told to whoever waits for runs.
    ``routes`` are those of the page.
    """
    registry = CollectorRegistry()
    if gathered is not None:
        registry.register(gathered)
    registry.register(StoreGauges(store))
    registry.register(ReadyGauges(checks))
    registry.register(ConstancyGauges(constancy))

    # On the event loop itself: it answers however busy the threads are.
    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_: Request) -> Response:
        state = {name: check() for name, check in checks.items()}
        status = 200 if all(state.values()) else 503
        return JSONResponse(state | {name: check() for name, check in information.items()}, status_code=status)

    def metrics(_: Request) -> Response:
        body = generate_latest(registry)
        if gathered is None:
            body += generate_latest(REGISTRY)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    own = [Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)]
    app = Starlette(routes=[*own, *routes])
    app.router.redirect_slashes = False  # it would lead on to whatever host the request names
    return app


class HttpServer:
    """Serves the application in a thread of its own."""

    def __init__(self, settings: Http, app: Starlette) -> None:
        assert settings.port is not None
        self._address = (settings.host, settings.port)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="error",
            access_log=False,
            lifespan="off",
            # Who asks is told by the connection; which proxies may say otherwise is a setting of the page.
            proxy_headers=False,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. Raises SettingsError if the address cannot be had."""
        host, port = self._address
        try:
            listening = socket.create_server(
                self._address, family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
            )
        except OSError as error:
            raise SettingsError(
                f"http.port: cannot listen on {host}:{port} ({error.strerror}); is another program using it?"
            ) from None
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop listening."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
