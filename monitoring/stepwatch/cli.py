"""The command line: parses, calls, prints. Commands import what they need when they run, so that each starts fast."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from stepwatch.commands import alarms, labels, replay, retrain, serve, snapshot
from stepwatch.errors import WatchError

# Exit statuses: 0 done; 1 done, and something in it failed; 2 cannot be done as asked, and the message says why.
FAILED, UNUSABLE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except WatchError as error:
        print(f"stepwatch: {error}", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stepwatch",
        description="Compares what a model sees and answers with the baseline that it was accepted on.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve.add(commands)
    alarms.add(commands)
    replay.add(commands)
    labels.add(commands)
    retrain.add(commands)
    snapshot.add(commands)
    return parser
