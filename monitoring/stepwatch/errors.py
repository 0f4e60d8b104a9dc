"""The monitor's one error. Its message says what happened, to what, and what to do next."""

from __future__ import annotations


class WatchError(Exception):
    """Something cannot be done as asked."""
