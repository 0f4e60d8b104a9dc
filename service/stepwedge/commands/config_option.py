"""``--config``, and what every command that works on the service's data does with it first."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from stepwedge.settings import CONFIG_VARIABLE, Settings, load_settings


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"settings file (or ${CONFIG_VARIABLE})")


def configured(options: argparse.Namespace, role: str) -> Settings:
    """The settings, with the log of this process set up by them. Raises SettingsError."""
    from stepwedge import logs

    # What is written belongs to the operator alone: it holds patient data.
    os.umask(0o077)
    if options.config is not None:
        # The roles that we start, and BentoML's processes, read the same file.
        os.environ[CONFIG_VARIABLE] = str(options.config.resolve())
    settings = load_settings()
    logs.configure(settings.log, role)
    return settings
