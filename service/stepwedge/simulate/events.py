"""What can happen to a department, by name, from a chosen study on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwedge.errors import StepwedgeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What an event does, and how large it may be."""

    meaning: str
    unit: str = ""  # of the size; empty: it has none
    size: float = 0.0  # where none is given
    least: float = 0.0
    most: float = 0.0


EFFECTS: Mapping[str, Effect] = {
    "scanner-change": Effect(meaning="a new scanner, with tags and a look of its own, replaces the wall stand"),
    "scanner-change-hidden": Effect(meaning="the same new look under the wall stand's tags"),
    "scanner-stop": Effect(
        meaning="the wall stand stops and the bedside scanner takes its studies", unit="days", size=1, least=0.01,
        most=3650,
    ),
    "brightness": Effect(
        meaning="every image is brighter (or darker) by standard deviations of the mean grey between studies",
        unit="SD", size=1, least=-4, most=4,
    ),
    "prevalence": Effect(meaning="the share of ill children becomes this", unit="share", size=0.3, least=0.001,
                         most=0.999),
    "concept": Effect(
        meaning="for this share of studies the label is no longer what the image shows, but drawn at the same "
        "prevalence: as many labels and as many ill-looking images as before, less to do with each other",
        unit="share", size=0.3, most=1,
    ),
    "population": Effect(
        meaning="this share of patients are older children and adults, by header and by proportions (children's "
        "chests, stretched: no adult is drawn)",
        unit="share", size=0.3, most=1,
    ),
    "tamper": Effect(
        meaning="this share of images carries a patch or a faint regular pattern that was not made for the model; "
        "attacks that use its gradients are not simulated here",
        unit="share", size=0.1, most=1,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event."""

    name: str  # one of EFFECTS
    study: int  # the first study it touches, from 1
    size: float


def parse_event(text: str) -> Event:
    """Read ``NAME@STUDY`` or ``NAME@STUDY:SIZE``.

    Raises
    ------
    StepwedgeError
        For an unknown name, a study that is no number from 1, or a size that the event cannot have.
    """
    match = re.fullmatch(r"([^@:]+)@([^@:]+)(?::([^@:]+))?", text.strip())
    if match is None:
        raise StepwedgeError(f"--event {text}: wanted NAME@STUDY or NAME@STUDY:SIZE, such as brightness@500:1.5")
    name, study, size = match.groups()
    effect = EFFECTS.get(name)
    if effect is None:
        raise StepwedgeError(f"--event {text}: no event is called {name!r}; there are {', '.join(EFFECTS)}")
    if not re.fullmatch(r"[0-9]{1,9}", study) or int(study) < 1:
        raise StepwedgeError(f"--event {text}: {study!r} is not the number of a study; they count from 1")
    if size is None:
        return Event(name=name, study=int(study), size=effect.size)
    if not effect.unit:
        raise StepwedgeError(f"--event {text}: {name} has no size; leave out :{size}")
    try:
        value = float(size)
    except ValueError:
        value = float("nan")
    if not effect.least <= value <= effect.most:
        raise StepwedgeError(
            f"--event {text}: the size of {name} is in {effect.unit}, from {effect.least:g} to {effect.most:g}; "
            f"found {size!r}"
        )
    return Event(name=name, study=int(study), size=value)


def check_events(events: Sequence[Event], studies: int) -> None:
    """Raise StepwedgeError for an event that would never come."""
    for event in events:
        if event.study > studies:
            raise StepwedgeError(
                f"--event {event.name}@{event.study}: there are only {studies} studies; ask for more with --studies, "
                "or let it come earlier"
            )


def describe() -> str:
    """One line per event, for people."""
    lines = []
    for name, effect in EFFECTS.items():
        size = f" [{effect.unit}, {effect.size:g}]" if effect.unit else ""
        lines.append(f"  {name}{size}: {effect.meaning}")
    return "\n".join(lines)
