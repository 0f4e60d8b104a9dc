"""The reference set of a package, for constancy runs: made with the package's own engine and gate."""

from __future__ import annotations

import shutil
from pathlib import Path

from stepwedge.constancy.accepted import make_reference, write_reference
from stepwedge.errors import PackageError
from stepwedge.gate.fitted import Gate, load_gate
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import SUMS, Package, digest_list, load_package
from stepwedge.package.folder import beside
from stepwedge.pipeline import Equipment
from stepwedge.seams import Engine
from stepwedge.signing import SIGNATURE, SIGNER, sign_folder

_THREADS = 1


def add_reference(package: Path, studies: Path, key: Path | None) -> Package:
    """Give a package a reference set, or another one, and seal and sign it anew; its digest changes.

    The package is replaced whole or not at all.

    Parameters
    ----------
    studies
        Folder of DICOM files of nobody, one image a study.
    key
        Private key to sign with; None leaves the package unsigned.

    Raises
    ------
    StepwedgeError
        Whatever is wrong with the package, the studies or the key.
    """
    found = load_package(package)
    if found.manifest.input.unit != "instance":
        raise PackageError(
            f"{package}: input.unit: found {found.manifest.input.unit}; reference sets are made for instance so far"
        )
    with beside(package) as folder:
        shutil.copytree(package, folder, dirs_exist_ok=True)
        for name in (SUMS, SIGNATURE, SIGNER):
            (folder / name).unlink(missing_ok=True)
        put_reference(found.model_copy(update={"path": folder}), OnnxEngine(found, "cpu", _THREADS), studies)
        (folder / SUMS).write_text(digest_list(folder), encoding="utf-8")
        if key is not None:
            sign_folder(folder, key)
        load_package(folder)
    return load_package(package)


def put_reference(package: Package, engine: Engine, studies: Path) -> int:
    """Write the reference set into a package's folder that is not sealed yet; how many studies it has."""
    files = sorted(file for file in studies.rglob("*") if file.is_file() and not file.name.startswith("."))
    gate = load_gate(package.gate_file) if package.gate_file else Gate()
    equipment = Equipment(package=package, engine=engine, policy=None, gate=gate, explain=False, prints=True)
    cases = make_reference(files, equipment)
    write_reference(package.path, cases)
    return len(cases)
