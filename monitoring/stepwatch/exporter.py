"""Metrics that are read off the overview when Prometheus asks. Every label is bounded by configuration and baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from stepwatch.metrics import LABEL_SOURCES
from stepwatch.requests import FOLLOWS

if TYPE_CHECKING:
    from stepwatch.overview import Overview
    from stepwatch.watch import SignalRecord, View

VERDICTS = ("constant", "moved", "incomplete")
# Of a subgroup, the worst first. `worse` is what the rule StepwatchSubgroupGap asks for.
VERDICTS_OF_GROUPS = ("worse", "miscalibrated", "as_others", "as_said", "too_few", "not_judged")
_MOST_GROUPS = 1000  # figures of subgroups of one model that are exported
_MOST_SIGNALS = 400  # of one model that are exported: those with the strongest evidence, by name


class OverviewCollector:
    """Gives Prometheus the overview."""

    def __init__(self, overview: Callable[[], Overview]) -> None:
        self._overview = overview

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering asks for no values."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        overview = self._overview()
        yield from _models(overview.models)
        yield from _signals([view for view in overview.models if view.usable])
        yield from _alarms(overview.models)
        yield from _constancy(overview)
        yield from _requests(overview)
        yield from _labels(overview)
        yield from _performance(overview)


def _models(models: Sequence[View]) -> Iterator[Metric]:
    counted = CounterMetricFamily(
        "stepwatch_observations", "Studies that the detectors have taken, as last saved.", labels=["model"]
    )
    rows = GaugeMetricFamily("stepwatch_baseline_rows", "Studies in the baseline.", labels=["model"])
    usable = GaugeMetricFamily(
        "stepwatch_baseline_usable", "1 where the baseline can be used, else 0.", labels=["model"]
    )
    limit = GaugeMetricFamily(
        "stepwatch_signal_limit", "Evidence (log10) at which an alarm is raised.", labels=["model"]
    )
    for view in models:
        usable.add_metric([view.model], float(view.usable))
        if view.usable:
            counted.add_metric([view.model], view.saved_studies)
            rows.add_metric([view.model], view.baseline_rows)
            limit.add_metric([view.model], view.limit)
    yield from (counted, rows, usable, limit)
    yield GaugeMetricFamily(
        "stepwatch_lag_rows",
        "Observations that wait to be taken by the model that is furthest behind.",
        value=max((view.lag for view in models), default=0),
    )
    # Seen by no model yet: no sample, rather than 1970.
    taken = [view.last_row.timestamp() for view in models if view.last_row is not None]
    yield _gauge("stepwatch_last_row_timestamp_seconds", "Date of the last observation that was taken.", taken)
    saved = [view.saved_at for view in models if view.saved_at]
    yield _gauge("stepwatch_state_saved_timestamp_seconds", "When the detectors' state was last saved.", saved)


def _signals(models: Sequence[View]) -> Iterator[Metric]:
    families = {
        "evidence": "Evidence (log10) that a signal has changed; of its strata the strongest.",
        "value": "Present value of a signal: a share, a mean of normal scores, or a prevalence.",
        "baseline": "Value of a signal in the baseline.",
        "low": "Lower end of the ordinary band of a signal.",
        "high": "Upper end of the ordinary band of a signal.",
    }
    gauges = {
        name: GaugeMetricFamily(f"stepwatch_signal_{name}", text, labels=["model", "signal"])
        for name, text in families.items()
    }
    for view in models:
        for signal in strongest(view.signals)[:_MOST_SIGNALS]:
            values = {
                "evidence": signal.evidence,
                "value": signal.present_value,
                "baseline": signal.baseline_value,
                "low": signal.low,
                "high": signal.high,
            }
            for name, value in values.items():
                if not math.isnan(value):
                    gauges[name].add_metric([view.model, signal.signal], value)
    yield from gauges.values()


def strongest(signals: Iterable[SignalRecord]) -> list[SignalRecord]:
    """Of each signal the stratum with the strongest evidence; strongest first."""
    found: dict[str, SignalRecord] = {}
    for signal in signals:
        known = found.get(signal.signal)
        if known is None or signal.evidence > known.evidence:
            found[signal.signal] = signal
    return sorted(found.values(), key=lambda signal: (-signal.evidence, signal.signal))


def is_active(alarm: dict[str, Any]) -> bool:
    """Whether an alarm's signal is still away from its band, and has not been made the new normal."""
    return alarm.get("cleared_row") is None and not alarm.get("adopted")


def _alarms(models: Sequence[View]) -> Iterator[Metric]:
    active = GaugeMetricFamily(
        "stepwatch_alarm_active", "1 while an alarm is active.", labels=["model", "signal", "shift", "kind"]
    )
    unseen = GaugeMetricFamily(
        "stepwatch_alarms_unacknowledged", "Alarms that nobody has acknowledged.", labels=["model"]
    )
    for view in models:
        if not view.usable:
            continue
        labels = {
            (view.model, str(a["signal"]), str(a["shift"]), str(a["kind_of_alarm"]))
            for a in view.alarms
            if is_active(a)
        }
        for found in sorted(labels):
            active.add_metric(found, 1)
        unseen.add_metric([view.model], sum(not alarm.get("acknowledged_by") for alarm in view.alarms))
    yield from (active, unseen)


def _constancy(overview: Overview) -> Iterator[Metric]:
    verdict = GaugeMetricFamily(
        "stepwatch_constancy_verdict",
        "1 for the verdict of the last constancy run, else 0.",
        labels=["model", "verdict"],
    )
    difference = GaugeMetricFamily(
        "stepwatch_constancy_difference",
        "Largest difference of the last constancy run by stage, in units of its tolerance.",
        labels=["model", "stage"],
    )
    when = GaugeMetricFamily(
        "stepwatch_constancy_last_timestamp_seconds", "When the last constancy run ended.", labels=["model"]
    )
    awaited = GaugeMetricFamily(
        "stepwatch_constancy_awaited_timestamp_seconds",
        "Last constancy run of a model with a reference set, or its first study where it had none.",
        labels=["model"],
    )
    watched = {view.model for view in overview.models}
    last = {run.model_name: run for run in overview.constancy if run.model_name in watched}
    for model, run in sorted(last.items()):
        for name in VERDICTS:
            verdict.add_metric([model, name], float(run.verdict == name))
        for stage, value in sorted(run.differences.items()):
            difference.add_metric([model, stage], value)
        ended = seconds(run.time)
        if ended is not None:
            when.add_metric([model], ended)
    for view in overview.models:
        if not view.has_reference:
            continue
        since = view.first_row.timestamp() if view.first_row else None
        if view.model in last:
            since = seconds(last[view.model].time)
        if since is not None:
            awaited.add_metric([view.model], since)
    yield from (verdict, difference, when, awaited)


def _requests(overview: Overview) -> Iterator[Metric]:
    states = [str(request["event"]) for request in overview.requests]
    requests = GaugeMetricFamily("stepwatch_requests", "Retraining requests by state.", labels=["state"])
    for state in FOLLOWS:
        requests.add_metric([state], states.count(state))
    yield requests
    drawn = [float(page["at"]) for page in overview.pages]
    yield _gauge("stepwatch_page_timestamp_seconds", "When the last Evidently page was drawn.", drawn)


def _labels(overview: Overview) -> Iterator[Metric]:
    counted = CounterMetricFamily("stepwatch_labels", "Labels in the database, by how they came.", labels=["source"])
    for source in (*LABEL_SOURCES, "other"):
        counted.add_metric([source], overview.labels.get(source, 0))
    yield counted
    fed = CounterMetricFamily(
        "stepwatch_labels_bet_on",
        "Readings of the audit that the concept bets have taken, as last saved.",
        labels=["model"],
    )
    waiting = GaugeMetricFamily(
        "stepwatch_labels_waiting", "Readings of the audit of studies that have not been seen.", labels=["model"]
    )
    for view in overview.models:
        if view.usable:
            fed.add_metric([view.model], view.saved_labels)
            waiting.add_metric([view.model], view.waiting_labels)
    yield from (fed, waiting)


def _performance(overview: Overview) -> Iterator[Metric]:
    labels = ["model", "finding", "measure", "how"]
    value = GaugeMetricFamily("stepwatch_performance", "A measure of how well a model does.", labels=labels)
    low = GaugeMetricFamily("stepwatch_performance_low", "Lower end of the interval of a measure.", labels=labels)
    high = GaugeMetricFamily("stepwatch_performance_high", "Upper end of the interval of a measure.", labels=labels)
    labelled = GaugeMetricFamily(
        "stepwatch_labelled_studies", "Studies with a label in the window.", labels=["model", "finding"]
    )
    prevalence = GaugeMetricFamily(
        "stepwatch_prevalence", "How common a finding is.", labels=["model", "finding", "how"]
    )
    places = ["model", "finding", "group", "level"]
    group = GaugeMetricFamily("stepwatch_subgroup_value", "A measure in a subgroup.", labels=[*places, "measure"])
    verdict = GaugeMetricFamily(
        "stepwatch_subgroup_verdict", "1 for what may be said of a subgroup.", labels=[*places, "verdict"]
    )
    gap = GaugeMetricFamily(
        "stepwatch_subgroup_worst_gap",
        "Largest gap of a measure between subgroups.",
        labels=["model", "finding", "measure"],
    )
    parted = GaugeMetricFamily(
        "stepwatch_estimate_parted",
        "1 where the measured and the estimated figure's intervals part, so that the estimate is not to be believed.",
        labels=["model", "finding", "measure"],
    )
    only = GaugeMetricFamily(
        "stepwatch_performance_labelled_only",
        "1 where measured figures hold for labelled studies only: too few readings of the audit.",
        labels=["model", "finding"],
    )
    for model, known in sorted(overview.performance.items()):
        apart = set(known.parted())
        for figure in known.figures:
            if figure.how == "measured":
                parted.add_metric(
                    [model, figure.finding, figure.measure], float((figure.finding, figure.measure) in apart)
                )
            place = [model, figure.finding, figure.measure, figure.how]
            for family, number in ((value, figure.value), (low, figure.low), (high, figure.high)):
                if math.isfinite(number):
                    family.add_metric(place, number)
        for finding, count in known.labelled.items():
            labelled.add_metric([model, finding], count)
            only.add_metric([model, finding], float(finding in known.only_labelled))
        for item in known.prevalences:
            prevalence.add_metric([model, item.finding, item.how], item.value)
        judged = sorted(known.groups, key=lambda found: VERDICTS_OF_GROUPS.index(found.verdict))
        verdicts: dict[tuple[str, str, str], str] = {}
        for found in judged:
            # The worst that may be said of any measure: an alert must not be lost among others.
            verdicts.setdefault((found.finding, found.group, found.level), found.verdict)
        for found in judged[:_MOST_GROUPS]:
            if math.isfinite(found.value):
                group.add_metric([model, found.finding, found.group, found.level, found.measure], found.value)
        for (finding, of, level), said in sorted(verdicts.items()):
            verdict.add_metric([model, finding, of, level, said], 1)
        for (finding, measure), number in known.worst_gaps.items():
            gap.add_metric([model, finding, measure], number)
    yield from (value, low, high, parted, labelled, only, prevalence, group, verdict, gap)


def _gauge(name: str, text: str, values: Sequence[float]) -> Metric:
    return GaugeMetricFamily(name, text, value=max(values)) if values else GaugeMetricFamily(name, text)


def seconds(time: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time; None for what is none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return None
