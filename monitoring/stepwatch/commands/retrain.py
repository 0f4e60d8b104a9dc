"""``stepwatch retrain``: what people decide about retraining requests, and what is done for them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwatch.errors import WatchError
from stepwatch.settings import Settings, load_settings

if TYPE_CHECKING:
    from stepwatch.database import Database
    from stepwatch.requests import Request
    from stepwatch.signatures import PrivateKey

FAILED = 1


def add(commands: Any) -> None:
    """Add the group's parsers."""
    group = commands.add_parser(
        "retrain", help="list, approve, run, validate, promote, decline and roll back retraining requests"
    ).add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: object, help_text: str, *, request: bool = True, key: bool | None = None) -> Any:
        parser = group.add_parser(name, help=help_text, description=help_text)
        parser.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
        if request:
            parser.add_argument("request", metavar="REQUEST", help="as `stepwatch retrain list` shows it")
        if key is not None:
            parser.add_argument("--key", type=Path, required=key, metavar="FILE", help="your private key (PEM)")
        parser.set_defaults(run=run)
        return parser

    action("list", _list, "list the requests", request=False).add_argument("--json", action="store_true")
    action("show", _show, "show why a request was opened and all that was done about it").add_argument(
        "--json", action="store_true"
    )
    by_hand = action("open", _open_by_hand, "open a request by hand", request=False, key=True)
    by_hand.add_argument("--cause", required=True, metavar="TEXT", help="why a new model is wanted")
    action("approve", _approve, "let a candidate be made", key=True)
    action("run", _run, "make a candidate, and verify it", key=True)
    taken = action("take", _take, "take a package that another system made as the candidate", key=True)
    taken.add_argument(
        "release", type=Path, metavar="DIR", help="folder of the package, or of package/ and policy.yaml"
    )
    action("validate", _validate, "compare the candidate with the package in use on the locked cases", key=True)
    action("promote", _promote, "put a validated candidate live", key=True)
    decline = action("decline", _decline, "end a request without a new model", key=True)
    decline.add_argument("--because", default="", metavar="TEXT", help="why")
    action("rollback", _roll_back, "go back to the package before", key=True)
    job = action("job", _job, "print a Kubernetes Job that makes the candidate, for `kubectl apply -f -`", key=True)
    job.add_argument("--image", required=True, help="container image with the program retrain.command")
    job.add_argument("--volume", required=True, help="claim of the volume that holds the folder `requests`")


@contextmanager
def _at(options: argparse.Namespace) -> Iterator[tuple[Settings, Database]]:
    from stepwatch.database import Database

    settings = load_settings(options.config)
    database = Database.open(settings.database_url)
    try:
        database.prepare()
        yield settings, database
    finally:
        database.close()


def _key(options: argparse.Namespace) -> PrivateKey | None:
    from stepwatch.signatures import load_private_key

    return load_private_key(options.key) if options.key else None


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _list(options: argparse.Namespace) -> int:
    from stepwatch.requests import read_requests

    with _at(options) as (settings, database):
        found = list(reversed(read_requests(database, settings).values()))
    for request in found:
        _print(
            json.dumps(as_json(request)) if options.json else f"{request.request}  {request.state:13s}{request.cause}"
        )
    if not found and not options.json:
        _print("no retraining requests")
    return 0


def as_json(request: Request) -> dict[str, Any]:
    """A request with its history."""
    return {
        "request": request.request,
        "state": request.state,
        "cause": request.cause,
        "locked_set_uses": request.locked_set_uses,
        "events": [
            {"event": e.event, "at": _time(e.at), "who": e.who, "signed": bool(e.signature), "body": e.body}
            for e in request.events
        ],
    }


def _show(options: argparse.Namespace) -> int:
    from stepwatch.requests import read_request

    with _at(options) as (settings, database):
        request = read_request(database, settings, options.request)
    _print(json.dumps(as_json(request)) if options.json else describe(request))
    return 0


def describe(request: Request) -> str:
    """A request in lines for people."""
    opened = request.opened.body
    lines = [f"{request.request}: {request.state}", f"  cause: {request.cause}"]
    if opened.get("summary"):
        lines.append(f"  {opened['summary']}")
    if opened.get("page"):
        lines.append(f"  page: {opened['page']}")
    lines.append(f"  studies worth labelling: {len(opened.get('studies', ()))} (--json lists them)")
    lines.append(f"  the locked cases were used {request.locked_set_uses} times for it")
    for event in request.events:
        signed = ", signed" if event.signature else ""
        because = f": {event.body['because']}" if event.body.get("because") else ""
        lines.append(f"  {_time(event.at)}  {event.event} by {event.who}{signed}{because}")
        for each in event.body.get("compared", ()):
            told = each["verdict"]
            if each["difference"] is not None:
                told += (
                    f", costs {each['difference']:+.3f} a study ({each['low']:+.3f} to {each['high']:+.3f}; "
                    f"margin {each['margin']:g})"
                )
            lines.append(f"      {each['where']} ({each['patients']} patients): {told}")
    return "\n".join(lines)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _open_by_hand(options: argparse.Namespace) -> int:
    from stepwatch.requests import open_request

    with _at(options) as (settings, database):
        body = {"cause": options.cause, "signal": options.cause}
        request = open_request(database, settings, body, now=datetime.now(UTC), key=_key(options))
    return _said(request)


def _said(request: Request) -> int:
    because = request.events[-1].body.get("because")
    _print(f"{request.request}: {request.state}" + (f": {because}" if because else ""))
    return 0


def _approve(options: argparse.Namespace) -> int:
    from stepwatch.requests import note

    with _at(options) as (settings, database):
        return _said(note(database, settings, options.request, "approved", key=_key(options)))


def _decline(options: argparse.Namespace) -> int:
    from stepwatch.requests import note

    with _at(options) as (settings, database):
        body = {"because": options.because}
        return _said(note(database, settings, options.request, "declined", body, key=_key(options)))


def _run(options: argparse.Namespace) -> int:
    from stepwatch.candidate import CandidateError
    from stepwatch.retrain import run

    with _at(options) as (settings, database):
        try:
            return _said(run(database, settings, options.request, key=_key(options)))
        except CandidateError as error:
            _print(str(error))
            return FAILED


def _take(options: argparse.Namespace) -> int:
    from stepwatch.candidate import CandidateError, package_of
    from stepwatch.retrain import take

    if not (package_of(options.release) / "model.yaml").is_file():
        raise WatchError(f"{options.release}: no package here, nor a folder `package`; give a release's folder")

    with _at(options) as (settings, database):
        try:
            return _said(take(database, settings, options.request, options.release, key=_key(options)))
        except CandidateError as error:
            _print(str(error))
            return FAILED


def _validate(options: argparse.Namespace) -> int:
    from stepwatch.retrain import validate

    with _at(options) as (settings, database):
        request = validate(database, settings, options.request, key=_key(options))
    _print(describe(request))
    return 0 if request.state == "validated" else FAILED


def _promote(options: argparse.Namespace) -> int:
    from stepwatch.promotion import promote

    with _at(options) as (settings, database):
        return _said(promote(database, settings, options.request, _needed(options)))


def _roll_back(options: argparse.Namespace) -> int:
    from stepwatch.promotion import roll_back

    with _at(options) as (settings, database):
        return _said(roll_back(database, settings, options.request, _needed(options)))


def _needed(options: argparse.Namespace) -> PrivateKey:
    key = _key(options)
    if key is None:
        raise WatchError("a person has to sign this; give --key")
    return key


def _job(options: argparse.Namespace) -> int:
    from stepwatch.retrain import hand_over

    with _at(options) as (settings, database):
        job = hand_over(
            database, settings, options.request, image=options.image, volume=options.volume, key=_key(options)
        )
    _print(json.dumps(job, indent=2))
    return 0
