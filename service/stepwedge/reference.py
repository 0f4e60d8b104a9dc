"""Which studies are reference studies: sent through the live path by a constancy run, and counted for nothing else.

A study is registered before its first byte is sent, in a file of its own, so that no reference study is ever taken for
a patient's: not after a crash, and not when the database is made again from the spool. ``study`` is the keyed hash of
a Study Instance UID that the run drew; a sender cannot register one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stepwedge.durable import sync_folder, write_durably
from stepwedge.errors import StepwedgeError

_FOLDER = Path("constancy") / "studies"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceStudy:
    """One study of a run."""

    study: str  # keyed hash
    run: str
    case: int  # its place in the package's reference set
    model_name: str  # the only model that is asked
    registered_at: float  # seconds since 1970


def folder(data_dir: Path) -> Path:
    """Where constancy runs keep their own files."""
    return data_dir / _FOLDER.parent


def register(data_dir: Path, item: ReferenceStudy) -> None:
    """Make it known, durably, before the study is sent. Raises OSError."""
    file = _file(data_dir, item.study)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(file, json.dumps(asdict(item)).encode())


def is_reference(data_dir: Path, study: str) -> bool:
    """Whether a study is of a constancy run."""
    return _file(data_dir, study).exists()


def registered(data_dir: Path, study: str) -> ReferenceStudy | None:
    """The entry of a study; None for every study that is not of a constancy run. Raises StepwedgeError."""
    file = _file(data_dir, study)
    try:
        return ReferenceStudy(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StepwedgeError(
            f"{file}: cannot be read ({type(error).__name__}); it says that the study is of a constancy run: restore it"
        ) from None


def all_registered(data_dir: Path) -> list[ReferenceStudy]:
    """Every entry that can be read."""
    found = []
    for file in sorted((data_dir / _FOLDER).glob("*.json")):
        try:
            entry = registered(data_dir, file.stem)
        except StepwedgeError:
            continue
        if entry is not None:
            found.append(entry)
    return found


def forget(data_dir: Path, study: str) -> None:
    """Drop an entry, once nothing of the study is left."""
    file = _file(data_dir, study)
    file.unlink(missing_ok=True)
    sync_folder(file.parent)


def _file(data_dir: Path, study: str) -> Path:
    return data_dir / _FOLDER / f"{study}.json"
