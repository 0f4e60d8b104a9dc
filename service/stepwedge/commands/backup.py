"""``stepwedge backup`` and ``stepwedge restore``: a node's data in one file, and a node from that file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stepwedge.commands.config_option import add_config, configured

if TYPE_CHECKING:
    from stepwedge.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_BACKUP = """\
Writes all that the node knows into one tar file, while the service runs: the site key, the queue, the database, the
received studies, the results, and what the monitor keeps in the data folder. The file holds patient data and the site
key: keep it as you keep the PACS's own backup.
"""
_RESTORE = """\
Makes a node's data folder again from such a file. The folder has to be empty. Every file is verified first. At the
next start work that had not ended goes on; what was acknowledged after the backup has to be sent again by the PACS.
"""


def add(commands: Commands) -> None:
    """Add both parsers."""
    for name, text, help_, run in (
        ("backup", _BACKUP, "write all that the node knows into one file", _back_up),
        ("restore", _RESTORE, "make a node again from a backup", _restore),
    ):
        parser = commands.add_parser(
            name, help=help_, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.set_defaults(run=run)
        parser.add_argument("file", type=Path, metavar="FILE", help="the backup, a tar file")
        add_config(parser)


def _back_up(options: argparse.Namespace) -> int:
    from stepwedge.backup import back_up

    settings = configured(options, "backup")
    saved = back_up(settings, options.file.absolute())
    print(f"{options.file}: {saved.files} files, {saved.total_bytes / 1e6:.1f} MB")  # noqa: T201
    print("\n".join(["save these too, they are not in it:", *_beside(settings, options.config)]))  # noqa: T201
    return 0


def _restore(options: argparse.Namespace) -> int:
    from stepwedge.backup import restore

    settings = configured(options, "restore")
    saved = restore(settings, options.file)
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(saved.made_at))
    print(  # noqa: T201
        f"{settings.data_dir}: restored to {when}, {saved.files} files of Stepwedge {saved.version}; start the "
        "service, then let the PACS send again what it sent since"
    )
    return 0


def _beside(settings: Settings, config: Path | None) -> list[str]:
    """What a node needs and does not own."""
    named = [config] if config else []
    named += [settings.site_key_file] if settings.site_key_file else []
    named += [path for model in settings.models for path in (model.package, model.policy)]
    named += [*settings.trust.keys, *([settings.watch.config] if settings.watch.config else [])]
    return [f"  {path}" for path in dict.fromkeys(named)]
