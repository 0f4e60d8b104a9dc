"""A role starts with packages and policies that the site's settings trust, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml
from packages import write_package, write_policy
from stepwedge import roles
from stepwedge.errors import PackageError, PolicyError, SettingsError
from stepwedge.manifest import load_package
from stepwedge.package.site import approve
from stepwedge.roles import load_models
from stepwedge.settings import Model, Settings, Trust
from stepwedge.signing import ensure_key, sign_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A signed package, a policy that a doctor approved for clinical use, and their keys."""
    for name in ("vendor", "doctor", "stranger"):
        ensure_key(tmp_path / f"{name}.pem")
    sign_folder(write_package(tmp_path / "tiny", manifest={"demonstration_only": False}), tmp_path / "vendor.pem")
    file = write_policy(tmp_path / "policy.yaml")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"clinical": True}))
    approve(file, load_package(tmp_path / "tiny"), tmp_path / "doctor.pem", by="Dr Jane Doe")
    return tmp_path


def settings(folder: Path, *keys: str) -> Settings:
    return Settings(
        models=[Model(package=folder / "tiny", policy=folder / "policy.yaml")],
        trust=Trust(keys=[folder / f"{key}.pub" for key in keys]),
    )


def test_with_the_keys_of_both_it_answers_for_clinical_use(folder: Path) -> None:
    ((_, policy),) = load_models(settings(folder, "vendor", "doctor"))
    assert not policy.reference.demonstration


def test_without_any_keys_it_answers_as_a_demonstration(folder: Path) -> None:
    ((package, policy),) = load_models(settings(folder))
    assert policy.reference.demonstration
    assert package.signer


def test_a_package_by_another_is_refused(folder: Path) -> None:
    with pytest.raises(PackageError, match=r"not among trust\.keys"):
        load_models(settings(folder, "doctor", "stranger"))


def test_an_approval_by_another_is_refused(folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"not among trust\.keys"):
        load_models(settings(folder, "vendor", "stranger"))


def test_a_key_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"trust\.keys: .*nobody\.pub cannot be read"):
        load_models(settings(folder, "vendor", "nobody"))


def test_nothing_to_run_is_an_error(folder: Path) -> None:
    with pytest.raises(SettingsError, match="there is nothing to run"):
        load_models(Settings())


def test_a_look_for_lost_work_that_meets_a_volume_that_is_away_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = threading.Event()

    class Queue:
        looks = 0

        def reconcile(self) -> int:
            self.looks += 1
            if self.looks == 1:
                raise OSError("the volume is away")
            stop.set()
            return 0

        def delete_finished(self) -> int:
            return 0

    queue = Queue()
    monkeypatch.setattr(roles, "_RECONCILE_SECONDS", 0.0)
    roles._look_after(queue, stop)
    assert queue.looks == 2
