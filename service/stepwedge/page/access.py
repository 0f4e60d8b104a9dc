"""Who may see the page, and who may do something on it.

========  ==========================================================================================================
open      loopback, and nothing is set: whoever is on this machine is an operator, as with the command line
signed    ``page.tokens_file`` or ``page.oidc`` is set: people sign in, programs send ``Authorization: Bearer TOKEN``
closed    beyond loopback, and nothing is set: nobody; health and metrics answer all the same
========  ==========================================================================================================

Whatever the way, a form counts only with the secret of the browser's own session, from a page of ours.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request

from stepwedge import metrics
from stepwedge.errors import SettingsError
from stepwedge.identity import Site
from stepwedge.page.limits import Limit
from stepwedge.page.oidc import Provider
from stepwedge.page.sessions import COOKIE, Session, from_cookie, new_session, session_key
from stepwedge.page.tokens import Token, TokenFile
from stepwedge.settings import LOOPBACK, ROLES, Role, Settings

log = structlog.get_logger()

Kind = Literal["open", "signed", "closed"]
CLOSED = (
    "This page is not open to other machines: set page.tokens_file (stepwedge page-token makes an entry) or page.oidc "
    "in the settings, and start the service anew. Health and metrics answer meanwhile."
)
_PROXIED = (
    "This page is open to this machine alone, and a proxy hands on a request of another one: set page.tokens_file or "
    "page.oidc in the settings, and start the service anew."
)
_RENEW_SECONDS = 60.0  # a cookie is written again when it is older, so that one that was taken back stays so
_WALL = "/wall"
_HERE = "this-machine"  # who acts where nobody has to sign in
_FORWARDED = ("forwarded", "via", "x-real-ip")


class RefusedError(Exception):
    """A request that is not served: how it is counted, the status, what is said, and when to come again."""

    def __init__(self, outcome: str, status: int, said: str, *, wait: float = 0.0) -> None:
        super().__init__(said)
        self.outcome, self.status, self.said, self.wait = outcome, status, said, wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """Who asks. ``role`` is None for somebody who has not signed in; ``session`` is None for a program."""

    who: str
    role: Role | None
    session: Session | None
    is_new: bool = False  # the session is not in the browser yet
    renews: bool = False  # this request lets it go on

    def may(self, role: Role) -> bool:
        """Whether what needs a role may be done."""
        return self.role is not None and ROLES.index(self.role) >= ROLES.index(role)


class Access:
    """Decides by the settings. Safe for threads."""

    def __init__(self, settings: Settings, site: Site) -> None:
        self._page, self._http = settings.page, settings.http
        self.key = session_key(site)
        self.tokens = TokenFile(settings.page.tokens_file) if settings.page.tokens_file else None
        self.provider = Provider(settings.page) if settings.page.oidc.issuer else None
        if self.tokens is not None or self.provider is not None:
            self.kind: Kind = "signed"
        else:
            # A public address says that a proxy on this machine hands on requests of others.
            public = _host(urlsplit(settings.page.url).netloc) or "localhost"
            self.kind = "open" if {settings.http.host, public} <= LOOPBACK else "closed"
        public_name = _host(urlsplit(settings.page.url).netloc)
        self._names = {public_name} if public_name else {*LOOPBACK, settings.http.host}
        self.secure = settings.page.url.startswith("https://")
        self.sign_ins = Limit(settings.page.sign_ins_per_minute)
        self.posts = Limit(settings.page.posts_per_minute)

    def check(self) -> None:
        """Raises SettingsError for a file of tokens or a secret that cannot be read; until it can, nobody signs in."""
        if self.tokens is not None:
            self.tokens.now()
        if self.provider is not None:
            self.provider.check()

    def close(self) -> None:
        """Close the connections."""
        if self.provider is not None:
            self.provider.close()

    @property
    def idle_seconds(self) -> float:
        """After which a session is over."""
        return self._page.session_minutes * 60.0

    def visitor(self, request: Request) -> Visitor:
        """Who asks. Raises RefusedError where the page is closed, or a token is none of ours."""
        if self.kind == "closed":
            raise RefusedError("not_configured", 403, CLOSED)
        self._check_host(request)
        if self.kind == "open":
            self._check_near(request)
        # Other schemes are a proxy's own.
        if request.headers.get("authorization", "").lower().startswith("bearer ") and self.tokens is not None:
            return self._program(request, self.tokens)
        session = from_cookie(
            self.key,
            request.cookies.get(COOKIE, ""),
            idle_seconds=self.idle_seconds,
            longest_seconds=self._page.session_hours * 3600.0,
        )
        is_new = session is None
        session = session or new_session()
        if self.kind == "open":
            return Visitor(who=_HERE, role="operator", session=session, is_new=is_new, renews=True)
        role = self._role(session)
        # Nobody is at a page that loads itself again; and a screen on the wall is for that alone.
        alone = "auto" in request.query_params and not (request.url.path == _WALL and role == "viewer")
        old = time.time() - session.seen > min(_RENEW_SECONDS, self.idle_seconds / 4)
        renews = is_new or (old and not alone)
        return Visitor(who=session.who, role=role, session=session, is_new=is_new, renews=renews)

    def check_form(self, request: Request, visitor: Visitor, form: Mapping[str, str]) -> None:
        """Raises RefusedError for a form that no page of ours sent, and for one client's too many."""
        self.hold_back(self.posts, request, visitor.who)
        if visitor.session is None:
            return  # a program: no browser adds its token by itself
        if not self._is_from_here(request):
            raise RefusedError("foreign_origin", 403, "Refused: the form was not sent from this page.")
        given = form.get("secret", "")
        if visitor.is_new or not hmac.compare_digest(given.encode(), visitor.session.secret.encode()):
            raise RefusedError(
                "stale_form",
                403,
                "Refused: the form is of another session, or too old. Load the page again and repeat.",
            )

    def hold_back(self, limit: Limit, request: Request, who: str = "") -> None:
        """Raises RefusedError for a client that asks too often."""
        wait = limit.wait(f"{_network(self.client(request))}|{who}")
        if wait > 0:
            raise RefusedError("too_many", 429, "Too many requests within a minute. Wait a little.", wait=wait)

    def client(self, request: Request) -> str:
        """The address that asks; of a trusted proxy, the one that it names, past other trusted ones."""
        address = request.client.host if request.client else ""
        named = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
        while named and self._is_trusted(address):
            nearer = named.pop().strip()
            if not _is_address(nearer):
                break
            address = nearer
        return address

    def _is_trusted(self, address: str) -> bool:
        bare = address.partition("%")[0]
        if not _is_address(bare):
            return False
        found = ipaddress.ip_address(bare)
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._page.trusted_proxies)

    def _program(self, request: Request, tokens: TokenFile) -> Visitor:
        entry = _entry(tokens, request.headers["authorization"].partition(" ")[2].strip())
        if entry is None:
            self.hold_back(self.sign_ins, request)
            raise RefusedError("wrong_token", 401, "Refused: this is none of the tokens in page.tokens_file.")
        return Visitor(who=entry.name, role=entry.role, session=None)

    def _role(self, session: Session) -> Role | None:
        """What a session may do now: of a token, as long as the file has it."""
        if session.how == "oidc" and self.provider is not None:
            known_role = next((role for role in ROLES if role == session.role), None)
            return known_role if session.proof == self.provider.proof else None
        if session.how == "token" and self.tokens is not None:
            try:
                known = {(entry.name, entry.proof): entry.role for entry in self.tokens.now()}
            except SettingsError as error:
                raise unreadable(error) from None
            return known.get((session.who, session.proof))
        return None

    def _check_host(self, request: Request) -> None:
        """Against pages of others that reach us under a name of theirs (DNS rebinding)."""
        if not self._page.url and self._http.host not in LOOPBACK:
            return  # any of the machine's names; nobody is signed in under another
        if _host(request.headers.get("host", "")) not in self._names:
            raise RefusedError(
                "foreign_host",
                421,
                "Refused: this service is not known by that name; page.url in the settings names it.",
            )

    def _check_near(self, request: Request) -> None:
        """Against others who come through a proxy, as far as one can be recognised, and pages of other sites."""
        came_from = request.headers.get("referer")
        if (
            any(name in _FORWARDED or name.startswith("x-forwarded-") for name in request.headers)
            or request.scope.get("http_version") == "1.0"  # no browser's; what nginx speaks where it is not told
            or (came_from and _host(urlsplit(came_from).netloc) not in self._names)
        ):
            raise RefusedError("proxied", 403, _PROXIED)
        if request.headers.get("sec-fetch-site") == "cross-site" and (
            request.headers.get("sec-fetch-mode") != "navigate"
        ):
            raise RefusedError("foreign_origin", 403, "Refused: a page of another site asks for this.")

    def _is_from_here(self, request: Request) -> bool:
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is not None and site != "same-origin":
            return False
        if origin is None:
            return site == "same-origin"
        ours = {request.headers.get("host", ""), urlsplit(self._page.url).netloc} - {""}
        return urlsplit(origin).netloc in ours


def refuse(access: Access, request: Request, refused: RefusedError) -> None:
    """Count a refusal and say it in the log, with the address that asked and without anything that it sent."""
    metrics.PAGE_REQUESTS_REFUSED.labels(refused.outcome).inc()
    log.warning(
        "page_request_refused",
        outcome=refused.outcome,
        method=request.method,
        status=refused.status,
        client=access.client(request),
    )


def _entry(tokens: TokenFile, token: str) -> Token | None:
    try:
        return tokens.entry(token)
    except SettingsError as error:
        raise unreadable(error) from None


def unreadable(error: SettingsError) -> RefusedError:
    """What is said while the tokens cannot be read; the log says why."""
    log.error("tokens_unreadable", error=str(error))
    return RefusedError("tokens_unreadable", 503, "Nobody can sign in now: page.tokens_file cannot be read.")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _network(address: str) -> str:
    """What counts as one client: an IPv4 address, or the network of an IPv6 one, of which a machine has any number."""
    bare = address.partition("%")[0]
    if not _is_address(bare) or ipaddress.ip_address(bare).version == 4:
        return address
    return str(ipaddress.ip_network((bare, 64), strict=False))


def _host(netloc: str) -> str:
    """The name without the port."""
    name = netloc.rpartition(":")[0] if netloc.rpartition(":")[2].isdecimal() and ":" in netloc else netloc
    return name.strip("[]").lower()
