"""``stepwedge database``: which version the tables are at, forward, and back."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from stepwedge.commands.config_option import add_config, configured

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_NOT_READY = 1


def add(commands: Commands) -> None:
    """Add the parsers."""
    parser = commands.add_parser("database", help="show, upgrade or downgrade the tables of the database")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, run, text in (
        ("status", _status, "show the version of the tables; exit status 1 if this program cannot work with them yet"),
        ("upgrade", _upgrade, "make the tables, or bring them to this program's version, and the queue's"),
        ("downgrade", _downgrade, "let an older program work with the database again, before it is installed"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(run=run)
        add_config(action)
        if name == "status":
            action.add_argument("--json", action="store_true", help="one JSON object")
        if name == "downgrade":
            action.add_argument("version", type=int, metavar="VERSION", help="schema that the older program wants")
            action.add_argument("--lose-data", action="store_true", help="also where the older schema cannot keep rows")


def _status(options: argparse.Namespace) -> int:
    settings = configured(options, "database")
    from stepwedge.database import public_url, read_tables
    from stepwedge.migrations import STEPS, refusal
    from stepwedge.schema import VERSION

    tables = read_tables(settings)
    why = refusal(tables)
    address = public_url(settings).render_as_string()
    missing = [step.what for step in STEPS if tables.version is not None and step.version > tables.version]
    if options.json:
        state = {"database": address, "schema": tables.version, "program": VERSION, "missing": missing, "refusal": why}
        print(json.dumps(state))  # noqa: T201
    else:
        print(f"{address}\nschema {tables.version or 'none'}; this program's is {VERSION}")  # noqa: T201
        print(why or "this program can work with it")  # noqa: T201
    return _NOT_READY if why else 0


def _upgrade(options: argparse.Namespace) -> int:
    settings = configured(options, "database")
    from stepwedge.database import upgrade
    from stepwedge.schema import VERSION
    from stepwedge.workflow import prepare_queue

    steps = upgrade(settings)
    prepare_queue(settings)
    for step in steps:
        print(f"schema {step.version}: {step.what}")  # noqa: T201
    print(f"the database has schema {VERSION} or a newer one that this program may work with")  # noqa: T201
    return 0


def _downgrade(options: argparse.Namespace) -> int:
    settings = configured(options, "database")
    from stepwedge.database import downgrade

    undone = downgrade(settings, options.version, lose=options.lose_data)
    for step in undone:
        print(f"undone: schema {step.version}, {step.what}")  # noqa: T201
    print(f"the database has schema {options.version}; start the program that wants it, not this one")  # noqa: T201
    return 0
