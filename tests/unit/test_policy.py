"""A site policy belongs to one model, states costs and prevalence, and is named by the digest of its file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packages import write_package, write_policy
from stepwedge.errors import PolicyError
from stepwedge.manifest import Manifest, load_package
from stepwedge.policy import load_policy
from stepwedge.records import Costs


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_package(write_package(tmp_path_factory.mktemp("package") / "tiny")).manifest


def write(tmp_path: Path, **changes: Any) -> Path:
    """The policy with some of its keys replaced, or left out where the change is None."""
    file = write_policy(tmp_path / "policy.yaml")
    values = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return file


def refused(file: Path, manifest: Manifest) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(file, manifest)
    return str(caught.value)


def test_it_gives_the_costs_and_the_prevalence_of_its_findings(tmp_path: Path, manifest: Manifest) -> None:
    policy = load_policy(write_policy(tmp_path / "policy.yaml", prevalence=0.2), manifest)
    finding = policy.finding("ill")
    assert finding is not None
    assert finding.costs == Costs(miss=10, false_alarm=1, deferral=0.3)
    assert finding.prevalence == 0.2


def test_a_finding_without_costs_is_none_of_its_business(tmp_path: Path, manifest: Manifest) -> None:
    assert load_policy(write_policy(tmp_path / "policy.yaml"), manifest).finding("tired") is None


def test_its_digest_is_the_sha256_of_the_file(tmp_path: Path, manifest: Manifest) -> None:
    file = write_policy(tmp_path / "policy.yaml")
    policy = load_policy(file, manifest)
    assert policy.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert policy.reference.digest == policy.digest


def test_a_comment_makes_another_policy(tmp_path: Path, manifest: Manifest) -> None:
    file = write_policy(tmp_path / "policy.yaml")
    before = load_policy(file, manifest).digest
    file.write_text(file.read_text() + "# approved by nobody\n")
    assert load_policy(file, manifest).digest != before


def test_nobody_can_approve_one_yet_so_that_each_is_a_demonstration(tmp_path: Path, manifest: Manifest) -> None:
    assert load_policy(write_policy(tmp_path / "policy.yaml"), manifest).reference.demonstration
    assert "demonstration" in refused(write(tmp_path, demonstration=False), manifest)


def test_a_policy_for_another_model_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    file = write_policy(tmp_path / "policy.yaml", model="large")
    assert refused(file, manifest) == f"{file}: this policy is for the model large, not for tiny"


def test_a_finding_that_the_model_does_not_have_is_refused_by_name(tmp_path: Path, manifest: Manifest) -> None:
    file = write_policy(tmp_path / "policy.yaml", finding="tired")
    assert refused(file, manifest) == f"{file}: findings tired are not findings of tiny"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": None}, "schema"),
        ({"name": None}, "name"),
        ({"version": None}, "version"),
        ({"version": 1}, "version"),
        ({"model": None}, "model"),
        ({"findings": None}, "findings"),
        ({"findings": {}}, "findings"),
        ({"threshold": 0.5}, "threshold"),
    ],
)
def test_each_wrong_field_is_named(tmp_path: Path, manifest: Manifest, changes: dict[str, Any], field: str) -> None:
    file = write(tmp_path, **changes)
    assert f"{file}: {field}" in refused(file, manifest)


@pytest.mark.parametrize("field", ["miss", "false_alarm", "deferral", "prevalence"])
@pytest.mark.parametrize("value", [0, -1, None, "much", float("nan"), float("inf")])
def test_costs_are_positive_finite_numbers_and_so_is_the_prevalence(
    tmp_path: Path, manifest: Manifest, field: str, value: Any
) -> None:
    costs = {"miss": 10, "false_alarm": 1, "deferral": 0.3, "prevalence": 0.5} | {field: value}
    assert f"findings.ill.{field}" in refused(write(tmp_path, findings={"ill": costs}), manifest)


def test_a_prevalence_of_all_is_none(tmp_path: Path, manifest: Manifest) -> None:
    costs = {"miss": 10, "false_alarm": 1, "deferral": 0.3, "prevalence": 1}
    assert "findings.ill.prevalence" in refused(write(tmp_path, findings={"ill": costs}), manifest)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, manifest: Manifest) -> None:
    file = tmp_path / "nowhere.yaml"
    assert refused(file, manifest) == f"{file}: the site policy cannot be read: No such file or directory"


@pytest.mark.parametrize("content", [b"", b"words", b"- a\n- list", b"a: [", b"\x00\x01", b"\xff\xfe\xd8\x00"])
def test_what_is_no_mapping_is_refused_and_the_file_named(tmp_path: Path, manifest: Manifest, content: bytes) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(content)
    assert refused(file, manifest).startswith(f"{file}: ")
