"""What an OpenID provider says counts only as far as it is signed, fresh, and an answer to what was asked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
import structlog
from certificates import authority
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from stepwedge.errors import SettingsError
from stepwedge.page import oidc
from stepwedge.page.oidc import Begun, Provider, SignInError, role_of
from stepwedge.settings import Oidc, Page

CLIENT = "the-page"
KEY, OTHER = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
CURVE = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, name: str, **more: str) -> dict[str, Any]:
    algorithm = (
        jwt.algorithms.ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else jwt.algorithms.RSAAlgorithm
    )
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": name, **more}


@dataclass
class StandIn:
    """A provider that says whatever a test wants."""

    issuer: str = ""
    keys: list[dict[str, Any]] = field(default_factory=lambda: [public(KEY, "1"), {"kty": "new", "kid": "x"}])
    claims: dict[str, Any] = field(default_factory=dict)
    signed: dict[str, Any] = field(default_factory=lambda: {"key": KEY, "algorithm": "RS256", "headers": {"kid": "1"}})
    user: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    basic: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=lambda: ["client_secret_basic"])
    provider: Provider | None = None

    def come_back(self, **answer: str) -> tuple[str, str]:
        """Begin, and come back from the provider as somebody who has signed in there."""
        assert self.provider is not None
        _, begun = self.provider.begin("/")
        self.claims = {"nonce": begun.nonce, **self.claims}
        return self.provider.finish(begun, {"state": begun.state, "code": "c0de", **answer})

    def token(self) -> str:
        now = int(time.time())
        base = {"iss": self.issuer, "aud": CLIENT, "sub": "jane", "iat": now, "exp": now + 60, "groups": ["it"]}
        claims = {name: value for name, value in (base | self.claims).items() if value is not None}
        if "raw" in self.signed:
            return str(self.signed["raw"](claims))
        return jwt.encode(claims, **self.signed)


@contextmanager
def standing_in(folder: Path, speaking: ssl.SSLContext | None = None, **oidc: Path) -> Iterator[StandIn]:
    """The stand-in, and the page's side of it; by TLS where it is told how to speak that."""
    found = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def say(self, body: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            base = found.issuer
            if self.path.startswith("/.well-known"):
                places = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
                self.say(
                    {"issuer": base, "userinfo_endpoint": f"{base}/user"}
                    | {name: f"{base}/{path}" for name, path in places.items()}
                    | {"token_endpoint_auth_methods_supported": found.methods}
                )
            else:
                self.say({"keys": found.keys} if self.path == "/jwks" else found.user)

        def do_POST(self) -> None:
            found.asked.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            found.basic.append(self.headers.get("Authorization", ""))
            self.say({"id_token": found.token(), "access_token": "a", "token_type": "Bearer"})

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if speaking is not None:
        server.socket = speaking.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    found.issuer = f"{'https' if speaking else 'http'}://127.0.0.1:{server.server_address[1]}"
    (folder / "secret").write_text("a secret & more\n")
    values = {
        "issuer": found.issuer, "client_id": CLIENT, "client_secret_file": folder / "secret",
        "roles": {"it": "operator", "leads": "approver", "all": "viewer"}, **oidc,
    }  # fmt: skip
    found.provider = Provider(Page(url="https://page.example", oidc=Oidc.model_validate(values)))
    try:
        yield found
    finally:
        found.provider.close()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    with standing_in(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """The file of a hospital's own authority, and how a server speaks that it vouches for."""
    return authority(tmp_path_factory.mktemp("authority"))


def test_the_way_there_carries_a_challenge_and_the_way_back_its_proof(stand_in: StandIn) -> None:
    assert stand_in.provider is not None
    address, begun = stand_in.provider.begin("/")
    asked = parse_qs(urlsplit(address).query)
    assert asked["redirect_uri"] == ["https://page.example/sign-in/callback"]
    assert asked["response_type"] == ["code"]
    assert asked["code_challenge_method"] == ["S256"]
    assert stand_in.come_back() == (f"{stand_in.issuer}|jane", "operator")
    (sent,) = stand_in.asked
    assert sent["grant_type"] == ["authorization_code"]
    digest = hashlib.sha256(begun.verifier.encode()).digest()
    assert asked["code_challenge"] == [base64.urlsafe_b64encode(digest).rstrip(b"=").decode()]
    assert sent["code_verifier"] != [begun.verifier], "each attempt has its own"
    # RFC 6749, section 2.3.1: both are encoded as in a form first.
    assert base64.b64decode(stand_in.basic[0].removeprefix("Basic ")) == b"the-page:a+secret+%26+more"


def test_a_provider_that_wants_the_secret_in_the_form_gets_it_there(stand_in: StandIn) -> None:
    stand_in.methods = ["client_secret_post"]
    assert stand_in.come_back()[1] == "operator"
    assert stand_in.asked[0]["client_secret"] == ["a secret & more"]
    assert stand_in.basic == [""]


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"nonce": "of-another-attempt"}, "not of this attempt"),
        ({"aud": "another-page"}, "InvalidAudienceError"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "another application"),
        ({"iss": "https://evil.example"}, "InvalidIssuerError"),
        ({"exp": 1}, "ExpiredSignatureError"),
        ({"iat": 4_000_000_000}, "ImmatureSignatureError"),
        ({"sub": None}, "MissingRequiredClaimError sub"),
        ({"exp": None}, "MissingRequiredClaimError exp"),
    ],
)
def test_claims_that_do_not_fit_sign_nobody_in(stand_in: StandIn, claims: dict[str, Any], said: str) -> None:
    stand_in.claims = claims
    with pytest.raises(SignInError, match=said) as caught:
        stand_in.come_back()
    assert caught.value.outcome == "oidc_failed"


def _none(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, "", algorithm="none", headers={"kid": "1"})


def _by_public_key(claims: dict[str, Any]) -> str:
    """The old confusion: the public key as a shared secret."""
    encode = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in
              ({"alg": "HS256", "typ": "JWT", "kid": "1"}, claims)]  # fmt: skip
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = base64.urlsafe_b64encode(hmac.new(pem, b".".join(encode), hashlib.sha256).digest()).rstrip(b"=")
    return b".".join([*encode, signature]).decode()


@pytest.mark.parametrize(
    "signed",
    [
        {"key": OTHER, "algorithm": "RS256", "headers": {"kid": "1"}},
        {"key": KEY, "algorithm": "RS256", "headers": {"kid": "2"}},
        {"key": CURVE, "algorithm": "ES256", "headers": {"kid": "1"}},
        {"raw": _none},
        {"raw": _by_public_key},
        {"raw": lambda _: "not.a.token"},
        {"raw": lambda _: ""},
    ],
    ids=["another key", "unknown key", "key of another kind", "unsigned", "public key as secret", "no token", "empty"],
)
def test_a_signature_that_does_not_hold_signs_nobody_in(stand_in: StandIn, signed: dict[str, Any]) -> None:
    stand_in.signed = signed
    with pytest.raises(SignInError):
        stand_in.come_back()


def test_a_key_is_used_for_its_own_algorithm_alone(stand_in: StandIn) -> None:
    stand_in.keys = [public(KEY, "1", alg="RS512")]
    with pytest.raises(SignInError, match="InvalidAlgorithmError"):
        stand_in.come_back()
    stand_in.signed["algorithm"], stand_in.claims = "RS512", {}
    assert stand_in.come_back()[1] == "operator"


def test_a_key_that_is_new_since_the_last_time_is_fetched(stand_in: StandIn) -> None:
    assert stand_in.come_back()[1] == "operator"
    stand_in.keys = [public(CURVE, "2")]
    stand_in.signed = {"key": CURVE, "algorithm": "ES256", "headers": {"kid": "2"}}
    stand_in.claims = {}
    assert stand_in.come_back()[1] == "operator"


def test_a_key_that_was_replaced_under_its_name_is_fetched(stand_in: StandIn) -> None:
    assert stand_in.come_back()[1] == "operator"
    stand_in.keys = [public(OTHER, "1")]
    stand_in.signed["key"], stand_in.claims = OTHER, {}
    assert stand_in.come_back()[1] == "operator"


def test_a_key_that_the_provider_no_longer_shows_is_forgotten_in_time(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stand_in.come_back()[1] == "operator"
    stand_in.keys, stand_in.claims = [public(OTHER, "2")], {}
    later = time.monotonic() + 3601
    monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
    with pytest.raises(SignInError, match="a key that it does not show"):
        stand_in.come_back()


def test_roles_come_from_the_user_information_where_the_token_has_none(stand_in: StandIn) -> None:
    stand_in.claims = {"groups": None}
    stand_in.user = {"sub": "jane", "groups": ["all", "leads"]}
    assert stand_in.come_back()[1] == "approver"
    stand_in.claims, stand_in.user = {"groups": None}, {"sub": "mallory", "groups": ["leads"]}
    with pytest.raises(SignInError, match="two people"):
        stand_in.come_back()
    stand_in.claims, stand_in.user = {"groups": None}, {"sub": "jane"}
    with pytest.raises(SignInError, match="gives a role") as caught:
        stand_in.come_back()
    assert caught.value.outcome == "no_role"


@pytest.mark.parametrize("answer", [{"state": "guessed"}, {"iss": "https://evil.example"}])
def test_an_answer_to_something_else_is_refused(stand_in: StandIn, answer: dict[str, str]) -> None:
    with pytest.raises(SignInError):
        stand_in.come_back(**answer)
    assert stand_in.asked == []


def test_a_person_who_did_not_sign_in_there_does_not_here(stand_in: StandIn) -> None:
    assert stand_in.provider is not None
    _, begun = stand_in.provider.begin("/")
    with pytest.raises(SignInError, match="did not sign you in"):
        stand_in.provider.finish(begun, {"state": begun.state, "error": "access_denied"})


def test_a_provider_that_is_away_or_none_is_said(tmp_path: Path) -> None:
    page = Page(
        url="https://page.example", oidc=Oidc(issuer="http://127.0.0.1:9", client_id="a", roles={"a": "viewer"})
    )
    provider = Provider(page)
    with pytest.raises(SignInError, match="does not answer") as caught:
        provider.begin("/")
    assert caught.value.outcome == "oidc_away"
    with pytest.raises(SignInError):
        provider.finish(Begun(state="s", nonce="n", verifier="v", to="/"), {"state": "s", "code": "c"})
    provider.close()
    broken = page.model_copy(update={"oidc": page.oidc.model_copy(update={"client_secret_file": tmp_path / "none"})})
    with pytest.raises(SettingsError, match=r"page\.oidc\.client_secret_file"):
        Provider(broken).check()


def test_a_secret_that_cannot_be_read_is_said_until_it_can(stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "secret").rename(tmp_path / "away")
    with structlog.testing.capture_logs() as logs, pytest.raises(SignInError, match="cannot be read here"):
        stand_in.come_back()
    assert [entry["event"] for entry in logs] == ["nobody_can_sign_in"]
    (tmp_path / "away").rename(tmp_path / "secret")
    stand_in.claims = {}
    assert stand_in.come_back()[1] == "operator"


def test_a_provider_of_the_hospitals_own_authority_is_trusted_where_the_settings_name_that(
    hospital: tuple[Path, ssl.SSLContext], tmp_path: Path
) -> None:
    file, speaking = hospital
    with standing_in(tmp_path, speaking, ca_file=file) as stand_in:
        assert stand_in.provider is not None
        stand_in.provider.check()
        assert stand_in.come_back() == (f"{stand_in.issuer}|jane", "operator")
    other, _ = authority(tmp_path)
    for trusted in ({}, {"ca_file": other}):
        with (
            standing_in(tmp_path, speaking, **trusted) as stand_in,
            pytest.raises(SignInError, match=r"certificate does not hold here.*page\.oidc\.ca_file") as caught,
        ):
            stand_in.come_back()
        assert caught.value.outcome == "oidc_failed"


@pytest.mark.parametrize(
    ("held", "said"),
    [(None, "cannot be read: No such file"), (b"", "holds no certificate"), (b"\x00\xff", "holds no certificate")],
    ids=["missing", "empty", "no text"],
)
def test_an_authority_that_cannot_be_read_is_said_and_signs_nobody_in_until_it_can(
    hospital: tuple[Path, ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: bytes | None,
    said: str,
) -> None:
    file, speaking = hospital
    named = tmp_path / "hospital.pem"
    if held is not None:
        named.write_bytes(held)
    with standing_in(tmp_path, speaking, ca_file=named) as stand_in:
        assert stand_in.provider is not None
        with pytest.raises(SettingsError, match=rf"page\.oidc\.ca_file: .*hospital\.pem: {said}"):
            stand_in.provider.check()
        with structlog.testing.capture_logs() as logs, pytest.raises(SignInError, match="ca_file cannot be read here"):
            stand_in.come_back()
        assert [entry["event"] for entry in logs] == ["nobody_can_sign_in"]
        shutil.copy(file, named)
        stand_in.provider.check()
        later = time.monotonic() + 10
        monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
        assert stand_in.come_back()[1] == "operator"


def test_a_provider_that_is_away_is_waited_for_once_and_asked_again_soon(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, asked = stand_in.provider, []
    assert provider is not None

    def away(*_: object, **__: object) -> None:
        asked.append(1)
        raise SignInError("oidc_away", "it does not answer")

    with monkeypatch.context() as change:
        change.setattr(provider, "_json", away)
        for _ in range(3):
            with pytest.raises(SignInError, match="does not answer"):
                provider.begin("/")
        assert len(asked) == 1
    later = time.monotonic() + 10
    monkeypatch.setattr(oidc.time, "monotonic", lambda: later)
    assert provider.begin("/")[0].startswith(stand_in.issuer)


def test_the_highest_role_counts_and_what_is_no_list_of_texts_gives_none() -> None:
    roles: dict[str, Any] = {"a": "viewer", "b": "approver"}
    assert role_of(["a", "b", "c"], roles) == "approver"
    assert role_of("a", roles) == "viewer"
    for nothing in (None, [], ["c"], 7, {"a": 1}, [["a"]], True):
        assert role_of(nothing, roles) is None
