"""Takes a retraining request through its states: a run that makes a candidate, and its validation."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from stepwatch.candidate import (
    CandidateError,
    digest_of_policy,
    job_manifest,
    name_in,
    package_of,
    require_unchanged,
    run_program,
    tell,
    verify,
    write_request,
)
from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.requests import LOCKED_SET_USED, Request, folder_of, note, read_request
from stepwatch.settings import Settings
from stepwatch.signatures import PrivateKey
from stepwatch.validation import compare, decide_cases, locked_cases


def run(database: Database, settings: Settings, name: str, *, key: PrivateKey | None = None) -> Request:
    """Make a candidate for an approved request: by the site's program, or by telling another system.

    A request whose last run was cut off is one that failed. Raises WatchError if it is in no state to be run;
    CandidateError if no candidate came of it, which the request then says as well.
    """
    retrain = settings.retrain
    with alone(settings, name):
        waits = retrain.webhook_url is not None and not retrain.command
        if not retrain.command and not waits:
            raise WatchError("retrain.command and retrain.webhook_url are empty: name what makes a candidate")
        request, folder = _begin(database, settings, name, key, elsewhere=waits)
        try:
            file = write_request(request, folder)
            if waits:
                tell(retrain, file)
                return read_request(database, settings, name)
            run_program(retrain, file, folder / "candidate")
        except (CandidateError, OSError) as error:
            _failed(database, settings, name, error)
    return take(database, settings, name, folder / "candidate", key=key)


def hand_over(
    database: Database, settings: Settings, name: str, *, image: str, volume: str, key: PrivateKey | None = None
) -> dict[str, Any]:
    """Say that a Kubernetes Job makes the candidate, and give the Job; ``take`` takes what it made.

    Raises WatchError if the request is in no state to be run, or there is no program that a Job could run.
    """
    if not settings.retrain.command:
        raise WatchError("retrain.command is empty: name the program that the image runs")
    with alone(settings, name):
        request, folder = _begin(database, settings, name, key, elsewhere=True)
        try:
            write_request(request, folder)
            (folder / "candidate").mkdir(exist_ok=True)
        except OSError as error:
            _failed(database, settings, name, error)
        inside = folder.relative_to(folder_of(settings))
        return job_manifest(settings.retrain, f"{name}-{folder.name}", inside, image=image, volume=volume)


def _begin(
    database: Database, settings: Settings, name: str, key: PrivateKey | None, *, elsewhere: bool
) -> tuple[Request, Path]:
    """Note that a run begins, and give its folder."""
    request = read_request(database, settings, name)
    if request.state == "running":
        _end_former(database, settings, request)
    number = sum(event.event == "running" for event in request.events) + 1
    folder = folder_of(settings, name) / f"run-{number}"
    note(database, settings, name, "running", {"folder": str(folder), "elsewhere": elsewhere}, key=key)
    return request, folder


def _end_former(database: Database, settings: Settings, request: Request) -> None:
    """Say that the run before has failed. Raises WatchError where another system may still be at it."""
    former = request.last("running")
    assert former is not None  # the state says so
    ends = former.at + settings.retrain.timeout_seconds
    if former.body.get("elsewhere") and time.time() < ends:
        until = datetime.fromtimestamp(ends, UTC).isoformat(timespec="minutes")
        raise WatchError(
            f"{request.request}: another system was told and has until {until} (retrain.timeout_seconds); "
            f"`stepwatch retrain take {request.request} DIR` takes what it made"
        )
    # We hold the lock: nobody here runs it any more.
    because = "the other system did not answer in time" if former.body.get("elsewhere") else "the run was cut off"
    note(database, settings, request.request, "failed", {"because": because})


def take(database: Database, settings: Settings, name: str, release: Path, *, key: PrivateKey | None = None) -> Request:
    """Take a folder as the candidate of a running request, if its package verifies. Raises CandidateError if not."""
    with alone(settings, name):
        if read_request(database, settings, name).state != "running":
            raise WatchError(f"{name}: no run of it is going on, so that no candidate is taken")
        try:
            found = verify(package_of(release.resolve()), settings.retrain.trusted_keys)
        except CandidateError as error:
            _failed(database, settings, name, error)
        body = {
            "release": str(release.resolve()),
            "policy": digest_of_policy(release.resolve()),
            **{key: found[key] for key in ("name", "version", "digest", "signer")},
        }
        return note(database, settings, name, "candidate", body, key=key)


def validate(database: Database, settings: Settings, name: str, *, key: PrivateKey | None = None) -> Request:
    """Compare a request's candidate with the package in use on the locked cases. Raises WatchError if it cannot be."""
    with alone(settings, name):
        request = read_request(database, settings, name)
        made = request.last("candidate")
        if made is None or request.state not in ("candidate", "validated", "inconclusive"):
            raise WatchError(f"{name} is {request.state}: only a candidate can be validated")
        if settings.retrain.live_link is None:
            raise WatchError("retrain.live_link names no package in use: nothing to compare with")
        champion, challenger = settings.retrain.live_link.resolve(), Path(made.body["release"])
        require_unchanged(made.body, settings.retrain)
        policy = next((m.policy for m in settings.models if m.policy and name_in(m.package) == made.body["name"]), None)
        locked_cases(settings.retrain)
        # Noted before it is used: a use that is cut off counts.
        body = {"champion": str(champion), "digest": made.body["digest"]}
        note(database, settings, name, LOCKED_SET_USED, body, key=key)
        folder = folder_of(settings, name)
        folder.mkdir(parents=True, exist_ok=True)
        before = decide_cases(champion, policy, settings.retrain, folder / "champion.jsonl")
        after = decide_cases(challenger, policy, settings.retrain, folder / "challenger.jsonl")
        outcome = compare(before, after, settings.retrain)
        return note(database, settings, name, outcome.state, outcome.to_dict() | body, key=key)


def _failed(database: Database, settings: Settings, name: str, error: Exception) -> NoReturn:
    note(database, settings, name, "failed", {"because": str(error)[:1000]})
    raise CandidateError(f"{name}: {error}; once that is mended: stepwatch retrain run {name}") from None


@contextmanager
def alone(settings: Settings, name: str) -> Iterator[None]:
    """Hold a request against a second run of it at the same time. Raises WatchError if another holds it."""
    folder = folder_of(settings)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / f"{Path(name).name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WatchError(f"{name}: is being run or validated by another process; wait for it") from None
        yield
    finally:
        os.close(handle)
