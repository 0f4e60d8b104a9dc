"""Logging: one line per event on standard error, without any value that a message or traceback may quote."""

from __future__ import annotations

import logging
import sys
import threading

import structlog

from stepwatch.settings import Log


def configure(settings: Log) -> None:
    """Send the log of this process to standard error. Called once, by the command line."""
    level = getattr(logging, settings.level.upper())
    logging.basicConfig(
        level=max(level, logging.WARNING), format="%(name)s: %(message)s", stream=sys.stderr, force=True
    )
    processors: list[structlog.typing.Processor] = [
        _with_role,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.format == "json":
        processors.append(structlog.processors.JSONRenderer())
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    threading.excepthook = _tell_of_thread
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def where(error: BaseException) -> str:
    """Module and line of an error, to be logged in place of a traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace else ""


def _tell_of_thread(arguments: threading.ExceptHookArgs) -> None:
    place = where(arguments.exc_value) if arguments.exc_value else ""
    structlog.get_logger().error("thread_ended", error=arguments.exc_type.__name__, where=place)


def _with_role(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.setdefault("role", "watch")
    return event
