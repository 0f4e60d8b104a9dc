"""Labels from CSV and JSON: read strictly, so that what is kept can be believed.

Columns, or fields: ``study`` (the keyed hash that the service names a study by), ``finding``, ``value`` (present,
absent, indeterminate, or a share 0…1), ``time`` (ISO 8601 with offset), and, where there are any, ``reader`` (a code),
``audit`` (true or false) and ``probability_drawn``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from stepwedge.observation import Label

from stepwatch.errors import WatchError

if TYPE_CHECKING:
    from stepwatch.database import Database

Source = Literal["csv", "http"]
REQUIRED = ("study", "finding", "value", "time")
OPTIONAL = ("reader", "audit", "probability_drawn")
_WORDS: Mapping[str, float | None] = {"present": 1.0, "absent": 0.0, "indeterminate": None}
_FLAGS: Mapping[str, bool] = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
_MOST_ROWS = 100_000
_STUDY = re.compile(r"[0-9a-f]{8,32}")
_CODE = re.compile(r"[\w.:@/ -]{0,64}")


def read_csv(text: str, *, source: Source = "csv", audit_share: float | None = None) -> list[Label]:
    """Labels from a CSV file with a line of column names; rows are counted from 1 below it.

    ``audit_share`` is taken for ``probability_drawn`` where a label of the audit does not say it.

    Raises
    ------
    WatchError
        If anything in it is wrong: names the row, the column, what was found and what is wanted. Then none is read.
    """
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in REQUIRED if name not in names]
        unknown = [name for name in names if name not in (*REQUIRED, *OPTIONAL)]
        if missing or unknown:
            what = f"no column {', '.join(missing)}" if missing else f"a column {unknown[0]!r:.60} that is not known"
            raise WatchError(f"labels: {what}; wanted {', '.join(REQUIRED)}, and at will {', '.join(OPTIONAL)}")
        reader.fieldnames = names
        rows = list(reader)
    except csv.Error as error:
        raise WatchError(f"labels: line {reader.line_num}: is no CSV: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise WatchError(f"labels: row {number}: wanted {len(names)} values, as there are columns")
    return _labels(rows, source, audit_share)


def read_json(body: bytes | str, *, source: Source = "http", audit_share: float | None = None) -> list[Label]:
    """Labels from a JSON list of objects. Raises WatchError as ``read_csv`` does."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        raise WatchError("labels: is no JSON; wanted a list of objects") from None
    if not isinstance(read, list):
        raise WatchError(f"labels: wanted a list of objects, found {type(read).__name__}")
    for number, row in enumerate(read, 1):
        if not isinstance(row, dict):
            raise WatchError(f"labels: row {number}: wanted an object, found {type(row).__name__}")
        for name in row:
            if name not in (*REQUIRED, *OPTIONAL):
                raise WatchError(f"labels: row {number}: {name!r:.60}: is not known; wanted {', '.join(REQUIRED)}")
    return _labels(read, source, audit_share)


def keep(database: Database, labels: Sequence[Label], findings: Collection[str]) -> tuple[int, dict[str, int]]:
    """Keep labels: how many were new, and how many were refused by reason. A label that is there is neither."""
    refused = Counter("unknown_finding" for label in labels if label.finding not in findings)
    taken = sum(database.add_label(label) for label in labels if label.finding in findings)
    return taken, dict(refused)


def take(
    database: Database, body: bytes, kind: str, findings: Collection[str], *, audit_share: float | None = None
) -> tuple[int, dict[str, int]]:
    """Read and keep what came by HTTP: how many were new, and how many were refused by reason.

    Raises
    ------
    WatchError
        If anything in it is wrong; then none is kept.
    """
    if kind != "csv":
        return keep(database, read_json(body, audit_share=audit_share), findings)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise WatchError("labels: is not UTF-8") from None
    return keep(database, read_csv(text, source="http", audit_share=audit_share), findings)


def _labels(rows: Sequence[Mapping[str, Any]], source: Source, share: float | None) -> list[Label]:
    if len(rows) > _MOST_ROWS:
        raise WatchError(f"labels: {len(rows)} rows; at most {_MOST_ROWS} are read at once: cut them into several")
    return [_label(row, number, source, share) for number, row in enumerate(rows, 1)]


def _label(row: Mapping[str, Any], number: int, source: Source, share: float | None) -> Label:
    def wrong(name: str, wanted: str) -> WatchError:
        # What was found is left out: a wrong column may hold what must not be shown or logged.
        return WatchError(f"labels: row {number}: {name}: wanted {wanted}")

    study, finding, reader = (str(row.get(name) or "").strip() for name in ("study", "finding", "reader"))
    if not _STUDY.fullmatch(study):
        raise wrong("study", "the service's name of it (a keyed hash in hexadecimal), not a UID")
    if not finding or not _CODE.fullmatch(finding):
        raise wrong("finding", "its name, as the model package has it")
    if not _CODE.fullmatch(reader):
        raise wrong("reader", "a code of at most 64 letters, digits and .:@/- ")
    value = _value(row.get("value"))
    if value is not None and math.isnan(value):
        raise wrong("value", "present, absent, indeterminate, or a number from 0 to 1")
    time = str(row.get("time") or "").strip()
    if not _is_time(time):
        raise wrong("time", "ISO 8601 with offset, as 2026-03-02T14:05:00+01:00")
    audit = _FLAGS.get(str(row.get("audit") or "").strip().lower())
    if audit is None:
        raise wrong("audit", "true or false")
    drawn = _number(row.get("probability_drawn"))
    if audit and drawn is None:
        drawn = share
    if (audit and drawn is None) or (drawn is not None and not 0 < drawn <= 1):
        raise wrong("probability_drawn", "how likely the study was to be drawn, above 0 and at most 1")
    said = json.dumps([study, finding, value, reader, time, audit])
    return Label(
        label=hashlib.sha256(said.encode()).hexdigest(),
        study=study,
        finding=finding,
        value=value,
        reader=reader,
        time=time,
        source=source,
        audit=audit,
        probability_drawn=drawn if audit else None,
    )


def _value(given: object) -> float | None:
    """The share of certainty; None for indeterminate; NaN for what is none."""
    text = str(given).strip().lower()
    if text in _WORDS:
        return _WORDS[text]
    number = _number(given)
    return number if number is not None and 0 <= number <= 1 and not isinstance(given, bool) else math.nan


def _number(given: object) -> float | None:
    """A number; None where there is nothing; NaN for what is none."""
    if given is None or str(given).strip() == "":
        return None
    try:
        return float(str(given))
    except ValueError:
        return math.nan


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
