"""States, reasons, times and sizes as people read them. Each state has a word and a shape, and only then a colour."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from stepwedge.records import REASONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """How a state is shown: in a word, a shape of the template, and a tone of the style."""

    word: str
    shape: str  # tick, cross, diamond, bar, ring, play, triangle, dash
    tone: str  # good, bad, warn, human, busy, quiet
    meaning: str = ""


STATES = {
    "arriving": Mark(word="Arriving", shape="ring", tone="busy", meaning="Images come; the study is not complete yet."),
    "queued": Mark(word="Waiting", shape="ring", tone="busy", meaning="Complete, and waits for a worker."),
    "running": Mark(word="In analysis", shape="play", tone="busy", meaning="A worker is at it."),
    "reported": Mark(
        word="Reported", shape="tick", tone="good", meaning="The model answered, and a report was written."
    ),
    "deferred": Mark(
        word="Deferred",
        shape="diamond",
        tone="human",
        meaning="No AI result: to be read without AI, for the reasons given.",
    ),
    "rejected": Mark(
        word="Rejected",
        shape="bar",
        tone="quiet",
        meaning="The image is not one for this model, for the reasons given.",
    ),
    "failed": Mark(
        word="Failed", shape="cross", tone="bad", meaning="Something did not work. Once it is mended, try again."
    ),
    "not_routed": Mark(
        word="No model", shape="dash", tone="quiet", meaning="No configured model selects an image of this study."
    ),
    "superseded": Mark(
        word="Superseded", shape="dash", tone="quiet", meaning="A newer revision or model answers instead."
    ),
    "pending": Mark(word="On its way", shape="ring", tone="busy", meaning="Sent until the destination takes it."),
    "delivered": Mark(word="Delivered", shape="tick", tone="good", meaning="The destination has taken the result."),
    "withheld": Mark(
        word="Withheld", shape="bar", tone="quiet", meaning="The result does not go there, for the reason given."
    ),
}
UNKNOWN = Mark(word="Unknown", shape="dash", tone="quiet")
# Reasons that a delivery is withheld or fails with are sentences already; these are states of other things.
LEVELS = {
    "good": Mark(word="Good", shape="tick", tone="good"),
    "warn": Mark(word="Look", shape="triangle", tone="warn"),
    "bad": Mark(word="Trouble", shape="cross", tone="bad"),
    "quiet": Mark(word="Note", shape="dash", tone="quiet"),
}
ACTIONS = {
    "retry": "put back into the queue",
    "send_again": "sent again",
    "release": "released from quarantine",
    "discard": "discarded from quarantine",
    "acknowledge": "alarm acknowledged",
}
OUTCOMES = {
    "asked": Mark(word="Asked for", shape="ring", tone="busy"),
    "taken": Mark(word="Being done", shape="play", tone="busy"),
    "done": Mark(word="Done", shape="tick", tone="good"),
    "refused": Mark(word="Refused", shape="cross", tone="bad"),
}
VERDICTS = {
    "constant": Mark(word="Constant", shape="tick", tone="good", meaning="Answers as on the day of acceptance."),
    "moved": Mark(word="Moved", shape="cross", tone="bad", meaning="Answers otherwise than on the day of acceptance."),
    "incomplete": Mark(
        word="Incomplete", shape="triangle", tone="warn", meaning="Not every reference study was answered."
    ),
}
PROVIDERS = {
    "CPUExecutionProvider": "CPU",
    "CUDAExecutionProvider": "GPU (CUDA)",
    "TensorrtExecutionProvider": "GPU (TensorRT)",
}


def reason_text(code: str) -> str:
    """What a reason code means; a sentence is one already."""
    return REASONS.get(code, code)


def duration(seconds: float | None) -> str:
    """A length of time for people."""
    if seconds is None:
        return "–"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def brief(seconds: float | None) -> str:
    """A length of time in one number, for large letters; of none, 0 s."""
    seconds = max(0.0, seconds or 0.0)
    for below, length, unit in ((100, 1, "s"), (6_000, 60, "min"), (172_800, 3600, "h")):
        if seconds < below:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: float | None) -> str:
    """A time for people, on this machine's clock: without the day where it is today."""
    when = _when(at)
    if when is None:
        return "–"
    today = datetime.now().astimezone().date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str:
    """A time for programs."""
    when = _when(at)
    return "" if when is None else when.astimezone(UTC).isoformat(timespec="seconds")


def seconds_of(text: object) -> float | None:
    """Seconds since 1970 of an ISO 8601 time; None for what is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _when(at: float | None) -> datetime | None:
    """On this machine's clock; None for a number that is no time of any calendar."""
    try:
        return None if at is None else datetime.fromtimestamp(at).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def ago(at: float | None) -> str:
    """How long ago something was."""
    return "never" if at is None else f"{duration(time.time() - at)} ago"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
