"""What becomes of a row before the detectors see it: read strictly, refused with a reason, put in the order of time."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from stepwedge.observation import VERSION, Observation

Reason = Literal["not_json", "not_finite", "newer_version", "missing_field", "wrong_type", "no_time", "unknown_model"]
REASONS: tuple[Reason, ...] = (
    "not_json", "not_finite", "newer_version", "missing_field", "wrong_type", "no_time", "unknown_model",
)  # fmt: skip
Jump = Literal["back", "ahead"]

# Clocks of several machines differ by less, and workers finish in another order than they began.
_AHEAD = timedelta(minutes=5)
_BACK = timedelta(hours=1)

_REQUIRED = (
    "unit", "study", "revision", "time", "model_name", "model_version", "model_digest", "policy_digest", "state",
)  # fmt: skip
_TEXTS = tuple(f.name for f in fields(Observation) if f.type in ("str", str))
_NUMBERS = tuple(f.name for f in fields(Observation) if f.type in ("int", "float | None"))
_LISTS = ("reasons", "gate_reasons", "senders", "embedding")
_MAPPINGS: dict[str, type | tuple[type, ...]] = {
    "gate_measures": (int, float), "scores": (int, float), "probabilities": (int, float), "ms": (int, float),
    "decisions": str,
}  # fmt: skip


class RefusedRowError(ValueError):
    """A row that is no observation we can take; ``reason`` is a code."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


def read_observation(body: str) -> Observation:
    """Read a row.

    Fields that this version does not know are left out, as an older reader has to.

    Raises
    ------
    RefusedRowError
        If it is no JSON, holds a number that is not finite, is of a later version, lacks a field, or holds a value
        of another kind.
    """
    try:
        row = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RefusedRowError:
        raise
    except (ValueError, RecursionError):
        raise RefusedRowError("not_json") from None
    if not isinstance(row, dict):
        raise RefusedRowError("not_json")
    version = row.get("version", 0)
    if not isinstance(version, int):
        raise RefusedRowError("wrong_type")
    if version > VERSION:
        raise RefusedRowError("newer_version")
    if any(name not in row for name in _REQUIRED):
        raise RefusedRowError("missing_field")
    if not _right_types(row):
        raise RefusedRowError("wrong_type")
    try:
        observation = Observation.from_json(body)
    except (ValueError, TypeError, AttributeError):
        raise RefusedRowError("wrong_type") from None
    time_of(observation)
    return observation


def time_of(observation: Observation) -> datetime:
    """When its answer was made. Raises RefusedRowError for what is no time with an offset."""
    try:
        when = datetime.fromisoformat(observation.time)
        when.astimezone(UTC)
    except (ValueError, OverflowError):
        raise RefusedRowError("no_time") from None
    if when.tzinfo is None:
        raise RefusedRowError("no_time")
    return when


def moment(time: str) -> datetime:
    """A time with an offset; UTC where it has none. Raises ValueError."""
    when = datetime.fromisoformat(time)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def in_order(when: datetime, last: datetime | None, now: datetime) -> tuple[datetime, Jump | None]:
    """The time that a row is taken at, so that days follow each other, and whether a clock must have jumped for it.

    Rows are taken in the order in which they were written. A row that is dated ahead of this machine's clock is taken
    as of now; one dated before the last row, as of the last row. A last row that is itself ahead counts as now: so a
    clock that was wrong and is put right is followed.
    """
    latest = now + _AHEAD
    jump: Jump | None = None
    if when > latest:
        when, jump = now.astimezone(when.tzinfo), "ahead"
    if last is None or last > latest:
        return when, jump
    if when < last:
        return last.astimezone(when.tzinfo), jump or ("back" if when < last - _BACK else None)
    return when, jump


def _right_types(row: dict[str, Any]) -> bool:
    return (
        all(isinstance(row.get(name, ""), str) for name in _TEXTS)
        and all(_is_number(row.get(name)) for name in _NUMBERS)
        and all(isinstance(row.get(name, []), list) for name in _LISTS)
        and all(_is_number(value) for value in row.get("embedding", []))
        and all(
            isinstance(row.get(name), dict | None)
            and all(value is None or isinstance(value, kind) for value in (row.get(name) or {}).values())
            for name, kind in _MAPPINGS.items()
        )
    )


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RefusedRowError("not_finite")
    return value


def _refuse_constant(_name: str) -> float:
    raise RefusedRowError("not_finite")
