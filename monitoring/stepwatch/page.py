"""The status page: drift at a glance, as HTML that needs no program. It shows codes and figures, and never a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jinja2

from stepwatch.exporter import is_active, seconds, strongest
from stepwatch.figures import MEASURES, Figure, GroupFigure, Performance
from stepwatch.overview import Overview
from stepwatch.performance import CANNOT_SEE, LABELS_FOLLOW, NOT_BELIEVED
from stepwatch.plots import HEIGHT, WIDTH, Plot, draw
from stepwatch.watch import SignalRecord, View

_REFRESH_SECONDS = 30
_PROBABILITY = "probability."
_NOTABLE = 0.5  # of the limit (log10): above it a card shows its strongest signal
_MOST_LISTED = 300  # signals in the table of all
# How a signal's name tells what is watched of its column.
_ASPECTS = (" tail low", " tail high", " given others", " missing", " unseen")
_DIRECTIONS = {
    "up": "higher than usual",
    "down": "lower than usual",
    "absent": "no longer there",
    "unseen": "never seen in the baseline",
    "missing": "missing",
}
_SHIFTS = {
    "prevalence": "Prevalence: the finding is more or less common than it was.",
    "acquisition": "Acquisition: images are made in another way.",
    "population": "Population: other patients come.",
    "concept": "Concept: what images show no longer means the same.",
    "mixed": "Mixed: more than one kind of change at once.",
    "stop": "Stop: a source sends nothing.",
    "unknown": "Its kind cannot be told yet.",
}
_MEASURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "expected_cost": "Expected cost a study",
    "ece": "Calibration error (ECE)",
    "calibration": "Ill beyond what probabilities say",
    "prevalence_gap": "Mean probability beyond the baseline's",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One column of the observations: the plot of one signal of it."""

    title: str
    aspect: str
    stratum: str
    value: str
    usual: str
    evidence: str
    level: str  # calm, notable, alarm
    plot: Plot


def render(overview: Overview) -> str:
    """The page."""
    return _TEMPLATE.render(
        overview=overview,
        models=[_model(view, overview) for view in overview.models],
        requests=overview.requests,
        pages=overview.pages,
        refresh=_REFRESH_SECONDS,
        notes={"cannot_see": CANNOT_SEE, "not_believed": NOT_BELIEVED, "labels_follow": LABELS_FOLLOW},
        width=WIDTH,
        height=HEIGHT,
    )


def _model(view: View, overview: Overview) -> dict[str, Any]:
    active = [describe_alarm(alarm, view) for alarm in view.alarms if is_active(alarm)]
    over = [describe_alarm(alarm, view) for alarm in view.alarms if not is_active(alarm)]
    mine = [a for a in overview.past_alarms if a["model"] == view.model and a["digest"] == view.digest]
    past = [describe_alarm(a, view) for a in mine if a["alarm"] not in {x["alarm"] for x in view.alarms}]
    runs = [run for run in overview.constancy if run.model_name == view.model]
    performance = (overview.performance or {}).get(view.model)
    return {
        "view": view,
        "active": sorted(active, key=lambda a: (a["kind"] != "drift", a["raised_time"])),
        "over": over,
        "past": past,
        "families": _families(view),
        "signals": [_row(signal) for signal in strongest(view.signals)[:_MOST_LISTED]],
        "limit": f"{view.limit:.1f}",
        "every": f"{10**view.limit:,.0f}" if math.isfinite(view.limit) and view.limit < 12 else "",
        "constancy": runs,
        "last_run": runs[-1] if runs else None,
        "performance": _performance(performance) if performance else None,
        "parted": list(dict.fromkeys(finding for finding, _ in performance.parted())) if performance else [],
        "worse": _worse(performance) if performance else [],
        "gaps": sorted(performance.worst_gaps.items()) if performance else [],
        "groups": [_group(figure) for figure in performance.groups] if performance else [],
        "prevalences": _prevalences(performance) if performance else [],
    }


def describe_alarm(alarm: Mapping[str, Any], view: View) -> dict[str, Any]:
    """An alarm in words and figures for people."""
    signal = str(alarm["signal"])
    return {
        "alarm": alarm["alarm"],
        "kind": alarm["kind_of_alarm"],
        "signal": signal,
        "direction": _DIRECTIONS.get(str(alarm["direction"]), str(alarm["direction"])),
        "where": stratum_text(alarm.get("stratum")),
        "shift": _SHIFTS.get(str(alarm["shift"]), str(alarm["shift"])),
        "shift_name": alarm["shift"],
        "baseline": value_text(signal, float(alarm["baseline_value"])),
        "present": value_text(signal, float(alarm["present_value"])),
        "evidence": f"{float(alarm['evidence']):.1f}",
        "limit": f"{view.limit:.1f}",
        "raised_time": str(alarm["raised_time"]),
        "raised_count": alarm["raised_count"],
        "changed_time": str(alarm["changed_time"]),
        "cleared_time": alarm.get("cleared_time"),
        "acknowledged_by": alarm.get("acknowledged_by"),
        "adopted": alarm.get("adopted"),
        "attribution": sorted(
            ((stratum_text(name) or "all", float(share)) for name, share in alarm.get("attribution", {}).items()),
            key=lambda item: -item[1],
        )[:5],
    }


def _families(view: View) -> list[tuple[str, list[Card]]]:
    """A card for each column, by family; what is notable is shown by its strongest signal."""
    alarmed = {(str(a["signal"]), stratum_text(a.get("stratum"))) for a in view.alarms if is_active(a)}
    columns: dict[tuple[str, str], list[SignalRecord]] = {}
    for signal in view.signals:
        columns.setdefault((signal.family, column_of(signal.signal)), []).append(signal)
    families: dict[str, list[Card]] = {}
    for (family, _), signals in columns.items():
        families.setdefault(family, []).append(_card(signals, view, alarmed))
    return list(families.items())


def _card(signals: Sequence[SignalRecord], view: View, alarmed: set[tuple[str, str]]) -> Card:
    in_alarm = [s for s in signals if (s.signal, stratum_text(s.stratum)) in alarmed]
    best = max(signals, key=lambda s: s.evidence)
    if in_alarm:
        chosen, level = max(in_alarm, key=lambda s: s.evidence), "alarm"
    elif best.evidence >= _NOTABLE * view.limit:
        chosen, level = best, "notable"
    else:
        chosen, level = signals[0], "calm"
    column = column_of(chosen.signal)
    aspect = chosen.signal.removeprefix(column).strip().lstrip("=")
    finding = column.startswith(_PROBABILITY)
    points = view.points.get((chosen.signal, chosen.stratum), ())
    value = value_text(chosen.signal, chosen.present_value)
    if is_prevalence(chosen.signal):
        # The bets tell whether it has changed, and hardly to what: that is in the table of prevalences.
        points = tuple(replace(point, value=math.nan) for point in points)
        value = f"was {value_text(chosen.signal, chosen.baseline_value)}"
    return Card(
        title=column.removeprefix(_PROBABILITY).replace("_", " ") if finding else column,
        aspect=aspect or ("prevalence" if finding else ""),
        stratum=stratum_text(chosen.stratum),
        value=value,
        usual=f"{value_text(chosen.signal, chosen.low)} … {value_text(chosen.signal, chosen.high)}",
        evidence=f"{max(chosen.evidence, 0.0):.1f}",
        level=level,
        plot=draw(
            points,
            low=chosen.low,
            high=chosen.high,
            baseline=chosen.baseline_value,
            limit=view.limit,
        ),
    )


def _row(signal: SignalRecord) -> dict[str, str]:
    return {
        "signal": signal.signal,
        "where": stratum_text(signal.stratum),
        "value": "–" if is_prevalence(signal.signal) else value_text(signal.signal, signal.present_value),
        "baseline": value_text(signal.signal, signal.baseline_value),
        "band": f"{value_text(signal.signal, signal.low)} … {value_text(signal.signal, signal.high)}",
        "evidence": f"{signal.evidence:.1f}",
    }


def column_of(signal: str) -> str:
    """The column that a signal is of, by its name."""
    for aspect in _ASPECTS:
        signal = signal.removesuffix(aspect)
    return signal.partition("=")[0].partition(" ≤ ")[0].partition(" distance ")[0]


def is_prevalence(signal: str) -> bool:
    """Whether a signal bets on the prevalence of a finding."""
    return signal.startswith(_PROBABILITY) and signal == column_of(signal)


def value_text(signal: str, value: float) -> str:
    """A signal's value for people: a share in per cent, or standard deviations from the baseline."""
    if not math.isfinite(value):
        return "–"
    if signal == column_of(signal) and not signal.startswith(_PROBABILITY):
        return f"{value:+.2f} SD".replace("-", "−")
    if signal.endswith(" given others"):
        return f"{value:+.2f} SD".replace("-", "−")
    return f"{100 * value:.1f} %"


def stratum_text(stratum: object) -> str:
    """Where a signal is of: a scanner, working or off days; empty for everywhere."""
    if isinstance(stratum, Mapping):
        return ", ".join(f"{key}: {value}" for key, value in sorted(stratum.items()))
    parts = [part for part in str(stratum or "").split("|") if part]
    days = {"working": "working days", "off": "days off"}
    return ", ".join(days.get(part, part) for part in parts)


def _performance(performance: Performance) -> list[dict[str, Any]]:
    """For each finding a row for each measure: measured beside estimated."""
    findings: dict[str, dict[tuple[str, str], Figure]] = {}
    apart = set(performance.parted())
    for figure in performance.figures:
        findings.setdefault(figure.finding, {})[figure.measure, figure.how] = figure
    return [
        {
            "finding": finding,
            "labelled": performance.labelled.get(finding, 0),
            "only_labelled": finding in performance.only_labelled,
            "parted": any(of == finding for of, _ in apart),
            "rows": [
                (
                    _MEASURES[measure],
                    _figure(figures.get((measure, "measured"))),
                    _figure(figures.get((measure, "estimated"))),
                    (finding, measure) in apart,
                )
                for measure in MEASURES
                if (measure, "measured") in figures or (measure, "estimated") in figures
            ],
        }
        for finding, figures in findings.items()
    ]


def _figure(figure: Figure | None) -> str:
    if figure is None or not math.isfinite(figure.value):
        return "–"
    return f"{figure.value:.3f} ({figure.low:.3f} … {figure.high:.3f})"


def _worse(performance: Performance) -> list[str]:
    places = [(g.finding, g.group, g.level) for g in performance.groups if g.verdict == "worse"]
    return [f"{finding} where {group} is {level}" for finding, group, level in dict.fromkeys(places)]


def _group(figure: GroupFigure) -> dict[str, str]:
    value, low, high = figure.value, figure.low, figure.high
    interval = f" ({low:.3f} … {high:.3f})" if math.isfinite(low) and math.isfinite(high) else ""
    return {
        "finding": figure.finding,
        "group": figure.group,
        "level": figure.level,
        "measure": _MEASURES.get(figure.measure, figure.measure.replace("_", " ")),
        "studies": f"{figure.studies:,}",
        "value": f"{value:.3f}{interval}".replace("-", "−") if math.isfinite(value) else "–",
        "verdict": figure.verdict.replace("_", " "),
    }


def _prevalences(performance: Performance) -> list[tuple[str, dict[str, str]]]:
    found: dict[str, dict[str, str]] = {}
    for item in performance.prevalences:
        found.setdefault(item.finding, {})[item.how] = f"{100 * item.value:.1f} %"
    return list(found.items())


def _moment(value: object) -> str:
    """A time for people, in UTC."""
    if isinstance(value, datetime):
        when = value
    else:
        at = seconds(value) if isinstance(value, str) else float(str(value))
        if at is None:
            return str(value)
        when = datetime.fromtimestamp(at, UTC)
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _plural(items: Iterable[object] | int, one: str, many: str) -> str:
    count = items if isinstance(items, int) else len(list(items))
    return f"{count:,} {one if count == 1 else many}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stepwatch"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"moment": _moment, "plural": _plural}
    return environment


_TEMPLATE = _environment().get_template("status.html")
