"""Every event that the programs log is described for the people who read the logs, with its levels, and no other is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
OF_A_HEADER = {"patient", "name_of_patient", "study_uid", "series_uid", "sop_uid", "accession", "dataset", "header"}


def logged() -> dict[tuple[str, str], set[str]]:
    """The levels of each event in the code, by program."""
    found: dict[tuple[str, str], set[str]] = {}
    for program, folder in (("service", "service/stepwedge"), ("monitor", "monitoring/stepwatch")):
        for call in (node for file in (ROOT / folder).rglob("*.py") for node in calls(file)):
            event = call.args[0]
            assert isinstance(event, ast.Constant), ast.unparse(call)
            found.setdefault((program, event.value), set()).update(levels_of(call))
    return found


def calls(file: Path) -> list[ast.Call]:
    """The calls in a module that write to the log."""
    return [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and levels_of(node)
    ]


def levels_of(call: ast.Call) -> list[str]:
    """At which levels a call writes to the log, one of two where it chooses; empty for one that does not."""
    chosen = [call.func.body, call.func.orelse] if isinstance(call.func, ast.IfExp) else [call.func]
    return [part.attr for part in chosen if is_of_the_log(part)]


def is_of_the_log(part: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether this is one of the log's methods."""
    return (
        isinstance(part, ast.Attribute)
        and part.attr in LEVELS
        and (ast.unparse(part.value) == "log" or "get_logger" in ast.unparse(part.value))
    )


def test_nothing_is_logged_by_another_name_which_the_list_would_not_find() -> None:
    for folder in ("service/stepwedge", "monitoring/stepwatch"):
        for file in (ROOT / folder).rglob("*.py"):
            named = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if is_of_the_log(node)]
            assert len(named) == sum(len(levels_of(call)) for call in calls(file)), file


def described() -> dict[tuple[str, str], set[str]]:
    """The levels of each event in the document, by program."""
    text = (ROOT / "service" / "OPERATIONS.md").read_text(encoding="utf-8")
    logs = text.partition("## Logs")[2].partition("\n## ")[0]
    found = {}
    for program, part in zip(
        ("service", "monitor"), re.split(r"^Of the \w+:$", logs, flags=re.MULTILINE)[1:], strict=True
    ):
        for event, levels, what in re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| (.*) \|$", part, flags=re.MULTILINE):
            assert len(what) > 10, event
            found[program, event] = set(levels.split(", "))
    return found


def test_the_document_lists_the_events_that_are_logged() -> None:
    assert described() == logged()


def test_no_event_has_a_field_that_a_header_fills() -> None:
    fields = {
        word.arg
        for folder in ("service/stepwedge", "monitoring/stepwatch")
        for file in (ROOT / folder).rglob("*.py")
        for call in calls(file)
        for word in call.keywords
    }
    assert fields & OF_A_HEADER == set()
    assert {"study", "unit"} <= fields
