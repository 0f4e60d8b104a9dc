"""What goes live is what was validated, by a person's signature, whole or not at all; and it can be taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from packages import write_package, write_policy
from stepwatch import retrain
from stepwatch.candidate import CandidateError
from stepwatch.database import Database
from stepwatch.errors import WatchError
from stepwatch.promotion import point, promote, roll_back
from stepwatch.requests import LOCKED_SET_USED, Request, note, open_request, read_request
from stepwatch.settings import Retrain, Settings
from watched import make_service_tables

NOW = datetime(2026, 3, 2, 8, tzinfo=UTC)


@dataclass
class Loop:
    """A request, a package in use, and another that may take its place."""

    folder: Path
    database: Database
    settings: Settings
    key: ec.EllipticCurvePrivateKey
    request: str = ""

    def set(self, **values: Any) -> None:
        self.settings = self.settings.model_copy(update={"retrain": self.settings.retrain.model_copy(update=values)})

    def note(self, *events: str, **body: object) -> Request:
        for event in events:
            found = note(self.database, self.settings, self.request, event, body, key=self.key)
        return found

    @property
    def state(self) -> str:
        return read_request(self.database, self.settings, self.request).state

    @property
    def live(self) -> str:
        return (self.folder / "live").resolve().name

    def validated(self) -> None:
        """As if the candidate had been compared."""
        self.note("approved", "running")
        retrain.take(self.database, self.settings, self.request, self.folder / "two", key=self.key)
        self.note("validated")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    make_service_tables(tmp_path / "db.sqlite").dispose()
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "jane.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    write_package(tmp_path / "one", version="1.0.0")
    write_package(tmp_path / "two", version="1.1.0")
    (tmp_path / "live").symlink_to(tmp_path / "one")
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'db.sqlite'}",
        data_dir=tmp_path / "watch",
        retrain=Retrain(keys=[tmp_path / "jane.pub"], live_link=tmp_path / "live", reload_command=["true"]),
    )
    database = Database.open(settings.database_url)
    database.prepare()
    made = Loop(tmp_path, database, settings, key)
    made.request = open_request(database, settings, {"cause": "tiny/brightness"}, now=NOW).request
    yield made
    database.close()


def test_a_validated_candidate_goes_live_and_back(loop: Loop) -> None:
    loop.validated()
    assert promote(loop.database, loop.settings, loop.request, loop.key).state == "promoted"
    assert loop.live == "two"
    assert roll_back(loop.database, loop.settings, loop.request, loop.key).state == "rolled_back"
    assert loop.live == "one"


def test_what_is_not_validated_does_not_go_live(loop: Loop) -> None:
    with pytest.raises(WatchError, match="has no candidate"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    loop.note("approved", "running")
    retrain.take(loop.database, loop.settings, loop.request, loop.folder / "two", key=loop.key)
    with pytest.raises(WatchError, match="can become promoting"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert loop.live == "one"


def test_a_candidate_that_was_changed_since_does_not_go_live(loop: Loop) -> None:
    loop.validated()
    write_package(loop.folder / "two", version="1.2.0")
    with pytest.raises(WatchError, match="not the package that the run made"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")


def test_a_policy_that_was_changed_since_does_not_go_live(loop: Loop) -> None:
    release = loop.folder / "release"
    write_package(release / "package", version="1.1.0")
    write_policy(release / "policy.yaml")
    loop.note("approved", "running")
    retrain.take(loop.database, loop.settings, loop.request, release, key=loop.key)
    loop.note("validated")
    write_policy(release / "policy.yaml", miss=2)
    with pytest.raises(WatchError, match=r"its policy\.yaml is not the one"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")


def test_two_who_promote_at_once_do_not_cross(loop: Loop) -> None:
    loop.validated()
    with retrain.alone(loop.settings, "link"), pytest.raises(WatchError, match="another process"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")


def test_what_was_live_can_come_back_whoever_is_trusted_now(loop: Loop) -> None:
    loop.validated()
    promote(loop.database, loop.settings, loop.request, loop.key)
    loop.set(trusted_keys=[loop.folder / "jane.pub"])
    assert roll_back(loop.database, loop.settings, loop.request, loop.key).state == "rolled_back"


def test_what_was_live_and_is_damaged_does_not_come_back(loop: Loop) -> None:
    loop.validated()
    promote(loop.database, loop.settings, loop.request, loop.key)
    with next((loop.folder / "one").rglob("*.onnx")).open("ab") as model:
        model.write(b"x")
    with pytest.raises(WatchError):
        roll_back(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("two", "promoted")


def test_a_service_that_does_not_take_it_keeps_the_package_before(loop: Loop) -> None:
    loop.validated()
    loop.set(reload_command=["sh", "-c", "echo the golden cases differ >&2; exit 2"])
    with pytest.raises(WatchError, match="the golden cases differ"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")
    loop.set(reload_command=["/nowhere/reload"])
    with pytest.raises(WatchError, match="cannot be started"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")


def test_a_promotion_that_was_cut_is_finished_by_asking_again_or_undone(loop: Loop) -> None:
    loop.validated()
    body = {"from": str(loop.folder / "one"), "to": str(loop.folder / "two"), "digest": "x"}
    loop.note("promoting", **body)
    assert promote(loop.database, loop.settings, loop.request, loop.key).state == "promoted"
    assert loop.live == "two"


def test_a_promotion_that_was_cut_does_not_undo_one_that_came_after_it(loop: Loop) -> None:
    loop.validated()
    loop.note("promoting", **{"from": str(loop.folder / "one"), "to": str(loop.folder / "two"), "digest": "x"})
    write_package(loop.folder / "three", version="1.2.0")
    point(loop.folder / "live", loop.folder / "three")
    with pytest.raises(WatchError, match="which another request put there"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert loop.live == "three"
    assert loop.state == "promoting"


def test_what_was_compared_with_another_package_is_validated_again_first(loop: Loop) -> None:
    loop.validated()
    loop.note(LOCKED_SET_USED, champion=str(loop.folder / "zero"))
    with pytest.raises(WatchError, match=r"was compared with .*zero.*validate it again"):
        promote(loop.database, loop.settings, loop.request, loop.key)
    assert (loop.live, loop.state) == ("one", "validated")
    loop.note("validated")
    loop.note(LOCKED_SET_USED, champion=str(loop.folder / "one"))
    assert promote(loop.database, loop.settings, loop.request, loop.key).state == "promoted"


def test_a_promotion_that_was_cut_can_be_undone(loop: Loop) -> None:
    loop.validated()
    loop.note("promoting", **{"from": str(loop.folder / "one"), "to": str(loop.folder / "two"), "digest": "x"})
    assert roll_back(loop.database, loop.settings, loop.request, loop.key).state == "rolled_back"
    assert loop.live == "one"


def test_a_link_that_another_request_turned_is_left_alone(loop: Loop) -> None:
    loop.validated()
    promote(loop.database, loop.settings, loop.request, loop.key)
    write_package(loop.folder / "three", version="1.3.0")
    (loop.folder / "live").unlink()
    (loop.folder / "live").symlink_to(loop.folder / "three")
    with pytest.raises(WatchError, match="another request"):
        roll_back(loop.database, loop.settings, loop.request, loop.key)
    assert loop.live == "three"


def test_without_a_link_nothing_is_promoted(loop: Loop) -> None:
    loop.validated()
    loop.set(live_link=loop.folder / "one")
    with pytest.raises(WatchError, match="no symbolic link"):
        promote(loop.database, loop.settings, loop.request, loop.key)


def test_a_candidate_that_nobody_trusted_signed_is_refused(loop: Loop) -> None:
    loop.set(trusted_keys=[loop.folder / "jane.pub"])
    loop.note("approved", "running")
    with pytest.raises(CandidateError, match="does not verify"):
        retrain.take(loop.database, loop.settings, loop.request, loop.folder / "two", key=loop.key)
    assert loop.state == "failed"


def test_a_retired_key_signs_nothing_new_and_what_it_signed_stays_good(loop: Loop) -> None:
    loop.note("approved")
    loop.set(keys=[], retired_keys=[loop.folder / "jane.pub"])
    assert loop.state == "approved"
    with pytest.raises(WatchError, match=r"none of retrain\.keys"):
        loop.note("declined")
    loop.set(retired_keys=[])
    with pytest.raises(WatchError, match="bears no signature"):
        assert loop.state


def test_a_person_may_have_another_key_under_the_same_name(loop: Loop) -> None:
    loop.note("approved")
    (loop.folder / "old").mkdir()
    (loop.folder / "jane.pub").rename(loop.folder / "old" / "jane.pub")
    key = ec.generate_private_key(ec.SECP256R1())
    (loop.folder / "jane.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    loop.set(retired_keys=[loop.folder / "old" / "jane.pub"])
    loop.key = key
    assert loop.note("declined").state == "declined"
    loop.set(retired_keys=[])
    with pytest.raises(WatchError, match="not as jane signed it"):
        assert loop.state


def test_another_system_has_its_time(loop: Loop) -> None:
    loop.set(webhook_url="http://127.0.0.1:9/train", webhook_key_file=loop.folder / "none", timeout_seconds=3600.0)
    loop.note("approved")
    now = datetime.now(UTC)
    note(loop.database, loop.settings, loop.request, "running", {"elsewhere": True}, key=loop.key, now=now)
    with pytest.raises(WatchError, match="another system was told and has until"):
        retrain.run(loop.database, loop.settings, loop.request, key=loop.key)
    assert loop.state == "running"
    loop.set(timeout_seconds=1e-6)
    with pytest.raises(CandidateError, match="cannot be read"):
        retrain.run(loop.database, loop.settings, loop.request, key=loop.key)
    events = read_request(loop.database, loop.settings, loop.request).events
    assert [event.event for event in events[-3:]] == ["failed", "running", "failed"]
    assert events[-3].body["because"] == "the other system did not answer in time"


def test_a_run_that_was_cut_off_is_one_that_failed(loop: Loop) -> None:
    loop.set(command=["true"])
    loop.note("approved")
    note(loop.database, loop.settings, loop.request, "running", {}, key=loop.key, now=NOW + timedelta(days=1))
    with pytest.raises(CandidateError, match="does not verify"):
        retrain.run(loop.database, loop.settings, loop.request, key=loop.key)
    events = read_request(loop.database, loop.settings, loop.request).events
    assert [event.event for event in events[-3:]] == ["failed", "running", "failed"]
    assert events[-3].body["because"] == "the run was cut off"


def test_validation_says_what_it_lacks(loop: Loop) -> None:
    with pytest.raises(WatchError, match="only a candidate can be validated"):
        retrain.validate(loop.database, loop.settings, loop.request, key=loop.key)
    loop.note("approved", "running")
    retrain.take(loop.database, loop.settings, loop.request, loop.folder / "two", key=loop.key)
    with pytest.raises(WatchError, match="no locked cases"):
        retrain.validate(loop.database, loop.settings, loop.request, key=loop.key)
    assert read_request(loop.database, loop.settings, loop.request).locked_set_uses == 0
    assert loop.state == "candidate"
