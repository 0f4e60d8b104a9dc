"""The page's own threads: however slow it is, health and metrics in the same process never wait for it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from stepwedge.page.access import RefusedError

_THREADS = 8  # fewer than the database has connections for (15), so that metrics always find one
_MOST = 40  # requests that are answered or wait for a thread

Value = TypeVar("Value")


class Turns:
    """Runs what waits for others, a few at a time. For one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="page")
        self._inside = 0

    async def run(self, function: Callable[..., Value], *arguments: object) -> Value:
        """What a function gives, from a thread. Raises RefusedError where too many wait already."""
        if self._inside >= _MOST:
            raise RefusedError("busy", 503, "Too many requests at once. Try again in a few seconds.", wait=5.0)
        self._inside += 1
        try:
            call = functools.partial(function, *arguments)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Take up nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
