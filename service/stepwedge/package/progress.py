"""Where the long steps of making a package say what they are doing."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Takes word of what is being done."""

    def step(self, title: str) -> None:
        """A new step begins."""

    def progress(self, done: int, total: int) -> None:
        """So much of the step is done. May come from any thread."""

    def say(self, text: str) -> None:
        """Something worth knowing."""


class Silence:
    """Tells nobody."""

    def step(self, title: str) -> None:
        """Nothing."""

    def progress(self, done: int, total: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""
