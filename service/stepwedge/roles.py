"""What each role is made of. A role runs in a process of its own until it is asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Route

from stepwedge import clock, rundir, tracing, workflow
from stepwedge.analysis import remove_unfinished
from stepwedge.database import open_store, own_executor
from stepwedge.dicom import asked
from stepwedge.dicom.context import is_own_result
from stepwedge.dicom.deliver import DicomSink
from stepwedge.dicom.listener import Listener
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.dicom.studies import StudyCloser
from stepwedge.errors import SettingsError, StepwedgeError
from stepwedge.identity import load_site
from stepwedge.inference.client import InferenceClient, ready
from stepwedge.manifest import Package, load_package
from stepwedge.page.app import HttpServer, build_app
from stepwedge.page.desk import STATEMENT_SECONDS, open_desk
from stepwedge.page.gathered import Gathered
from stepwedge.page.routes import page_routes
from stepwedge.pipeline import equip
from stepwedge.policy import Policy, load_policy
from stepwedge.records import State
from stepwedge.rundir import Heartbeat, is_beating
from stepwedge.settings import Settings
from stepwedge.signing import load_trust
from stepwedge.steps import Bench
from stepwedge.store import Store

log = structlog.get_logger()

_LOOK_SECONDS = 0.2  # between two looks whether packages are to be loaded again
_RECONCILE_SECONDS = 15.0  # between two looks for work that is in no queue
_DELETE_SECONDS = 3600.0  # between two deletions of old workflow records


def load_models(settings: Settings) -> list[tuple[Package, Policy]]:
    """Every configured package with its policy, verified. Raises SettingsError, PackageError or PolicyError."""
    trust = load_trust(settings.trust.keys)
    models = []
    for model in settings.models:
        package = load_package(model.package, trust)
        policy = load_policy(model.policy, package, trust)
        models.append((package, policy))
        log.info(
            "model_loaded",
            model=package.manifest.name,
            version=package.manifest.version,
            digest=package.digest,
            signer=package.signer,
            policy=policy.file.name,
            policy_digest=policy.digest,
            demonstration_because=policy.demonstration_because,
        )
    if not models:
        raise SettingsError("models is empty: there is nothing to run; name a package and a policy in the settings")
    return models


def described(models: Sequence[tuple[Package, Policy]]) -> list[dict[str, Any]]:
    """Models and policies as a person, or another program, is told of them."""
    return [
        {
            "model": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "signer": package.signer or "",
            "policy": policy.file.name,
            "policy_digest": policy.digest,
            "demonstration": policy.reference.demonstration,
            "demonstration_because": policy.demonstration_because,
            "approved_by": policy.approval.by if policy.approval else "",
        }
        for package, policy in models
    ]


def listen(settings: Settings) -> int:
    """The DICOM node: receives, keeps, and queues complete studies. Returns when asked to stop."""
    stop = _until_asked_to_stop()
    again = _asked_to_load_again()
    models = load_models(settings)
    packages = [package for package, _ in models]
    workflow.prepare_queue(settings)
    with ExitStack() as undo:
        tracing.start(settings.tracing, "listen")
        undo.callback(tracing.stop)
        store = open_store(settings)
        undo.callback(store.close)
        clock.check(store)
        queue = workflow.QueueClient(settings)
        undo.callback(queue.close)
        manifests = [package.manifest for package in packages]
        site = load_site(settings.data_dir, settings.site_key_file)
        spool = InstanceSpool(settings, site, store, manifests, is_own_result)
        spool.prepare()
        listener = Listener(settings.node, spool, own_callers=[site.own_caller])
        closer = StudyCloser(
            settings=settings.completeness,
            spool=spool,
            store=store,
            models=packages,
            is_sending=listener.is_sending,
            enqueue=queue.enqueue,
        )
        closing = threading.Thread(target=closer.run, args=(stop,), name="studies", daemon=True)
        asking = threading.Thread(target=asked.serve, args=(spool, store, stop), name="asked", daemon=True)
        for thread in (closing, asking):
            thread.start()
            undo.callback(thread.join)
        undo.callback(stop.set)
        listener.start()
        undo.callback(listener.stop, settings.worker.drain_seconds)
        _be_ready(settings, store, "listen", undo, {})
        log.info("listening", ae_title=settings.node.ae_title, host=settings.node.host, port=settings.node.port)
        _say_models(settings, models)
        while not stop.wait(_LOOK_SECONDS):
            if again.is_set():
                again.clear()
                _load_again(settings, spool, closer)
        log.info("stopping")
    return 0


def _load_again(settings: Settings, spool: InstanceSpool, closer: StudyCloser) -> None:
    """Select by the packages that the settings name now, without a pause in receiving."""
    try:
        models = load_models(settings)
    except StepwedgeError as error:
        log.error("models_not_loaded_again", error=str(error))
        return
    packages = [package for package, _ in models]
    spool.use([package.manifest for package in packages])
    closer.use(packages)
    _say_models(settings, models)


def _say_models(settings: Settings, models: Sequence[tuple[Package, Policy]]) -> None:
    digests = sorted(package.digest for package, _ in models)
    rundir.tell(settings.data_dir, "listen", {"digests": digests, "models": described(models)})


def work(settings: Settings) -> int:
    """The worker: analyses, observes, delivers. Returns when asked to stop."""
    stop = _until_asked_to_stop()
    models = load_models(settings)
    workflow.prepare_queue(settings)
    inference = settings.inference
    with ExitStack() as undo:
        undo.enter_context(own_executor(settings))
        tracing.start(settings.tracing, "work", settings.worker.executor_id)
        undo.callback(tracing.stop)
        store = open_store(settings)
        undo.callback(store.close)
        clock.check(store)
        equipment = {}
        for package, policy in models:
            client = InferenceClient(inference.base_url, package.reference, inference.timeout_seconds)
            undo.callback(client.close)
            equipment[package.digest] = equip(package, client, policy)
        sinks = {to.name: DicomSink(to, calling_ae=settings.node.ae_title) for to in settings.destinations}
        bench = Bench(
            settings=settings,
            site=load_site(settings.data_dir, settings.site_key_file),
            store=store,
            equipment=equipment,
            sinks=sinks,
        )
        remove_unfinished(settings)
        # Other workers know by this whether what we have started will go on.
        executor = Heartbeat(settings.data_dir, f"work.{settings.worker.executor_id}", **workflow.about(settings))
        executor.start()
        undo.callback(executor.stop)
        queue = workflow.WorkQueue(bench)
        undo.callback(queue.stop)
        checks = {"inference": lambda: ready(inference.base_url)}
        _be_ready(settings, store, "work", undo, checks)
        log.info("working", executor=settings.worker.executor_id, models=len(models), destinations=len(sinks))
        _look_after(queue, stop)
        log.info("stopping")
    return 0


def page(settings: Settings) -> int:
    """The operator's page with health and metrics, without any other role in the process. Returns when asked to stop.

    It needs the database, the data folder and the monitor's address; it knows the packages by what the DICOM node
    leaves in the data folder. Raises SettingsError where there is no port or no identity to serve for.
    """
    stop = _until_asked_to_stop()
    if settings.http.port is None:
        raise SettingsError("http.port is null: the page has no port to answer on; name one")
    workflow.prepare_queue(settings)
    with ExitStack() as undo:
        store = open_store(settings, statement_seconds=STATEMENT_SECONDS)
        undo.callback(store.close)
        desk = open_desk(settings, load_site(settings.data_dir, settings.site_key_file), store)
        undo.callback(desk.close)
        desk.access.check()
        _be_ready(settings, store, "page", undo, {}, page_routes(desk))
        log.info("page_open", host=settings.http.host, port=settings.http.port, access=desk.access.kind)
        stop.wait()
        log.info("stopping")
    return 0


def retry_units(settings: Settings, names: Sequence[str], *, every: bool) -> int:
    """Put failed units back into the queue; how many. Raises StepwedgeError for one that has not failed.

    What somebody else puts back meanwhile is not counted.
    """
    if not names and not every:
        raise StepwedgeError("name the units to retry, as `stepwedge status` shows them, or say --all")
    workflow.prepare_queue(settings)
    store = open_store(settings)
    queue = workflow.QueueClient(settings)
    try:
        failed = {unit.unit: unit for unit in store.units(states=[State.FAILED])}
        for name in names:
            if name not in failed:
                raise StepwedgeError(f"{name}: no failed unit has this name; `stepwedge status` shows them")
        chosen = list(failed.values()) if every else [failed[name] for name in names]
        return sum(workflow.retry(store, queue, unit) for unit in chosen)
    finally:
        queue.close()
        store.close()


def _look_after(queue: workflow.WorkQueue, stop: threading.Event) -> None:
    """Find work that fell out of the queue, and delete old records, until asked to stop."""
    delete_at = time.monotonic()
    while True:
        try:
            queued = queue.reconcile()
            if queued:
                log.warning("queued_again", count=queued)
            if time.monotonic() >= delete_at:
                queue.delete_finished()
                delete_at = time.monotonic() + _DELETE_SECONDS
        except (SQLAlchemyError, OSError) as error:
            # The database is busy or away, or the volume is: the queue itself tries again, and so does the next look.
            log.error("reconcile_failed", error=type(error).__name__)
        if stop.wait(_RECONCILE_SECONDS):
            return


def _be_ready(
    settings: Settings,
    store: Store,
    role: str,
    undo: ExitStack,
    checks: Mapping[str, Callable[[], bool]],
    routes: Sequence[Route] = (),
) -> None:
    """Say that the role is ready, to the machine's supervisor and on the role's own HTTP port."""
    heartbeat = Heartbeat(settings.data_dir, role)
    heartbeat.start()
    undo.callback(heartbeat.stop)
    watch = clock.ClockWatch(store, role)
    watch.start()
    undo.callback(watch.stop)
    if settings.http.port is None:
        return
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    own = {role: lambda: is_beating(settings.data_dir, role), "clock": watch.is_right}
    app = build_app(
        {**own, **checks}, store, Gathered(Path(folder)) if folder else None, settings.constancy, routes=routes
    )
    server = HttpServer(settings.http, app)
    server.start()
    undo.callback(server.stop)


def _asked_to_load_again() -> threading.Event:
    """Set by SIGHUP."""
    again = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: again.set())
    return again


def _until_asked_to_stop() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop
