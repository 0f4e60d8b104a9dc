"""The overview: what runs, how long work waits, what is in use, what drifts, and what of it a person should look at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwedge import __version__, rundir
from stepwedge.observation import ConstancyRun
from stepwedge.page import queries
from stepwedge.page.desk import Desk
from stepwedge.page.neighbours import Said
from stepwedge.page.queries import Counted
from stepwedge.page.said import Brief
from stepwedge.page.words import PROVIDERS, duration

LATELY_SECONDS = 24 * 3600.0
# A unit that waits this long is a matter for somebody: attempts end after ten minutes by default.
_SLOW_SECONDS, _STUCK_SECONDS = 120.0, 600.0
_GONE_SECONDS = 24 * 3600.0
_ROLE_NAMES = {"listen": "DICOM node", "work": "Worker"}
_MORE_OF_RESERVE = 5  # a disk with less than this many times the reserve is soon full


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleView:
    """A role of the service, and whether it is well."""

    name: str
    level: str  # good, warn, bad
    word: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelView:
    """A model in use. ``provider`` is empty where nobody could be asked."""

    name: str
    version: str
    digest: str
    signer: str
    policy: str
    policy_digest: str
    approved_by: str
    demonstration: bool
    demonstration_because: str
    provider: str
    note: str
    constancy: ConstancyRun | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Concern:
    """Something that a person should know of, the worst first."""

    level: str  # bad, warn, quiet
    text: str
    link: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """All at a glance."""

    version: str
    at: float
    roles: tuple[RoleView, ...]
    counted: Counted
    queue_age: float | None  # seconds
    free_bytes: int | None  # None: the data folder cannot be read
    models: tuple[ModelView, ...]
    monitor: Said[Brief]
    concerns: tuple[Concern, ...]

    @property
    def level(self) -> str:
        """The worst of all that there is to know."""
        return next((level for level in ("bad", "warn") if any(each.level == level for each in self.concerns)), "good")

    @property
    def waiting(self) -> int:
        """Units that have not ended."""
        return self.counted.units.get("queued", 0) + self.counted.units.get("running", 0)


def overview(desk: Desk) -> Overview:
    """All at a glance. Raises SQLAlchemyError where the database does not answer."""
    now = time.time()
    counted = queries.count(desk.store, since=now - LATELY_SECONDS)
    oldest = desk.store.oldest_waiting()
    age = None if oldest is None else max(0.0, now - oldest)
    monitor = monitor_says(desk)
    models = model_views(desk)
    roles = _roles(desk, monitor)
    free = _free(desk)
    concerns = [
        *_of_roles(roles),
        *_of_work(desk, counted, age),
        *_of_room(desk, free),
        *_of_models(models),
        *(_of_monitor(monitor) if desk.settings.watch.enabled else ()),
    ]
    rank = {"bad": 0, "warn": 1, "quiet": 2}
    return Overview(
        version=__version__,
        at=now,
        roles=roles,
        counted=counted,
        queue_age=age,
        free_bytes=free,
        models=models,
        monitor=monitor,
        concerns=tuple(sorted(concerns, key=lambda each: rank[each.level])),
    )


def monitor_says(desk: Desk) -> Said[Brief]:
    """The monitor's answer, or why there is none."""
    if not desk.settings.watch.enabled:
        return Said(problem="the monitor is not started here (watch.enabled)")
    return desk.neighbours.monitor.read()


def model_views(desk: Desk) -> tuple[ModelView, ...]:
    """The models in use, as the DICOM node says that loaded them, by itself or under ``serve``."""
    told = rundir.told(desk.settings.data_dir, "listen").get("models") or []
    serving = desk.neighbours.inference.read()
    providers = {str(each.get("digest")): each for each in serving.value or []}
    runs = queries.last_runs(desk.store, [str(each.get("model")) for each in told])
    return tuple(_model(each, providers.get(str(each.get("digest")), {}), runs) for each in told)


def _model(said: Mapping[str, Any], served: Mapping[str, Any], runs: Mapping[str, ConstancyRun]) -> ModelView:
    provider = str(served.get("provider", ""))
    return ModelView(
        name=str(said.get("model", "")),
        version=str(said.get("version", "")),
        digest=str(said.get("digest", "")),
        signer=str(said.get("signer", "")),
        policy=str(said.get("policy", "")),
        policy_digest=str(said.get("policy_digest", "")),
        approved_by=str(said.get("approved_by", "")),
        demonstration=bool(said.get("demonstration", True)),
        demonstration_because=str(said.get("demonstration_because", "")),
        provider=PROVIDERS.get(provider, provider),
        note=str(served.get("note", "")),
        constancy=runs.get(str(said.get("model"))),
    )


def _roles(desk: Desk, monitor: Said[Brief]) -> tuple[RoleView, ...]:
    beats = {beat.role: beat for beat in rundir.beats(desk.settings.data_dir)}
    # What a worker that died long ago left behind is no worker of today.
    workers = sorted(
        role for role in beats if role.startswith("work.") and beats[role].at > time.time() - _GONE_SECONDS
    )
    found = []
    for role in ("listen", *(workers or ["work"])):
        name = _ROLE_NAMES[role.partition(".")[0]]
        beat = beats.get(role)
        label = f"{name} {role.partition('.')[2]}".strip()
        if beat is None:
            found.append(RoleView(name=label, level="bad", word="Not ready", detail="it has not said that it is ready"))
        elif not beat.fresh:
            detail = f"last heard {duration(time.time() - beat.at)} ago"
            found.append(RoleView(name=label, level="bad", word="Silent", detail=detail))
        else:
            detail = f"version {beat.version} on {beat.host}" if beat.version else ""
            found.append(RoleView(name=label, level="good", word="Ready", detail=detail))
    serving = desk.neighbours.inference.read()
    ready = bool(serving.value)
    providers = {PROVIDERS.get(str(each.get("provider")), str(each.get("provider"))) for each in serving.value or []}
    found.append(
        RoleView(
            name="Inference",
            level="good" if ready else "bad",
            word="Ready" if ready else "Not ready",
            detail=", ".join(sorted(providers)) if ready else serving.problem or "no model is loaded",
        )
    )
    if desk.settings.watch.enabled:
        answers = not monitor.problem
        found.append(
            RoleView(
                name="Monitor",
                level="good" if answers else "warn",
                word="Ready" if answers else "Silent",
                detail="" if answers else monitor.problem,
            )
        )
    return tuple(found)


def _of_roles(roles: Sequence[RoleView]) -> list[Concern]:
    return [
        Concern(level=role.level, text=f"{role.name}: {role.word.lower()}; {role.detail}", link="/#roles")
        for role in roles
        if role.level == "bad"
    ]


def _of_work(desk: Desk, counted: Counted, age: float | None) -> list[Concern]:
    found = []
    failed, kept = counted.units.get("failed", 0), counted.quarantined
    if failed:
        text = f"{failed} failed: once the cause is mended, try again" if failed > 1 else "1 failed: see why, try again"
        found.append(Concern(level="bad", text=text, link="/studies?state=failed"))
    if age is not None and age > _SLOW_SECONDS:
        level = "bad" if age > _STUCK_SECONDS else "warn"
        found.append(
            Concern(level=level, text=f"The oldest work has waited {duration(age)}", link="/studies?state=queued")
        )
    away = queries.not_taking(desk.store)
    if away:
        late = counted.deliveries.get("pending", 0)
        text = f"{late} {'results wait' if late != 1 else 'result waits'} for {', '.join(away)}: not taken there so far"
        found.append(Concern(level="warn", text=text, link="/studies?state=pending"))
    if kept:
        text = f"{kept} refused {'objects' if kept > 1 else 'object'} in quarantine"
        found.append(Concern(level="warn", text=text, link="/quarantine"))
    return found


def _free(desk: Desk) -> int | None:
    try:
        return shutil.disk_usage(desk.settings.data_dir).free
    except OSError:
        return None


def _of_room(desk: Desk, free: int | None) -> list[Concern]:
    reserve = desk.settings.spool.reserve_bytes
    if free is None:
        return [Concern(level="bad", text="The data folder cannot be read: is its volume there?", link="/#room")]
    if free < reserve:
        return [Concern(level="bad", text="The disk is full: images are refused until there is room", link="/#room")]
    if free < _MORE_OF_RESERVE * reserve:
        return [Concern(level="warn", text="The disk is nearly full: soon images will be refused", link="/#room")]
    return []


def _of_models(models: Sequence[ModelView]) -> list[Concern]:
    found = []
    for model in models:
        run = model.constancy
        if run is not None and run.verdict == "moved":
            text = f"{model.name} answers otherwise than on the day of acceptance, first in {run.stage or 'one stage'}"
            found.append(Concern(level="bad", text=text, link="/model"))
        elif run is not None and run.verdict == "incomplete":
            text = f"The last constancy run of {model.name} is incomplete"
            found.append(Concern(level="warn", text=text, link="/model"))
    return found


def _of_monitor(monitor: Said[Brief]) -> list[Concern]:
    if monitor.problem:
        text = f"{monitor.problem[:1].upper()}{monitor.problem[1:]}: drift is not shown"
        return [Concern(level="warn", text=text, link="/drift")]
    found: list[Concern] = []
    said = monitor.value
    if said is None:
        return found
    if said.database:
        found.append(Concern(level="warn", text="The monitor does not reach the database", link="/drift"))
    for model in said.models:
        if not model.usable:
            found.append(Concern(level="warn", text=f"{model.model} is not watched", link="/drift"))
        drifts = (f"Drift: {alarm.signal} is {alarm.direction}" for alarm in model.active)
        found += [Concern(level="warn", text=text, link="/drift") for text in drifts]
    waiting = len(said.open_requests)
    if waiting:
        text = f"{waiting} retraining {'requests are' if waiting > 1 else 'request is'} open"
        found.append(Concern(level="quiet", text=text, link="/drift#requests"))
    return found
