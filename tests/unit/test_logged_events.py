"""Every event that the programs log is described for the people who read the logs, with its levels, and no other is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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
            assert isinstance(call.func, ast.Attribute)
            found.setdefault((program, event.value), set()).add(call.func.attr)
    return found


def calls(file: Path) -> list[ast.Call]:
    """The calls in a module that write to the log."""
    return [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and (ast.unparse(node.func.value) == "log" or "get_logger" in ast.unparse(node.func.value))
    ]


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
