"""Puts a validated candidate live, and takes it back: only by a person's signature, and whole or not at all.

What is meant is logged before anything is done. A promotion that was cut is finished, or undone, by asking again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stepwatch.candidate import package_of, policy_of, require_unchanged, verify
from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.requests import LOCKED_SET_USED, Request, note, read_request
from stepwatch.retrain import alone
from stepwatch.settings import Retrain, Settings
from stepwatch.signatures import PrivateKey

_RELOAD_SECONDS = 1800.0
_LINK = "link"  # what is held while it is turned


def promote(database: Database, settings: Settings, name: str, key: PrivateKey) -> Request:
    """Make the service answer with a request's candidate.

    Raises
    ------
    WatchError
        If it is not validated, no longer is what was validated, is being worked at by another, or is refused by the
        service: then the link points to what it pointed to before.
    """
    with alone(settings, name), alone(settings, _LINK):
        request = read_request(database, settings, name)
        link = _link(settings.retrain)
        made = request.last("candidate")
        if made is None:
            raise WatchError(f"{name}: has no candidate; `stepwatch retrain run {name}` makes one")
        release = Path(made.body["release"])
        require_unchanged(made.body, settings.retrain)
        if request.state != "promoting":
            before = link.resolve()
            if policy_of(before) is not None and policy_of(release) is None:
                raise WatchError(
                    f"{release}: brings no policy.yaml, as the package in use does; have one approved for it"
                )
            used = request.last(LOCKED_SET_USED)
            if used is not None and used.body["champion"] != str(before):
                raise WatchError(
                    f"{name}: was compared with {used.body['champion']}, and {before} is in use now; validate it again"
                )
            body = {"from": str(before), "to": str(release), "digest": made.body["digest"]}
            request = note(database, settings, name, "promoting", body, key=key)
        intent = request.last("promoting")
        assert intent is not None  # the state says so
        if link.resolve() not in (Path(intent.body["from"]).resolve(), release.resolve()):
            raise WatchError(
                f"{link} points to {link.resolve()}, which another request put there; roll that one back first"
            )
        point(link, release)
        try:
            reload(settings.retrain)
        except WatchError as error:
            point(link, Path(intent.body["from"]))
            # It may only be late, and answer with the new one yet: so it is told again.
            try:
                reload(settings.retrain)
            except WatchError:
                goes_on = "with which package it goes on is not known, since it cannot be told either"
            else:
                goes_on = "it goes on with the package before"
            reason = f"the service did not take it, and {goes_on}: {error}"
            note(database, settings, name, "validated", {"because": reason})
            raise WatchError(reason) from None
        return note(database, settings, name, "promoted", {"digest": made.body["digest"]}, key=key)


def roll_back(database: Database, settings: Settings, name: str, key: PrivateKey) -> Request:
    """Make the service answer with the package that was there before a request's candidate. Raises WatchError."""
    with alone(settings, name), alone(settings, _LINK):
        request = read_request(database, settings, name)
        link = _link(settings.retrain)
        intent = request.last("promoting")
        if intent is None:
            raise WatchError(f"{name}: was never promoted: there is nothing to take back")
        before, now = Path(intent.body["from"]), link.resolve()
        if now not in (before, Path(intent.body["to"]).resolve()):
            raise WatchError(f"{link} points to {now}, which another request put there; roll that one back first")
        # Whole, and no more than that: it was live, and whose signatures count may have changed since.
        verify(package_of(before))
        if request.state != "rolling_back":
            note(database, settings, name, "rolling_back", {"to": str(before)}, key=key)
        point(link, before)
        reload(settings.retrain)
        return note(database, settings, name, "rolled_back", {"to": str(before)}, key=key)


def point(link: Path, folder: Path) -> None:
    """Turn a link to another folder: at any moment it points to the one or the other. Raises WatchError."""
    beside = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        beside.symlink_to(folder)
        beside.replace(link)
        parent = os.open(link.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise WatchError(f"{link}: cannot be turned to {folder}: {error.strerror}") from None


def reload(settings: Retrain) -> None:
    """Make the service load what the link names. Raises WatchError if there is no such program, or it fails."""
    if not settings.reload_command:
        raise WatchError("retrain.reload_command is empty: name what makes the service load its packages again")
    program, *arguments = settings.reload_command
    beside = Path(sys.executable).parent / program  # installed together, and not always on the path
    command = [str(beside) if beside.is_file() else program, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - the site's own setting
            command, capture_output=True, text=True, timeout=_RELOAD_SECONDS, check=False
        )
    except OSError as error:
        raise WatchError(f"{settings.reload_command[0]}: cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise WatchError(f"{settings.reload_command[0]}: had not ended after {_RELOAD_SECONDS:g} s") from None
    if done.returncode:
        raise WatchError(f"{settings.reload_command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")


def _link(settings: Retrain) -> Path:
    link = settings.live_link
    if link is None or not link.is_symlink():
        raise WatchError(f"retrain.live_link: {link} is no symbolic link to a release's folder; make one first")
    return link
