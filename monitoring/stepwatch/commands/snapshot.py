"""``stepwatch snapshot``: draws the Evidently page, in a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from stepwatch.errors import WatchError

_NICE = 10  # studies come first
_UNUSABLE = 2  # the exit status, as the command line has it


def add(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "snapshot",
        help="draw the Evidently page: the latest studies beside the baseline",
        description="Draws the Evidently page. Both files hold observations: Parquet, or one line of JSON for each.",
    )
    parser.add_argument("--baseline", required=True, type=Path, metavar="FILE", help="as in a model package")
    parser.add_argument("--rows", required=True, type=Path, metavar="FILE", help="the latest observations")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the page (HTML)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="give up after (600)")
    parser.set_defaults(run=_snapshot)


def _snapshot(options: argparse.Namespace) -> int:
    # Imported after the timer is set: Evidently alone takes seconds to import.
    def give_up(_number: int, _frame: FrameType | None) -> None:
        said = f"stepwatch: the page was not drawn within {options.timeout:g} seconds; --timeout allows more\n"
        os.write(2, said.encode())
        # An exception could be caught by what is being run.
        os._exit(_UNUSABLE)

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, options.timeout)
    os.nice(_NICE)
    try:
        from stepwatch.snapshot import draw_page

        prepared = draw_page(options.baseline, options.rows, options.out)
    except ImportError as error:
        raise WatchError(f"{error.name} is not installed; `pip install 'stepwedge[snapshot]'` adds it") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{options.out}: {len(prepared.limits)} columns, {len(prepared.left_out)} left out")  # noqa: T201
    return 0
