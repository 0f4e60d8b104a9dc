"""How often one client may ask for something within a minute."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

_WINDOW_SECONDS = 60.0
_MOST_CLIENTS = 10_000  # remembered; the one that was silent longest is forgotten first


class Limit:
    """Counts what each client did within the last minute. Safe for threads; of this process alone."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._done: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, client: str) -> float:
        """Count one more of a client; the seconds that it has to wait where that is too many, else 0."""
        now = self._clock()
        with self._lock:
            done = self._done.setdefault(client, deque())
            self._done.move_to_end(client)
            while done and done[0] <= now - _WINDOW_SECONDS:
                done.popleft()
            if len(done) >= self._most:
                return done[0] + _WINDOW_SECONDS - now
            done.append(now)
            while len(self._done) > _MOST_CLIENTS:
                self._done.popitem(last=False)
            return 0.0
