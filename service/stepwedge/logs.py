"""Logging: one line per event on standard error, with hashed identifiers only.

Called once by the command line, never on import. The libraries that quote identifiers in their messages are silenced.
"""

from __future__ import annotations

import logging
import sys
import threading

import structlog

from stepwedge.settings import Log

# pynetdicom and pydicom put UIDs, names and element values into their messages; DBOS and httpx log each call, and
# OpenTelemetry each span that it drops: `otlp` says once what is to be said.
_SILENT = ("pynetdicom", "pydicom", "highdicom", "opentelemetry")
_QUIET = ("dbos", "httpx", "httpcore", "uvicorn", "bentoml")


def configure(settings: Log, role: str) -> None:
    """Send the log of this process to standard error."""
    level = getattr(logging, settings.level.upper())
    logging.basicConfig(
        level=max(level, logging.WARNING), format="%(name)s: %(message)s", stream=sys.stderr, force=True
    )
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    processors: list[structlog.typing.Processor] = [
        _with_role(role),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.format == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    threading.excepthook = _tell_of_thread
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _tell_of_thread(arguments: threading.ExceptHookArgs) -> None:
    """A thread that ended by an error: of which type and where, without the values that a traceback may quote."""
    trace = arguments.exc_traceback
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace else ""
    structlog.get_logger().error("thread_ended", error=arguments.exc_type.__name__, where=where)


def _with_role(role: str) -> structlog.typing.Processor:
    """Name the role in every line, whichever thread writes it."""

    def add(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.setdefault("role", role)
        return event

    return add
