"""Where everything that is watched stands: what the page, the status and the metrics show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stepwedge.observation import ConstancyRun

from stepwatch.figures import Performance
from stepwatch.watch import View


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Everything that the page and the metrics show, as of one moment."""

    database: str = "not looked at yet"  # why it cannot be used; empty: it can
    models: tuple[View, ...] = ()
    constancy: tuple[ConstancyRun, ...] = ()  # oldest first
    requests: tuple[dict[str, Any], ...] = ()  # the last event of each, newest first
    pages: tuple[dict[str, Any], ...] = ()  # newest first
    past_alarms: tuple[dict[str, Any], ...] = ()  # cleared or adopted, newest first
    performance: Mapping[str, Performance] = field(default_factory=dict)  # by model
    labels: Mapping[str, int] = field(default_factory=dict)  # by how they came
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
