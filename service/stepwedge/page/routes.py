"""The page's addresses: what each shows or does, and which role that needs.

Every request goes through one door (``_through``): who asks, whether they may, whether the form is theirs; and every
answer leaves with the same headers. Only what is asked for with POST changes or searches anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote

import httpx
import structlog
from sqlalchemy import exc
from starlette.datastructures import URL
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stepwedge.actions import DISCARD, RELEASE
from stepwedge.errors import StepwedgeError, where
from stepwedge.page import deeds, glance, queries, views
from stepwedge.page.access import RefusedError, Visitor, refuse
from stepwedge.page.asking import Answer, Asking
from stepwedge.page.desk import Desk
from stepwedge.page.neighbours import parts
from stepwedge.page.queries import Place
from stepwedge.page.render import STYLE, render
from stepwedge.page.sessions import COOKIE
from stepwedge.page.signing_in import SIGN_IN, keep, sign_in_routes
from stepwedge.settings import Role

log = structlog.get_logger()

_FORM_BYTES = 16 << 10
_REFRESH_SECONDS, _WALL_SECONDS = 30, 10
_HASH = re.compile(r"[0-9a-f]{32}")
_BEGINNING = re.compile(r"[0-9a-f]{6,32}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LONGEST_UID = 64
_READ_SECONDS = 60.0  # within which a report has to be read
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
# Evidently's pages hold their own programs: they run in a place of their own, and reach nothing.
_DRAWN_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'none'"
)
_AWAY = "The database does not answer. Nothing that was acknowledged is lost; this page comes back with the database."


def page_routes(desk: Desk) -> list[Route]:
    """The page's routes."""

    def route(path: str, answer: Answer, role: Role = "viewer", method: str = "GET") -> Route:
        return Route(path, _through(desk, answer, role), methods=[method])

    return [
        Route("/style.css", _style, methods=["GET"]),
        route("/", _overview),
        route("/wall", _wall),
        route("/studies", _studies),
        route("/studies/{study}", _study),
        route("/search", _search, method="POST"),
        route("/quarantine", _quarantine),
        route("/model", _model),
        route("/drift", _drift),
        route("/actions", _actions),
        route("/reports/{name}", _report),
        route("/retry", _retry, "operator", "POST"),
        route("/retry-all", _retry_all, "operator", "POST"),
        route("/send-again", _send_again, "operator", "POST"),
        route("/release", functools.partial(_ask_node, RELEASE), "operator", "POST"),
        route("/discard", functools.partial(_ask_node, DISCARD), "operator", "POST"),
        route("/acknowledge", _acknowledge, "operator", "POST"),
        *[Route(each.path, _through(desk, each.answer, None), methods=[each.method]) for each in sign_in_routes()],
    ]


# --- What is shown ----------------------------------------------------------------------------------------------------


def _overview(asking: Asking) -> Response:
    still = asking.request.query_params.get("refresh") == "off"
    return _glance(asking, "overview.html", 0 if still else _REFRESH_SECONDS)


def _wall(asking: Asking) -> Response:
    return _glance(asking, "wall.html", _WALL_SECONDS)


def _glance(asking: Asking, template: str, refresh: int) -> Response:
    latest = views.studies(asking.desk, "", None).rows
    return asking.page(template, refresh=refresh, overview=glance.overview(asking.desk), latest=latest)


def _studies(asking: Asking) -> Response:
    state = asking.request.query_params.get("state", "")
    if state and state not in queries.FILTERS:
        raise RefusedError("malformed", 400, "There is no such state to list studies by.")
    return _list(asking, state, _place(asking.request.query_params.get("after", "")))


def _list(asking: Asking, state: str, after: Place | None, *, status: int = 200, problem: str = "") -> Response:
    return asking.page(
        "studies.html",
        status=status,
        list=views.studies(asking.desk, state, after),
        counted=queries.count(asking.desk.store, since=math.inf),
        filters=queries.FILTERS,
        after=after,
        problem=problem,
    )


def _study(asking: Asking) -> Response:
    name = asking.request.path_params["study"]
    found = views.study(asking.desk, name) if _HASH.fullmatch(name) else None
    if found is None:
        raise RefusedError("unknown", 404, "This node has no study of this name.")
    return asking.page("study.html", view=found)


def _search(asking: Asking) -> Response:
    """To the study that a hash, its beginning, a unit or a Study Instance UID names; no UID is shown or logged."""
    text = asking.form.get("name", "").strip()
    desk = asking.desk
    hash_part = text.partition(".")[0].lower()
    if _UID.fullmatch(text) and len(text) <= _LONGEST_UID:
        names = [desk.site.holding(text, lambda held: desk.store.study(held) is not None).hash(text)]
        names = [name for name in names if desk.store.study(name) is not None]
        problem = "This node has received no study with that UID."
    elif _BEGINNING.fullmatch(hash_part):
        names = queries.names_beginning(desk.store, hash_part, 2)
        problem = "Several studies begin so: give more of the hash." if names else "No study has a name that begins so."
    else:
        names, problem = (
            [],
            "Wanted: a study's hash or six or more of its first characters, a unit, or a Study Instance UID.",
        )
    if len(names) == 1:
        return _see(f"/studies/{names[0]}")
    return _list(asking, "", None, status=404, problem=problem)


def _quarantine(asking: Asking) -> Response:
    return asking.page("quarantine.html", view=views.quarantine(asking.desk))


def _model(asking: Asking) -> Response:
    desk = asking.desk
    models = glance.model_views(desk)
    last = queries.last_observation(desk.store)
    return asking.page("model.html", models=models, inference=desk.neighbours.inference.read(), last=last)


def _drift(asking: Asking) -> Response:
    desk = asking.desk
    said = glance.monitor_says(desk)
    return asking.page("drift.html", monitor=said, can_acknowledge=desk.neighbours.can_acknowledge)


def _actions(asking: Asking) -> Response:
    return asking.page("actions.html", actions=views.done(asking.desk))


def _report(asking: Asking) -> Response:
    """One of Evidently's pages, from the monitor."""
    try:
        drawn = asking.desk.neighbours.report(asking.request.path_params["name"])
    except StepwedgeError as error:
        raise RefusedError("monitor_away", 502, f"The report cannot be had: {error}.") from None
    if drawn is None:
        raise RefusedError("unknown", 404, "There is no such report, or not any more.")
    return _HandedOn(drawn)


class _HandedOn(StreamingResponse):
    """A report as it comes: never whole in memory, and let go of when it takes too long to be read."""

    def __init__(self, drawn: httpx.Response) -> None:
        super().__init__(parts(drawn), media_type="text/html", headers={"Content-Security-Policy": _DRAWN_POLICY})
        self._drawn = drawn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_SECONDS):
                    await super().__call__(scope, receive, send)
        finally:
            self._drawn.close()


# --- What is done -----------------------------------------------------------------------------------------------------


def _retry(asking: Asking) -> Response:
    study = deeds.retry(asking.desk, asking.form.get("unit", ""), asking.who)
    return _see(f"/studies/{study}?said=retried")


def _retry_all(asking: Asking) -> Response:
    deeds.retry_all(asking.desk, asking.who)
    return _see("/studies?said=retried-all")


def _send_again(asking: Asking) -> Response:
    study = deeds.send_again(asking.desk, asking.form.get("unit", ""), asking.form.get("destination", ""), asking.who)
    return _see(f"/studies/{study}?said=sent")


def _ask_node(action: str, asking: Asking) -> Response:
    state = deeds.ask_node(asking.desk, action, asking.form.get("digest", ""), asking.who)
    return _see(f"/quarantine?said={state if state in ('done', 'refused') else 'asked'}")


def _acknowledge(asking: Asking) -> Response:
    adopt = asking.form.get("adopt") == "yes"
    if adopt and not asking.visitor.may("approver"):
        raise RefusedError("forbidden", 403, "Only an approver may make a change the new normal.")
    deeds.acknowledge(asking.desk, asking.form.get("alarm", ""), asking.who, adopt=adopt)
    return _see("/drift?said=seen")


# --- The door ---------------------------------------------------------------------------------------------------------


def _through(desk: Desk, answer: Answer, role: Role | None) -> Callable[[Request], Any]:
    """The way of every request. ``role`` is what it needs; None where people are still to sign in."""

    async def endpoint(request: Request) -> Response:
        visitor: Visitor | None = None
        try:
            visitor = await desk.turns.run(desk.access.visitor, request)
            form: Mapping[str, str] = {}
            if request.method == "POST":
                form = await _form(request)
                desk.access.check_form(request, visitor, form)
            if role is not None and visitor.role is None:
                return _sealed(desk, visitor, _to_sign_in(desk, request))
            if role is not None and not visitor.may(role):
                raise RefusedError(
                    "forbidden", 403, f"This needs the role {role}, and {visitor.who} is a {visitor.role}."
                )
            asking = Asking(desk=desk, request=request, visitor=visitor, form=form)
            return _sealed(desk, visitor, await desk.turns.run(answer, asking))
        except RefusedError as refused:
            refuse(desk.access, request, refused)
            return _sealed(desk, visitor, _said(request, refused.status, refused.said, wait=refused.wait))
        except StepwedgeError as error:
            return _sealed(desk, visitor, _said(request, 409, str(error)))
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError) as error:
            log.error("page_database_away", error=type(error).__name__)
            return _sealed(desk, visitor, _said(request, 503, _AWAY, refresh=10 if request.method == "GET" else 0))
        except Exception as error:  # noqa: BLE001 - the edge of the process: said in words, and the log says where
            log.error("page_failed", path=_route_of(request), error=type(error).__name__, where=where(error))
            return _sealed(desk, visitor, _said(request, 500, "An error of ours; the log of the service names it."))

    return endpoint


def _said(request: Request, status: int, text: str, *, wait: float = 0.0, refresh: int = 0) -> Response:
    """A page that says a sentence; for programs the sentence alone."""
    headers = {"Retry-After": str(math.ceil(wait))} if wait else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="stepwedge"'
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(text + "\n", status_code=status, headers=headers)
    # `auto` says that nobody is at a page that loads itself again. The host is left out: the request chose its name.
    asked = URL(f"{quote(request.scope['path'])}?{request.scope['query_string'].decode('latin-1')}")
    again = asked.include_query_params(auto=1)
    values = {"title": HTTPStatus(status).phrase, "status": status, "text": text, "refresh": refresh, "again": again}
    return HTMLResponse(render("message.html", values), status_code=status, headers=headers)


def _sealed(desk: Desk, visitor: Visitor | None, response: Response) -> Response:
    """With what every answer has: it is kept by nobody, framed by nobody, and runs nothing."""
    response.headers.setdefault("Content-Security-Policy", _POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    # Not `no-referrer`: browsers then hide from us where a form comes from.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    session = visitor.session if visitor is not None and visitor.renews else None
    if session is not None and COOKIE not in response.headers.get("set-cookie", ""):
        keep(desk.access, session, response)
    return response


def _to_sign_in(desk: Desk, request: Request) -> Response:
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        refused = RefusedError("signed_out", 401, "Sign in, or send `Authorization: Bearer TOKEN`.")
        refuse(desk.access, request, refused)
        return _said(request, refused.status, refused.said)
    to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return _see(f"{SIGN_IN}?to={quote(to)}")


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form. Raises RefusedError for what is none, or too large."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise RefusedError("malformed", 415, "Refused: wanted a form (application/x-www-form-urlencoded).")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            raise RefusedError("too_large", 413, f"Refused: more than {_FORM_BYTES} bytes.")
    try:
        fields = dict(parse_qsl(body.decode("ascii"), max_num_fields=20))
    except ValueError:
        raise RefusedError("malformed", 400, "Refused: the form cannot be read.") from None
    if any("\0" in value for value in fields.values()):  # PostgreSQL takes none in a text
        raise RefusedError("malformed", 400, "Refused: a field of the form holds the character NUL.")
    return fields


def _see(path: str) -> Response:
    return RedirectResponse(path, status_code=303)


def _style(_: Request) -> Response:
    headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
    return Response(STYLE, media_type="text/css", headers=headers)


def _place(text: str) -> Place | None:
    """Where a list goes on, from an address. Raises RefusedError."""
    if not text:
        return None
    at, _, study = text.partition("-")
    try:
        found = Place(at=float(at), study=study)
    except ValueError:
        raise RefusedError("malformed", 400, "There is no such place in the list.") from None
    if not _HASH.fullmatch(study) or not math.isfinite(found.at):
        raise RefusedError("malformed", 400, "There is no such place in the list.")
    return found


def _route_of(request: Request) -> str:
    """The route's pattern: never what stands in the address."""
    route = request.scope.get("route")
    return route.path if isinstance(route, Route) else ""
