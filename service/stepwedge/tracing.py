"""Traces: the way of a study through listener, worker, inference server and delivery, as one OpenTelemetry trace.

Off unless the settings name a collector; then nothing of OpenTelemetry is imported, and a span costs a function call.

Work crosses a durable queue, processes and days, so no context is handed on but to the inference server: the trace
identifier is the study's own keyed hash, by which every log line and page names it, and the spans that others hang on
have identifiers that are computed from study and revision::

    study                        listener: from the first instance to the first closing
    ├─ C-STORE                   listener: one an instance
    └─ revision                  listener: from the last instance, through the quiet period, to the closing
       ├─ analyse                worker: one an attempt
       │  ├─ image               with its stages: gate, decode, preprocess, infer, tamper, decide, explain
       │  │  └─ infer ─ request ─ infer    client, and the inference server
       │  └─ report
       └─ deliver                worker: one an attempt
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from stepwedge import __version__
from stepwedge.errors import SettingsError
from stepwedge.settings import Tracing

if TYPE_CHECKING:
    from stepwedge.otlp import Recorder

HEADER = "traceparent"  # W3C Trace Context
_HEADER_VALUE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_STUDY = re.compile(r"[0-9a-f]{32}")
_HEADER_LINE = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+)\s*:\s*(\S.*)")  # RFC 9110 section 5.6.2
_PATH = "/v1/traces"

_recorder: Recorder | None = None


class Place(NamedTuple):
    """A span, by its identifiers."""

    trace: int
    span: int


class Span(Protocol):
    """A span under way, to be used with ``with``. An exception that leaves it is named in it by its type alone."""

    def note(self, **attributes: Any) -> None:
        """Add attributes: hashed identifiers, states, reasons, sizes. Never anything of a header."""

    def failed(self, why: str) -> None:
        """Mark it as failed, with a word for it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Nothing:
    """What a span is while tracing is off."""

    def note(self, **attributes: Any) -> None: ...
    def failed(self, why: str) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_NOTHING = _Nothing()


def start(settings: Tracing, role: str, instance: str = "") -> None:
    """Trace from now on in this process, if the settings say so. Raises SettingsError for a file of headers that
    cannot be read.
    """
    global _recorder  # like the log: one for a process
    if not settings.endpoint or _recorder is not None:
        return
    from stepwedge.otlp import Recorder

    base = settings.endpoint.rstrip("/")
    resource = {"service.namespace": "stepwedge", "service.name": f"stepwedge-{role}", "service.version": __version__}
    _recorder = Recorder(
        base if base.endswith(_PATH) else base + _PATH,
        settings.sample_ratio,
        _headers(settings.headers_file) if settings.headers_file else {},
        resource | ({"service.instance.id": instance} if instance else {}),
    )


def stop() -> None:
    """Send what waits, and trace no more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.stop()


def of_study(study: str) -> Place | None:
    """The place of a study's first span; the trace has the study's name. None for what is no keyed hash."""
    return Place(int(study, 16), _span_id("study", study)) if _STUDY.fullmatch(study) else None


def of_revision(study: str, revision: int) -> Place | None:
    """The place of a revision's span."""
    return Place(int(study, 16), _span_id("revision", study, str(revision))) if _STUDY.fullmatch(study) else None


def of_unit(unit: str) -> Place | None:
    """The place of the revision that a unit of work is of, from the unit's name."""
    study, _, rest = unit.partition(".")
    number = rest.partition(".")[0]
    return of_revision(study, int(number)) if number.isdigit() else None


def span(name: str, *, under: Place | None = None, kind: str = "internal", **attributes: Any) -> Span:
    """A span under another one, or under the current one; nothing where there is neither.

    Parameters
    ----------
    kind
        ``internal``, ``server``, ``client``, ``producer`` or ``consumer``.
    """
    if _recorder is None or (under is None and _recorder.current() is None):
        return _NOTHING
    return _recorder.span(name, under, kind, attributes)


def record(
    name: str, *, under: Place | None, began: float, ended: float, kind: str = "internal", **attributes: Any
) -> None:
    """A span that is over, under another one; times in seconds since 1970."""
    if _recorder is not None and under is not None:
        _recorder.record(
            name, place=under, own_id=False, under=under, kind=kind, began=began, ended=ended, attributes=attributes
        )


def record_at(
    place: Place | None, name: str, *, under: Place | None = None, began: float, ended: float, **attributes: Any
) -> None:
    """A span that is over, with the identifiers of a place, so that others can be under it; without ``under``, the
    first of its trace.
    """
    if _recorder is not None and place is not None:
        _recorder.record(
            name, place=place, own_id=True, under=under, kind="internal", began=began, ended=ended,
            attributes=attributes,
        )  # fmt: skip


def note(**attributes: Any) -> None:
    """Add attributes to the current span."""
    if _recorder is not None:
        _recorder.note(attributes)


def header() -> dict[str, str]:
    """The header that tells another process of the current span; empty where there is none."""
    place = _recorder.current() if _recorder is not None else None
    return {HEADER: f"00-{place[0]:032x}-{place[1]:016x}-01"} if place else {}


def from_header(value: str | None) -> Place | None:
    """The span that a header tells of; None without one, and for one that says nothing."""
    found = _HEADER_VALUE.fullmatch(value) if value else None
    place = Place(int(found[1], 16), int(found[2], 16)) if found else None
    return place if place and all(place) else None


def _span_id(*parts: str) -> int:
    """Computed, so that every process knows it. Zero is no identifier."""
    return int.from_bytes(hashlib.sha256("|".join(("span", *parts)).encode()).digest()[:8], "big") or 1


def _headers(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: tracing.headers_file cannot be read ({type(error).__name__})") from None
    headers = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _HEADER_LINE.fullmatch(line.strip())
        if found is None:
            raise SettingsError(f"{file}: line {number} is no header; wanted one `Name: value` a line")
        headers[found[1]] = found[2]
    return headers
