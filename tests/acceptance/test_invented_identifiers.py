"""Studies full of invented identifiers go through the real service, and nothing that leaves the spool names them.

Every text, name and UID that DICOM knows is filled in, and private elements too. What is looked for is a stem that all
of the invented values have, in every form that an encoder may give it.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pydicom
import pytest
import yaml
from otlp_receiver import StandInCollector, collecting
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from pydicom.datadict import DicomDictionary
from pydicom.uid import UID
from sender import DARK, make_study, send_once
from verified_reports import CHEST, PRESENT, evaluation, group, measurement_report

from service import Service, destination, settings_for, until

STEM, DIGITS, BORN = "Zqxvjk", "31415926535", "19170203"
# Texts that are no identifiers, and are kept on purpose: the product that made the image (see CONFORMANCE.md).
KEPT = {"Manufacturer", "ManufacturerModelName"}
TEXTS = {"LO", "SH", "ST", "LT", "UT", "UC", "UR"}
# Groups below are of commands, file meta information and directories, which no data set may have.
_FIRST_GROUP = 0x0008
# Columns of the index, which has to know the UIDs that the sender used; it never leaves the node.
OF_THE_INDEX = {"study_uid", "series_uid", "sop_uid"}


@dataclass(frozen=True)
class Morning:
    """What became of the studies, and the service and its monitor, still running."""

    service: Service
    states: dict[str, str]
    watch_port: int
    texts: dict[str, str]
    collector: StandInCollector


def test_what_is_looked_for_is_found_in_every_form() -> None:
    name = f"{STEM}12^Given"
    forms = [name, name.upper(), name.lower(), name.encode().hex(), quote(f"a {name}"), _percent(name)]
    forms += [base64.b64encode((pad + name).encode()).decode() for pad in ("", "a", "ab")]
    forms += [f"1.2.{DIGITS}.7", base64.b64encode(f"1.2.{DIGITS}.7".encode()).decode(), name.encode("utf-16").hex()]
    forms += [json.dumps({"born": BORN}), base64.b64encode(base64.b64encode(name.encode())).decode()]
    assert [form for form in forms if not found_in(form)] == []
    assert not found_in("a line that names nobody 0123456789abcdef")


@pytest.fixture(scope="module")
def morning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Morning]:
    folder = tmp_path_factory.mktemp("identifiers")
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    away, watch_port = free_ports(2)
    home = folder / "service"
    home.mkdir()
    (home / "stepwatch.yaml").write_text(
        yaml.safe_dump({"http": {"port": watch_port}, "detection": {"poll_seconds": 0.1}}), encoding="utf-8"
    )
    (folder / "orthanc").mkdir()
    with Orthanc.started(folder / "orthanc") as pacs, collecting() as collector:
        values = settings_for(
            package,
            policy,
            [destination(pacs.dicom_port), destination(away, name="away")],
            worker={"analysis_attempts": 2, "analysis_backoff_seconds": 0.1, "delivery_backoff_seconds": 0.5},
            log={"level": "debug", "format": "json"},
            tracing={"endpoint": collector.endpoint},
        )
        states = {"failed": _failed(home, values, folder)}
        watched = values | {"watch": {"enabled": True, "config": "stepwatch.yaml"}}
        service = Service(home, watched)
        service.start()
        try:
            states |= _ended(service, folder, watch_port)
            yield Morning(service, states, watch_port, _outputs(service, watch_port), collector)
        finally:
            status = service.stop()
    assert status == 0
    assert not found_in(service.log()), _where(service.log())
    assert not found_in("\n".join(collector.texts)), _where("\n".join(collector.texts))


def test_the_studies_ended_as_they_were_meant_to(morning: Morning) -> None:
    assert morning.states == {"failed": "failed", "reported": "reported", "rejected": "rejected"}
    status = json.loads(morning.texts["stepwedge status --json"])
    assert len(status["quarantine"]) == 1


def test_no_log_line_metric_page_or_command_output_names_one(morning: Morning) -> None:
    assert morning.service.events("instance_stored"), "the listener logs"
    assert morning.service.events("unit_ended"), "the worker logs"
    assert morning.service.events("delivery_failed"), "the worker tells of errors"
    assert "stepwedge_units_total" in morning.texts["metrics of the service"]
    assert "stepwatch_database_up" in morning.texts["metrics of the monitor"]
    assert morning.texts["metrics of the inference server"]
    assert {name: _where(text) for name, text in morning.texts.items() if found_in(text)} == {}


def test_no_trace_names_one(morning: Morning) -> None:
    spans = list(morning.collector.spans)
    assert {span.role for span in spans} == {"listen", "work", "infer"}
    assert {"C-STORE", "study", "revision", "analyse", "decode", "infer", "report", "deliver"} <= {
        s.name for s in spans
    }
    assert any(span.failed for span in spans), "spans tell of errors"
    assert {text for text in morning.collector.texts if found_in(text)} == set()


def test_no_table_names_one_but_the_index_of_uids(morning: Morning) -> None:
    files = [file for file in morning.service.settings.data_dir.rglob("*") if _is_sqlite(file)]
    assert {morning.service.settings.database_file, morning.service.settings.queue_file} <= set(files)
    leaks, cells = [], 0
    for file in files:
        for table, column, value in _cells(file):
            cells += 1
            if column not in OF_THE_INDEX and found_in(value):
                leaks.append((file.name, table, column, _where(value)))
    assert cells > 100
    assert leaks == []


def test_the_workflow_tables_are_there_and_hold_names_of_units(morning: Morning) -> None:
    inputs = [value for _, column, value in _cells(morning.service.settings.queue_file) if column == "inputs"]
    with morning.service.store() as store:
        units = store.units()
    assert len(units) >= 3
    assert all(any(unit.unit in _decoded(value) for value in inputs) for unit in units)


def test_no_file_or_folder_name_says_one_and_no_file_beside_spool_and_results_holds_one(morning: Morning) -> None:
    data = morning.service.settings.data_dir
    everything = sorted(file.relative_to(data) for file in data.rglob("*"))
    assert [str(path) for path in everything if found_in(str(path))] == []
    inside = [path for path in everything if path.parts[0] in {"spool", "results"} and (data / path).is_file()]
    assert any(found_in((data / path).read_bytes().decode("latin-1")) for path in inside), "the spool keeps the images"
    outside = [path for path in everything if path.parts[0] not in {"spool", "results"} and (data / path).is_file()]
    # The databases were looked through cell by cell; beside them lie their write-ahead logs.
    plain = [path for path in outside if not any(word in path.name for word in (".db", ".sqlite"))]
    assert plain
    assert [str(path) for path in plain if found_in((data / path).read_bytes().decode("latin-1"))] == []


def _failed(home: Path, values: dict[str, object], folder: Path) -> str:
    """A study that no inference server answers for: its state at the end."""
    inference = values["inference"]
    assert isinstance(inference, dict)
    alone = Service(home, values | {"inference": inference | {"url": "http://127.0.0.1:9"}})
    alone.start(wait=False)
    try:
        file = _invented(folder, 1)
        until(lambda: send_once(alone.settings.node.port, file) == 0, "it is acknowledged", alone)
        return _state(alone, file)
    finally:
        assert alone.stop() == 0


def _ended(service: Service, folder: Path, watch_port: int) -> dict[str, str]:
    """Send a study that is reported, one that is rejected, one that is refused, and a reader's report."""
    port, states = service.settings.node.port, {}
    for number, name in ((2, "reported"), (3, "rejected")):
        file = _invented(folder, number, short=name == "rejected")
        assert send_once(port, file) == 0
        states[name] = _state(service, file)
    assert send_once(port, _refused(folder)) not in {0, None}
    report = measurement_report(group(CHEST, evaluation(PRESENT)), reader=f"{STEM}^Reader")
    report.PatientName, report.PatientID, report.AccessionNumber = f"{STEM}^Read", f"{STEM}-9", f"{STEM}9"
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    send_once(port, folder / "report.dcm")

    def told() -> bool:
        with service.store() as store:
            deliveries = store.deliveries()
        delivered = sum(item.state == "delivered" for item in deliveries)
        return delivered == 2 and any(item.error for item in deliveries)

    until(told, "the results are in the PACS, and a destination that is away was tried", service)
    until(lambda: "stepwatch_observations" in _page(watch_port, "/metrics"), "the monitor has read them", service)
    return states


def _invented(folder: Path, number: int, *, short: bool = False) -> Path:
    """A study in which every text, name and UID that may be filled in is invented."""
    sent = make_study(folder, number, DARK)
    dataset = pydicom.dcmread(sent.file)
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if tag >> 16 < _FIRST_GROUP or not keyword or retired or keyword in KEPT:
            continue
        value = {"PN": f"{STEM}{number}^{tag:08x}", "UI": f"1.2.{DIGITS}.{number}.{tag}"}.get(vr, "")
        if vr in TEXTS:
            value = f"{STEM}{number}{tag:08x}"
        if value and (vr != "UI" or not keyword.endswith("ClassUID")):
            setattr(dataset, keyword, value)
    dataset.PatientBirthDate = BORN
    block = dataset.private_block(0x0011, f"{STEM} PRIVATE", create=True)
    block.add_new(0x01, "LO", f"{STEM} private text")
    block.add_new(0x02, "UN", f"{STEM} private bytes".encode())
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if short:
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]
    dataset.save_as(sent.file, enforce_file_format=True)
    return sent.file


def _refused(folder: Path) -> Path:
    """An object whose UID of the study is none, but a name."""
    file = _invented(folder, 4)
    dataset = pydicom.dcmread(file)
    with pydicom.config.disable_value_validation():
        dataset.StudyInstanceUID = UID(f"{STEM}.{DIGITS}", validation_mode=0)
        dataset.save_as(file, enforce_file_format=True)
    return file


def _state(service: Service, file: Path) -> str:
    uid = str(pydicom.dcmread(file, stop_before_pixels=True).StudyInstanceUID)

    def look() -> str:
        with service.store() as store:
            study = store.study_by_uid(uid)
            units = store.units(study=study.study) if study else []
        return next((str(unit.state) for unit in units if unit.ended_at is not None), "")

    return str(until(look, "the study has ended", service))


def _outputs(service: Service, watch_port: int) -> dict[str, str]:
    """What the roles say to people and to programs, by where."""
    return {
        "log": service.log(),
        "metrics of the service": str(service.get("/metrics")),
        "readiness of the service": str(service.get("/readyz")),
        "metrics of the inference server": _page(service.settings.inference.port, "/metrics"),
        "metrics of the monitor": _page(watch_port, "/metrics"),
        "page of the monitor": _page(watch_port, "/"),
        "stepwedge status --json": service.command("status", "--json"),
        "stepwedge status": service.command("status"),
    }


def _page(port: int, path: str) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).text
    except httpx.HTTPError:
        return ""


def found_in(text: str) -> bool:
    """Whether a text holds an invented value: as it is, or in a form that an encoder gives it."""
    return _where(text) != ""


def _where(text: str) -> str:
    """What stands around the first invented value in a text; empty if there is none."""
    lowered = text.lower()
    for form in _PLAIN:
        at = lowered.find(form)
        if at >= 0:
            return text[max(at - 60, 0) : at + 60]
    for form in _BASE64:
        at = text.find(form)
        if at >= 0:
            return text[max(at - 60, 0) : at + 60]
    return ""


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _inner(value: bytes) -> set[str]:
    """What base64 makes of a value wherever in a text it stands: the characters that depend on nothing around it."""
    forms = set()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + value).decode()
        first = -(-before * 8 // 6)
        forms.add(encoded[first : (before + len(value)) * 8 // 6])
    return forms


_VALUES = [stem for text in (STEM, DIGITS, BORN) for stem in {text, text.upper(), text.lower()}]
_PLAIN = sorted(
    {form.lower() for stem in _VALUES for form in (stem, stem.encode().hex(), _percent(stem))}
    | {stem.encode("utf-16-le").hex() for stem in _VALUES}
)
_ONCE = {form for stem in _VALUES for form in _inner(stem.encode())}
_BASE64 = sorted(_ONCE | {form for once in _ONCE for form in _inner(once.encode())})


def _is_sqlite(file: Path) -> bool:
    return file.is_file() and file.read_bytes()[:15] == b"SQLite format 3"


def _cells(file: Path) -> Iterator[tuple[str, str, str]]:
    """Table, column and text of every cell of a database."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
                    yield table, column, text
    finally:
        connection.close()


def _decoded(value: str) -> str:
    """What DBOS keeps of a workflow's arguments, unpacked: a pickle in base64, or JSON."""
    try:
        return base64.b64decode(value, validate=True).decode("latin-1")
    except ValueError:
        return value
