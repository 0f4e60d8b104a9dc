"""How far a long step is, on standard error: standard output is for results."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Terminal:
    """A report (``package.progress.Report``) to a person: a bar for each step, or plain lines where nobody watches."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._is_watched = console.is_terminal
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def step(self, title: str) -> None:
        """A new step begins."""
        if self._task is not None:
            self._bars.stop_task(self._task)
        self._task = self._bars.add_task(title, total=None)
        if not self._is_watched:
            self.say(title)

    def progress(self, done: int, total: int) -> None:
        """So much of the step is done."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """Something worth knowing."""
        # Not as markup: a file's name may look like it.
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
