"""``stepwedge page-token``: a token for the operator's page, shown once, and its entry in ``page.tokens_file``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from stepwedge.settings import ROLES

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_DESCRIPTION = """\
Makes a token for a person or a program. The token is shown this once, on standard error; on standard output comes the
entry to add to the file that page.tokens_file names, which has a digest of it alone. A running page reads the file
again by itself. To take a token back, take its entry out.
"""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "page-token",
        help="make a token for the operator's page",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("--name", required=True, help="who it is for; what is done with it is kept under this name")
    parser.add_argument(
        "--role", required=True, choices=ROLES, help="viewer sees; operator also retries and releases; approver adopts"
    )


def _run(options: argparse.Namespace) -> int:
    from stepwedge.page.tokens import make_token

    token, entry = make_token(options.name, options.role)
    print(f"the token, shown this once: {token}", file=sys.stderr, flush=True)  # noqa: T201
    print(entry, flush=True)  # noqa: T201
    return 0
