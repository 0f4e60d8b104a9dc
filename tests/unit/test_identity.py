"""The node's identity: made once, kept, and never guessed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from stepwedge.errors import SettingsError
from stepwedge.identity import Site, create_site, key_id, keys_of, load_site, rotate_site, site_file


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


def test_a_rotation_makes_a_new_key_current_and_keeps_the_others_by_id(tmp_path: Path) -> None:
    first = load_site(tmp_path)
    file = site_file(tmp_path)
    made = [rotate_site(file), rotate_site(file)]
    now = load_site(tmp_path)
    assert now.node == first.node
    assert [key_id(each.key) for each in now.each()] == [made[1], made[0], key_id(first.key)]
    assert now.older[-1] == first.key
    assert [item["id"] for item in keys_of(file)] == [made[1], made[0], key_id(first.key)]
    assert [bool(item["since"]) for item in keys_of(file)] == [True, True, False]
    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == ["site.json"]


def test_an_id_says_nothing_of_its_key_and_is_checked(tmp_path: Path) -> None:
    site = load_site(tmp_path)
    assert key_id(site.key) not in site.key.hex()
    file = site_file(tmp_path)
    rotate_site(file)
    values = json.loads(file.read_text())
    values["keys"][1]["key"] = "00" * 32
    file.write_text(json.dumps(values))
    with pytest.raises(SettingsError, match="a key is not that of its id"):
        load_site(tmp_path)
    file.write_text(json.dumps(values | {"schema": 3}))
    with pytest.raises(SettingsError, match="schema 3, this version reads 2"):
        load_site(tmp_path)


def test_a_study_that_is_held_keeps_the_key_that_it_came_under(tmp_path: Path) -> None:
    before = load_site(tmp_path)
    rotate_site(site_file(tmp_path))
    site = load_site(tmp_path)
    held = {before.hash("1.2.3")}
    assert site.holding("1.2.3", held.__contains__).hash("1.2.3") == before.hash("1.2.3")
    assert site.holding("1.2.4", held.__contains__).hash("1.2.4") == site.hash("1.2.4") != before.hash("1.2.4")
    assert site.naming(before.hash("1.2.3"), "1.2.3").key == before.key
    assert site.naming(site.hash("1.2.3"), "1.2.3").key == site.naming("nobody", "1.2.3").key == site.key


def test_keys_may_come_from_a_file_that_is_only_read(tmp_path: Path) -> None:
    file = tmp_path / "secret" / "site.json"
    with pytest.raises(SettingsError, match=r"site_key_file names a file that is not there"):
        load_site(tmp_path / "data", file)
    create_site(file)
    file.chmod(0o400)
    site = load_site(tmp_path / "data", file)
    assert site == load_site(tmp_path / "data", file)
    assert [path.name for path in (tmp_path / "data" / "keys").iterdir()] == ["ids.json"]
    assert site.key.hex() not in (tmp_path / "data" / "keys" / "ids.json").read_text()
    assert rotate_site(file, tmp_path / "new.json") == key_id(load_site(tmp_path / "data", tmp_path / "new.json").key)
    with pytest.raises(SettingsError, match="lacks the site key"):
        load_site(tmp_path / "data", file)


def test_another_key_than_that_of_the_data_folder_is_refused(tmp_path: Path) -> None:
    own = load_site(tmp_path / "data")
    file = tmp_path / "site.json"
    create_site(file)
    with pytest.raises(SettingsError, match=f"lacks the site key {key_id(own.key)}"):
        load_site(tmp_path / "data", file)
    file.write_text(site_file(tmp_path / "data").read_text())
    assert load_site(tmp_path / "data", file) == own
