"""``stepwedge reload``: a running service takes the packages and policies that its settings name now."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from stepwedge.commands.config_option import add_config, configured
from stepwedge.errors import StepwedgeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepwedge.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_NOT_DONE = 1
_POLL_SECONDS = 0.2
_DESCRIPTION = """\
Makes a running `stepwedge serve` load its packages and policies again, as after the link to a package was turned.
First everything is verified: digests, signatures, that each policy is for its package, and the model's golden cases;
what does not verify changes nothing. Then worker and inference server are started anew, and the DICOM node goes on
receiving. Work that waits goes to the new model. SIGHUP to `stepwedge serve` does the same.
"""
_EPILOG = """\
Other settings than models are read at the start only. exit status: 0 the service answers with the packages named; 1
it does not, and the message says with which it does; 2 cannot be done, and nothing was changed.
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reload",
        help="make a running service load its packages and policies again",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--allow-demonstration",
        action="store_true",
        help="also where a policy for clinical use gives way to one for demonstration",
    )
    parser.add_argument("--check", action="store_true", help="verify only, and print what would be loaded")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait for the service (600)"
    )


def _run(options: argparse.Namespace) -> int:
    from stepwedge import rundir

    settings = configured(options, "reload")
    running = rundir.holder(settings.data_dir)
    if running is None and not options.check:
        raise StepwedgeError(
            f"{settings.data_dir}: no stepwedge serve is running with these settings; a start loads what they name"
        )
    models = verified(settings)
    if not options.allow_demonstration:
        _refuse_demonstration(rundir.told(settings.data_dir, "serve").get("models", []), models)
    if options.check:
        print(json.dumps(models))  # noqa: T201
        return 0
    assert running is not None
    token = uuid4().hex
    rundir.tell(settings.data_dir, "reload", {"token": token, "allow_demonstration": options.allow_demonstration})
    os.kill(running, signal.SIGHUP)
    try:
        state = _wait(settings.data_dir, token, options.timeout)
    except _NotDoneError as error:
        print(f"stepwedge: {error}", file=sys.stderr)  # noqa: T201
        return _NOT_DONE
    if options.json:
        print(json.dumps({"outcome": state["reload"]["outcome"], "models": state["models"]}))  # noqa: T201
    else:
        for model in state["models"]:
            print(  # noqa: T201
                f"{model['model']} {model['version']}, digest {model['digest']}, policy {model['policy_digest']}"
                f"{', demonstration' if model['demonstration'] else ''}"
            )
    if state["reload"]["outcome"] != "done":
        print(f"stepwedge: {settings.data_dir}: {state['reload']['reason']}", file=sys.stderr)  # noqa: T201
        return _NOT_DONE
    return 0


class _NotDoneError(StepwedgeError):
    """The service was told, and did not follow."""


def verified(settings: Settings) -> list[dict[str, Any]]:
    """What the settings name, once all of it is shown to be usable. Raises StepwedgeError."""
    from stepwedge.inference.engine import OnnxEngine
    from stepwedge.roles import described, load_models

    models = load_models(settings)
    for package, _ in models:
        OnnxEngine(package, "cpu", 1)  # gives its golden outputs
    return described(models)


def _refuse_demonstration(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> None:
    clinical = {model["model"] for model in before if not model["demonstration"]}
    for model in after:
        if model["model"] in clinical and model["demonstration"]:
            raise StepwedgeError(
                f"{model['model']}: is in clinical use, and its policy would be for demonstration only, so that no "
                "result were delivered; have the policy approved for this package, or say --allow-demonstration"
            )


def _wait(data_dir: Path, token: str, seconds: float) -> dict[str, Any]:
    from stepwedge import rundir

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = rundir.told(data_dir, "serve")
        if state.get("reload", {}).get("token") == token:
            return state
        if rundir.holder(data_dir) is None:
            raise _NotDoneError(f"{data_dir}: stepwedge serve ended meanwhile; its log says why")
        time.sleep(_POLL_SECONDS)
    raise _NotDoneError(f"{data_dir}: the service had not followed after {seconds:g} seconds; see its log")
