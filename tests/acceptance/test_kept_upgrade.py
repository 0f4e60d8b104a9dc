"""A data folder that an older program left with work in flight, killed at once: the present program finishes it.

How the folders were made is in tests/kept/make.py.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packages import write_package, write_policy
from peers import Orthanc
from postgresql import PASSWORD, PostgreSQL
from stepwedge.analysis import read_published
from stepwedge.dicom.encoded import split_file

from service import Service, destination, settings_for, until

KEPT = Path(__file__).parents[1] / "kept"
CHEST = Path(__file__).parents[2] / "models" / "chest-pneumonia"
ENDS = {"reported", "deferred", "rejected"}


@pytest.fixture(params=["schema-1", "schema-2", "schema-2-postgresql"])
def kept(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[dict[str, Orthanc]]:
    """Both destinations: the one that was there, and the one that was away."""
    for name in ("pacs", "away"):
        (tmp_path / name).mkdir()
    with Orthanc.started(tmp_path / "pacs") as there, Orthanc.started(tmp_path / "away") as away:
        yield {"pacs": there, "away": away}


@pytest.fixture
def service(kept: str, pacs: dict[str, Orthanc], tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    """The present program on the unpacked folder, not started yet."""
    models = (CHEST / "1.1.0", CHEST / "policy.yaml")  # 1.0.0 was what worked then, and is gone
    if kept != "schema-1":
        models = (write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml"))
    values: dict[str, Any] = settings_for(
        *models, [destination(each.dicom_port, name=name) for name, each in pacs.items()]
    )
    folder = tmp_path / "service"
    with tarfile.open(KEPT / f"{kept}.tar.xz") as tar:
        tar.extractall(folder / "data", filter="data")
    if kept.endswith("postgresql"):
        server: PostgreSQL = request.getfixturevalue("postgresql")
        values["database"] = {"url": server.new_database(), "password_file": str(tmp_path / "password")}
        (tmp_path / "password").write_text(PASSWORD)
        server.load(values["database"]["url"], (folder / "data" / "dump.sql").read_text())
    return Service(folder, values)


def test_what_was_in_flight_is_finished_by_the_present_program(
    service: Service, pacs: dict[str, Orthanc], tmp_path: Path
) -> None:
    data = service.settings.data_dir
    said = json.loads((data / "kept.json").read_text())
    results = {file: file.read_bytes() for file in sorted((data / "results").rglob("*")) if file.is_file()}
    service.start()
    try:
        until(lambda: _nothing_under_way(service), "nothing is under way", service)
        with service.store() as store:
            studies = {name: store.study_by_uid(uid) for name, uid in _each(said).items()}
            units = {name: store.units(study=study.study) for name, study in studies.items() if study}
            deliveries = store.deliveries()
            quarantined = store.quarantined()
        assert len(units) == 7  # none is lost
        for name, of_study in units.items():
            states = [str(unit.state) for unit in of_study if str(unit.state) != "superseded"]
            wanted = {"failed"} if name == "failed" else ENDS
            assert len(states) == 1, name
            assert states[0] in wanted, name
        assert [item.reason for item in quarantined] == ["identity_mismatch"]
        assert {item.state for item in deliveries} == {"delivered"}
        # What was delivered is not delivered again, and what was pending arrives as it was kept.
        assert len(pacs["pacs"].instances(said["reported"])) == 0
        assert len(pacs["pacs"].instances(said["pending"])) == 0
        assert len(pacs["away"].instances(said["reported"])) == 0
        waited = next(unit.unit for unit in units["pending"])
        assert _received(pacs["away"], said["pending"], tmp_path) == _sent(results, data, waited)
        # The rest, which the older program had no result of, goes to both, once.
        for name in ("started", "queued-0", "queued-1", "arriving"):
            unit = next(unit.unit for unit in units[name] if str(unit.state) != "superseded")
            published = read_published(service.settings, unit)
            assert published is not None
            for each in pacs.values():
                found = {str(each.tags(item)["SOPInstanceUID"]) for item in each.instances(_each(said)[name])}
                assert found == {item.sop_instance_uid for item in published.objects}
        told = Counter((event["unit"], event["destination"]) for event in service.events("delivered"))
        assert set(told.values()) == {1}
        assert all(file.read_bytes() == contents for file, contents in results.items())
        # A failed one is where a person finds it, and goes on when it is asked to.
        service.command("retry", "--all")
        until(lambda: _state(service, said["failed"]) in ENDS, "the failed study has ended", service)
        until(lambda: _nothing_under_way(service), "its result is delivered", service)
        assert all(each.instances(said["failed"]) for each in pacs.values())
    finally:
        assert service.stop() == 0


def _each(said: dict[str, Any]) -> dict[str, str]:
    """The Study Instance UIDs by what the study was doing."""
    named = {name: str(uid) for name, uid in said.items() if name != "queued"}
    return named | {f"queued-{number}": str(uid) for number, uid in enumerate(said["queued"])}


def _state(service: Service, study_uid: str) -> str:
    """Where the study stands; of what a newer package took over, its answer."""
    with service.store() as store:
        study = store.study_by_uid(study_uid)
        states = [str(unit.state) for unit in store.units(study=study.study)] if study else []
    return next((state for state in states if state != "superseded"), "")


def _nothing_under_way(service: Service) -> bool:
    with service.store() as store:
        counts = store.counts()
    waiting = counts["units"].get("queued", 0) + counts["units"].get("running", 0) + counts["studies"]["open"]
    return waiting + counts["deliveries"].get("pending", 0) == 0


def _sent(results: dict[Path, bytes], data: Path, unit: str) -> dict[str, bytes]:
    """The data sets of a kept result, by SOP Instance UID, as they lay there before the upgrade."""
    folder = data / "results" / unit
    listed = json.loads(results[folder / "result.json"])["objects"]
    return {item["sop_instance_uid"]: split_file(results[folder / item["path"]])[2] for item in listed}


def _received(pacs: Orthanc, study_uid: str, folder: Path) -> dict[str, bytes]:
    """The data sets that a PACS has of a study, by SOP Instance UID."""
    found = {}
    for instance in pacs.instances(study_uid):
        file = pacs.download(instance, folder)
        found[str(pacs.tags(instance)["SOPInstanceUID"])] = _data_set(file.read_bytes())
    return found


def _data_set(contents: bytes) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1), whoever wrote that."""
    length = int.from_bytes(contents[140:144], "little")
    return contents[144 + length :]
