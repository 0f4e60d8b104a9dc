"""One request for each cause, in a log that only grows and that tells when it was changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from stepwatch import requests
from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.requests import FOLLOWS, Request, note, open_from_alert, read_request, read_requests
from stepwatch.settings import Retrain, Settings
from watched import make_service_tables

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)
ALERT: dict[str, Any] = {
    "status": "firing",
    "labels": {"alertname": "StepwatchSignalDrifted", "model": "tiny", "signal": "pixel_mean"},
    "annotations": {"summary": "Brightness has moved."},
    "startsAt": "2026-03-02T07:00:00Z",
}


@dataclass
class Desk:
    database: Database
    settings: Settings
    key: ec.EllipticCurvePrivateKey

    def alert(self, now: datetime = NOW, **labels: str) -> Request | None:
        alert = {**ALERT, "labels": {**ALERT["labels"], **labels}}
        return open_from_alert(self.database, alert, now=now, settings=self.settings)

    def note(self, request: Request, *events: str) -> Request:
        for event in events:
            request = note(self.database, self.settings, request.request, event, key=self.key)
        return request


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    engine = make_service_tables(tmp_path / "db.sqlite")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "jane.pub").write_bytes(pem)
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'db.sqlite'}",
        data_dir=tmp_path / "watch",
        retrain=Retrain(keys=[tmp_path / "jane.pub"]),
    )
    database = Database.open(settings.database_url)
    database.prepare()
    yield Desk(database, settings, key)
    database.close()
    engine.dispose()


def test_the_same_cause_opens_one_request_until_it_is_over_and_the_cool_down_too(desk: Desk) -> None:
    first = desk.alert()
    assert first is not None
    assert first.state == "open"
    assert desk.alert() is None
    assert desk.alert(signal="age_years") is not None
    assert desk.alert(now=NOW + timedelta(days=30)) is None  # still open
    desk.note(first, "declined")
    assert desk.alert(now=NOW + timedelta(days=6)) is None
    assert desk.alert(now=NOW + timedelta(days=8)) is not None


def test_an_alert_that_no_model_can_answer_opens_nothing(desk: Desk) -> None:
    assert desk.alert(alertname="StepwatchDown") is None


def test_a_state_follows_only_the_states_it_may_and_says_who(desk: Desk) -> None:
    request = desk.alert()
    assert request is not None
    with pytest.raises(WatchError, match="only a request that is validated can become promoting"):
        desk.note(request, "promoting")
    with pytest.raises(WatchError, match="a person has to sign"):
        note(desk.database, desk.settings, request.request, "approved")
    request = desk.note(request, "approved", "running", "failed", "running", "candidate")
    assert request.events[1].who == "jane"
    assert request.events[1].signature


def test_a_key_that_nobody_named_decides_nothing(desk: Desk) -> None:
    request = desk.alert()
    assert request is not None
    desk.key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(WatchError, match="none of retrain"):
        desk.note(request, "approved")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE watch_requests SET at = at + 1 WHERE id = 1",
        "UPDATE watch_requests SET who = 'stepwatch' WHERE id = 2",
        "DELETE FROM watch_requests WHERE id = 2",
        "DELETE FROM watch_requests WHERE id = 3",
    ],
)
def test_a_changed_or_cut_line_is_noticed(desk: Desk, change: str) -> None:
    request = desk.alert()
    assert request is not None
    desk.note(request, "approved", "running")
    assert read_request(desk.database, desk.settings, request.request).state == "running"
    with desk.database.engine.begin() as db:
        db.execute(sa.text(change))
    with pytest.raises(WatchError):
        read_requests(desk.database, desk.settings)


def test_the_kind_of_shift_makes_no_other_cause(desk: Desk) -> None:
    """What kind it is may be judged otherwise as studies come in: it stays the same change."""
    first = desk.alert(shift="prevalence")
    assert first is not None
    assert desk.alert(shift="acquisition") is None
    assert first.cause == "tiny/StepwatchSignalDrifted/pixel_mean"


def test_only_what_may_follow_follows(desk: Desk) -> None:
    """From an open request: every event but the two that may follow is refused, and leaves nothing."""
    request = desk.alert()
    assert request is not None
    for event in FOLLOWS:
        if "open" not in FOLLOWS[event]:
            with pytest.raises(WatchError, match="only a request that is"):
                desk.note(request, event)
    assert len(read_request(desk.database, desk.settings, request.request).events) == 1
    desk.note(request, "declined")


def test_evidence_that_is_no_number_is_left_out(desk: Desk) -> None:
    assert requests._finite([{"evidence": float("nan"), "low": float("-inf"), "value": 1.5}]) == [
        {"evidence": None, "low": None, "value": 1.5}
    ]
