"""``stepwatch replay``: the detectors over a recorded stream."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "replay",
        help="run the detectors over a recorded stream (Parquet or CSV)",
        description="Runs the detectors over a recorded stream, in the order of its rows. With --json one object for "
        "each alarm: row, time, study_count, class (drift or event), signal, direction, stratum, shift, attribution, "
        "evidence (log10), changed_row, baseline_value, present_value, cleared_row; then one that sums up.",
    )
    parser.add_argument("stream", type=Path, metavar="STREAM", help="Parquet or CSV file, in the order of time")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="columns, signals, baseline")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    from stepwatch.config import read_config
    from stepwatch.replay import as_json, as_lines, replay, summary

    result = replay(options.stream, read_config(options.config))
    if options.json:
        for alarm in result.alarms:
            print(json.dumps(as_json(alarm), ensure_ascii=False))  # noqa: T201
        print(json.dumps(summary(result), ensure_ascii=False), flush=True)  # noqa: T201
    else:
        print("\n".join(as_lines(result)), flush=True)  # noqa: T201
    return 0
