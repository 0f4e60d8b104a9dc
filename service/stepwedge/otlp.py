"""OpenTelemetry, behind ``tracing``: spans with names that can be computed, sent as OTLP over HTTP.

Imported only where tracing is on. Nothing that an exception says becomes part of a span: messages quote values.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import requests
import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

log = structlog.get_logger()

# Spans that wait for the collector; beyond these the oldest are dropped. A span is about 1 kB.
_MOST_WAITING, _MOST_AT_ONCE = 8192, 512
_SEND_MILLISECONDS = 1000
# Within which a batch is sent, its repetitions included.
_EXPORT_SECONDS = 10.0
# That the end of a process may wait for its last spans, and then for a request under way to be given up.
_STOP_SECONDS, _GIVE_UP_SECONDS = 3.0, 1.0
_PREFIX = "stepwedge."

# The identifiers of the next span, where they are not drawn.
_trace_id: ContextVar[int] = ContextVar("trace_id", default=0)
_span_id: ContextVar[int] = ContextVar("span_id", default=0)


class _Ids(RandomIdGenerator):
    """Identifiers as they are asked for, or drawn."""

    def generate_span_id(self) -> int:
        return _span_id.get() or super().generate_span_id()

    def generate_trace_id(self) -> int:
        return _trace_id.get() or super().generate_trace_id()


class _TellingExporter(SpanExporter):
    """Says once that the collector does not take spans, and once that it takes them again."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._lost = 0
        self._shut = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._shut.is_set():
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("traces_taken_again", endpoint=self._endpoint, lost=self._lost)
            self._lost = 0
        else:
            if not self._lost:
                log.warning("traces_not_taken", endpoint=self._endpoint)
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        if not self._shut.is_set():
            self._shut.set()
            self._inner.shutdown()


class OpenSpan:
    """A span that is under way, current from ``with`` on."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._undo = ExitStack()

    def note(self, **attributes: Any) -> None:
        """Add attributes."""
        note(self._span, attributes)

    def failed(self, why: str) -> None:
        """Mark it as failed, with a word for it."""
        self._span.set_status(Status(StatusCode.ERROR, why))

    def __enter__(self) -> Self:
        self._undo.enter_context(
            trace.use_span(self._span, end_on_exit=True, record_exception=False, set_status_on_exception=False)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        if kind is not None:
            self.failed(kind.__name__)
        self._undo.close()


class Recorder:
    """Makes spans and sends them. A place is a pair of trace and span identifiers."""

    def __init__(self, endpoint: str, ratio: float, headers: Mapping[str, str], resource: Mapping[str, str]) -> None:
        """Begin to send, in a thread of its own; nothing is sent before there is a span."""
        # The library writes a line for every try and for every span that is dropped.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        session = requests.Session()
        session.trust_env = False  # to the collector that the settings name, not to a proxy that the environment names
        self._exporter = _TellingExporter(
            OTLPSpanExporter(
                endpoint=endpoint,
                headers=dict(headers),
                timeout=_EXPORT_SECONDS,
                compression=Compression.Gzip,
                session=session,
            ),
            endpoint,
        )
        self._provider = TracerProvider(
            # By the trace's identifier alone, so that every process decides alike.
            sampler=TraceIdRatioBased(ratio),
            resource=Resource.create(dict(resource)),
            id_generator=_Ids(),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=_MOST_WAITING,
                schedule_delay_millis=_SEND_MILLISECONDS,
                max_export_batch_size=_MOST_AT_ONCE,
            )
        )
        self._tracer = self._provider.get_tracer("stepwedge")

    def span(self, name: str, under: tuple[int, int] | None, kind: str, attributes: Mapping[str, Any]) -> OpenSpan:
        """A span under another, or under the current one."""
        span = self._tracer.start_span(name, context=_context(under), kind=SpanKind[kind.upper()])
        note(span, attributes)
        return OpenSpan(span)

    def record(
        self,
        name: str,
        *,
        place: tuple[int, int],
        own_id: bool,
        under: tuple[int, int] | None,
        kind: str,
        began: float,
        ended: float,
        attributes: Mapping[str, Any],
    ) -> None:
        """A span that has ended, from seconds since 1970 to seconds since 1970.

        ``own_id`` gives it the span identifier of ``place``, and not one that is drawn.
        """
        trace_token = _trace_id.set(place[0])
        span_token = _span_id.set(place[1] if own_id else 0)
        try:
            context = _context(under) if under else Context()
            span = self._tracer.start_span(name, context, SpanKind[kind.upper()], start_time=round(began * 1e9))
        finally:
            _span_id.reset(span_token)
            _trace_id.reset(trace_token)
        note(span, attributes)
        span.end(round(max(began, ended) * 1e9))

    def current(self) -> tuple[int, int] | None:
        """The place of the current span, if there is one."""
        context = trace.get_current_span().get_span_context()
        return (context.trace_id, context.span_id) if context.is_valid else None

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes to the current span."""
        note(trace.get_current_span(), attributes)

    def stop(self) -> None:
        """Send what waits, and end; within seconds, whether or not the collector answers."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(_STOP_SECONDS)
        self._exporter.shutdown()
        ending.join(_GIVE_UP_SECONDS)


def note(span: trace.Span, attributes: Mapping[str, Any]) -> None:
    """Add attributes, under the product's prefix; what has no value is left out."""
    if span.is_recording():
        span.set_attributes({_PREFIX + name: _value(value) for name, value in attributes.items() if value is not None})


def _value(value: Any) -> AttributeValue:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return str(value)


def _context(under: tuple[int, int] | None) -> Context | None:
    if under is None:
        return None
    parent = SpanContext(under[0], under[1], is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())
