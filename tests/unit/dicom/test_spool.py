"""Acknowledged means durable, and the index can be made again from the files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from instances import CT, encode, make_instance, received
from packages import write_package
from pydicom.uid import generate_uid
from spooled import Spooled, open_spool
from sqlalchemy.exc import OperationalError
from stepwedge.dicom.encoded import split_file
from stepwedge.dicom.spool import Stored
from stepwedge.errors import SpoolFullError, UnusableInstanceError
from stepwedge.manifest import Package, load_package
from stepwedge.store import Store, StoredInstance

TESTS = str(Path(__file__).parents[2])
SECRETS = ("Secret", "PID-SECRET", "ACC-SECRET")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return load_package(write_package(tmp_path_factory.mktemp("package")))


@pytest.fixture
def node(tmp_path: Path, package: Package) -> Iterator[Spooled]:
    with open_spool(tmp_path, [package]) as opened:
        yield opened


def refusal(node: Spooled, dataset: pydicom.Dataset, **changes: object) -> UnusableInstanceError:
    item = replace(received(dataset), **changes)
    with pytest.raises(UnusableInstanceError) as caught:
        node.spool.store(item)
    node.spool.quarantine.keep(item, caught.value)
    return caught.value


# Storing


def test_an_instance_becomes_a_dicom_file_with_its_data_set_unchanged_and_where_it_came_from(node: Spooled) -> None:
    dataset = make_instance()
    stored = node.spool.store(received(dataset))
    (file,) = node.files()
    assert file.read_bytes().endswith(encode(dataset))
    read = pydicom.dcmread(file)
    assert read == dataset
    assert read.file_meta.SendingApplicationEntityTitle == "MODALITY"
    assert read.file_meta.ReceivingApplicationEntityTitle == "STEPWEDGE"
    (row,) = node.store.instances(stored.study)
    assert node.settings.data_dir / row.path == file
    assert (row.sop_uid, row.study_uid, row.modality) == (dataset.SOPInstanceUID, dataset.StudyInstanceUID, "DX")
    assert row.received_at == pytest.approx(file.stat().st_mtime, abs=1e-3)
    assert stored == Stored(study=row.study, instance=row.instance, new=True)
    assert file.stat().st_mode & 0o077 == 0 or file.parent.stat().st_mode & 0o077 == 0


def test_a_file_and_its_new_folders_are_synced_before_the_index_hears_of_it(
    node: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename, index = os.fsync, Path.rename, node.store.add_instance

    def note_sync(descriptor: int) -> None:
        steps.append(f"sync {_kind(Path(f'/proc/self/fd/{descriptor}').readlink(), node)}")
        sync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    def note_index(instance: StoredInstance) -> bool:
        steps.append("index")
        return index(instance)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(node.store, "add_instance", note_index)
    node.spool.store(received(make_instance()))
    assert steps == [
        "sync incoming file",
        "sync parent of study",
        "sync studies",
        "rename",
        "sync study",
        "index",
    ]


def _kind(path: Path, node: Spooled) -> str:
    if path.parent.name == "incoming":
        return "incoming file"
    depth = len(path.relative_to(node.spool.root).parts)
    return {1: "studies", 2: "parent of study", 3: "study"}[depth]


def test_the_same_instance_again_is_a_success_without_effect(node: Spooled) -> None:
    dataset = make_instance()
    node.spool.store(received(dataset))
    (before,) = ((file, file.stat().st_mtime_ns) for file in node.files())
    assert not node.spool.store(received(dataset)).new
    assert [(file, file.stat().st_mtime_ns) for file in node.files()] == [before]


def test_another_content_is_kept_beside_and_the_one_that_came_last_counts(node: Spooled) -> None:
    dataset = make_instance()
    first = node.spool.store(received(dataset))
    dataset.StudyDescription = "corrected"
    node.spool.store(received(dataset))
    assert len(node.files()) == 2
    (row,) = node.store.instances(first.study)
    assert pydicom.dcmread(node.settings.data_dir / row.path).StudyDescription == "corrected"


def test_contents_of_one_instance_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    with open_spool(tmp_path, spool={"reserve_bytes": 0, "instance_versions": 3}) as node:
        dataset = make_instance()
        for number in range(3):
            dataset.StudyDescription = str(number)
            node.spool.store(received(dataset))
        dataset.StudyDescription = "one too many"
        error = refusal(node, dataset)
        assert (error.code, error.status) == ("too_many_versions", 0xC000)
        assert len(node.files()) == 3
        dataset.StudyDescription = "1"
        assert not node.spool.store(received(dataset)).new


def test_one_sop_instance_uid_in_two_series_is_two_instances(node: Spooled) -> None:
    study, sop = generate_uid(), generate_uid()
    one, two = (make_instance(study=study, sop=sop, seed=seed) for seed in (1, 2))
    stored = node.spool.store(received(one))
    node.spool.store(received(two))
    assert len(node.store.instances(stored.study)) == 2


def test_uids_with_path_characters_reach_no_path(node: Spooled) -> None:
    dataset = make_instance()
    evil = encode(dataset).replace(
        dataset.StudyInstanceUID.encode(), b"../" * 20 + b"x" * (len(dataset.StudyInstanceUID) - 60)
    )
    error = refusal(node, dataset, data=evil)
    assert (error.code, error.status) == ("bad_uid", 0xC000)
    assert node.files() == []
    assert {path.name for path in node.settings.data_dir.iterdir()} == {"spool", "db", "keys"}


def test_an_object_that_is_not_what_the_command_says_is_refused(node: Spooled) -> None:
    assert refusal(node, make_instance(), sop_uid="1.2.3").status == 0xA900
    assert refusal(node, make_instance(), sop_class_uid=CT).code == "identity_mismatch"
    assert node.files() == []


def test_many_threads_store_one_study_and_nothing_is_lost(node: Spooled) -> None:
    study = generate_uid()
    items = [received(make_instance(study=study, seed=seed)) for seed in range(24)]
    threads = [
        threading.Thread(target=lambda part: [node.spool.store(i) for i in part], args=(items[k::4],)) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(node.files()) == 24
    assert len(node.store.instances(node.site.hash(study))) == 24


# What a model selects


def test_only_images_that_a_model_selects_are_routed_and_never_documents_or_our_own_results(node: Spooled) -> None:
    cases = {
        "wanted": (make_instance(), True),
        "other modality": (make_instance(modality="CT", sop_class=CT), False),
        "without pixel data": (make_instance(pixels=False), False),
        "report": (make_instance(modality="SR"), False),
        "key objects": (make_instance(modality="KO"), False),
        "presentation state": (make_instance(modality="PR"), False),
    }
    own = make_instance()
    own.Manufacturer = "Stepwedge"
    cases["our own"] = (own, False)
    for name, (dataset, routed) in cases.items():
        stored = node.spool.store(received(dataset))
        (row,) = node.store.instances(stored.study)
        assert row.routed is routed, name


def test_a_header_that_cannot_be_read_as_ours_is_analysed_like_any_other(
    node: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("header")

    monkeypatch.setattr(pydicom, "dcmread", fail)
    stored = node.spool.store(received(make_instance()))
    assert node.store.instances(stored.study)[0].routed


# Full and failing volumes


def test_below_the_reserve_nothing_is_taken_and_nothing_is_left(tmp_path: Path) -> None:
    with open_spool(tmp_path, spool={"reserve_bytes": 10**15}) as node:
        with pytest.raises(SpoolFullError, match="reserve_bytes"):
            node.spool.store(received(make_instance()))
        assert node.files("**/*.*") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_volume_that_fills_up_while_writing_leaves_no_half_file(
    node: Spooled, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, "full")

    dataset = make_instance()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(SpoolFullError):
            node.spool.store(received(dataset))
    assert node.files("**/*.dcm") == []
    assert node.files("incoming/*") == []
    assert node.spool.store(received(dataset)).new


def test_an_index_that_fails_is_a_failure_to_the_sender_and_still_loses_nothing(
    node: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: StoredInstance) -> bool:
        raise OperationalError("insert", {}, Exception("database is locked"))

    dataset = make_instance()
    with monkeypatch.context() as broken:
        broken.setattr(node.store, "add_instance", locked)
        with pytest.raises(OperationalError):
            node.spool.store(received(dataset))
    assert len(node.files()) == 1
    assert node.store.open_studies() == []
    node.spool.index_pending()
    assert [study.study_uid for study in node.store.open_studies()] == [dataset.StudyInstanceUID]
    assert not node.spool.store(received(dataset)).new


def test_a_resend_mends_what_the_index_lacks(node: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_instance()
    stored = node.spool.store(received(dataset))
    with open_spool(node.settings.data_dir / "elsewhere") as empty:
        monkeypatch.setattr(node.spool, "_store", empty.store)
        node.spool.store(received(dataset))
        assert len(empty.store.instances(stored.study)) == 1
    assert len(node.files()) == 1


# Made again from files


def test_the_index_is_made_again_from_the_files_alone(tmp_path: Path, package: Package) -> None:
    with open_spool(tmp_path, [package]) as node:
        study = generate_uid()
        for seed in range(5):
            dataset = make_instance(study=study, seed=seed)
            node.spool.store(received(dataset))
            dataset.StudyDescription = "again"
            stored = node.spool.store(received(dataset))
        refusal(node, make_instance(), sop_uid="1.2")
        before, quarantined = node.store.instances(stored.study), node.store.quarantined()
    for file in (tmp_path / "db").iterdir():
        file.unlink()
    with open_spool(tmp_path, [package]) as node:
        assert node.spool.reconcile() == 10
        after = node.store.instances(stored.study)
        assert [replace(row, received_at=0) for row in after] == [replace(row, received_at=0) for row in before]
        assert [row.received_at for row in after] == pytest.approx([row.received_at for row in before], abs=1e-6)
        assert node.store.quarantined() == quarantined
        assert node.spool.reconcile() == 0


def test_a_damaged_file_is_left_alone_and_the_others_are_indexed(tmp_path: Path) -> None:
    with open_spool(tmp_path) as node:
        for seed in range(3):
            node.spool.store(received(make_instance(seed=seed)))
        damaged, empty, _ = node.files()
        damaged.write_bytes(damaged.read_bytes()[:-10])
        empty.write_bytes(b"")
        with open_spool(tmp_path / "new") as fresh:
            os.rename(node.spool.root / "studies", fresh.spool.root / "studies2")  # noqa: PTH104
            fresh.spool.root.joinpath("studies").rmdir()
            fresh.spool.root.joinpath("studies2").rename(fresh.spool.root / "studies")
            assert fresh.spool.reconcile() == 1
            assert len(fresh.files()) == 3


def test_a_start_drops_what_was_half_written_long_ago_and_not_what_another_node_is_writing(tmp_path: Path) -> None:
    with open_spool(tmp_path) as node:
        old, new = (node.spool.root / "incoming" / name for name in ("old", "new"))
        for file in (old, new):
            file.write_bytes(b"half")
        two_hours_ago = time.time() - 7200
        os.utime(old, (two_hours_ago, two_hours_ago))
    with open_spool(tmp_path) as node:
        assert node.files("incoming/*") == [new]
        assert node.spool.reconcile() == 0


# A node of several, each in a container of its own, where every one is process 1 (which is what stands in here).
CONTAINED = """
import os, sys, time
from pathlib import Path

os.getpid = lambda: 1
fsync = os.fsync
os.fsync = lambda file: (time.sleep(0.05), fsync(file))  # a slow volume
from instances import make_instance, received
from spooled import open_spool

with open_spool(Path(sys.argv[1])) as node:
    print("ready", flush=True)
    sys.stdin.readline()
    for seed in range(10):
        dataset = make_instance(seed=int(sys.argv[2]) * 1000 + seed)
        dataset.PixelData = bytes([int(sys.argv[2])]) * 100_000
        assert node.spool.store(received(dataset)).new
"""


def test_nodes_whose_processes_have_the_same_number_do_not_touch_each_others_files(tmp_path: Path) -> None:
    with open_spool(tmp_path) as node, ExitStack() as stack:
        nodes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CONTAINED, str(tmp_path), str(number)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": TESTS},
                )
            )
            for number in range(1, 4)
        ]  # fmt: skip
        for each in nodes:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in nodes:
            assert each.stdin is not None
            each.stdin.close()  # go
        for each in nodes:
            each.wait()
        assert [each.returncode for each in nodes] == [0, 0, 0]
        assert len(node.files()) == 30
        assert node.files("incoming/*") == []
        for file in node.files():
            pixels = pydicom.dcmread(file).PixelData
            assert len(set(pixels)) == 1
            assert hashlib.sha256(split_file(file.read_bytes())[2]).hexdigest()[:16] == file.name.split(".")[1]
        assert node.spool.reconcile() == 0


# Quarantine


def test_what_is_refused_is_kept_once_with_its_reason_and_without_identifiers(node: Spooled) -> None:
    item = received(make_instance(), sop="1.2.3")
    for _ in range(3):
        with pytest.raises(UnusableInstanceError) as caught:
            node.spool.store(item)
        node.spool.quarantine.keep(item, caught.value)
    (file,) = node.files("quarantine/*.dcm")
    assert file.read_bytes().endswith(item.data)
    text = file.with_suffix(".json").read_text()
    assert json.loads(text)["reason"] == "identity_mismatch"
    assert not [secret for secret in SECRETS if secret in text]
    (row,) = node.store.quarantined()
    assert (row.count, row.reason, row.sender) == (3, "identity_mismatch", "MODALITY")
    assert row.path == str(file.relative_to(node.settings.data_dir))


@pytest.mark.parametrize("cap", [{"quarantine_files": 5}, {"quarantine_bytes": 5 * 1000}])
def test_ever_different_rubbish_fills_neither_disk_nor_index(tmp_path: Path, cap: dict[str, int]) -> None:
    error = UnusableInstanceError("not_dicom", "rubbish")
    with open_spool(tmp_path, spool={"reserve_bytes": 0} | cap) as node:
        for number in range(40):
            node.spool.quarantine.keep(received(make_instance(), data=bytes([number]) * 900), error)
        kept = len(node.files("quarantine/*.dcm"))
        assert 0 < kept <= 5
        assert len(node.store.quarantined()) == kept + 1
        assert sum(item.count for item in node.store.quarantined()) == 40
    with open_spool(tmp_path, spool={"reserve_bytes": 0} | cap) as node:
        node.spool.quarantine.keep(received(make_instance(), data=b"new" * 300), error)
        assert len(node.files("quarantine/*.dcm")) == kept, "the caps hold over a restart"


def test_what_another_listener_discards_makes_room_and_what_it_keeps_takes_it(tmp_path: Path) -> None:
    error = UnusableInstanceError("not_dicom", "rubbish")
    spool = {"reserve_bytes": 0, "quarantine_files": 2}

    def keep(node: Spooled, text: bytes) -> bool:
        node.spool.quarantine.keep(received(make_instance(), data=text), error)
        return (node.spool.quarantine.folder / f"{hashlib.sha256(text).hexdigest()}.dcm").exists()

    with open_spool(tmp_path, spool=spool) as one, open_spool(tmp_path, spool=spool) as other:
        assert [keep(one, b"a"), keep(other, b"b"), keep(one, b"c"), keep(other, b"d")] == [True, True, False, False]
        other.spool.quarantine.discard(hashlib.sha256(b"a").hexdigest())
        assert [keep(one, b"e"), keep(other, b"f")] == [True, False]


def test_a_full_disk_keeps_no_rubbish_and_says_so_by_counting(tmp_path: Path) -> None:
    with open_spool(tmp_path, spool={"reserve_bytes": 10**15}) as node:
        node.spool.quarantine.keep(received(make_instance(), data=b"x"), UnusableInstanceError("not_dicom", "rubbish"))
        assert node.files("quarantine/*") == []
        assert [(item.reason, item.path) for item in node.store.quarantined()] == [("not_dicom", None)]


def test_the_store_reopens_with_what_the_spool_indexed(node: Spooled) -> None:
    stored = node.spool.store(received(make_instance()))
    again = Store.open_file(node.settings.database_file)
    assert len(again.instances(stored.study)) == 1
    again.close()
