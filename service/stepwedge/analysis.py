"""One unit of work: from a study's instances in the spool to a result folder that is written once.

The folder ``results/<unit>`` appears whole or not at all. It holds the objects to deliver as they will be sent, the
result, the observation, and later one file for each destination that has taken the objects.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import pydicom
import structlog
from pydantic import TypeAdapter

from stepwedge import __version__, tracing
from stepwedge.dicom.context import NodeIdentity, Predecessor, ReportObject
from stepwedge.dicom.heatmap import PlacedHeat
from stepwedge.dicom.report import write_report
from stepwedge.dicom.texts import element_text
from stepwedge.durable import is_full, own_name, reserved, sync_folder, write_durably
from stepwedge.errors import StepwedgeError
from stepwedge.identity import Site
from stepwedge.intake import Intake, take_in
from stepwedge.pipeline import Equipment, combine, observation_of
from stepwedge.records import Decision, Finding, FloatArray, ImageResult, Reason, State, UnitResult
from stepwedge.reference import is_reference
from stepwedge.settings import Settings
from stepwedge.store import Revision, StoredInstance, Unit, unit_id

log = structlog.get_logger()

_RESULT = "result.json"
_SCHEMA = 1  # of that file
_RECEIPT_BYTES = 128  # a name of 32 characters and a time take fewer
_UNFINISHED_SECONDS = 3600.0  # no analysis takes this long
_unit_result = TypeAdapter(UnitResult)
_unit = TypeAdapter(Unit)


class _ReportFailedError(StepwedgeError):
    """The report of a result could not be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A result as it lies in its folder. ``objects`` are the files to deliver, in order."""

    result: UnitResult
    objects: tuple[ReportObject, ...]
    observation: str  # JSON
    unit: Unit
    destinations: tuple[str, ...]  # that were in the settings when the result was made


def results_dir(settings: Settings) -> Path:
    """Where the result folders are."""
    return settings.data_dir / "results"


def read_published(settings: Settings, unit: str) -> Published | None:
    """The result of a unit, or None if there is none yet. Raises StepwedgeError for one that cannot be read."""
    folder = results_dir(settings) / unit
    try:
        values = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
        if values["schema"] != _SCHEMA:
            raise StepwedgeError(f"{folder}: the result has schema {values['schema']}, this version reads {_SCHEMA}")
        return Published(
            result=_unit_result.validate_python(values["result"]),
            objects=tuple(ReportObject(**(item | {"path": folder / item["path"]})) for item in values["objects"]),
            observation=json.dumps(values["observation"]),
            unit=_unit.validate_python(values["unit"]),
            destinations=tuple(values["destinations"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        message = f"{folder}: the result cannot be read ({type(error).__name__}); restore it from a backup"
        raise StepwedgeError(message) from None


def published_units(settings: Settings) -> Iterator[Published]:
    """Every result that lies in its folder; one that cannot be read is named in the log and left where it is."""
    for file in sorted(results_dir(settings).glob(f"[!.]*/{_RESULT}")):
        try:
            published = read_published(settings, file.parent.name)
        except StepwedgeError as error:
            log.error("result_unreadable", unit=file.parent.name, error=str(error))
            continue
        if published is not None:
            yield published


@contextmanager
def receipt(settings: Settings, unit: str, destination: str) -> Iterator[Callable[[float], None]]:
    """What keeps, beside a result, when a destination has taken it (seconds since 1970).

    Its room is taken before the result is sent: without a receipt it would be sent again. Raises OSError for none.
    """
    with reserved(_receipt(settings, unit, destination), _RECEIPT_BYTES) as write:
        yield lambda at: write(json.dumps({"destination": destination, "at": at}).encode())


def delivered_at(settings: Settings, unit: str, destination: str) -> float | None:
    """When a destination took a result (seconds since 1970), or None if it has not."""
    try:
        return float(json.loads(_receipt(settings, unit, destination).read_text(encoding="utf-8"))["at"])
    except FileNotFoundError:
        return None


def _receipt(settings: Settings, unit: str, destination: str) -> Path:
    return results_dir(settings) / unit / f"delivered.{destination}.json"


def analyse_unit(
    unit: Unit,
    revision: Revision,
    received: Sequence[StoredInstance] = (),
    *,
    settings: Settings,
    site: Site,
    equipment: Equipment,
) -> tuple[UnitResult, str]:
    """Analyse a unit and publish its result; a result that is there already is given back as it is.

    A failed unit publishes nothing, so that it can be tried again. ``received`` is what the index knows of the
    study's instances from their receipt.

    Returns
    -------
    The result, and its observation as JSON.

    Raises
    ------
    InferenceUnavailableError
        If the inference server does not answer.
    """
    published = read_published(settings, unit.unit)
    if published is not None:
        return published.result, published.observation
    started = time.perf_counter()
    intake = take_in(
        [settings.data_dir / path for path in revision.paths],
        {settings.data_dir / item.path: item for item in received},
        # Whatever is hashed of a study is hashed under the key that it came under.
        site=site.naming(unit.study, received[0].study_uid) if received else site,
        equipment=replace(equipment, prints=is_reference(settings.data_dir, unit.study)),
        maximum_bytes=settings.worker.maximum_decoded_bytes,
    )
    state, reasons, findings = combine(intake.images, equipment)
    if intake.failure is not None:
        state, reasons, findings = State.FAILED, (intake.failure,), ()
    elif not of_one_patient(intake.evidence):
        # Whose result it would be cannot be known, so that no report is written: see `_publish`.
        state, reasons, findings = State.DEFERRED, (Reason(code="patient_mismatch"),), ()
    assert equipment.policy is not None
    unit_result = UnitResult(
        unit=unit.unit,
        study=unit.study,
        revision=unit.revision,
        state=state,
        reasons=reasons,
        findings=findings,
        images=tuple(intake.images),
        model=equipment.package.reference,
        policy=equipment.policy.reference,
        created_at=datetime.now().astimezone().isoformat(timespec="milliseconds"),
    )
    ms = _summed(intake.images)
    observation = observation_of(unit_result, ms, intake.provenance).to_json()
    if state is not State.FAILED:
        ms["analyse"] = round((time.perf_counter() - started) * 1000.0, 3)
        try:
            _publish(unit, unit_result, intake, ms, settings=settings, site=site, equipment=equipment)
        except _ReportFailedError as error:
            log.error("report_failed", unit=unit.unit, error=str(error))
            failed = replace(unit_result, state=State.FAILED, reasons=(Reason(code="report_failed"),), findings=())
            return failed, observation_of(failed, ms, intake.provenance).to_json()
        published = read_published(settings, unit.unit)
        assert published is not None
        # Another worker may have been first; then its result is the result.
        return published.result, published.observation
    return unit_result, observation


def _publish(
    unit: Unit,
    result: UnitResult,
    intake: Intake,
    ms: dict[str, float],
    *,
    settings: Settings,
    site: Site,
    equipment: Equipment,
) -> None:
    folder = results_dir(settings) / unit.unit
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{own_name()}.{time.monotonic_ns()}")
    temporary.mkdir()
    try:
        started = time.perf_counter()
        wanted = {State.DEFERRED: settings.report.deferred, State.REJECTED: settings.report.rejected}
        objects: Sequence[ReportObject] = ()
        evidence = intake.evidence
        if wanted.get(result.state, True) and of_one_patient(evidence) and evidence:
            picture, heat = _shown(result, intake, equipment)
            try:
                with tracing.span("report") as span:
                    objects = write_report(
                        temporary,
                        result,
                        evidence,
                        picture,
                        heat=heat if settings.report.heat_map else None,
                        node=_node(settings, site),
                        report=settings.report,
                        predecessor=_predecessor(unit, settings),
                    )
                    span.note(objects=[item.kind for item in objects])
            except (ValueError, OSError) as error:
                if is_full(error):
                    raise
                raise _ReportFailedError(type(error).__name__) from error
        ms["report"] = round((time.perf_counter() - started) * 1000.0, 3)
        ended = replace(
            unit,
            state=result.state,
            reasons=tuple(reason.code for reason in result.reasons),
            ended_at=time.time(),
        )
        values = {
            "schema": _SCHEMA,
            "result": _unit_result.dump_python(result, mode="json"),
            "objects": [asdict(item) | {"path": item.path.name} for item in objects],
            "observation": json.loads(observation_of(result, ms, intake.provenance).to_json()),
            "unit": _unit.dump_python(ended, mode="json"),
            "destinations": [destination.name for destination in settings.destinations],
        }
        write_durably(temporary / _RESULT, json.dumps(values).encode())
        if folder.exists() and not (folder / _RESULT).exists():
            # Somebody took the result out of it. What is left is kept aside.
            folder.rename(folder.with_name(f".{folder.name}.without-result.{time.time_ns()}"))
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / _RESULT).exists():
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def of_one_patient(headers: Sequence[pydicom.Dataset]) -> bool:
    """Whether no two headers name different patients. What a header leaves empty contradicts nothing."""
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientName"):
        values = {element_text(header, keyword).partition("=")[0] for header in headers}
        if len({_plain(value) for value in values} - {""}) > 1:
            return False
    return True


def _plain(value: str) -> str:
    """A value without what senders write differently: case, blanks, empty name components at the end."""
    return " ".join(value.replace("^", " ").split()).casefold()


def remove_unfinished(settings: Settings) -> int:
    """Remove what a killed worker had not finished writing, once nobody can be writing it; how many folders."""
    before = time.time() - _UNFINISHED_SECONDS
    stale = [
        folder
        for folder in results_dir(settings).glob(".*")
        if folder.is_dir() and "without-result" not in folder.name and folder.stat().st_mtime < before
    ]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return len(stale)


def _node(settings: Settings, site: Site) -> NodeIdentity:
    return NodeIdentity(
        node=site.node,
        ae_title=settings.node.ae_title,
        software_version=__version__,
        institution=settings.report.institution,
    )


def _predecessor(unit: Unit, settings: Settings) -> Predecessor | None:
    """The structured report of the latest earlier revision that wrote one."""
    for revision in range(unit.revision - 1, 0, -1):
        published = read_published(settings, unit_id(unit.study, revision, unit.model_digest))
        for item in published.objects if published else ():
            if item.kind != "sr":
                continue
            header = pydicom.dcmread(item.path, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
            return Predecessor(
                study_uid=str(header.StudyInstanceUID),
                series_uid=str(header.SeriesInstanceUID),
                sop_class_uid=item.sop_class_uid,
                sop_instance_uid=item.sop_instance_uid,
                revision=revision,
            )
    return None


def _shown(result: UnitResult, intake: Intake, equipment: Equipment) -> tuple[FloatArray | None, PlacedHeat | None]:
    """The picture of the image that drove the answer, and its heat map; of images that answered, if any did."""
    driving = _driving(result.findings)

    def rank(index: int) -> tuple[int, bool, float]:
        image, heat = intake.images[index], intake.views[index].heat
        strongest = max((f.probability for f in image.findings if f.name in driving), default=0.0)
        return image.gate.verdict.severity, heat is None or heat.finding not in driving, -strongest

    pictured = [index for index, view in enumerate(intake.views) if view.picture is not None]
    if not pictured:
        return None, None
    first = min(pictured, key=rank)
    view, header = intake.views[first], intake.shown[first]
    if view.heat is None or header is None:
        return view.picture, None
    return view.picture, PlacedHeat(heat=view.heat, image=header, spec=equipment.package.manifest.input)


def _driving(findings: Sequence[Finding]) -> set[str]:
    """The findings that are acted upon; those left to a person where none is, and all where none of these is either."""
    for wanted in (Decision.ACT, Decision.DEFER):
        names = {finding.name for finding in findings if finding.decision is wanted}
        if names:
            return names
    return {finding.name for finding in findings}


def _summed(images: Sequence[ImageResult]) -> dict[str, float]:
    total: dict[str, float] = {}
    for image in images:
        for stage, value in image.ms.items():
            total[stage] = round(total.get(stage, 0.0) + value, 3)
    return total
