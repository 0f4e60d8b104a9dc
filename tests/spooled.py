"""A spool with its index, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.identity import Site, load_site
from stepwedge.manifest import Package
from stepwedge.settings import Settings
from stepwedge.store import Store


@dataclass(frozen=True)
class Spooled:
    """What belongs to one data folder."""

    settings: Settings
    site: Site
    store: Store
    spool: InstanceSpool

    def files(self, pattern: str = "studies/**/*.dcm") -> list[Path]:
        """Files of the spool."""
        return sorted(self.spool.root.glob(pattern))


def ours(dataset: Dataset) -> bool:
    """Stands for the recognition of our own results."""
    return bool(dataset.get("Manufacturer") == "Stepwedge")


@contextmanager
def open_spool(folder: Path, models: list[Package] | None = None, **groups: dict[str, Any]) -> Iterator[Spooled]:
    """Open the spool of a data folder; ``groups`` are groups of settings."""
    groups = {"spool": {"reserve_bytes": 0}} | groups
    settings = Settings(data_dir=folder, **groups)
    store = Store.open_file(settings.database_file)
    site = load_site(folder)
    spool = InstanceSpool(settings, site, store, [model.manifest for model in models or []], ours)
    spool.prepare()
    try:
        yield Spooled(settings, site, store, spool)
    finally:
        store.close()
