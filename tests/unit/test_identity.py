"""The node's identity: made once, kept, and never guessed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stepwedge.errors import SettingsError
from stepwedge.identity import Site, load_site


def test_an_identity_is_made_at_the_first_start_and_kept(tmp_path: Path) -> None:
    site = load_site(tmp_path)
    assert load_site(tmp_path) == site
    assert len(site.node) == 32
    assert len(site.key) == 32
    assert load_site(tmp_path / "other") != site


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    load_site(tmp_path)
    file = tmp_path / "keys" / "site.json"
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == ["site.json"]


def test_roles_that_start_together_agree(tmp_path: Path) -> None:
    sites: list[Site] = []
    threads = [threading.Thread(target=lambda: sites.append(load_site(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sites) == 8
    assert len({site.key for site in sites}) == 1


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"node": "1", "key": "no hexadecimal"}', '{"node": "1", "key": 3}'])
def test_a_damaged_identity_is_named_and_not_replaced(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys" / "site.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"site\.json.*restore it from a backup"):
        load_site(tmp_path)
    assert file.read_text() == text


def test_a_hash_depends_on_key_and_value_and_shows_neither() -> None:
    one, two = Site(node="1", key=b"a" * 32), Site(node="2", key=b"b" * 32)
    assert one.hash("1.2.3") == one.hash("1.2.3")
    assert len({one.hash("1.2.3"), one.hash("1.2.4"), two.hash("1.2.3")}) == 3
    assert len(one.hash("1.2.3")) == 32
    assert set(one.hash("1.2.3")) <= set("0123456789abcdef")


@pytest.mark.parametrize("held", ["spool/studies/ab/abcd", "results/abcd.1.0"])
def test_an_identity_that_was_lost_is_not_replaced_by_another(tmp_path: Path, held: str) -> None:
    (tmp_path / held).mkdir(parents=True)
    (tmp_path / held / "file").touch()
    with pytest.raises(SettingsError, match="restore the file"):
        load_site(tmp_path)
    assert not (tmp_path / "keys").exists()
