"""``stepwatch alarms`` and ``stepwatch acknowledge``: what people do about changes.

The detectors live in the process of ``stepwatch serve``. What a person decides goes to it through the log in the
database, where it stays: it is done once, by whichever sidecar reads it, at once or when one is started.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.errors import WatchError
from stepwatch.settings import load_settings

if TYPE_CHECKING:
    from stepwatch.database import Database

_LONGEST_NAME = 128


def add(commands: Any) -> None:
    """Add the commands."""
    alarms = commands.add_parser("alarms", help="list alarms: active, and those that nobody has acknowledged")
    alarms.add_argument("--all", action="store_true", help="also those that are over")
    alarms.add_argument("--json", action="store_true", help="one JSON object per alarm")
    alarms.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    alarms.set_defaults(run=_alarms)
    seen = commands.add_parser(
        "acknowledge", help="say that an alarm has been seen; with --adopt, that it is normal now"
    )
    seen.add_argument("alarm", metavar="ALARM", help="as `stepwatch alarms` shows it")
    seen.add_argument("--by", required=True, metavar="NAME", help="who says so")
    seen.add_argument("--adopt", action="store_true", help="make the present level of the signal the normal one")
    seen.add_argument("--wait", type=float, default=15.0, metavar="SECONDS", help="for the sidecar to do it (15)")
    seen.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    seen.set_defaults(run=_acknowledge)


def _open(options: argparse.Namespace) -> Database:
    from stepwatch.database import Database

    database = Database.open(load_settings(options.config).database_url)
    database.prepare()
    return database


def is_open(alarm: dict[str, Any]) -> bool:
    """Whether an alarm is active, or has not been acknowledged."""
    over = alarm.get("cleared_row") is not None or bool(alarm.get("adopted"))
    return not over or not alarm.get("acknowledged_by")


def _alarms(options: argparse.Namespace) -> int:
    database = _open(options)
    try:
        found = [alarm for alarm in database.alarms() if options.all or is_open(alarm)]
    finally:
        database.close()
    for alarm in found:
        print(json.dumps(alarm) if options.json else describe(alarm))  # noqa: T201
    if not found and not options.json:
        print("no alarms")  # noqa: T201
    return 0


def describe(alarm: dict[str, Any]) -> str:
    """An alarm in lines for people."""
    where = f" at {alarm['stratum']}" if alarm.get("stratum") else ""
    state = "back" if alarm.get("cleared_row") is not None else "new normal" if alarm.get("adopted") else "active"
    by = f"acknowledged by {alarm['acknowledged_by']}" if alarm.get("acknowledged_by") else "not acknowledged"
    return (
        f"{alarm['alarm']}\n"
        f"  {alarm['model']}: {alarm['signal']} {alarm['direction']}{where}: {alarm['baseline_value']} → "
        f"{alarm['present_value']} ({alarm['kind_of_alarm']}, {alarm['shift']})\n"
        f"  raised {alarm['raised_time']}, began about {alarm['changed_time']}; {state}, {by}"
    )


def ask(database: Database, alarm: str, by: str, *, adopt: bool) -> int:
    """Note that somebody has seen an alarm, for the sidecar to do; the entry in the log.

    Raises WatchError for a name that is none, and an alarm that is not known, over and acknowledged, or, with
    ``adopt``, none that can be made the new normal.
    """
    from stepwatch.alarms import why_not_adopted
    from stepwatch.database import ASKED

    who = by.strip()
    if not who or len(who) > _LONGEST_NAME or not who.isprintable():
        raise WatchError(f"who has seen it: wanted a name of at most {_LONGEST_NAME} printable characters")
    known = [each for each in database.alarms() if each["alarm"] == alarm]
    if not known:
        raise WatchError(f"{alarm}: there is no such alarm; `stepwatch alarms` lists them")
    if not any(is_open(each) for each in known):
        raise WatchError(f"{alarm}: is over, and has been acknowledged")
    against = [why_not_adopted(each) for each in known] if adopt else []
    if against and all(against):
        raise WatchError(f"{alarm}: {against[0]}")
    return database.append_log(ASKED, who=who, body={"alarm": alarm, "adopt": adopt})


def _acknowledge(options: argparse.Namespace) -> int:
    database = _open(options)
    try:
        entry = ask(database, options.alarm, options.by, adopt=options.adopt)
        deadline = time.monotonic() + options.wait
        while not (said := _answer(database, options.alarm, entry, adopt=options.adopt)):
            if time.monotonic() >= deadline:
                print("noted; no sidecar has done it yet: it will be done when `stepwatch serve` runs")  # noqa: T201
                return 0
            time.sleep(0.2)
    finally:
        database.close()
    print(said)  # noqa: T201
    return 0


def _answer(database: Database, alarm: str, entry: int, *, adopt: bool) -> str:
    from stepwatch.database import DONE, REFUSED

    for refused in database.log(REFUSED, after=entry):
        if refused.body.get("entry") == entry:
            raise WatchError(str(refused.body.get("said")))
    for done in database.log(DONE, after=entry):
        if done.body.get("alarm") == alarm:
            return "acknowledged, and the present level is the normal one now" if adopt else "acknowledged"
    return ""
