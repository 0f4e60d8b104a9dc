"""A database of yesterday beside the spool and the results of today: nothing is analysed or delivered a second time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packages import write_package, write_policy
from peers import Orthanc
from postgresql import PASSWORD, PostgreSQL
from sender import Sent, make_study, send

from service import Service, destination, settings_for, until


@pytest.fixture
def values(orthanc: Orthanc, away: int, tmp_path: Path) -> dict[str, Any]:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    return settings_for(package, policy, [destination(orthanc.dicom_port), destination(away, name="away")])


def _delivered_to_pacs(service: Service, count: int) -> bool:
    with service.store() as store:
        return sum(item.destination == "pacs" and item.state == "delivered" for item in store.deliveries()) == count


def _sets_back(
    service: Service,
    orthanc: Orthanc,
    away: int,
    folder: Path,
    save: Callable[[], None],
    restore: Callable[[], Service],
) -> None:
    """Two studies, a copy of the database, three more, and the copy in the place of the database."""
    sent = [make_study(folder / "studies", 800 + number) for number in range(6)]
    service.start()
    _send(service, sent[:2])
    until(lambda: _delivered_to_pacs(service, 2), "two studies are reported", service)
    save()
    _send(service, sent[2:5])
    until(lambda: _delivered_to_pacs(service, 5), "three more are reported", service)
    assert service.stop() == 0
    results = service.settings.data_dir / "results"
    kept = {file.relative_to(results): file.read_bytes() for file in sorted(results.rglob("*.dcm"))}
    back_then = restore()
    back_then.start()
    try:
        _send(back_then, sent[5:])
        (folder / "back").mkdir()
        with Orthanc.started(folder / "back", dicom_port=away) as back:
            until(lambda: _all_delivered(back_then, len(sent)), "every result is in both places", back_then)
            for pacs in (orthanc, back):
                assert [len(pacs.instances(each.study_uid)) for each in sent] == [2] * len(sent)
    finally:
        assert back_then.stop() == 0
    # What had gone to the first one before went there once, and the files are those of before.
    first = [event["unit"] for event in service.events("delivered") if event["destination"] == "pacs"]
    again = [event["unit"] for event in back_then.events("delivered") if event["destination"] == "pacs"]
    assert set(Counter(first + again).values()) == {1}
    now = back_then.settings.data_dir / "results"
    assert all((now / name).read_bytes() == contents for name, contents in kept.items())
    assert len(list(now.glob("[!.]*"))) == len(sent)


def _send(service: Service, studies: list[Sent]) -> None:
    for each in studies:
        send(service.settings.node.port, each.file)


def _all_delivered(service: Service, count: int) -> bool:
    with service.store() as store:
        counts = store.counts()
        observed = len(store.observations())
    return (
        counts["units"] == {"reported": count}
        and counts["deliveries"] == {"delivered": 2 * count}
        and observed == count
    )


def test_a_backup_restored_under_a_newer_spool(
    orthanc: Orthanc, values: dict[str, Any], away: int, tmp_path: Path
) -> None:
    service = Service(tmp_path / "service", values)
    backup = tmp_path / "node.tar"

    def save() -> None:
        service.command("backup", str(backup))

    def restore() -> Service:
        other = Service(tmp_path / "other", values)
        command = [sys.executable, "-m", "stepwedge", "restore", str(backup), "--config", str(other.file)]
        subprocess.run(command, check=True, capture_output=True)
        # The volume with the files outlived what the database was on.
        for name in ("spool", "results"):
            shutil.rmtree(other.settings.data_dir / name)
            shutil.copytree(service.settings.data_dir / name, other.settings.data_dir / name)
        return other

    _sets_back(service, orthanc, away, tmp_path, save, restore)


def test_an_older_dump_of_postgresql_under_a_newer_volume(
    orthanc: Orthanc, values: dict[str, Any], away: int, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    url = postgresql.new_database()
    values["database"] = {"url": url, "password_file": str(tmp_path / "password")}
    service = Service(tmp_path / "service", values)
    dumps: list[str] = []

    def restore() -> Service:
        older = postgresql.new_database()
        postgresql.load(older, dumps[0])
        data = {"data_dir": str(service.settings.data_dir)}
        return Service(tmp_path / "other", values | data | {"database": values["database"] | {"url": older}})

    _sets_back(service, orthanc, away, tmp_path, lambda: dumps.append(postgresql.dump(url)), restore)
