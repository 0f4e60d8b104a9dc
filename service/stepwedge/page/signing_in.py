"""Signing in and out: by a token in a form, or at the OpenID provider."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import structlog
from starlette.responses import RedirectResponse, Response

from stepwedge.errors import SettingsError
from stepwedge.page.access import Access, RefusedError, refuse, unreadable
from stepwedge.page.asking import Asking
from stepwedge.page.oidc import CALLBACK, Begun, SignInError
from stepwedge.page.sessions import (
    COOKIE,
    SIGNING_IN,
    SIGNING_IN_SECONDS,
    Session,
    name_of,
    new_session,
    seal,
    to_cookie,
    unseal,
)
from stepwedge.settings import Role

log = structlog.get_logger()

SIGN_IN, SIGN_OUT, AT_PROVIDER = "/sign-in", "/sign-out", "/sign-in/oidc"
# A place of ours to go on to: no other host, no scheme, nothing that a browser would take for one.
_OURS = re.compile(r"/(?:[A-Za-z0-9._~-][A-Za-z0-9._~/-]*)?(?:\?[A-Za-z0-9._~=&-]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignInRoute:
    """An address that may be asked for without having signed in."""

    path: str
    method: str
    answer: Callable[[Asking], Response]


def sign_in_routes() -> list[SignInRoute]:
    """The addresses."""
    return [
        SignInRoute(path=SIGN_IN, method="GET", answer=_show),
        SignInRoute(path=SIGN_IN, method="POST", answer=_by_token),
        SignInRoute(path=AT_PROVIDER, method="GET", answer=_to_provider),
        SignInRoute(path=CALLBACK, method="GET", answer=_back_from_provider),
        SignInRoute(path=SIGN_OUT, method="POST", answer=_out),
    ]


def ours(to: str) -> str:
    """A place to go on to after signing in; the first page for one that is not ours."""
    return to if _OURS.fullmatch(to) and not to.startswith((SIGN_IN, SIGN_OUT)) else "/"


def _show(asking: Asking, *, problem: str = "", status: int = 200) -> Response:
    to = ours(asking.request.query_params.get("to", "") or asking.form.get("to", "/"))
    access = asking.desk.access
    if access.kind == "open" or (asking.visitor.role is not None and not problem):
        return RedirectResponse(to, status_code=303)
    return asking.page(
        "sign_in.html",
        status=status,
        to=to,
        by_token=access.tokens is not None,
        by_provider=access.provider is not None,
        problem=problem,
    )


def _by_token(asking: Asking) -> Response:
    access = asking.desk.access
    access.hold_back(access.sign_ins, asking.request)
    if access.tokens is None:
        raise RefusedError("wrong_token", 404, "Nobody signs in by a token here.")
    try:
        entry = access.tokens.entry(asking.form.get("token", "").strip())
    except SettingsError as error:
        raise unreadable(error) from None
    if entry is None:
        # Counted and logged like every refusal, and said where it can be tried again.
        refuse(access, asking.request, RefusedError("wrong_token", 403, ""))
        return _show(asking, problem="This is none of the tokens. Look whether it was copied whole.", status=403)
    session = new_session(who=entry.name, role=entry.role, how="token", proof=entry.proof)
    return _signed_in(asking, session, entry.role, RedirectResponse(ours(asking.form.get("to", "/")), status_code=303))


def _to_provider(asking: Asking) -> Response:
    access = asking.desk.access
    if access.provider is None:
        raise RefusedError("oidc_failed", 404, "Nobody signs in through an OpenID provider here.")
    try:
        address, begun = access.provider.begin(ours(asking.request.query_params.get("to", "/")))
    except SignInError as error:
        raise RefusedError(error.outcome, 502, str(error)) from None
    response = RedirectResponse(address, status_code=303)
    # Not `strict`: the provider's page sends the browser back here.
    response.set_cookie(
        SIGNING_IN,
        seal(access.key, SIGNING_IN, asdict(begun) | {"at": time.time()}),
        max_age=int(SIGNING_IN_SECONDS),
        path=SIGN_IN,
        httponly=True,
        samesite="lax",
        secure=access.secure,
    )
    return response


def _back_from_provider(asking: Asking) -> Response:
    access, request = asking.desk.access, asking.request
    access.hold_back(access.sign_ins, request)
    if access.provider is None:
        raise RefusedError("oidc_failed", 404, "Nobody signs in through an OpenID provider here.")
    kept = unseal(access.key, SIGNING_IN, request.cookies.get(SIGNING_IN, ""))
    if kept is None or time.time() - kept.pop("at", 0.0) > SIGNING_IN_SECONDS:
        raise RefusedError(
            "oidc_failed", 403, "This attempt to sign in is too old, or of another browser; begin again."
        )
    try:
        begun = Begun(**kept)
        subject, role = access.provider.finish(begun, dict(request.query_params))
    except TypeError:
        raise RefusedError(
            "oidc_failed", 403, "This attempt to sign in was begun by another version; begin again."
        ) from None
    except SignInError as error:
        status = {"oidc_away": 502, "no_role": 403}.get(error.outcome, 403)
        raise RefusedError(error.outcome, status, str(error)) from None
    who = name_of(asking.desk.site, subject)
    session = new_session(who=who, role=role, how="oidc", proof=access.provider.proof)
    response = _signed_in(asking, session, role, RedirectResponse(ours(begun.to), status_code=303))
    response.delete_cookie(SIGNING_IN, path=SIGN_IN, httponly=True, samesite="lax", secure=access.secure)
    return response


def _out(asking: Asking) -> Response:
    response = RedirectResponse(SIGN_IN if asking.desk.access.kind == "signed" else "/", status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=asking.desk.access.secure)
    log.info("page_signed_out", who=asking.who)
    return response


def keep(access: Access, session: Session, response: Response) -> None:
    """Give the browser its session, as of now."""
    response.set_cookie(
        COOKIE,
        to_cookie(access.key, session),
        max_age=int(access.idle_seconds),
        httponly=True,
        # Not `strict`: whoever follows a link from elsewhere would arrive, and from then on be, signed out. What
        # changes something is a POST, which has to come from a page of ours.
        samesite="lax",
        secure=access.secure,
    )


def _signed_in(asking: Asking, session: Session, role: Role, response: Response) -> Response:
    keep(asking.desk.access, session, response)
    log.info("page_signed_in", who=session.who, how=session.how, role=role)
    return response
