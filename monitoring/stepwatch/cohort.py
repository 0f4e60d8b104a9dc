"""The answered studies of a model and their labels, read from the database as they come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import structlog
import yaml
from stepwedge.observation import Label, Observation

from stepwatch import metrics
from stepwatch.audit import Auditing, auditing
from stepwatch.database import Cursor, Database
from stepwatch.errors import WatchError
from stepwatch.fairness import Fairness, Place
from stepwatch.feeding import read_label
from stepwatch.figures import Performance
from stepwatch.measures import Costs
from stepwatch.packages import WatchedPackage
from stepwatch.performance import Case, Terms, case_of, groups_of, in_window, performance
from stepwatch.settings import Settings
from stepwatch.subgroups import Member, subgroups, worst_gaps

log = structlog.get_logger()

_LOOK_BACK = 1000  # ids that may become visible after later ones
_FIRST_ROWS = 50_000  # latest rows that are looked at when it is begun
_BATCH = 1000
_KEEP = 20_000  # studies that wait for a label
_KEEP_LABELS = 60_000  # of them: three readings of each
_AGAIN_SECONDS = 60.0  # between two times that figures are worked out for people


class Cohort:
    """The cases and labels of one model package. For one thread."""

    def __init__(self, database: Database, package: WatchedPackage, audited: Auditing) -> None:
        """``audited`` marks the labels that are of the audit: see ``audit.auditing``."""
        self._database, self._package, self._audited = database, package, audited
        self._cases: dict[int, Case] = {}  # by row
        self._labels: dict[str, Label] = {}
        self._last_row = max(0, database.last_observation() - _FIRST_ROWS)
        self._first_label = self._last_label = max(0, database.last_label() - _KEEP_LABELS)
        self._drop(self._first_label)

    def refresh(self) -> None:
        """Read what is new. Raises DatabaseAwayError."""
        after = max(0, self._last_row - _LOOK_BACK)
        while rows := self._database.observations(after=after, limit=_BATCH):
            after = rows[-1][0]
            self._last_row = max(self._last_row, after)
            for number, row in rows:
                same = (row.model_name, row.model_digest) == (self._package.name, self._package.digest)
                if number not in self._cases and same and (case := case_of(row)) is not None:
                    self._cases[number] = case
        self._cases = dict(sorted(self._cases.items())[-_KEEP:])
        after = max(self._first_label, self._last_label - _LOOK_BACK)
        while bodies := self._database.new_labels(Cursor(position=after), _BATCH):
            after = bodies[-1][0]
            self._last_label = max(self._last_label, after)
            for _, body in bodies:
                label = read_label(body)
                if label and label.finding in self._package.findings and label.label not in self._labels:
                    self._labels[label.label] = self._audited(label)
        too_many = list(self._labels)[:-_KEEP_LABELS]
        for oldest in too_many:
            del self._labels[oldest]
        self._drop(len(too_many))

    def _drop(self, count: int) -> None:
        """Say that figures do not take the oldest labels any more. They stay in the database."""
        if count:
            metrics.LABELS_DROPPED.labels("too_many").inc(count)
            log.warning("labels_dropped", model=self._package.name, dropped=count, kept=_KEEP_LABELS)

    def cases(self, size: int = _KEEP) -> list[Case]:
        """The latest studies, one case each, in the order of their rows."""
        return in_window(self._cases.values(), size)

    def evidence(self) -> Mapping[Place, tuple[float, int]]:
        """What the running bets on subgroups have come to, as last saved. Raises DatabaseAwayError."""
        state = self._database.load_state(self._package.name, self._package.digest)
        return Fairness.from_row(state.rest.get("fairness", {})).evidence() if state is not None else {}

    def labels(self) -> list[Label]:
        """The latest labels, in the order in which they came."""
        return list(self._labels.values())


def follow(settings: Settings) -> Callable[[Database, WatchedPackage], Performance]:
    """What works out the performance of a package; at most once a minute, as it is for people."""
    cohorts: dict[str, Cohort] = {}
    audited = auditing(settings.performance.audit_readers, settings.performance.audit_share)
    known: dict[str, tuple[float, Performance]] = {}

    def look(database: Database, package: WatchedPackage) -> Performance:
        if package.digest in known and time.monotonic() < known[package.digest][0]:
            return known[package.digest][1]
        cohort = cohorts.get(package.digest)
        if cohort is None:
            cohort = cohorts[package.digest] = Cohort(database, package, audited)
        cohort.refresh()
        try:
            terms = terms_of(package, settings)
        except WatchError as error:
            # Everything but the cost can still be said.
            log.warning("policy_unusable", said=str(error))
            terms = {}
        found = current(cohort, package, settings, terms)
        known[package.digest] = (time.monotonic() + _AGAIN_SECONDS, found)
        return found

    return look


def current(cohort: Cohort, package: WatchedPackage, settings: Settings, terms: Mapping[str, Terms]) -> Performance:
    """The performance over the window of the settings."""
    cases, labels, least = cohort.cases(settings.performance.window), cohort.labels(), settings.performance.least
    found = performance(cases, labels, package.findings, terms, baseline=baseline_prevalence(package), least=least)
    groups = subgroups(
        cases,
        labels,
        package.findings,
        terms,
        least=least,
        members=baseline_members(package),
        evidence=cohort.evidence(),
    )
    return replace(found, groups=tuple(item.figure() for item in groups), worst_gaps=worst_gaps(groups))


def terms_of(package: WatchedPackage, settings: Settings) -> dict[str, Terms]:
    """What the policy that a package runs under says of each finding; empty without one."""
    policy = next((model.policy for model in settings.models if model.package.resolve() == package.folder), None)
    return {} if policy is None else read_terms(policy)


def read_terms(policy: Path) -> dict[str, Terms]:
    """The costs and the prevalence of each finding. The service checks the policy; here it is only read.

    Raises
    ------
    WatchError
        If it cannot be read.
    """
    try:
        read = yaml.safe_load(policy.read_text(encoding="utf-8"))
        fitted = ((read.get("fitted") or {}).get("deferrals")) or {}
        return {
            str(name): Terms(
                costs=Costs(
                    miss=float(item["miss"]),
                    false_alarm=float(item["false_alarm"]),
                    deferral=float(fitted.get(name, item)["deferral"]),
                ),
                prevalence=float(item["prevalence"]),
            )
            for name, item in read["findings"].items()
        }
    except OSError as error:
        raise WatchError(f"{policy}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise WatchError(f"{policy}: is no site policy: {type(error).__name__}") from None


def baseline_prevalence(package: WatchedPackage) -> dict[str, float]:
    """The mean calibrated probability of each finding in the baseline; empty where it cannot be read."""
    values = {
        name: [member.probabilities[name] for member in baseline_members(package) if name in member.probabilities]
        for name in package.findings
    }
    return {name: math.fsum(found) / len(found) for name, found in values.items() if found}


def baseline_members(package: WatchedPackage) -> tuple[Member, ...]:
    """The baseline's studies, as far as subgroups go; none where it cannot be read."""
    try:
        return _members(package.baseline, package.baseline.stat().st_mtime_ns)
    except (OSError, pa.ArrowException, ValueError, TypeError):
        return ()


@lru_cache(maxsize=8)
def _members(file: Path, _changed: int) -> tuple[Member, ...]:
    observations = [Observation.from_row(row) for row in pyarrow.parquet.read_table(file).to_pylist()]
    return tuple(Member(groups=groups_of(row), probabilities=dict(row.probabilities)) for row in observations)
