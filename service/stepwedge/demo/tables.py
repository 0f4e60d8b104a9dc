"""What the demo shows at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.table import Table

from stepwedge.demo.studies import Outcome, Study
from stepwedge.records import Decision, Finding
from stepwedge.simulate.department import WELL

Pair = tuple[Study, Outcome]

FINDING = "pneumonia"  # what the truth of the department is about
_STATE_WIDTH = 18  # characters: any state, and most reasons
_COLOURS = {"reported": "green", "deferred": "yellow"}
# What a child can come to, in the order shown.
_ENDS = ("act", "clear", "deferred", "rejected", "other")


def files_table(pairs: Sequence[Pair]) -> Table:
    """The real files."""
    table = _table("Real files, and what became of them")
    table.add_column("study")
    table.add_column("state, reasons")
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("came back", no_wrap=True)
    for study, outcome in pairs:
        reasons = [outcome.reasons] if outcome.reasons else []
        if outcome.status != 0:
            reasons.append(f"C-STORE {outcome.status:#06x}")
        table.add_row(study.name, "\n".join([_state(outcome), *reasons]), _seconds(outcome), _objects(outcome))
    return table


def children_table(pairs: Sequence[Pair], quiet_seconds: float) -> Table:
    """The department's morning, a line a child."""
    table = _table("A morning of a simulated department")
    for name in ("child", "taken", "scanner", "truth"):
        table.add_column(name, no_wrap=True)
    table.add_column("state, reasons", min_width=_STATE_WIDTH)
    table.add_column("probability, decision", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("objects", justify="right", no_wrap=True)
    for study, outcome in pairs:
        child = study.child
        assert child is not None
        table.add_row(
            f"{child.number:02}",
            f"{child.taken:%H:%M}",
            child.scanner.name,
            "well" if child.label == WELL else f"ill ({child.label})",
            "\n".join(part for part in (_state(outcome), outcome.reasons) if part),
            "\n".join(_finding(finding) for finding in outcome.findings if finding.decision is not Decision.NONE),
            _seconds(outcome),
            str(len(outcome.objects) or ""),
        )
    table.caption = (
        f"s: seconds from the last instance to the last object, {quiet_seconds:.0f} of them quiet period\n"
        "objects that came back: report and picture; where a finding is acted upon, a heat map and its outline too"
    )
    table.caption_justify = "left"
    return table


def summary_table(pairs: Sequence[Pair]) -> Table:
    """How many children came to what, by the truth about them."""
    counts = Counter((is_ill(study), end(outcome)) for study, outcome in pairs)
    table = _table("Decisions against the truth")
    table.add_column("truth")
    for name in _ENDS:
        table.add_column(name, justify="right")
    for ill, name in ((True, "ill"), (False, "well")):
        table.add_row(name, *(str(counts[ill, column] or "") for column in _ENDS))
    return table


def is_ill(study: Study) -> bool:
    """The truth about a child."""
    return study.child is not None and study.child.label != WELL


def end(outcome: Outcome) -> str:
    """What a child came to: ``act`` or ``clear`` where the report says so, else its state."""
    if outcome.state == "reported":
        decision = outcome.decision(FINDING)
        return str(decision) if decision in {Decision.ACT, Decision.CLEAR} else "other"
    return outcome.state if outcome.state in _ENDS else "other"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)


def _state(outcome: Outcome) -> str:
    colour = "red" if outcome.broken else _COLOURS.get(outcome.state, "default")
    return f"[{colour}]{outcome.state}[/{colour}]"


def _finding(finding: Finding) -> str:
    return f"{finding.name} {finding.probability:.3f} {finding.decision}"


def _seconds(outcome: Outcome) -> str:
    return "" if outcome.seconds is None else f"{outcome.seconds:.1f}"


def _objects(outcome: Outcome) -> str:
    return "+".join(outcome.objects)
