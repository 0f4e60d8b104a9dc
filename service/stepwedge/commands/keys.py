"""``stepwedge keys``: the keys under which this node names studies, and their rotation."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stepwedge.commands.config_option import add_config, configured
from stepwedge.errors import StepwedgeError

if TYPE_CHECKING:
    from stepwedge.identity import Site
    from stepwedge.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EVERY = 1_000_000_000  # studies
_DESCRIPTION = """\
Studies leave this node under keyed hashes of their UIDs. `rotate` makes a new key, under which studies that come from
then on are named; those that the node holds keep their names, with their late images, labels and results. The service
has to be stopped for it, on every machine that shares the data folder.
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "keys",
        help="list, rotate or make the site keys, under which studies are named",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    listed = actions.add_parser("list", help="the keys by id, and how many studies are named under each")
    listed.set_defaults(run=_list)
    listed.add_argument("--json", action="store_true", help="one JSON object a line")
    rotate = actions.add_parser("rotate", help="make a new key current, and keep the others")
    rotate.set_defaults(run=_rotate)
    rotate.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="write the keys into this new file and leave the old one: for a `site_key_file` that cannot be written",
    )
    for sub in (listed, rotate):
        add_config(sub)
    new = actions.add_parser("new", help="make an identity with its key, for `site_key_file`")
    new.set_defaults(run=_new)
    new.add_argument("file", type=Path, metavar="FILE")


def _list(options: argparse.Namespace) -> int:
    from stepwedge.identity import keys_of, load_site

    settings = configured(options, "keys")
    file = _there(settings)
    held = _held(settings, load_site(settings.data_dir, settings.site_key_file))
    for number, item in enumerate(keys_of(file)):
        row = {**item, "current": number == 0, "studies": held[number]}
        since = item["since"] or "since the first start"
        text = f"{item['id']}  {'current' if number == 0 else 'older  '}  {since}  {held[number]} studies"
        print(json.dumps(row) if options.json else text)  # noqa: T201
    return 0


def _held(settings: Settings, site: Site) -> Counter[int]:
    """How many studies are named under each key, by its place."""
    from stepwedge.database import has_database, open_store

    found: Counter[int] = Counter()
    if not has_database(settings):
        return found
    store = open_store(settings)
    try:
        for study in store.studies(_EVERY):
            names = [each.hash(study.study_uid) for each in site.each()]
            if study.study in names:
                found[names.index(study.study)] += 1
    finally:
        store.close()
    return found


def _rotate(options: argparse.Namespace) -> int:
    from stepwedge.identity import load_site, rotate_site

    settings = configured(options, "keys")
    file = _there(settings)
    with _nothing_runs(settings):
        load_site(settings.data_dir, settings.site_key_file)  # what is wrong with it is said before anything is done
        try:
            made = rotate_site(file, options.to)
        except FileExistsError:
            raise StepwedgeError(f"{options.to}: is there already; name another file") from None
        except OSError as error:
            raise StepwedgeError(
                f"{options.to or file}: cannot be written ({error.strerror}); with --to FILE the keys are written "
                "elsewhere, to be put in its place by you"
            ) from None
    print(f"{made} is the current key in {options.to or file}")  # noqa: T201
    if options.to:
        print(f"put it in the place of {file} before anything is started")  # noqa: T201
    print("back it up: the hashes under a key that is lost cannot be turned back")  # noqa: T201
    return 0


@contextmanager
def _nothing_runs(settings: Settings) -> Iterator[None]:
    """A role that goes on with the keys of before would give a study a second name."""
    from stepwedge.rundir import at_work, take

    data_dir = settings.data_dir
    role = at_work(data_dir)
    if role is not None:
        raise StepwedgeError(
            f"{data_dir}: stepwedge {role} is using this data folder, or was killed a moment ago; stop it first, on "
            "every machine"
        )
    try:
        handle = take(data_dir / "run" / "serve.lock")
    except BlockingIOError:
        raise StepwedgeError(f"{data_dir}: stepwedge serve is starting in this data folder; stop it first") from None
    try:
        if any((data_dir / "run").glob("backup-*")):
            raise StepwedgeError(f"{data_dir}: a backup is being made; wait for it to end")
        yield
    finally:
        os.close(handle)
    role = at_work(data_dir)
    if role is not None:
        raise StepwedgeError(f"the key is changed; stepwedge {role} was started meanwhile: start it anew at once")


def _new(options: argparse.Namespace) -> int:
    from stepwedge.identity import create_site, keys_of

    try:
        create_site(options.file.absolute(), only_once=True)
    except FileExistsError:
        raise StepwedgeError(f"{options.file}: is there already; name another file") from None
    except OSError as error:
        raise StepwedgeError(f"{options.file}: cannot be written ({error.strerror})") from None
    print(f"{options.file}: {keys_of(options.file)[0]['id']}; name it as site_key_file, and back it up")  # noqa: T201
    return 0


def _there(settings: Settings) -> Path:
    """The file of the keys. Raises StepwedgeError where there is no node."""
    from stepwedge.identity import site_file

    file = site_file(settings.data_dir, settings.site_key_file)
    if not file.is_file():
        raise StepwedgeError(f"{file}: there is no node here yet; has the service run with these settings?")
    return file
