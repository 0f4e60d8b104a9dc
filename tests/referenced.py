"""A tiny package with a reference set of bright and dark radiographs of nobody."""

from __future__ import annotations

from pathlib import Path

from instances import write_file
from packages import seal, write_package
from radiographs import radiograph
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.package.reference_set import put_reference

BRIGHTNESSES = (0.2, 0.45, 0.6, 0.8)


def write_studies(folder: Path) -> Path:
    """The studies, as a person would hand them to ``stepwedge package constancy``."""
    folder.mkdir(parents=True)
    for index, brightness in enumerate(BRIGHTNESSES):
        dataset = radiograph(brightness)
        dataset.QualityControlSubject = "YES"
        write_file(dataset, folder / f"{index}.dcm")
    return folder


def write_referenced(folder: Path, studies: Path) -> Path:
    """The package."""
    write_package(folder)
    package = load_package(folder)
    put_reference(package, OnnxEngine(package, "cpu", 1), studies)
    seal(folder)
    return folder
