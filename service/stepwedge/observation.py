"""The rows that the monitor reads: observations, labels, constancy runs. Imports nothing of ours.

No field identifies a patient: UIDs and station names are keyed hashes that only the node can look up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where the images of a unit came from, and a fingerprint of what was received and analysed."""

    senders: tuple[str, ...] = ()  # calling AE titles
    content: str = ""  # keyed hash of the SHA-256 digests of the data sets as received


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one unit of work was and what became of it. Image attributes are those of ``images`` first used one."""

    version: int = VERSION
    unit: str
    study: str  # keyed hash
    revision: int
    time: str  # ISO 8601 with offset: when the answer was made
    model_name: str
    model_version: str
    model_digest: str
    policy_digest: str
    state: str  # reported, deferred, rejected, failed
    reasons: tuple[str, ...] = ()  # codes
    images: int = 0  # how many images were judged

    gate: str = ""  # accept, defer, reject
    gate_reasons: tuple[str, ...] = ()
    gate_measures: dict[str, float] = field(default_factory=dict)
    tamper: str = ""  # pass, flagged, not_fitted
    tamper_measure: float | None = None

    senders: tuple[str, ...] = ()  # calling AE titles
    content: str = ""  # keyed hash of the digests of the data sets as received

    modality: str = ""
    body_part: str = ""
    view_position: str = ""
    age_years: float | None = None
    sex: str = ""
    manufacturer: str = ""
    scanner: str = ""  # manufacturer's model name
    station: str = ""  # keyed hash
    transfer_syntax: str = ""
    photometric: str = ""
    rows: int = 0
    columns: int = 0
    bits_stored: int = 0
    exposure: float | None = None  # mAs
    kvp: float | None = None  # kV
    pixel_spacing: float | None = None  # mm

    pixel_mean: float | None = None  # this and the following on 0…1 of the stored range
    pixel_sd: float | None = None
    pixel_p01: float | None = None
    pixel_p50: float | None = None
    pixel_p99: float | None = None
    pixel_low_share: float | None = None
    pixel_high_share: float | None = None
    pixel_entropy: float | None = None  # bits
    pixel_sharpness: float | None = None

    scores: dict[str, float] = field(default_factory=dict)  # the model's outputs by class
    probabilities: dict[str, float] = field(default_factory=dict)  # calibrated, by finding
    decisions: dict[str, str] = field(default_factory=dict)  # act, clear, defer, none, by finding
    embedding: tuple[float, ...] = ()

    provider: str = ""  # ONNX Runtime execution provider
    ms: dict[str, float] = field(default_factory=dict)  # milliseconds by stage

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a row of this or an earlier version; fields that this version does not know are left out.

        Raises ValueError for a later version: the reader has to be upgraded first.
        """
        return cls.from_row(json.loads(text))

    @classmethod
    def from_row(cls, values: dict[str, Any]) -> Self:
        """The same from a row of a table, where a mapping has None for what it lacks."""
        row = _known(cls, values, "observation")
        for name in ("gate_measures", "scores", "probabilities", "decisions", "ms"):
            row[name] = {key: value for key, value in (row.get(name) or {}).items() if value is not None}
        for name in ("reasons", "gate_reasons", "senders", "embedding"):
            row[name] = tuple(row.get(name, ()))
        return cls(**row)


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What a person, or another examination, says of one finding of one study.

    A later label of the same reader on the same study and finding takes the earlier one's place; none is deleted.
    """

    version: int = VERSION
    label: str  # identifier: the same label sent twice is one row
    study: str  # keyed hash, as in the observation
    finding: str  # as the model names it
    value: float | None  # share of certainty that it is there, 0…1; None: the reader cannot say
    reader: str = ""  # a code of the site's for who read; never a patient's
    time: str  # ISO 8601 with offset: when it was said
    source: str  # csv, http, sr
    audit: bool = False  # drawn at random for a blinded reading
    probability_drawn: float | None = None  # of a study drawn for the audit to be drawn, above 0…1

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a row of this or an earlier version. Raises ValueError for a later one."""
        return cls(**_known(cls, json.loads(text), "label"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstancyRun:
    """One exposure of the reference set through the live path, beside the answers of the day of acceptance."""

    version: int = VERSION
    run: str  # identifier
    time: str  # ISO 8601 with offset: when it ended
    model_name: str
    model_version: str
    model_digest: str
    policy_digest: str
    provider: str = ""  # ONNX Runtime execution provider
    studies: int  # in the reference set
    answered: int  # that came to an end in time
    verdict: str  # constant, moved, incomplete
    stage: str = ""  # the first that moved: decode, preprocessing, scores, thresholds
    differences: dict[str, float] = field(default_factory=dict)  # largest by stage, in units of its tolerance
    versions: dict[str, str] = field(default_factory=dict)  # of libraries, driver and device

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a row of this or an earlier version. Raises ValueError for a later one."""
        return cls(**_known(cls, json.loads(text), "constancy run"))


def _known(kind: type, row: dict[str, Any], what: str) -> dict[str, Any]:
    """The fields of a row that this version knows."""
    if row.get("version", 0) > VERSION:
        raise ValueError(f"{what} version {row['version']} is newer than {VERSION}; upgrade the reader")
    known = {f.name for f in fields(kind)}
    return {name: value for name, value in row.items() if name in known}
