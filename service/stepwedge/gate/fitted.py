"""``gate.npz``: what the content gate and the tamper check were fitted on, and for which rates.

Either part may be missing: then it is not fitted, and every answer says so.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepwedge.errors import PackageError
from stepwedge.gate.content import ContentGate
from stepwedge.gate.tamper import TamperCheck

_CONTENT, _TAMPER = "content.", "tamper."


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The fitted parts of the gate; None is not fitted."""

    content: ContentGate | None = None
    tamper: TamperCheck | None = None


def load_gate(file: Path) -> Gate:
    """Read a gate. Raises PackageError if the file cannot be read or is no gate."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        content, tamper = _part(arrays, _CONTENT), _part(arrays, _TAMPER)
        return Gate(
            content=ContentGate.from_arrays(content) if content else None,
            tamper=TamperCheck.from_arrays(tamper) if tamper else None,
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise PackageError(f"{file}: cannot be read as a fitted gate ({error}); fit or build it again") from None


def save_gate(file: Path, gate: Gate) -> None:
    """Write a gate."""
    arrays: dict[str, NDArray[np.generic]] = {}
    if gate.content is not None:
        arrays |= {f"{_CONTENT}{name}": value for name, value in gate.content.to_arrays().items()}
    if gate.tamper is not None:
        arrays |= {f"{_TAMPER}{name}": value for name, value in gate.tamper.to_arrays().items()}
    np.savez_compressed(file, allow_pickle=False, **arrays)


def _part(arrays: dict[str, NDArray[np.generic]], prefix: str) -> dict[str, NDArray[np.generic]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
