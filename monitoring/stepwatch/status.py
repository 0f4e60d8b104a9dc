"""Where all stands, as JSON for another program's page: drift, alarms, requests, constancy, Evidently's pages.

Versioned: fields are added, and a field that goes or changes its meaning raises ``VERSION``. Like the page it holds
codes and figures, and never a study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepwatch.alarms import why_not_adopted
from stepwatch.exporter import is_active, strongest
from stepwatch.overview import Overview
from stepwatch.page import describe_alarm, stratum_text
from stepwatch.watch import View

VERSION = 1
_MOST_SIGNALS = 5
_MOST_PAGES = 10
_MOST_REQUESTS = 20


def brief(overview: Overview) -> dict[str, Any]:
    """The answer to ``GET /status.json``. Times are ISO 8601, or seconds since 1970 where a name ends in ``_at``."""
    return {
        "version": VERSION,
        "time": overview.at.isoformat(timespec="seconds"),
        "database": overview.database,  # why it cannot be used; empty: it can
        "models": [_model(view, overview) for view in overview.models],
        "requests": [_request(request) for request in overview.requests[:_MOST_REQUESTS]],
        "pages": [
            {"name": page["path"], "drawn_at": page["at"], "reason": page["reason"]}
            for page in overview.pages[:_MOST_PAGES]
        ],
    }


def _model(view: View, overview: Overview) -> dict[str, Any]:
    performance = (overview.performance or {}).get(view.model)
    runs = [run for run in overview.constancy if run.model_name == view.model]
    return {
        "model": view.model,
        "model_version": view.version,
        "digest": view.digest,
        "usable": view.usable,
        "problem": view.problem,
        "warnings": list(view.warnings),
        "studies": view.studies,
        "baseline_rows": view.baseline_rows,
        "limit": _finite(view.limit),
        "last_row": view.last_row.isoformat(timespec="seconds") if view.last_row else None,
        "alarms": [_alarm(alarm, view) for alarm in view.alarms],
        "strongest": [
            {"signal": each.signal, "where": stratum_text(each.stratum), "evidence": _finite(each.evidence)}
            for each in strongest(view.signals)[:_MOST_SIGNALS]
        ],
        "labels_contradict": sorted({finding for finding, _ in performance.parted()}) if performance else [],
        "constancy": ({"time": runs[-1].time, "verdict": runs[-1].verdict, "stage": runs[-1].stage} if runs else None),
    }


def _alarm(alarm: Mapping[str, Any], view: View) -> dict[str, Any]:
    words = describe_alarm(alarm, view)
    told = ("alarm", "kind", "signal", "direction", "where", "shift", "baseline", "present", "evidence", "limit")
    return {name: words[name] for name in told} | {
        "active": is_active(dict(alarm)),
        "raised": words["raised_time"],
        "changed": words["changed_time"],
        "cleared": words["cleared_time"],
        "acknowledged_by": words["acknowledged_by"] or "",
        "adopted": bool(words["adopted"]),
        "adoptable": not why_not_adopted(alarm),
        "mostly_from": words["attribution"],
    }


def _request(request: Mapping[str, Any]) -> dict[str, Any]:
    because = request.get("because") or {}
    return {
        "request": request["request"],
        "state": request["event"],
        "since_at": request["at"],
        "who": request["who"],
        "opened_at": request["opened_at"],
        "cause": str(because.get("cause", "")),
        "summary": str(because.get("summary", "")),
        "page": str(because.get("page", "")),
        "body": {
            name: value
            for name, value in (request.get("body") or {}).items()
            if name in ("because", "name", "version", "digest", "signer") and isinstance(value, str)
        },
    }


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None
