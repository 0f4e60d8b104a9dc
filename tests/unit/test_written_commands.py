"""Every command that the documents tell people to type is there, with the options that they name."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from stepwatch import cli as stepwatch_cli
from stepwedge import cli as stepwedge_cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "service/*.md", "monitoring/*.md", "models/*.md", "helm/*/*.md")
    for file in ROOT.glob(pattern)
)
PARSERS = {"stepwedge": stepwedge_cli._parser(), "stepwatch": stepwatch_cli._parser()}
IN_LINE = re.compile(r"`((?:stepwedge|stepwatch) [a-z][^`]*)`")
IN_BLOCK = re.compile(r"^(?:\$ )?((?:stepwedge|stepwatch) [a-z].*)$")


def written(text: str) -> list[str]:
    """Commands in backticks and in fenced blocks."""
    found = []
    for number, part in enumerate(text.split("```")):
        if number % 2:
            found += [match[1] for line in part.splitlines() if (match := IN_BLOCK.match(line.strip()))]
        else:
            found += IN_LINE.findall(part)
    return found


def problem(command: str) -> str:
    """What is wrong with a command; empty for a good one."""
    words = command.partition("#")[0].replace("[", " ").replace("]", " ").replace("|", " ").split()
    parser: argparse.ArgumentParser = PARSERS[words[0]]
    rest = words[1:]
    while subcommands := [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]:
        if not rest or not re.fullmatch(r"[a-z][a-z-]*", rest[0]):
            break  # a whole group is named
        if rest[0] not in subcommands[0].choices:
            return f"there is no {rest[0]}"
        parser = subcommands[0].choices[rest.pop(0)]
    options = {option for action in parser._actions for option in action.option_strings}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    if unknown:
        return f"it has no {', '.join(unknown)}"
    # With what it is about, a command of one line is to be typed as it stands; without, it is only named.
    if not rest or rest[0].startswith("-") or {"…", "\\"} & set(rest):
        return ""
    needed = [action.option_strings[0] for action in parser._actions if action.option_strings and action.required]
    missing = [option for option in needed if option not in rest]
    return f"it needs {', '.join(missing)}" if missing else ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_people_are_told_to_type_is_there(document: Path) -> None:
    wrong = {c: said for c in written(document.read_text(encoding="utf-8")) if (said := problem(c))}
    assert wrong == {}


def test_a_command_that_is_not_there_is_found() -> None:
    assert problem("stepwedge status --json") == ""
    assert problem("stepwedge dance") == "there is no dance"
    assert problem("stepwatch labels import FILE.csv --fast") == "it has no --fast"
    assert problem("stepwatch retrain run REQUEST") == "it needs --key"
    assert problem("stepwatch retrain run REQUEST --key FILE") == ""
    assert problem("stepwatch retrain run") == ""
    assert written("see `stepwatch alarms`\n```sh\nstepwedge serve  # all\nls\n```\n") == [
        "stepwatch alarms",
        "stepwedge serve  # all",
    ]
    assert sum(len(written(file.read_text(encoding="utf-8"))) for file in DOCUMENTS) > 40
