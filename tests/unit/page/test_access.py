"""Who may see the page, who may do something on it, and what becomes of every other request."""

from __future__ import annotations

import html
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from page_served import HTML, Served, name_of, page, put, refusals
from sqlalchemy.exc import OperationalError
from stepwedge.errors import SettingsError
from stepwedge.page import sessions
from stepwedge.page.signing_in import ours
from stepwedge.page.tokens import make_token
from stepwedge.records import State
from stepwedge.settings import Page, Settings, load_settings

ROLES = ("viewer", "operator", "approver")
FAILED = name_of(7)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """A token for each role; their file is ``tokens.yaml``."""
    made = {role: make_token(f"the-{role}", role) for role in ROLES}
    (tmp_path / "tokens.yaml").write_text("\n".join(entry for _, entry in made.values()))
    return {role: token for role, (token, _) in made.items()}


@pytest.fixture
def signed(tmp_path: Path, tokens: dict[str, str]) -> Iterator[Served]:
    """A page beyond loopback that asks for tokens, with a failed study."""
    with page(tmp_path, http={"host": "0.0.0.0"}, page={"tokens_file": tmp_path / "tokens.yaml"}) as served:
        put(served.store, FAILED, State.FAILED, reasons=("report_failed",))
        yield served


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Served]:
    """A page on loopback, with nothing set."""
    with page(tmp_path) as served:
        put(served.store, FAILED, State.FAILED, reasons=("report_failed",))
        yield served


def sign_in(served: Served, token: str) -> httpx.Response:
    served.client.cookies.clear()
    return served.post("/sign-in", {"token": token, "to": "/studies"}, secret=served.secret("/sign-in"))


def retry(served: Served, **words: object) -> httpx.Response:
    return served.post("/retry", {"unit": f"{FAILED}.1.tiny"}, **words)


# --- Loopback, with nothing set ---------------------------------------------------------------------------------------


def test_on_this_machine_everybody_is_an_operator(here: Served) -> None:
    assert here.get("/").status_code == 200
    assert retry(here).status_code == 303
    assert here.store.units(study=FAILED)[0].state is State.QUEUED


def test_a_form_of_another_page_changes_nothing(here: Served) -> None:
    secret = here.secret()
    cases: list[tuple[dict[str, object], str]] = [
        ({"headers": {"Origin": "http://evil.example"}, "secret": secret}, "foreign_origin"),
        ({"headers": {"Origin": "null"}, "secret": secret}, "foreign_origin"),
        ({"headers": {"Origin": None}, "secret": secret}, "foreign_origin"),
        ({"headers": {"Sec-Fetch-Site": "cross-site"}, "secret": secret}, "foreign_origin"),
        ({"headers": {"Sec-Fetch-Site": "same-site"}, "secret": secret}, "foreign_origin"),
        ({"secret": "x" * len(secret)}, "stale_form"),
    ]
    for words, outcome in cases:
        before = refusals(outcome)
        assert retry(here, **words).status_code == 403, words
        assert refusals(outcome) == before + 1
    with httpx.Client(base_url=here.base) as other:  # without the cookie
        form = {"secret": secret, "unit": f"{FAILED}.1.tiny"}
        assert other.post("/retry", data=form, headers={"Origin": here.base}).status_code == 403
    assert here.store.units(study=FAILED)[0].state is State.FAILED


def test_a_page_of_others_that_reaches_us_under_its_own_name_is_refused(here: Served) -> None:
    before = refusals("foreign_host")
    assert here.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert refusals("foreign_host") == before + 1
    assert here.get("/", headers={"Host": "localhost:1"}).status_code == 200
    assert here.get("/livez", headers={"Host": "10.1.2.3:8080"}).status_code == 200


def test_what_a_proxy_hands_on_needs_a_sign_in_first(here: Served) -> None:
    answer = here.get("/", headers={"X-Forwarded-For": "10.0.0.9"})
    assert answer.status_code == 403
    assert "page.tokens_file" in answer.text


@pytest.mark.parametrize(
    "header",
    [
        {"Via": "1.1 proxy"},
        {"Forwarded": "for=10.0.0.9"},
        {"X-Forwarded-Host": "stepwedge.example.org"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "10.0.0.9"},
        {"Referer": "http://stepwedge.example.org/studies"},
    ],
)
def test_whatever_tells_of_a_proxy_closes_an_open_page(here: Served, header: dict[str, str]) -> None:
    before = refusals("proxied")
    assert here.get("/", headers=header).status_code == 403
    assert refusals("proxied") == before + 1
    assert here.get("/", headers={"Referer": f"{here.base}/studies"}).status_code == 200


def test_the_language_of_old_proxies_closes_an_open_page(here: Served) -> None:
    port = httpx.URL(here.base).port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: text/html\r\n\r\n")
        assert b" 403 " in connection.makefile("rb").readline()


def test_pages_of_other_sites_load_nothing_of_an_open_page(here: Served) -> None:
    before = refusals("foreign_origin")
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert here.get("/reports/a.html", headers=embedded).status_code == 403
    assert refusals("foreign_origin") == before + 1
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = here.get("/", headers=followed)
    assert answer.status_code == 200
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("path", "field"),
    [("/retry", "unit"), ("/send-again", "destination"), ("/release", "digest"), ("/discard", "digest"),
     ("/acknowledge", "alarm"), ("/search", "name"), ("/sign-in", "token")],
)  # fmt: skip
def test_a_field_with_the_character_nul_is_malformed(here: Served, path: str, field: str) -> None:
    before = refusals("malformed")
    answer = here.post(path, {"unit": f"{FAILED}.1.tiny", field: "a\0b"})
    assert (answer.status_code, "NUL" in answer.text) == (400, True)
    assert refusals("malformed") == before + 1


def test_every_answer_says_that_nothing_of_it_may_be_framed_kept_or_run(here: Served) -> None:
    for answer in (here.get("/"), here.get("/studies/none"), retry(here, secret="wrong")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script" not in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert "style=" not in here.get("/").text
    assert "<script" not in here.get("/").text


# --- Beyond loopback, with nothing set --------------------------------------------------------------------------------


def test_beyond_loopback_the_page_says_what_to_set_and_metrics_answer(tmp_path: Path) -> None:
    with page(tmp_path, http={"host": "0.0.0.0"}) as served:
        before = refusals("not_configured")
        answer = served.get("/")
        assert answer.status_code == 403
        assert "page.tokens_file" in answer.text
        assert "page.oidc" in answer.text
        assert refusals("not_configured") == before + 1
        for path in ("/livez", "/readyz", "/metrics"):
            assert served.get(path).status_code == 200


def test_with_a_public_address_loopback_is_not_enough(tmp_path: Path) -> None:
    with page(tmp_path, page={"url": "https://stepwedge.example.org"}) as served:
        assert served.get("/").status_code == 403


# --- Tokens -----------------------------------------------------------------------------------------------------------


def test_who_has_not_signed_in_sees_the_form_and_nothing_else(signed: Served) -> None:
    for path in ("/", "/wall", "/studies", f"/studies/{FAILED}", "/quarantine", "/model", "/drift", "/actions"):
        answer = signed.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in?to=/")
        assert FAILED not in answer.text
    assert signed.client.get("/").status_code == 401
    assert signed.post("/retry", {"unit": f"{FAILED}.1.tiny"}, secret=signed.secret("/sign-in")).status_code == 401


def test_a_token_opens_a_session_in_a_cookie_that_no_script_and_no_other_site_gets(
    signed: Served, tokens: dict[str, str]
) -> None:
    answer = sign_in(signed, tokens["viewer"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/studies")
    cookie = answer.headers["set-cookie"].lower()
    for wanted in ("httponly", "samesite=lax", "path=/", "max-age=3600"):
        assert wanted in cookie
    assert "the-viewer" in signed.get("/").text
    assert signed.post("/sign-out").headers["location"] == "/sign-in"
    assert signed.get("/").status_code == 303


def test_each_role_does_what_it_may_and_no_more(signed: Served, tokens: dict[str, str]) -> None:
    sign_in(signed, tokens["viewer"])
    assert "Try again" not in signed.get(f"/studies/{FAILED}").text
    before = refusals("forbidden")
    for path in ("/retry", "/retry-all", "/send-again", "/release", "/discard", "/acknowledge"):
        assert signed.post(path, {"unit": f"{FAILED}.1.tiny"}).status_code == 403
    assert refusals("forbidden") == before + 6
    assert signed.store.units(study=FAILED)[0].state is State.FAILED
    sign_in(signed, tokens["operator"])
    assert "Try again" in signed.get(f"/studies/{FAILED}").text
    assert signed.post("/acknowledge", {"alarm": "a", "adopt": "yes"}).status_code == 403
    assert retry(signed).status_code == 303
    assert "the-operator" in signed.get("/actions").text
    sign_in(signed, tokens["approver"])
    answer = signed.post("/acknowledge", {"alarm": "a", "adopt": "yes"})
    assert answer.status_code == 409  # allowed, and then there is no watch.token_file
    assert "watch.token_file" in answer.text


def test_a_wrong_token_is_said_counted_and_logged_without_itself(signed: Served) -> None:
    before = refusals("wrong_token")
    with structlog.testing.capture_logs() as logs:
        answer = sign_in(signed, "sw_guessed-by-somebody")
    assert answer.status_code == 403
    assert "none of the tokens" in answer.text
    assert "guessed" not in answer.text + json.dumps(logs)
    assert refusals("wrong_token") == before + 1
    assert [entry["outcome"] for entry in logs] == ["wrong_token"]


def test_who_guesses_has_to_wait(tmp_path: Path, tokens: dict[str, str]) -> None:
    settings = {"tokens_file": tmp_path / "tokens.yaml", "sign_ins_per_minute": 3}
    with page(tmp_path, page=settings) as served:
        answers = [sign_in(served, "guess").status_code for _ in range(4)]
        assert answers == [403, 403, 403, 429]
        answer = sign_in(served, tokens["viewer"])
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60
        guess = {"Authorization": "Bearer guess"}
        assert served.client.get("/", headers=guess).status_code == 429


def test_posts_of_one_client_are_limited(tmp_path: Path) -> None:
    with page(tmp_path, page={"posts_per_minute": 2}) as served:
        secret = served.secret()
        answers = [served.post("/search", {"name": "0000"}, secret=secret) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [404, 404, 429]
    assert "retry-after" in answers[-1].headers


def test_a_trusted_proxy_says_whose_request_it_is(tmp_path: Path, tokens: dict[str, str]) -> None:
    settings = {
        "tokens_file": tmp_path / "tokens.yaml", "sign_ins_per_minute": 1,
        "trusted_proxies": ["127.0.0.1", "10.42.0.0/16"],
    }  # fmt: skip
    with page(tmp_path, page=settings) as served:

        def guess(*named: str) -> int:
            headers = [("Authorization", "Bearer x"), *(("X-Forwarded-For", each) for each in named)]
            return served.client.get("/", headers=headers).status_code

        assert [guess(f"spoofed, 10.0.0.{number}") for number in (1, 1, 2)] == [401, 429, 401]
        assert [guess("10.0.0.9", "10.0.0.3"), guess("10.0.0.8", "10.0.0.3")] == [401, 429], "the nearest counts"
        assert [guess("10.0.0.4, 127.0.0.1"), guess("10.0.0.4")] == [401, 429], "past other trusted ones"
        assert [guess("10.0.0.5, 10.42.7.1"), guess("10.0.0.5, ::ffff:10.42.9.9")] == [401, 429], "by network too"
        assert [guess("2001:db8::1"), guess("2001:db8::2"), guess("2001:db8:0:1::1")] == [401, 429, 401]
        assert [guess("x" * 99), guess("no address")] == [401, 429], "then it is the proxy"


def test_a_program_sends_its_token_and_needs_no_form(signed: Served, tokens: dict[str, str]) -> None:
    with httpx.Client(base_url=signed.base) as program:
        bearer = {"Authorization": f"Bearer {tokens['operator']}"}
        assert program.get("/studies", headers=bearer).status_code == 200
        answer = program.post("/retry", data={"unit": f"{FAILED}.1.tiny"}, headers=bearer)
        assert answer.status_code == 303
        assert "set-cookie" not in answer.headers
        answer = program.get("/studies", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert signed.store.units(study=FAILED)[0].state is State.QUEUED


def test_a_token_that_is_taken_out_ends_its_sessions_at_once(
    signed: Served, tokens: dict[str, str], tmp_path: Path
) -> None:
    sign_in(signed, tokens["operator"])
    assert signed.get("/").status_code == 200
    entries = [line for line in (tmp_path / "tokens.yaml").read_text().splitlines() if "the-operator" not in line]
    (tmp_path / "tokens.yaml").write_text("\n".join(entries))
    assert signed.get("/").status_code == 303
    assert retry(signed, secret="x").status_code == 403
    (tmp_path / "tokens.yaml").write_text("not: [a list")
    assert signed.get("/").status_code == 503
    assert sign_in(signed, tokens["viewer"]).status_code == 503


def test_a_cookie_that_was_changed_or_is_of_another_node_is_none(
    signed: Served, tokens: dict[str, str], tmp_path: Path
) -> None:
    sign_in(signed, tokens["viewer"])
    cookie = signed.client.cookies["stepwedge_session"]
    body, _, signature = cookie.partition(".")
    with httpx.Client(base_url=signed.base, headers=HTML) as other:
        for changed in (f"{body}x.{signature}", f"{body}.{signature[:-2]}AA", body, f".{signature}", "ä", "x" * 9000):
            other.cookies.clear()
            answer = other.get("/", headers={"Cookie": f"stepwedge_session={changed}".encode()})
            assert answer.status_code == 303
    (tmp_path / "b").mkdir()
    with page(tmp_path / "b", page={"tokens_file": tmp_path / "tokens.yaml"}) as second:
        second.client.cookies.set("stepwedge_session", cookie)
        assert second.get("/").status_code == 303


def test_with_a_public_address_it_answers_to_that_alone_and_cookies_need_tls(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    settings = {"tokens_file": tmp_path / "tokens.yaml", "url": "https://stepwedge.example.org"}
    with page(tmp_path, http={"host": "0.0.0.0"}, page=settings) as served:
        answer = served.get("/sign-in", headers={"Host": "stepwedge.example.org"})
        assert answer.status_code == 200
        assert "secure" in answer.headers["set-cookie"].lower()
        for name in ("evil.example", "127.0.0.1"):
            assert served.get("/sign-in", headers={"Host": name}).status_code == 421


def test_nobody_is_sent_to_another_host_after_signing_in() -> None:
    assert ours("/studies?state=failed") == "/studies?state=failed"
    for elsewhere in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil",
        "/sign-out",
        "/a\nb",
        "",
    ):
        assert ours(elsewhere) == "/"


@pytest.mark.parametrize(
    "oidc",
    [
        {"issuer": "https://id.example"},
        {"issuer": "https://id.example", "client_id": "a"},
        {"issuer": "http://id.example", "client_id": "a", "roles": {"a": "viewer"}},
    ],
)
def test_a_provider_without_what_it_needs_is_refused_at_the_start(tmp_path: Path, oidc: dict[str, str]) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps({"page": {"url": "https://a.example", "oidc": oidc}}))
    with pytest.raises(SettingsError, match=r"page\.oidc"):
        load_settings(tmp_path / "s.yaml")


def test_a_file_of_tokens_that_is_not_there_stops_the_page_and_nothing_else(tmp_path: Path) -> None:
    with page(tmp_path, page={"tokens_file": tmp_path / "nowhere.yaml"}) as served:
        with pytest.raises(SettingsError, match=r"page\.tokens_file: .*nowhere.yaml"):
            served.desk.access.check()
        assert served.get("/livez").status_code == 200
        assert served.get("/").status_code == 303
        answer = sign_in(served, "x")
        assert (answer.status_code, "cannot be read" in answer.text) == (503, True)


def test_a_page_that_loads_itself_again_keeps_nobody_signed_in_but_a_viewer_at_the_wall(
    signed: Served, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'content="30;url=/?auto=1"' in (sign_in(signed, tokens["operator"]) and signed.get("/")).text
    later = time.time() + 120
    for role, path, renewed in (
        ("operator", "/?auto=1", False),
        ("operator", "/wall?auto=1", False),
        ("operator", "/", True),
        ("viewer", "/?auto=1", False),
        ("viewer", "/wall?auto=1", True),
    ):
        sign_in(signed, tokens[role])
        assert "set-cookie" not in signed.get("/studies").headers, "it is a moment old"
        with monkeypatch.context() as change:
            change.setattr(sessions.time, "time", lambda: later)
            answer = signed.get(path)
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, renewed), (role, path)


def test_a_page_that_waits_for_the_database_keeps_nobody_signed_in(
    signed: Served, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("", {}, OSError())

    monkeypatch.setattr("stepwedge.page.views.studies", away)
    sign_in(signed, tokens["operator"])
    answer = signed.get("/studies?state=failed&said=retried")
    (again,) = re.findall(r'content="10;url=([^"]+)"', answer.text)
    assert (answer.status_code, html.unescape(again)) == (503, "/studies?state=failed&said=retried&auto=1")
    later = time.time() + 120
    monkeypatch.setattr(sessions.time, "time", lambda: later)
    answer = signed.get(html.unescape(again))
    assert (answer.text.count(again), "set-cookie" in answer.headers) == (1, False)
    assert "set-cookie" in signed.get("/studies").headers, "somebody is there"


def test_who_signed_in_under_other_settings_of_the_provider_signs_in_again(tmp_path: Path) -> None:
    oidc = {"issuer": "https://id.example", "client_id": "a", "roles": {"it": "operator"}}
    with page(tmp_path, page={"url": "http://127.0.0.1", "oidc": oidc}) as served:
        assert served.desk.access.provider is not None
        proof = served.desk.access.provider.proof
        session = sessions.new_session(who="oidc:1", role="operator", how="oidc", proof=proof)
        cookie = sessions.to_cookie(served.desk.access.key, session)
        served.client.cookies.set("stepwedge_session", cookie)
        assert served.get("/").status_code == 200
    with page(tmp_path, page={"url": "http://127.0.0.1", "oidc": oidc | {"roles": {"it": "viewer"}}}) as served:
        served.client.cookies.set("stepwedge_session", cookie)
        assert served.get("/").status_code == 303


def test_only_bearer_is_ours_and_nobody_is_sent_on_to_the_name_of_the_request(signed: Served) -> None:
    assert signed.get("/", headers={"Authorization": "Basic YTpi"}).status_code == 303
    assert signed.get("/studies/", headers={"Host": "evil.example"}, follow_redirects=False).status_code == 404


def test_the_defaults_are_those_that_are_written_down() -> None:
    assert Settings().page == Page()
    assert (Page().session_minutes, Page().session_hours) == (60, 12)
