"""The folder that a package is made in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder to build in, beside the target; it becomes the target if all goes well, and goes away if not."""
    out = out.absolute()
    around = Path(tempfile.mkdtemp(prefix=f".{out.name}-being-built-", dir=out.parent))
    try:
        folder = around / out.name
        folder.mkdir()
        yield folder
        replaced = around / "replaced"
        if out.exists():
            out.rename(replaced)
        try:
            folder.rename(out)
        except BaseException:
            if replaced.exists():
                replaced.rename(out)
            raise
    finally:
        shutil.rmtree(around, ignore_errors=True)
