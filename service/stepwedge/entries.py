"""What the database knows of an instance, a study, a revision, a unit of work, a delivery, a refused object."""

from __future__ import annotations

from dataclasses import dataclass

from stepwedge.records import State


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredInstance:
    """An instance in the spool. ``study`` and ``instance`` are keyed hashes, ``path`` is relative to the data folder.

    ``routed`` says whether a configured model selects it; only such instances make revisions.
    """

    study: str
    instance: str
    digest: str  # SHA-256 of the encoded data set, hexadecimal
    path: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    routed: bool
    size: int  # bytes
    received_at: float
    sender: str  # calling AE title


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A study as the node has it. ``open`` is true while instances wait for it to be complete."""

    study: str
    study_uid: str
    first_instance_at: float
    last_instance_at: float
    revision: int  # the last one closed; 0: none
    open: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """The instances that a study had when it was closed. ``paths`` are relative to the data folder."""

    study: str
    revision: int
    closed_at: float
    last_instance_at: float
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A unit of work: a study's revision under one model. ``reasons`` are codes."""

    unit: str
    study: str
    revision: int
    model_name: str
    model_digest: str
    state: State = State.QUEUED
    reasons: tuple[str, ...] = ()
    created_at: float
    last_instance_at: float
    ended_at: float | None = None
    tries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """Where the delivery of a unit's result to one destination stands: pending, delivered or withheld."""

    unit: str
    destination: str
    state: str
    attempts: int
    error: str
    updated_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """An instance that was refused as unusable; ``path`` is None where only the count is kept."""

    digest: str
    reason: str
    sender: str
    count: int
    first_seen: float
    last_seen: float
    size: int  # bytes
    path: str | None


def unit_id(study: str, revision: int, model_digest: str) -> str:
    """The identifier of a unit of work; a function of what it is, so that it can be made again."""
    return f"{study}.{revision}.{model_digest[:12]}"
