"""What other roles say when the page asks them: the monitor, and the inference server. Short waits, kept for a moment.

Nothing of the monitor's code is known here: it answers ``GET /status.json``, whose version says what is in it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx
import structlog
from pydantic import ValidationError

from stepwedge.errors import SettingsError, StepwedgeError
from stepwedge.page.said import VERSION, Brief
from stepwedge.settings import Settings

log = structlog.get_logger()

_TIMEOUT_SECONDS = 2.0
_KEEP_SECONDS = 4.0
_REPORT_BYTES = 64 << 20
_REPORT_SECONDS = 15.0  # that the monitor may be silent
_REPORTS = 4  # handed on at once
_REPORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.html")


Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said(Generic[Value]):
    """An answer, or why there is none."""

    value: Value | None = None
    problem: str = ""


class Asked(Generic[Value]):
    """One address that is asked again when the last answer is old. Safe for threads: one asks, the others wait."""

    def __init__(self, ask: Callable[[], Value]) -> None:
        """``ask`` raises StepwedgeError, whose message says why there is no answer."""
        self._ask = ask
        self._lock = threading.Lock()
        self._said: Said[Value] = Said()
        self._until = 0.0

    def read(self) -> Said[Value]:
        """The answer, a few seconds old at most."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    self._said = Said(value=self._ask())
                except StepwedgeError as error:
                    self._said = Said(problem=str(error))
                self._until = time.monotonic() + _KEEP_SECONDS
            return self._said

    def forget(self) -> None:
        """Ask anew the next time."""
        with self._lock:
            self._until = 0.0


def parts(answer: httpx.Response) -> Iterator[bytes]:
    """A report's bytes as they come; it ends early, and the log says so, where the monitor fails or sends no end."""
    size = 0
    try:
        for part in answer.iter_bytes():
            size += len(part)
            if size > _REPORT_BYTES:
                log.error("report_cut_off", error="too large", size=size)
                return
            yield part
    except httpx.HTTPError as error:
        log.error("report_cut_off", error=type(error).__name__, size=size)


class Neighbours:
    """The monitor and the inference server."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.watch.url.rstrip("/")
        self._token_file = settings.watch.token_file
        self._inference_url = settings.inference.base_url.rstrip("/")
        self._http = httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False)
        # Connections of their own, and few: reports that nobody reads on hold up nothing else.
        self._reports = httpx.Client(
            timeout=httpx.Timeout(_TIMEOUT_SECONDS, read=_REPORT_SECONDS),
            limits=httpx.Limits(max_connections=_REPORTS),
            trust_env=False,
        )
        self.monitor = Asked(self._ask_monitor)
        self.inference = Asked(self._ask_inference)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._reports.close()

    @property
    def can_acknowledge(self) -> bool:
        """Whether the monitor's token is known here."""
        return self._token_file is not None

    def acknowledge(self, alarm: str, *, by: str, adopt: bool) -> None:
        """Tell the monitor who has seen an alarm. Raises StepwedgeError where it does not take it."""
        assert self._token_file is not None
        try:
            token = self._token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"watch.token_file: {self._token_file}: {type(error).__name__}") from None
        body = {"alarm": alarm, "by": by, "adopt": adopt}
        try:
            answer = self._http.post(
                f"{self._url}/acknowledge", json=body, headers={"Authorization": f"Bearer {token}"}
            )
        except httpx.HTTPError as error:
            raise StepwedgeError(f"the monitor does not answer ({type(error).__name__}); try again") from None
        if not answer.is_success:
            raise StepwedgeError(f"the monitor says: {answer.text.strip()[:300]}")
        self.monitor.forget()

    def report(self, name: str) -> httpx.Response | None:
        """One of Evidently's pages, still to be read with ``parts`` and closed; None if there is none of this name.

        Raises StepwedgeError where the monitor does not give it.
        """
        if not _REPORT_NAME.fullmatch(name):
            return None
        try:
            answer = self._reports.send(self._reports.build_request("GET", f"{self._url}/pages/{name}"), stream=True)
        except httpx.PoolTimeout:
            raise StepwedgeError(f"{_REPORTS} reports are being loaded already; try again") from None
        except httpx.HTTPError as error:
            raise StepwedgeError(f"the monitor does not answer ({type(error).__name__})") from None
        length = answer.headers.get("content-length", "0")
        if answer.is_success and length.isdecimal() and int(length) <= _REPORT_BYTES:
            return answer
        answer.close()
        if answer.is_success:
            raise StepwedgeError("the report is too large to be handed on; see it at the monitor")
        if answer.status_code == 404:
            return None
        raise StepwedgeError(f"the monitor answers HTTP {answer.status_code}")

    def _ask_monitor(self) -> Brief:
        said = self._get(f"{self._url}/status.json", "the monitor")
        version = said.get("version") if isinstance(said, dict) else None
        if version != VERSION:
            raise StepwedgeError(
                f"the monitor's answer has version {version!r}, and this page reads {VERSION}; upgrade the older"
            )
        try:
            return Brief.model_validate(said)
        except ValidationError:
            raise StepwedgeError("the monitor's answer cannot be read; it is of another version") from None

    def _ask_inference(self) -> list[dict[str, Any]]:
        said = self._get(f"{self._inference_url}/v1/models", "the inference server")
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise StepwedgeError("the inference server's answer is not one of an inference server")
        return said

    def _get(self, url: str, who: str) -> Any:
        try:
            answer = self._http.get(url)
        except httpx.HTTPError:
            raise StepwedgeError(f"{who} does not answer") from None
        if not answer.is_success:
            raise StepwedgeError(f"{who} answers HTTP {answer.status_code}")
        try:
            return answer.json()
        except ValueError:
            raise StepwedgeError(f"{who} answers, and not as one") from None
