"""Signing in through an OpenID provider: the authorization code flow with PKCE (OpenID Connect Core 1.0, RFC 7636).

Only what a web application with a secret of its own needs. What the provider says is read from its discovery document
and its key set; signatures are checked by PyJWT.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
import jwt
import structlog

from stepwedge.errors import SettingsError, StepwedgeError
from stepwedge.settings import ROLES, Page, Role

log = structlog.get_logger()

CALLBACK = "/sign-in/callback"
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_TIMEOUT_SECONDS = 10.0
_LEEWAY_SECONDS = 60  # that the provider's clock may differ
_AWAY_SECONDS = 3.0  # that a provider that did not answer is not asked again
_KEEP_SECONDS = 3600.0  # that discovery and keys are kept; an unknown key is looked for at once


class SignInError(StepwedgeError):
    """The provider did not say who somebody is in a way that holds. ``outcome`` is how it is counted."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """What has to be remembered of an attempt until the provider sends the person back."""

    state: str
    nonce: str
    verifier: str
    to: str  # the page that was asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class _Key:
    """A public key of the provider. ``algorithm`` is the only one that it is for, where the provider says so."""

    id: str | None
    algorithm: str | None
    key: Any


class Provider:
    """An OpenID provider. Safe for threads."""

    def __init__(self, page: Page) -> None:
        self._settings = page.oidc
        self._redirect = page.url.rstrip("/") + CALLBACK
        self._http: httpx.Client | None = None
        self._connecting = threading.Lock()
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._keys: tuple[_Key, ...] = ()
        self._keys_until = 0.0
        self._until = 0.0
        self._discovering = threading.Lock()
        self._away: SignInError | None = None

    def check(self) -> None:
        """Raises SettingsError if the secret, or the authority's certificates, cannot be read."""
        _read_secret(self._settings.client_secret_file)
        _authority(self._settings.ca_file)

    @property
    def proof(self) -> str:
        """What a session remembers of the settings that gave its role."""
        said = self._settings
        kept = json.dumps([said.issuer, said.client_id, said.roles_claim, said.roles], sort_keys=True)
        return hashlib.sha256(kept.encode()).hexdigest()[:16]

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()

    def begin(self, to: str) -> tuple[str, Begun]:
        """Where to send a person who signs in, and what to remember. Raises SignInError."""
        begun = Begun(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            to=to,
        )
        challenge = base64.urlsafe_b64encode(hashlib.sha256(begun.verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect,
            "scope": self._settings.scope,
            "state": begun.state,
            "nonce": begun.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = str(self._discovered()["authorization_endpoint"])
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}", begun

    def finish(self, begun: Begun, answer: Mapping[str, str]) -> tuple[str, Role]:
        """Who came back, as the provider names them (issuer and subject), and the role that they have.

        Raises
        ------
        SignInError
            If the answer is not to what was asked, the provider does not vouch for it, or the person has no role.
        """
        if not secrets.compare_digest(answer.get("state", "").encode(), begun.state.encode()):
            raise SignInError("oidc_failed", "the answer is not to this attempt to sign in; begin again")
        if "code" not in answer:
            raise SignInError("oidc_failed", "the OpenID provider did not sign you in; begin again, or ask who runs it")
        # RFC 9207: an answer of another provider is not taken for this one's.
        if answer.get("iss", self._settings.issuer).rstrip("/") != self._settings.issuer.rstrip("/"):
            raise SignInError("oidc_failed", "the answer is of another OpenID provider")
        tokens = self._exchange(answer["code"], begun.verifier)
        claims = self._verified(str(tokens.get("id_token", "")), begun.nonce)
        said = (
            claims if self._settings.roles_claim in claims else self._user(str(tokens.get("access_token", "")), claims)
        )
        role = role_of(said.get(self._settings.roles_claim), self._settings.roles)
        if role is None:
            raise SignInError(
                "no_role",
                f"you are signed in at the OpenID provider, but none of your {self._settings.roles_claim} gives a role "
                "here; whoever runs this service can name one in page.oidc.roles",
            )
        return f"{claims['iss'].rstrip('/')}|{claims['sub']}", role

    def _exchange(self, code: str, verifier: str) -> dict[str, Any]:
        asked = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect,
            "code_verifier": verifier,
        }
        try:
            secret = _read_secret(self._settings.client_secret_file)
        except SettingsError as error:
            raise _unreadable(error, "page.oidc.client_secret_file") from None
        supported = self._discovered().get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        by_header: httpx.BasicAuth | None = None
        if secret and "client_secret_basic" in supported:
            by_header = httpx.BasicAuth(quote_plus(self._settings.client_id), quote_plus(secret))
        else:
            asked["client_id"] = self._settings.client_id
            if secret:
                asked["client_secret"] = secret
        return self._json("POST", str(self._discovered()["token_endpoint"]), data=asked, auth=by_header)

    def _user(self, access_token: str, claims: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the provider says of a person beside the identity token, where it says more."""
        endpoint = self._discovered().get("userinfo_endpoint")
        if not endpoint or not access_token:
            return claims
        said = self._json("GET", str(endpoint), headers={"Authorization": f"Bearer {access_token}"})
        if said.get("sub") != claims["sub"]:
            raise SignInError("oidc_failed", "the OpenID provider speaks of two people at once")
        return said

    def _verified(self, token: str, nonce: str) -> dict[str, Any]:
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            try:
                claims = self._decoded(token, self._key(key_id))
            except jwt.InvalidSignatureError:
                # The provider may have another key of the same name by now.
                claims = self._decoded(token, self._key(key_id, anew=True))
        except (jwt.PyJWTError, TypeError) as error:  # TypeError: PyJWT's, for a key of another algorithm
            which = " ".join([type(error).__name__, getattr(error, "claim", "")]).strip()
            raise SignInError("oidc_failed", f"the OpenID provider's token does not hold ({which})") from None
        if not secrets.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise SignInError("oidc_failed", "the OpenID provider's token is not of this attempt to sign in")
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or "azp" in claims) and claims.get("azp") != self._settings.client_id:
            raise SignInError("oidc_failed", "the OpenID provider's token was made for another application")
        return claims

    def _decoded(self, token: str, key: _Key) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            # Never one with a shared secret, and the key's own where it names one.
            algorithms=[each for each in _ALGORITHMS if key.algorithm in (None, each)],
            audience=self._settings.client_id,
            issuer=str(self._discovered()["issuer"]),
            leeway=_LEEWAY_SECONDS,
            options={"require": ["iss", "sub", "aud", "exp", "iat"]},
        )
        return claims

    def _key(self, key_id: str | None, *, anew: bool = False) -> _Key:
        for again in (anew, True):
            with self._lock:
                if again or time.monotonic() > self._keys_until:
                    self._keys, self._keys_until = self._read_keys(), time.monotonic() + _KEEP_SECONDS
                keys = self._keys
            found = [key for key in keys if key.id == key_id] or (keys if key_id is None and len(keys) == 1 else ())
            if found:
                return found[0]
        raise SignInError("oidc_failed", "the OpenID provider's token is signed by a key that it does not show")

    def _read_keys(self) -> tuple[_Key, ...]:
        said = self._json("GET", str(self._discovered()["jwks_uri"])).get("keys")
        found = []
        for each in said if isinstance(said, list) else []:
            if not isinstance(each, dict) or each.get("use", "sig") != "sig" or each.get("kty") == "oct":
                continue
            with contextlib.suppress(jwt.PyJWTError):  # of a kind that we have no use for
                found.append(_Key(id=each.get("kid"), algorithm=each.get("alg"), key=jwt.PyJWK.from_dict(each).key))
        return tuple(found)

    def _discovered(self) -> dict[str, Any]:
        with self._discovering:
            if time.monotonic() > self._until:
                self._away, self._until = None, time.monotonic() + _KEEP_SECONDS
                try:
                    self._known = self._discover()
                except SignInError as error:
                    # Whoever comes next does not wait for it once more.
                    self._away, self._until = error, time.monotonic() + _AWAY_SECONDS
            if self._away is not None:
                raise SignInError(self._away.outcome, str(self._away))
            return self._known

    def _discover(self) -> dict[str, Any]:
        issuer = self._settings.issuer.rstrip("/")
        known = self._json("GET", f"{issuer}/.well-known/openid-configuration")
        wanted = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
        if any(not isinstance(known.get(name), str) for name in wanted):
            raise SignInError("oidc_failed", f"{issuer} describes no OpenID provider")
        if known["issuer"].rstrip("/") != issuer:
            raise SignInError("oidc_failed", f"page.oidc.issuer is {issuer}, and the provider calls itself otherwise")
        return known

    def _json(self, method: str, url: str, **words: Any) -> dict[str, Any]:
        try:
            answer = self._connected().request(method, url, **words)
            values = answer.json() if answer.is_success else None
        except SettingsError as error:
            raise _unreadable(error, "page.oidc.ca_file") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):  # httpx hands on OpenSSL's words, and no type of its own
                raise SignInError(
                    "oidc_failed",
                    "the OpenID provider's certificate does not hold here; whoever runs this service can name the "
                    "authority that it is of in page.oidc.ca_file",
                ) from None
            raise SignInError(
                "oidc_away", f"the OpenID provider does not answer ({type(error).__name__}); try again"
            ) from None
        if not isinstance(values, dict):
            raise SignInError("oidc_failed", f"the OpenID provider refused (HTTP {answer.status_code}); begin again")
        return values

    def _connected(self) -> httpx.Client:
        """The connections, made when they are first needed. Raises SettingsError."""
        with self._connecting:
            if self._http is None:
                self._http = httpx.Client(
                    verify=_authority(self._settings.ca_file),
                    timeout=_TIMEOUT_SECONDS,
                    trust_env=False,
                    follow_redirects=False,
                )
            return self._http


def role_of(said: object, roles: Mapping[str, Role]) -> Role | None:
    """The highest role that a claim, a text or a list of texts, gives; None if it gives none."""
    values = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    given = {roles[value] for value in values if isinstance(value, str) and value in roles}
    return max(given, key=ROLES.index, default=None)


def _unreadable(error: SettingsError, setting: str) -> SignInError:
    """What is said while a file cannot be read; the log says why."""
    log.error("nobody_can_sign_in", error=str(error))
    return SignInError("oidc_failed", f"{setting} cannot be read here")


def _authority(file: Path | None) -> ssl.SSLContext | bool:
    """What the provider's certificate has to be of: a file's authority, or a public one."""
    if file is None:
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise SettingsError(
            f"page.oidc.ca_file: {file}: holds no certificate; wanted those of the authority, as PEM"
        ) from None
    except OSError as error:
        raise SettingsError(f"page.oidc.ca_file: {file}: cannot be read: {error.strerror}") from None


def _read_secret(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise SettingsError(f"page.oidc.client_secret_file: {file}: cannot be read: {why}") from None
    if not secret:
        raise SettingsError(f"page.oidc.client_secret_file: {file}: the file is empty")
    return secret
