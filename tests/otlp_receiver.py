"""A stand-in for an OpenTelemetry collector: takes real OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, kw_only=True)
class ReceivedSpan:
    """A span, as it came."""

    name: str
    trace: str
    span: str
    parent: str
    role: str
    attributes: dict[str, Any]
    kind: int
    failed: str | None  # what it says of its failure
    began: int  # nanoseconds since 1970
    ended: int
    events: int


@dataclass
class StandInCollector:
    """What has come, and how it answers."""

    port: int = 0
    status: int = 200
    spans: list[ReceivedSpan] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # whole requests, as text
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def trace(self, identifier: str) -> list[ReceivedSpan]:
        """The spans of a trace."""
        return [span for span in list(self.spans) if span.trace == identifier]


@contextmanager
def collecting(status: int = 200) -> Iterator[StandInCollector]:
    """A collector on a free port, until the block ends."""
    collector = StandInCollector(status=status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.requests += 1
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.texts.append(body.decode("latin-1"))
            if collector.status == 200 and self.path == "/v1/traces":
                collector.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(collector.status if self.path == "/v1/traces" else 404)
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        names = {item.key: item.value.string_value for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    span=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    role=names["service.name"].removeprefix("stepwedge-"),
                    attributes={item.key.removeprefix("stepwedge."): _value(item.value) for item in span.attributes},
                    kind=span.kind,
                    failed=span.status.message if span.status.code == 2 else None,
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    events=len(span.events),
                )


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    return [_value(item) for item in value.array_value.values] if which == "array_value" else getattr(value, which)
