"""The model packages that are watched: which model it is, its findings, and where its baseline lies.

The service verifies signatures before it loads a package; here a package is only what its rows are compared with, so
its digest is read from its list of digests and is what the rows name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stepwatch.errors import WatchError
from stepwatch.settings import Model

_DIGESTS = "SHA256SUMS"
BASELINE = "baseline.parquet"
_REFERENCE_SET = "constancy.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedPackage:
    """A package, as far as the monitor has to know it."""

    name: str
    version: str
    digest: str  # as observations name it
    findings: tuple[str, ...]
    folder: Path  # resolved: not the link to it
    baseline: Path  # the site's own where its policy names one, else the package's
    has_reference: bool  # whether there is a reference set, for constancy runs


def read_package(model: Model) -> WatchedPackage:
    """Read what a package is.

    Raises
    ------
    WatchError
        If it cannot be read; says what is missing.
    """
    folder = model.package.resolve()
    manifest = _mapping(folder / "model.yaml")
    try:
        digest = hashlib.sha256((folder / _DIGESTS).read_bytes()).hexdigest()
    except OSError as error:
        raise WatchError(f"{folder / _DIGESTS}: cannot be read: {error.strerror}; is this a model package?") from None
    found = manifest.get("findings")
    names = [item.get("name") for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    name, version = manifest.get("name"), manifest.get("version")
    if not isinstance(name, str) or not name or not names or not all(isinstance(n, str) for n in names):
        raise WatchError(f"{folder / 'model.yaml'}: names no model with findings; is this a model package?")
    return WatchedPackage(
        name=name,
        version=str(version),
        digest=digest,
        findings=tuple(str(n) for n in names),
        folder=folder,
        baseline=_baseline(folder, model.policy),
        has_reference=(folder / _REFERENCE_SET).is_file(),
    )


def stamp(model: Model) -> tuple[object, ...]:
    """What changes when another package, or another policy, takes the place of one."""
    stamps: list[object] = []
    for file in (model.package.resolve() / _DIGESTS, model.policy):
        try:
            status = file.stat() if file is not None else None
        except OSError:
            status = None
        stamps.append((file, status.st_ino, status.st_mtime_ns) if status else None)
    return tuple(stamps)


def _baseline(folder: Path, policy: Path | None) -> Path:
    if policy is not None:
        fitted = _mapping(policy).get("fitted")
        baseline = fitted.get("baseline") if isinstance(fitted, dict) else None
        name = baseline.get("file") if isinstance(baseline, dict) else None
        if isinstance(name, str):
            return policy.resolve().parent / Path(name).name
    return folder / BASELINE


def _mapping(file: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WatchError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise WatchError(f"{file}: is no YAML") from None
    if not isinstance(read, dict):
        raise WatchError(f"{file}: wanted a mapping at the top, found {type(read).__name__}")
    return read
