"""How a model's detectors are had: its configuration, its baseline, and the monitor on both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from stepwatch.baseline import load_baseline
from stepwatch.cohort import baseline_members
from stepwatch.config import default_config, read_config
from stepwatch.errors import WatchError
from stepwatch.fairness import known_levels
from stepwatch.monitor import Monitor
from stepwatch.packages import BASELINE, WatchedPackage
from stepwatch.settings import Detection
from stepwatch.signals import observation_row
from stepwatch.watch import Detectors


def detectors(settings: Detection) -> Callable[[WatchedPackage], Detectors]:
    """What makes the detectors of a package. It raises WatchError for a baseline that cannot be used."""

    def load(package: WatchedPackage) -> Detectors:
        config = default_config(package.findings) if settings.config is None else read_config(settings.config)
        with tempfile.TemporaryDirectory() as folder:
            # A site's own baseline has a name of its own beside the policy; it is read by the usual one.
            link = Path(folder) / BASELINE
            link.symlink_to(package.baseline)
            try:
                baseline = load_baseline(Path(folder), config)
            except WatchError as error:
                raise WatchError(str(error).replace(str(link), str(package.baseline))) from None
        if baseline.model != f"{package.name} {package.version}":
            raise WatchError(
                f"{package.baseline}: is of {baseline.model}, and not of {package.name} {package.version}; "
                "fit the site's policy on this one (`stepwedge policy fit`)"
            )
        return Detectors(
            start=lambda: Monitor.start(config, baseline),
            resume=lambda data: Monitor.from_bytes(config, baseline, data),
            row=observation_row,
            baseline_rows=baseline.studies,
            warnings=baseline.warnings,
            labels={
                finding: tuple(pair.label for pair in config.labels if pair.probability == f"probability.{finding}")
                for finding in package.findings
            },
            levels=known_levels(member.groups for member in baseline_members(package)),
        )

    return load
