"""Sessions: a signed cookie that says who signed in, and that no other process has to remember.

The key is derived from the site key, so that every replica of the page takes the same cookies; after a rotation of the
site key everybody signs in again. A cookie is ``base64url(JSON) . base64url(HMAC-SHA-256)``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from stepwedge.identity import Site

COOKIE = "stepwedge_session"
SIGNING_IN = "stepwedge_sign_in"  # what is remembered between us and the OpenID provider
SIGNING_IN_SECONDS = 600.0
_LONGEST = 4096  # bytes of a cookie


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One browser's. ``who`` is empty until somebody has signed in; ``secret`` stands in every form."""

    who: str = ""
    role: str = ""
    how: str = ""  # token, oidc; empty: not signed in
    proof: str = ""  # of what gave the role, the token or the settings of the provider: once that changes, it is over
    secret: str
    began: float
    seen: float  # when the cookie was written last


def name_of(site: Site, person: str) -> str:
    """How somebody is named here: a keyed hash of who they are at the OpenID provider, ``ISSUER|SUBJECT``."""
    return f"oidc:{site.hash(person)[:16]}"


def session_key(site: Site) -> bytes:
    """The key that cookies are signed with (HKDF, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"stepwedge operator's page, sessions, 1").derive(
        site.key
    )


def new_session(**values: str) -> Session:
    """A session that begins now, with a secret of its own."""
    now = time.time()
    return Session(**values, secret=secrets.token_urlsafe(24), began=now, seen=now)


def seal(key: bytes, purpose: str, values: dict[str, Any]) -> str:
    """A text that only this key can have made for this purpose."""
    body = _encode(json.dumps(values, separators=(",", ":")).encode())
    return f"{body}.{_encode(_signature(key, purpose, body))}"


def unseal(key: bytes, purpose: str, text: str) -> dict[str, Any] | None:
    """What was sealed; None for a text that this key did not make for this purpose."""
    body, _, signature = text.partition(".")
    if len(text) > _LONGEST or not text.isascii():
        return None
    if not hmac.compare_digest(_encode(_signature(key, purpose, body)), signature):
        return None
    try:
        values: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        return None
    return values


def to_cookie(key: bytes, session: Session) -> str:
    """The cookie's value, as of now."""
    return seal(key, COOKIE, asdict(replace(session, seen=time.time())))


def from_cookie(key: bytes, text: str, *, idle_seconds: float, longest_seconds: float) -> Session | None:
    """The session of a cookie; None for one that is not ours, or over."""
    values = unseal(key, COOKIE, text) if text else None
    if values is None:
        return None
    try:
        session = Session(**values)
    except TypeError:
        return None  # of another version
    now = time.time()
    if now - session.seen > idle_seconds or now - session.began > longest_seconds:
        return None
    return session


def _signature(key: bytes, purpose: str, body: str) -> bytes:
    return hmac.new(key, f"{purpose}|{body}".encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
