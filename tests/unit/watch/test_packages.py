"""Which model a package is, and which baseline holds for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from stepwatch.errors import WatchError
from stepwatch.packages import read_package, stamp
from stepwatch.settings import Model
from stepwedge.constancy.accepted import CONSTANCY
from watched import FINDINGS, MODEL, MONDAY, department, write_watched_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_watched_package(tmp_path / "package", department(3, start=MONDAY))
    return tmp_path / "package"


def test_a_package_is_known_by_name_version_and_the_digest_of_its_list(folder: Path) -> None:
    package = read_package(Model(package=folder))
    assert (package.name, package.version, package.findings) == (MODEL, "1.1.0", FINDINGS)
    assert len(package.digest) == 64
    assert package.baseline == folder / "baseline.parquet"


def test_a_reference_set_is_noticed(folder: Path) -> None:
    assert not read_package(Model(package=folder)).has_reference
    (folder / CONSTANCY).touch()
    assert read_package(Model(package=folder)).has_reference


def test_the_baseline_that_a_site_fitted_comes_before_the_package_s(folder: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({"fitted": {"baseline": {"file": "../site.baseline.parquet", "sha256": "0"}}}))
    assert read_package(Model(package=folder, policy=policy)).baseline == tmp_path / "site.baseline.parquet"
    policy.write_text("name: plain\n")
    assert read_package(Model(package=folder, policy=policy)).baseline == folder / "baseline.parquet"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("model.yaml", None, "cannot be read"),
        ("model.yaml", "a: [", "is no YAML"),
        ("model.yaml", "7", "wanted a mapping"),
        ("model.yaml", "name: m\nfindings: 7", "names no model with findings"),
        ("model.yaml", "findings: [{name: a}]", "names no model with findings"),
        ("SHA256SUMS", None, "is this a model package"),
    ],
)
def test_what_is_no_package_is_refused(folder: Path, file: str, text: str | None, said: str) -> None:
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(WatchError, match=said):
        read_package(Model(package=folder))


def test_another_package_in_the_place_of_one_is_noticed(folder: Path, tmp_path: Path) -> None:
    write_watched_package(tmp_path / "other", department(4, start=MONDAY), version="2.0.0")
    link = tmp_path / "live"
    link.symlink_to(folder)
    model = Model(package=link)
    before = stamp(model)
    assert stamp(model) == before
    link.unlink()
    assert stamp(model) != before
    link.symlink_to(tmp_path / "other")
    assert stamp(model) != before
