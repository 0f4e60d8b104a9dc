"""One line per event on standard error; the libraries that quote identifiers say nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SETUP = """
import logging, threading
import structlog
from stepwedge import logs
from stepwedge.settings import Log
logs.configure(Log(level={level!r}, format={form!r}), "work")
log = structlog.get_logger()
"""


def logged(script: str, *, level: str = "info", form: str = "json") -> str:
    """Standard error of a process of its own: logging is set up once for a process."""
    program = SETUP.format(level=level, form=form) + script
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "", "standard output belongs to the answers"
    return result.stderr


def test_an_event_is_one_line_of_json_with_time_level_and_role() -> None:
    (line,) = logged('log.info("delivered", unit="u1", objects=2)').splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "delivered", "level": "info", "role": "work", "unit": "u1", "objects": 2}


def test_the_role_is_named_whichever_thread_writes() -> None:
    written = logged('t = threading.Thread(target=log.info, args=("beat",)); t.start(); t.join()')
    assert json.loads(written)["role"] == "work"


def test_what_is_below_the_level_is_not_written() -> None:
    script = 'log.debug("small"); log.info("usual"); log.warning("odd"); log.error("bad")'
    assert [json.loads(line)["event"] for line in logged(script, level="warning").splitlines()] == ["odd", "bad"]
    assert len(logged(script, level="debug").splitlines()) == 4


def test_for_people_it_is_no_json() -> None:
    (line,) = logged('log.info("delivered", unit="u1")', form="console").splitlines()
    assert "delivered" in line
    assert "unit" in line
    assert not line.startswith("{")


def test_a_line_break_in_a_value_does_not_make_two_events() -> None:
    assert len(logged('log.info("delivered", error="one\\ntwo")').splitlines()) == 1


@pytest.mark.parametrize("level", ["debug", "error"])
def test_libraries_that_quote_identifiers_are_silent_at_every_level(level: str) -> None:
    names = ["pydicom", "pynetdicom", "pynetdicom.acse", "pynetdicom._globals", "highdicom.sr"]
    assert logged(f'for n in {names}: logging.getLogger(n).critical("Zebulon^Quillfeather")', level=level) == ""


def test_chatty_libraries_are_quiet_but_may_warn() -> None:
    script = 'for n in ("httpx", "dbos", "uvicorn"): logging.getLogger(n).info("chat"); logging.getLogger(n).warning(n)'
    assert logged(script, level="debug").splitlines() == ["httpx: httpx", "dbos: dbos", "uvicorn: uvicorn"]


def test_importing_the_package_sets_up_nothing() -> None:
    script = "import logging, stepwedge.cli, stepwedge.logs; print(logging.getLogger().handlers)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
