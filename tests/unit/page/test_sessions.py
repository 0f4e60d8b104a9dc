"""Sessions end by themselves, and only this node's key makes one."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from stepwedge.identity import Site
from stepwedge.page import sessions
from stepwedge.page.limits import Limit
from stepwedge.page.sessions import from_cookie, new_session, seal, session_key, to_cookie, unseal

SITE = Site(node="0" * 32, key=b"k" * 32)


def test_a_session_goes_on_while_it_is_used_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    key = session_key(SITE)
    session = new_session(who="a", role="viewer", how="token")

    def read(cookie: str) -> sessions.Session | None:
        return from_cookie(key, cookie, idle_seconds=60, longest_seconds=150)

    begin, cookie = time.time(), to_cookie(key, session)
    for after in (50, 100, 149):
        monkeypatch.setattr(sessions.time, "time", lambda after=after: begin + after)
        found = read(cookie)
        assert found is not None
        assert found.who == "a"
        cookie = to_cookie(key, found)
    monkeypatch.setattr(sessions.time, "time", lambda: begin + 151)
    assert read(cookie) is None
    monkeypatch.setattr(sessions.time, "time", lambda: begin + 61)
    assert read(to_cookie(key, replace(session, began=begin + 200))) is not None
    monkeypatch.setattr(sessions.time, "time", lambda: begin + 61 + 61)
    assert read(cookie) is not None  # seen at 149


def test_replicas_agree_on_the_key_and_other_nodes_do_not() -> None:
    assert session_key(SITE) == session_key(replace(SITE))
    assert session_key(SITE) != session_key(replace(SITE, key=b"l" * 32))
    assert session_key(SITE) != SITE.key


def test_what_was_sealed_for_one_purpose_is_nothing_for_another() -> None:
    text = seal(b"key", "a", {"x": 1})
    assert unseal(b"key", "a", text) == {"x": 1}
    assert unseal(b"key", "b", text) is None
    assert unseal(b"kez", "a", text) is None


def test_a_limit_counts_a_minute_back_and_each_client_alone() -> None:
    now = [0.0]
    limit = Limit(2, lambda: now[0])
    assert [limit.wait("a"), limit.wait("a"), limit.wait("b")] == [0, 0, 0]
    assert limit.wait("a") == 60
    now[0] = 59.0
    assert limit.wait("a") == pytest.approx(1)
    now[0] = 60.1
    assert limit.wait("a") == 0
