"""``stepwedge study``: from a Study Instance UID to the node's name of it, and back; also of a reader, or a person."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stepwedge.commands.config_option import add_config, configured
from stepwedge.errors import StepwedgeError

if TYPE_CHECKING:
    from stepwedge.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_UNKNOWN = 1
_HASH = re.compile(r"[0-9a-f]{32}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")  # PS3.5 section 9.1; zeros in front are met in the field
_LONGEST_UID = 64
_DESCRIPTION = """\
Outside this node a study has no name but a keyed hash of its UID: in observations and labels, in the queue of studies
to label, in retraining requests. This command turns the one into the other. A UID becomes its hash whether or not the
node has the study, so labels can be prepared for studies that are still to come. A hash can be turned back only for
studies whose objects the node has received.
"""
_EPILOG = """\
exit status: 0 all were turned; 1 the node has never received a study that a hash names; 2 cannot be done as asked.
What is printed identifies patients to whoever has the archive: it belongs in no log and no ticket.
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "study",
        help="look up a study by its UID or by the node's name of it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("names", nargs="+", metavar="UID|HASH", help="studies, or - to read them from standard input")
    parser.add_argument(
        "--reader", action="store_true", help="names of verifying observers, to the codes that labels have"
    )
    parser.add_argument(
        "--person",
        action="store_true",
        help="subjects at the OpenID provider (page.oidc.issuer), to the names that the page's actions have",
    )
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run(options: argparse.Namespace) -> int:

    settings = configured(options, "study")
    names = list(_named(options.names))
    look = people if options.person else readers if options.reader else look_up
    found: Sequence[dict[str, Any] | None] = look(settings, names)
    status = 0
    for name, row in zip(names, found, strict=True):
        if row is None:
            print(f"stepwedge: {name}: this node has received no study that it names so", file=sys.stderr)  # noqa: T201
            status = _UNKNOWN
        else:
            print(json.dumps(row) if options.json else "  ".join(str(value) for value in row.values()))  # noqa: T201
    return status


def _named(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            yield from (line.strip() for line in sys.stdin if line.strip())
        else:
            yield argument.strip()


def look_up(settings: Settings, names: list[str]) -> list[dict[str, Any] | None]:
    """UID, hash and whether the node has the study, for each UID or hash; None for a hash that is not known here.

    Raises
    ------
    StepwedgeError
        If there is no node here, or a name is neither.
    """
    from stepwedge.database import has_database, open_store
    from stepwedge.identity import load_site

    for name in names:
        if not _HASH.fullmatch(name) and (not _UID.fullmatch(name) or len(name) > _LONGEST_UID):
            raise StepwedgeError(f"{name!r:.80}: neither a Study Instance UID nor a hash of 32 hexadecimal characters")
    _must_be_there(settings)
    if not has_database(settings):
        raise StepwedgeError(f"{settings.data_dir}: no database here; has the service run with these settings?")
    site, store = load_site(settings.data_dir, settings.site_key_file), open_store(settings)
    try:
        found: list[dict[str, Any] | None] = []
        for name in names:
            study = name
            if not _HASH.fullmatch(name):
                study = site.holding(name, lambda held: store.study(held) is not None).hash(name)
            received = store.instances(study)
            if not received and study == name:
                found.append(None)
                continue
            uid = received[0].study_uid if received else name
            found.append({"study_uid": uid, "study": study, "received": len(received)})
        return found
    finally:
        store.close()


def readers(settings: Settings, names: list[str]) -> list[dict[str, Any]]:
    """The codes that labels name readers by, under the current key and the older ones.

    Raises StepwedgeError if there is no node here.
    """
    from stepwedge.dicom.verified import reader_code
    from stepwedge.identity import load_site

    _must_be_there(settings)
    site = load_site(settings.data_dir, settings.site_key_file)
    found: list[dict[str, Any]] = []
    for name in names:
        code, *older = [reader_code(each, name) for each in site.each()]
        # Labels of studies that came under an older key name readers under that one.
        found.append({"name": name, "reader": code} | ({"older": older} if older else {}))
    return found


def people(settings: Settings, subjects: list[str]) -> list[dict[str, Any]]:
    """The names that the page gives to who signs in through the OpenID provider, under the current and older keys.

    Raises StepwedgeError if there is no node here, or no provider is set.
    """
    from stepwedge.identity import load_site
    from stepwedge.page.sessions import name_of

    _must_be_there(settings)
    issuer = settings.page.oidc.issuer.rstrip("/")
    if not issuer:
        raise StepwedgeError("page.oidc.issuer is not set: nobody signs in through an OpenID provider here")
    site = load_site(settings.data_dir, settings.site_key_file)
    found: list[dict[str, Any]] = []
    for subject in subjects:
        name, *older = [name_of(each, f"{issuer}|{subject}") for each in site.each()]
        found.append({"subject": subject, "who": name} | ({"older": older} if older else {}))
    return found


def _must_be_there(settings: Settings) -> None:
    """An identity would be made where there is none, and hashes by it would be of no use."""
    from stepwedge.identity import site_file

    file = site_file(settings.data_dir, settings.site_key_file)
    if not file.is_file():
        raise StepwedgeError(f"{file}: there is no node here yet; has the service run with these settings?")
