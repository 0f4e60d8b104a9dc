"""Every metric of the service, by the name that Prometheus sees. No label ever holds an identifier.

All roles of one machine write into one folder (``PROMETHEUS_MULTIPROC_DIR``), which the HTTP port reads. Where a role
runs alone it shows its own. A gauge without labels would be there at once, at 0, in every role, also in those that know
nothing of it, so each has the label of the role that sets it.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

ASSOCIATIONS = Counter("stepwedge_associations", "Associations by outcome.", ["outcome"])
INSTANCES = Counter("stepwedge_instances", "C-STORE requests by the status that was answered.", ["status"])
INSTANCE_BYTES = Counter("stepwedge_instance_bytes", "Bytes of data sets that were stored.")
QUARANTINED = Counter("stepwedge_quarantined", "Instances that were refused as unusable, by reason.", ["reason"])
LABELS = Counter(
    "stepwedge_labels",
    "Findings that verified structured reports name: labels, new or known already, or why there is none.",
    ["outcome"],
)
STORE_SECONDS = Histogram(
    "stepwedge_store_seconds", "From the last byte of an instance to its acknowledgement.", buckets=_SECONDS
)
STUDIES_COMPLETED = Counter("stepwedge_studies_completed", "Study revisions that were closed, by routing.", ["routing"])
UNITS = Counter("stepwedge_units", "Units of work that ended, by state.", ["model", "state"])
REASONS = Counter("stepwedge_reasons", "Reasons of deferred, rejected and failed units.", ["model", "reason"])
STAGE_SECONDS = Histogram("stepwedge_stage_seconds", "Time by stage of the pipeline.", ["stage"], buckets=_SECONDS)
TURNAROUND_SECONDS = Histogram(
    "stepwedge_turnaround_seconds",
    "From the last instance of a study to the delivery of its result.",
    ["destination"],
    buckets=(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400),
)
# The buckets hold the targets of the service level objectives in monitoring/prometheus/rules/slo.yaml.
STUDY_END_SECONDS = Histogram(
    "stepwedge_study_end_seconds",
    "From the last instance of a complete study to the end of its work, by priority (urgent, routine, unknown).",
    ["priority", "state"],
    buckets=(10, 30, 60, 120, 300, 600, 900, 1800, 3600, 14400, 86400),
)
DELIVERIES = Counter("stepwedge_deliveries", "Attempts to deliver a result.", ["destination", "outcome"])
RELOADS = Counter("stepwedge_reloads", "Times that packages were to be loaded again, by outcome.", ["outcome"])
ROLE_RESTARTS = Counter("stepwedge_role_restarts", "Roles that ended by themselves and were started again.", ["role"])
CLOCK_OFFSET_SECONDS = Gauge(
    "stepwedge_clock_offset_seconds",
    "Seconds by which a node's clock is ahead of the database's; of one machine, by which it was set (below 0: back).",
    ["role"],
    multiprocess_mode="mostrecent",
)
WORK_HELD = Gauge(
    "stepwedge_work_held",
    "Whether the worker begins nothing, because the data folder's volume is full: 1 if so.",
    ["role"],
    multiprocess_mode="livemostrecent",
)
SPOOL_FREE_BYTES = Gauge(
    "stepwedge_spool_free_bytes", "Free bytes on the spool's volume.", ["role"], multiprocess_mode="mostrecent"
)
PAGE_REQUESTS_REFUSED = Counter(
    "stepwedge_page_requests_refused", "Requests to the operator's page that were refused, by why.", ["outcome"]
)
PAGE_ACTIONS = Counter(
    "stepwedge_page_actions",
    "What people did on the operator's page, by what it was and how it ended.",
    ["action", "outcome"],
)
