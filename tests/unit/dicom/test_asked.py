"""A quarantined object that is released goes through the ordinary intake, and one that is discarded is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog
from instances import encode, make_instance, received
from spooled import Spooled, open_spool
from stepwedge import actions
from stepwedge.actions import DISCARD, RELEASE, Action
from stepwedge.dicom import asked
from stepwedge.dicom.asked import serve
from stepwedge.dicom.encoded import Received
from stepwedge.errors import UnusableInstanceError
from stepwedge.schema import ACTIONS


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Spooled]:
    with open_spool(tmp_path, spool={"reserve_bytes": 0, "instance_versions": 1}) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "_LOOK_SECONDS", 0.01)


def refused(node: Spooled, item: Received) -> str:
    """Send what is refused; its digest."""
    before = {each.digest for each in node.store.quarantined()}
    with pytest.raises(UnusableInstanceError) as caught:
        node.spool.store(item)
    node.spool.quarantine.keep(item, caught.value)
    (digest,) = {each.digest for each in node.store.quarantined()} - before
    return digest


def twice(node: Spooled) -> tuple[Received, str]:
    """An instance whose second content is refused; that, and its digest."""
    dataset = make_instance(seed=1)
    node.spool.store(received(dataset))
    dataset.PixelData = bytes(len(dataset.PixelData))
    return received(dataset), refused(node, received(dataset))


def ask(node: Spooled, action: str, digest: str) -> Action:
    """Ask, let the node do it, and give how it ended."""
    number = actions.ask(node.store, action, digest, who="ann")
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(node.spool, node.store, stop))
    thread.start()
    while (said := actions.find(node.store, number)) is not None and said.state in ("asked", "taken"):
        stop.wait(0.01)
    stop.set()
    thread.join()
    assert said is not None
    return said


def test_what_has_not_changed_is_refused_again_and_says_why(node: Spooled) -> None:
    _, digest = twice(node)
    said = ask(node, RELEASE, digest)
    assert (said.state, said.said) == ("refused", "too_many_versions")
    assert [each.digest for each in node.store.quarantined()] == [digest]
    assert node.spool.quarantine.folder.joinpath(f"{digest}.dcm").is_file()


def test_once_the_setting_is_mended_the_object_is_stored_as_it_came(node: Spooled, tmp_path: Path) -> None:
    item, digest = twice(node)
    with open_spool(tmp_path, spool={"reserve_bytes": 0, "instance_versions": 5}) as mended:
        said = ask(mended, RELEASE, digest)
        assert said.state == "done"
        (instance,) = mended.store.instances(said.study)
        assert (instance.digest, instance.sender) == (digest, "MODALITY")
        assert (tmp_path / instance.path).read_bytes().endswith(item.data)
        assert mended.store.quarantined() == []
        assert list(mended.spool.quarantine.folder.iterdir()) == []


@pytest.mark.parametrize("forgotten", [True, False], ids=["forgotten", "still in the index"])
def test_a_release_that_was_cut_off_after_the_object_was_taken_in_counts_as_done(
    node: Spooled, tmp_path: Path, forgotten: bool
) -> None:
    _, digest = twice(node)
    (entry,) = node.store.quarantined()
    with open_spool(tmp_path, spool={"reserve_bytes": 0, "instance_versions": 5}) as mended:
        actions.ask(mended.store, RELEASE, digest, who="ann")
        assert actions.take(mended.store) is not None
        study = mended.spool.quarantine.release(digest, mended.spool.store).study
        if not forgotten:
            mended.store.quarantine(entry)
        with mended.store.engine.begin() as db:
            db.execute(sa.update(ACTIONS).values(ended_at=time.time() - 120))
        said = ask(mended, RELEASE, digest)
        assert (said.state, said.said) == ("done", "finished by an attempt that was cut off")
        assert digest in {each.digest for each in mended.store.instances(study)}
        assert mended.store.quarantined() == []


def test_what_is_no_dicom_stays_where_it_is(node: Spooled) -> None:
    digest = refused(node, received(make_instance(), data=b"rubbish"))
    assert ask(node, RELEASE, digest).said == "not_dicom"


def test_what_is_larger_than_is_received_now_is_not_let_in(node: Spooled, tmp_path: Path) -> None:
    digest = refused(node, received(make_instance(), data=b"x" * (1_048_576 + 1)))
    with open_spool(tmp_path, node={"maximum_instance_bytes": 1_048_576}) as smaller:
        assert "node.maximum_instance_bytes" in ask(smaller, RELEASE, digest).said


def test_an_error_of_ours_is_said_and_the_next_is_done(node: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    _, digest = twice(node)

    def broken(*_: object) -> None:
        raise KeyError("PatientName")

    with monkeypatch.context() as change, structlog.testing.capture_logs() as logs:
        change.setattr(node.spool.quarantine, "release", broken)
        said = ask(node, RELEASE, digest)
    assert (said.state, "an error of ours" in said.said) == ("refused", True)
    (told,) = [entry for entry in logs if entry["event"] == "request_failed"]
    assert (told["error"], told["where"].partition(":")[0]) == ("KeyError", "test_asked")
    assert "PatientName" not in str(logs)
    assert ask(node, DISCARD, digest).state == "done"


def test_what_is_discarded_is_gone_and_stays_gone(node: Spooled, tmp_path: Path) -> None:
    _, digest = twice(node)
    assert ask(node, DISCARD, digest).state == "done"
    assert node.store.quarantined() == []
    with open_spool(tmp_path) as again:
        again.spool.reconcile()
        assert again.store.quarantined() == []


def test_a_file_that_was_changed_in_quarantine_is_not_let_in(node: Spooled) -> None:
    dataset = make_instance()
    _, digest = twice(node)
    file = node.spool.quarantine.folder / f"{digest}.dcm"
    file.write_bytes(file.read_bytes()[: -len(encode(dataset))] + encode(dataset))
    assert "no longer what was received" in ask(node, RELEASE, digest).said


@pytest.mark.parametrize("digest", ["0" * 64, "../../keys/site.json", "bad_uid:not-kept"])
def test_what_is_not_kept_is_said_and_no_other_file_is_touched(node: Spooled, digest: str, tmp_path: Path) -> None:
    said = ask(node, RELEASE, digest)
    assert said.state == "refused"
    assert ask(node, DISCARD, digest).state == "done"
    assert (tmp_path / "keys" / "site.json").is_file()
