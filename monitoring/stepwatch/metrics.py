"""What the sidecar counts, by the name that Prometheus sees. No label ever holds an identifier, and each is bounded.

What can be read off the monitors' state when Prometheus asks is in ``exporter``.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from stepwatch.rows import REASONS

SHIFTS = ("prevalence", "acquisition", "population", "concept", "mixed", "stop", "unknown")
KINDS = ("drift", "event")
WEBHOOK_OUTCOMES = ("taken", "no_token", "wrong_token", "replayed", "malformed", "too_large", "failed")
# What becomes of messages to the other addresses. `refused`: understood, and there is nothing in it to be done.
HTTP_OUTCOMES = ("taken", "no_token", "wrong_token", "malformed", "too_large", "refused", "database_away", "failed")
LABELS_PATH, ACKNOWLEDGE_PATH = "/labels", "/acknowledge"
LABEL_SOURCES = ("csv", "http", "sr")
LABELS_NOT_KEPT = ("unknown_finding",)
LABELS_NOT_USED = ("study_unknown", "too_many")

ROWS_REFUSED = Counter("stepwatch_rows_refused", "Observations that could not be taken, by reason.", ["reason"])
CLOCK_JUMPS = Counter(
    "stepwatch_clock_jumps", "Observations dated ahead of this machine's clock, or back before others.", ["direction"]
)
UPDATE_SECONDS = Histogram(
    "stepwatch_update_seconds",
    "Time that all detectors of a model take for one study.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1),
)
ALARMS = Counter("stepwatch_alarms", "Alarms that were raised.", ["model", "shift", "kind"])
STATES_REFUSED = Counter(
    "stepwatch_states_refused", "Saved states that could not be taken up, so that detectors began anew.", ["model"]
)
DATABASE_UP = Gauge("stepwatch_database_up", "1 while the database answers, else 0.")
DATABASE_FAILURES = Counter("stepwatch_database_failures", "Looks at the database that failed.")
LOOK_FAILURES = Counter("stepwatch_look_failures", "Looks for new rows that ended by an error of ours; see the log.")
WEBHOOK_REQUESTS = Counter(
    "stepwatch_webhook_requests", "Messages to the webhook, by what became of them.", ["outcome"]
)
HTTP_REQUESTS = Counter(
    "stepwatch_http_requests", "Messages with labels, or of alarms seen, by what became of them.", ["path", "outcome"]
)
LABELS_REFUSED = Counter(
    "stepwatch_labels_refused", "Labels left out of messages that could be read, by reason.", ["reason"]
)
LABELS_DROPPED = Counter(
    "stepwatch_labels_dropped", "Labels that are not used any more, or cannot be, by reason.", ["reason"]
)
PAGE_FAILURES = Counter("stepwatch_page_failures", "Evidently pages that could not be drawn.")

# Rates of what has not happened yet are 0, not unknown.
for _reason in LABELS_NOT_KEPT:
    LABELS_REFUSED.labels(_reason)
for _reason in LABELS_NOT_USED:
    LABELS_DROPPED.labels(_reason)
for _reason in REASONS:
    ROWS_REFUSED.labels(_reason)
for _direction in ("ahead", "back"):
    CLOCK_JUMPS.labels(_direction)
for _outcome in WEBHOOK_OUTCOMES:
    WEBHOOK_REQUESTS.labels(_outcome)
for _path in (LABELS_PATH, ACKNOWLEDGE_PATH):
    for _outcome in HTTP_OUTCOMES:
        HTTP_REQUESTS.labels(_path, _outcome)


def start_model(model: str) -> None:
    """Begin a model's counters at 0."""
    STATES_REFUSED.labels(model)
    for shift in SHIFTS:
        for kind in KINDS:
            ALARMS.labels(model, shift, kind)
