"""The page beyond loopback, alone in its role: people sign in at a real OpenID provider or by a token, in Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from browser import chromium, faults, opened, pictures, press
from openid_provider import CLIENT, PASSWORD, SECRET, provider
from page_served import name_of, put
from peers import free_ports
from playwright.sync_api import Browser, Page
from stepwedge.page.tokens import make_token
from stepwedge.records import State
from stepwedge.settings import Settings, load_settings
from stepwedge.store import Store

from service import PATIENCE_SECONDS, until

FAILED = name_of(7)


@dataclass
class Alone:
    """``stepwedge page`` in a process of its own."""

    base: str
    settings: Settings
    log: Path
    token: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alone]:
    folder = tmp_path_factory.mktemp("alone")
    (port,) = free_ports(1)
    base = f"http://127.0.0.1:{port}"
    token, entry = make_token("night shift", "operator")
    (folder / "tokens.yaml").write_text(entry)
    (folder / "secret").write_text(SECRET + "\n")
    with provider(f"{base}/sign-in/callback", folder) as issuer:
        values = {
            "data_dir": "data",
            "http": {"host": "0.0.0.0", "port": port},
            "page": {
                "url": base,
                "tokens_file": "tokens.yaml",
                "sign_ins_per_minute": 100,
                "oidc": {
                    "issuer": issuer, "client_id": CLIENT, "client_secret_file": "secret",
                    "roles": {"radiology-it": "operator", "leads": "approver"},
                },
            },
        }  # fmt: skip
        file = folder / "stepwedge.yaml"
        file.write_text(yaml.safe_dump(values))
        settings = load_settings(file)
        store = Store.open_file(settings.database_file)
        put(store, FAILED, State.FAILED, reasons=("report_failed",))
        store.close()
        log = folder / "page.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "stepwedge", "page", "--config", str(file)], stdout=out, stderr=out
            )
        try:
            until(lambda: _lives(base), f"the page answers:\n{log.read_text()}")
            yield Alone(base, settings, log, token)
        finally:
            process.terminate()
            status = process.wait(PATIENCE_SECONDS)
        assert status == 0


def _lives(base: str) -> bool:
    try:
        return httpx.get(f"{base}/readyz", timeout=10).json() == {"page": True, "clock": True}
    except (httpx.HTTPError, ValueError):
        return False


def _at_provider(page: Page, name: str) -> None:
    """From the page's own form to the provider's, and through it."""
    page.goto(f"/studies/{FAILED}")
    press(page, page.get_by_role("link", name="Sign in with your organisation"))
    page.locator("input[name=login]").fill(name)
    press(page, page.locator("input[name=login]"), "Enter")
    page.locator("input[name=password]").fill(PASSWORD)
    press(page, page.locator("input[name=password]"), "Enter")


def test_somebody_of_a_known_group_signs_in_at_the_provider_and_is_named_by_a_hash(
    alone: Alone, browser: Browser
) -> None:
    with opened(browser, alone.base) as page:
        _at_provider(page, "ann")
        page.wait_for_url(f"**/studies/{FAILED}")
        who = page.locator(".who").inner_text()
        assert re.search(r"oidc:[0-9a-f]{16} \(operator\)", who)
        press(page, page.get_by_role("button", name="Try again"))
        page.goto("/actions")
        assert "oidc:" in page.locator("main").inner_text()
        (cookie,) = [each for each in page.context.cookies() if each["name"] == "stepwedge_session"]
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        press(page, page.get_by_role("button", name="Sign out"))
        assert page.url.endswith("/sign-in")
        page.goto("/")
        assert "/sign-in" in page.url
    log = alone.log.read_text()
    assert '"event": "page_signed_in"' in log
    assert "ann" not in re.sub(r'"event": "[a-z_]+"', "", log).replace("cannot", "")


def test_the_highest_role_of_ones_groups_counts(alone: Alone, browser: Browser) -> None:
    with opened(browser, alone.base) as page:
        _at_provider(page, "bob")
        page.wait_for_url(f"**/studies/{FAILED}")
        assert "(approver)" in page.locator(".who").inner_text()


def test_somebody_without_a_group_that_counts_is_told_so(alone: Alone, browser: Browser) -> None:
    with opened(browser, alone.base) as page:
        _at_provider(page, "eve")
        page.wait_for_url("**/sign-in/callback**")
        assert "none of your groups gives a role" in page.locator("main").inner_text()
        page.goto("/")
        assert "/sign-in" in page.url
    assert 'stepwedge_page_requests_refused_total{outcome="no_role"}' in httpx.get(f"{alone.base}/metrics").text


def test_an_answer_that_nobody_asked_for_signs_nobody_in(alone: Alone, browser: Browser) -> None:
    with opened(browser, alone.base) as page:
        page.goto("/sign-in/callback?code=stolen&state=guessed")
        assert "too old, or of another browser" in page.locator("main").inner_text()
        page.goto("/sign-in")
        press(page, page.get_by_role("link", name="Sign in with your organisation"))
        page.goto("/sign-in/callback?code=stolen&state=guessed")
        assert "not to this attempt" in page.locator("main").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_token_does_it_too_and_the_form_reads_well(
    alone: Alone, browser: Browser, tmp_path: Path, scheme: str
) -> None:
    with opened(browser, alone.base, "phone", scheme) as page:
        page.goto("/studies?state=failed")
        assert faults(page) == []
        page.screenshot(path=pictures(tmp_path) / f"page-sign-in-phone-{scheme}.png", full_page=True)
        page.get_by_label("Token").fill("wrong")
        press(page, page.get_by_role("button", name="Sign in", exact=True))
        assert "none of the tokens" in page.locator("main").inner_text()
        assert faults(page) == []
        page.get_by_label("Token").fill(alone.token)
        press(page, page.get_by_label("Token"), "Enter")
        assert page.url.endswith("/studies?state=failed")
        assert "night shift" in page.locator(".who").inner_text()
        assert faults(page) == []
    assert alone.token not in alone.log.read_text()
