"""``stepwedge constancy``: does the service still answer for its reference set as on the day of acceptance?"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stepwedge.commands.config_option import add_config, configured
from stepwedge.errors import PackageError, StepwedgeError

if TYPE_CHECKING:
    from stepwedge.constancy.expose import Difference
    from stepwedge.observation import ConstancyRun
    from stepwedge.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_NOT_CONSTANT = 1
_ROLES = ("listen", "work")
_LOOK_SECONDS = 1.0
_DESCRIPTION = """\
Sends the reference set of each model's package through the running service (C-STORE, spool, queue, decoding, gate,
preprocessing, inference, calibration, thresholds, report; no delivery) and compares the answers with those of the day
of acceptance, within stated tolerances. Names the first stage that moved. The studies are known to the node before
they are sent: they are not observed, not delivered, not counted, and nothing is left of them but the run's own row.
"""
_EPILOG = """\
exit status: 0 constant; 1 moved, or not all studies came to an end; 2 cannot be done, and the message says why.
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "constancy",
        help="send the reference set through the running service and compare with the day of acceptance",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    add_config(parser)
    parser.add_argument("--model", metavar="NAME", help="only this model (default: all that have a reference set)")
    parser.add_argument("--json", action="store_true", help="one JSON object a model")
    parser.add_argument("--quiet", action="store_true", help="print nothing: the log and the monitor tell")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="take what the site's policy makes of the set now (prevalences, thresholds, a gate of its own) as "
        "accepted; the answers of the package itself cannot be accepted away",
    )
    parser.add_argument(
        "--after-start",
        type=float,
        metavar="SECONDS",
        help="as the run that belongs to an installation or upgrade: wait so long for the service to be ready, and end "
        "with 0 where no package has a reference set",
    )


def _run(options: argparse.Namespace) -> int:
    from stepwedge.constancy.accepted import CONSTANCY, read_reference
    from stepwedge.constancy.expose import expose
    from stepwedge.constancy.schedule import has_reference_set
    from stepwedge.database import open_store
    from stepwedge.identity import load_site
    from stepwedge.manifest import load_package
    from stepwedge.policy import load_policy
    from stepwedge.signing import load_trust

    settings = configured(options, "constancy")
    if options.after_start is not None and not has_reference_set(settings):
        return 0
    _wait_for_roles(settings, options.after_start or 0.0)
    trust = load_trust(settings.trust.keys)
    site = load_site(settings.data_dir, settings.site_key_file)
    store = open_store(settings)
    status, done = 0, 0
    try:
        for model in settings.models:
            package = load_package(model.package, trust)
            if options.model not in (None, package.manifest.name):
                continue
            if not (model.package / CONSTANCY).is_file():
                print(f"{package.manifest.name}: its package has no reference set", file=sys.stderr)  # noqa: T201
                continue
            row, differences = expose(
                settings,
                package,
                load_policy(model.policy, package, trust),
                read_reference(package),
                store=store,
                site=site,
                accept=options.accept,
            )
            done += 1
            if row.verdict != "constant":
                status = _NOT_CONSTANT
            if not options.quiet:
                print(json.dumps(_as_json(row, differences)) if options.json else _as_text(row, differences))  # noqa: T201
    finally:
        store.close()
    if not done:
        raise PackageError(
            "no model with a reference set is configured by this name; `stepwedge package constancy` adds one"
        )
    return status


def _wait_for_roles(settings: Settings, seconds: float) -> None:
    from stepwedge.rundir import is_beating

    deadline = time.monotonic() + seconds
    while missing := [role for role in _ROLES if not is_beating(settings.data_dir, role)]:
        if time.monotonic() >= deadline:
            raise StepwedgeError(
                f"{settings.data_dir}: no stepwedge {missing[0]} is running with these settings; the reference set "
                "goes through the running service, so start it first"
            )
        time.sleep(_LOOK_SECONDS)


def _as_json(row: ConstancyRun, differences: list[Difference]) -> dict[str, Any]:
    return asdict(row) | {"cases": [asdict(item) for item in differences]}


def _as_text(row: ConstancyRun, differences: list[Difference]) -> str:
    """For people: the verdict, and a line a stage."""
    said = {
        "constant": "constant",
        "moved": f"MOVED, first at {row.stage}",
        "incomplete": "incomplete: not every study came to an end with an answer",
    }[row.verdict]
    lines = [f"{row.model_name} {row.model_version}: {said}; {row.answered} of {row.studies} studies answered"]
    for stage, value in row.differences.items():
        moved = [str(item.case) for item in differences if item.stages.get(stage, 0.0) > 1.0]
        cases = f"  studies {', '.join(moved)}" if moved else ""
        lines.append(f"  {stage:<14} {value:9.3f} of its tolerance{'  moved' if value > 1.0 else ''}{cases}")
    missing = [f"{item.case} ({item.state or 'not ended'})" for item in differences if not item.stages]
    if missing:
        lines.append(f"  without an answer: {', '.join(missing)}")
    return "\n".join(lines)
