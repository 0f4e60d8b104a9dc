"""Tokens: made once, kept as digests, and a file that is wrong says where without quoting itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from stepwedge.cli import main
from stepwedge.errors import SettingsError
from stepwedge.page.tokens import TokenFile, make_token, read_tokens


def test_the_command_shows_the_token_once_and_prints_the_entry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["page-token", "--name", "night shift", "--role", "operator"]) == 0
    shown = capsys.readouterr()
    token = shown.err.strip().rpartition(" ")[2]
    assert len(token) > 40
    assert token not in shown.out
    file = tmp_path / "tokens.yaml"
    file.write_text(shown.out)
    entry = TokenFile(file).entry(token)
    assert entry is not None
    assert (entry.name, entry.role) == ("night shift", "operator")
    assert TokenFile(file).entry(token + "x") is None


def test_a_name_that_could_be_anything_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["page-token", "--name", "a\nb", "--role", "viewer"]) == 2
    assert "page-token: name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {name: a, role: boss, sha256: 0}", "0.role"),
        ("a: b", "the top"),
        ("- sw_a-token-put-here-by-mistake", "wrong at 0"),
        ("[unclosed", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_says_where_and_quotes_nothing(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"page\.tokens_file") as caught:
        read_tokens(file)
    assert said in str(caught.value)
    assert "mistake" not in str(caught.value)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    file.write_text("\n".join(make_token("same", "viewer")[1] for _ in range(2)))
    with pytest.raises(SettingsError, match="one name"):
        read_tokens(file)


def test_an_entry_is_one_line_of_yaml() -> None:
    _, entry = make_token("a", "viewer")
    assert "\n" not in entry
    assert yaml.safe_load(entry)[0]["name"] == "a"
