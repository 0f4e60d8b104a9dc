"""A policy is started with what the package knows, approved in a log that only grows, and shown as it is."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from packages import seal, write_package, write_policy
from stepwedge.cli import main
from stepwedge.errors import PolicyError, StepwedgeError
from stepwedge.manifest import Calibration, FindingCalibration, Package, load_package, write_calibration
from stepwedge.package import site
from stepwedge.policy import approvals_file, load_policy, read_approvals
from stepwedge.signing import ensure_key, sign_folder

NOON = datetime(2026, 11, 24, 12, 30, 45, 678, tzinfo=UTC)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return load_package(write_package(tmp_path / "tiny"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return ensure_key(tmp_path / "keys" / "doctor.pem")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "site" / "policy.yaml")


def inconclusive(folder: Path, prevalence: float = 0.5) -> Package:
    fitted = FindingCalibration(
        method="none", prevalence=prevalence, positives=3, negatives=100, inconclusive="3 images\nwith the finding"
    )
    write_calibration(folder, Calibration(findings={"ill": fitted}))
    seal(folder)
    return load_package(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestADraft:
    def test_it_is_a_policy_for_the_package_as_it_is(self, tmp_path: Path, package: Package) -> None:
        site.write_draft(package, tmp_path / "policy.yaml")
        policy = load_policy(tmp_path / "policy.yaml", package)
        assert policy.finding("ill") is not None
        assert policy.reference.demonstration

    def test_each_number_says_that_it_is_to_be_edited(self, package: Package) -> None:
        lines = site.draft_policy(package).splitlines()
        numbers = [line for line in lines if line.startswith("    ")]
        assert len(numbers) == 4
        assert all("# EDIT" in line for line in numbers)

    @pytest.mark.parametrize("prevalence", [1e-9, 0.00003, 0.25, 1 - 1e-9])
    def test_whatever_the_prevalence_of_the_data_it_is_valid(
        self, tmp_path: Path, package: Package, prevalence: float
    ) -> None:
        fitted = FindingCalibration(method="none", prevalence=prevalence, positives=100, negatives=100)
        write_calibration(package.path, Calibration(findings={"ill": fitted}))
        seal(package.path)
        changed = load_package(package.path)
        site.write_draft(changed, tmp_path / "policy.yaml")
        load_policy(tmp_path / "policy.yaml", changed)

    def test_a_package_that_can_decide_on_nothing_gets_none(self, tmp_path: Path, package: Package) -> None:
        with pytest.raises(PolicyError, match="too little evidence to decide on any"):
            site.write_draft(inconclusive(package.path), tmp_path / "policy.yaml")
        assert not (tmp_path / "policy.yaml").exists()

    def test_a_finding_that_is_never_decided_is_a_comment(self, tmp_path: Path) -> None:
        spec = {"code": {"value": "39104002", "scheme": "SCT", "meaning": "Illness"}, "positive": ["ill"]}
        findings = [{"name": "ill", **spec}, {"name": "rare", **spec}]
        folder = write_package(tmp_path / "two", manifest={"findings": findings})
        good = FindingCalibration(method="none", prevalence=0.5, positives=100, negatives=100)
        bad = good.model_copy(update={"inconclusive": "only 3 images\nhave it"})
        write_calibration(folder, Calibration(findings={"ill": good, "rare": bad}))
        seal(folder)
        package = load_package(folder)
        text = site.draft_policy(package)
        assert "# rare is never decided: only 3 images have it" in text
        assert set(yaml.safe_load(text)["findings"]) == {"ill"}

    def test_nothing_is_overwritten(self, file: Path, package: Package) -> None:
        before = contents(file.parent)
        with pytest.raises(PolicyError, match="is there already"):
            site.write_draft(package, file)
        assert contents(file.parent) == before

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path, package: Package) -> None:
        with pytest.raises(PolicyError, match=r"nowhere/policy\.yaml: cannot be written"):
            site.write_draft(package, tmp_path / "nowhere" / "policy.yaml")


class TestAnApproval:
    def test_it_says_who_approved_what_for_what_when_and_why(self, file: Path, package: Package, key: Path) -> None:
        site.approve(file, package, key, by="Dr Zoë Ünal", note="after the trial of 2026", now=NOON)
        (line,) = read_approvals(file)
        assert (line.action, line.by, line.note) == ("approve", "Dr Zoë Ünal", "after the trial of 2026")
        assert line.time == NOON.replace(microsecond=0)
        assert line.policy.digest == hashlib.sha256(file.read_bytes()).hexdigest()
        assert (line.package.name, line.package.version) == ("tiny", "1.0.0")
        assert line.package.digest == package.digest

    def test_each_line_follows_from_the_bytes_of_the_one_before(self, file: Path, package: Package, key: Path) -> None:
        site.approve(file, package, key, by="A")
        before = approvals_file(file).read_bytes()
        site.revoke(file, key, by="B")
        after = approvals_file(file).read_bytes()
        assert after.startswith(before)
        last = json.loads(after.splitlines()[-1])
        assert last["previous"] == hashlib.sha256(before.rstrip(b"\n")).hexdigest()
        assert last["action"] == "revoke"

    def test_those_who_approve_at_once_all_stand_in_the_log(self, file: Path, package: Package, key: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: site.approve(file, package, key, by=f"Dr {number}"), range(16)))
        assert {line.by for line in read_approvals(file)} == {f"Dr {number}" for number in range(16)}

    @pytest.mark.parametrize("by", ["", "  ", "two\nlines", "a" * 129, "\ud800", "\x1b[31m"])
    def test_a_name_that_is_none_is_refused(self, file: Path, package: Package, key: Path, by: str) -> None:
        with pytest.raises(PolicyError, match="name of an approval"):
            site.approve(file, package, key, by=by)
        assert not approvals_file(file).exists()

    def test_with_a_bad_key_nothing_is_logged(self, file: Path, package: Package, tmp_path: Path) -> None:
        with pytest.raises(StepwedgeError, match="no such key"):
            site.approve(file, package, tmp_path / "nowhere.pem", by="Dr Jane Doe")
        assert not approvals_file(file).exists()

    def test_a_wrong_policy_is_not_approved(self, file: Path, package: Package, key: Path) -> None:
        file.write_text(file.read_text() + "threshold: 0.5\n")
        with pytest.raises(PolicyError, match="thresholds are computed"):
            site.approve(file, package, key, by="Dr Jane Doe")
        assert not approvals_file(file).exists()

    def test_a_policy_for_another_model_is_not_approved(self, tmp_path: Path, package: Package, key: Path) -> None:
        file = write_policy(tmp_path / "policy.yaml", model="large")
        with pytest.raises(PolicyError, match="for the model large, not for tiny"):
            site.approve(file, package, key, by="Dr Jane Doe")

    def test_a_log_that_is_not_whole_is_not_added_to(self, file: Path, package: Package, key: Path) -> None:
        site.approve(file, package, key, by="Dr Jane Doe")
        log = approvals_file(file)
        log.write_text(log.read_text().replace("Jane", "Jade"))
        before = log.read_bytes()
        for action in (
            lambda: site.approve(file, package, key, by="Dr Jane Doe"),
            lambda: site.revoke(file, key, by="Dr Jane Doe"),
        ):
            with pytest.raises(PolicyError, match="the approvals do not count"):
                action()
        assert log.read_bytes() == before

    def test_what_is_not_approved_cannot_be_revoked(self, file: Path, package: Package, key: Path) -> None:
        with pytest.raises(PolicyError, match="no approval to revoke"):
            site.revoke(file, key, by="Dr Jane Doe")
        site.approve(file, package, key, by="Dr Jane Doe")
        site.revoke(file, key, by="Dr Jane Doe")
        with pytest.raises(PolicyError, match="no approval to revoke"):
            site.revoke(file, key, by="Dr Jane Doe")

    def test_a_line_that_does_not_fit_on_the_disk_leaves_the_log_as_it_was(
        self, file: Path, package: Package, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.approve(file, package, key, by="Dr Jane Doe")
        before = approvals_file(file).read_bytes()
        write = os.write
        monkeypatch.setattr(site.os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        with pytest.raises(PolicyError, match="the approvals cannot be written"):
            site.approve(file, package, key, by="Dr Jane Doe")
        assert approvals_file(file).read_bytes() == before


class TestShown:
    def test_it_computes_the_thresholds_from_the_costs(self, file: Path, package: Package) -> None:
        finding = site.show(file, package)["findings"]["ill"]
        assert finding["clear_below"] == pytest.approx(0.03)
        assert finding["act_from"] == pytest.approx(0.7)
        assert finding["deferral"] == finding["deferral_stated"] == 0.3

    def test_a_finding_that_is_never_decided_has_none(self, file: Path, package: Package) -> None:
        finding = site.show(file, inconclusive(package.path))["findings"]["ill"]
        assert finding["clear_below"] is None
        assert finding["act_from"] is None
        assert finding["inconclusive"].startswith("3 images")

    def test_it_follows_the_approvals(self, file: Path, package: Package, key: Path) -> None:
        assert site.show(file)["approval"] == "not approved"
        site.approve(file, package, key, by="Dr Jane Doe", now=NOON)
        assert site.show(file, package)["approval"] == "approved by Dr Jane Doe on 2026-11-24"
        file.write_text(file.read_text() + "# changed\n")
        shown = site.show(file, package)
        assert shown["approval"] == "changed since Dr Jane Doe approved it on 2026-11-24"
        assert len(shown["problems"]) == 1
        site.revoke(file, key, by="Dr John Roe", now=NOON)
        assert site.show(file)["approval"] == "revoked by Dr John Roe on 2026-11-24"
        log = approvals_file(file)
        log.write_text(log.read_text()[:-5])
        shown = site.show(file)
        assert shown["approval"].startswith("unknown")
        assert "the approvals do not count" in shown["problems"][0]

    def test_another_packages_approval_is_not_this_ones(
        self, file: Path, package: Package, key: Path, tmp_path: Path
    ) -> None:
        site.approve(file, package, key, by="Dr Jane Doe", now=NOON)
        other = load_package(write_package(tmp_path / "other", version="2.0.0"))
        assert site.show(file, other)["approval"].endswith("for another package")

    def test_it_is_json(self, file: Path, package: Package) -> None:
        assert json.loads(json.dumps(site.show(file, package), allow_nan=False))["demonstration"] is True


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


class TestTheCommands:
    def test_from_a_package_to_a_clinical_policy(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_package(tmp_path / "tiny", manifest={"demonstration_only": False})
        file, key = tmp_path / "policy.yaml", tmp_path / "doctor.pem"
        assert run("policy", "key", key) == 0
        assert run("policy", "key", tmp_path / "vendor.pem") == 0
        sign_folder(folder, tmp_path / "vendor.pem")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert run("policy", "init", "--package", folder, "--out", file) == 0
        file.write_text(file.read_text().replace("clinical: false", "clinical: true"))
        capsys.readouterr()
        assert run("policy", "approve", file, "--package", folder, "--key", key, "--name", "Dr Jane Doe") == 0
        said = capsys.readouterr()
        assert "act from" in said.out  # nobody approves blind
        assert "Dr Jane Doe approved tiny-draft 1 for tiny 1.0.0" in said.err
        assert "stay a demonstration" not in said.err

        config = tmp_path / "stepwedge.yaml"
        config.write_text("trust: {keys: [doctor.pub, vendor.pub]}\n")
        assert self.shown(capsys, file, folder, config)["demonstration"] is False
        assert run("policy", "approve", file, "--revoke", "--key", key, "--name", "Dr Jane Doe") == 0
        shown = self.shown(capsys, file, folder, config)
        assert shown["demonstration"] is None
        assert "revoked its approval" in shown["problems"][0]
        assert [line["action"] for line in shown["approvals"]] == ["approve", "revoke"]

    def shown(self, capsys: pytest.CaptureFixture[str], file: Path, folder: Path, config: Path) -> dict[str, Any]:
        capsys.readouterr()
        assert run("policy", "show", file, "--package", folder, "--config", config, "--json") == 0
        shown: dict[str, Any] = json.loads(capsys.readouterr().out)
        return shown

    def test_for_people_it_is_a_table(self, file: Path, package: Package, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("policy", "show", file, "--package", package.path) == 0
        out = capsys.readouterr().out
        for part in ("ill", "0.0300", "0.7000", "State: not approved", "Results are a demonstration"):
            assert part in out

    def test_approving_says_what_keeps_results_a_demonstration(
        self, file: Path, package: Package, key: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("policy", "approve", file, "--package", package.path, "--key", key, "--name", "Dr Jane Doe") == 0
        said = capsys.readouterr().err
        for part in ("clinical: true", "demonstration_only", "stepwedge package sign"):
            assert part in said

    def test_an_approval_needs_a_package(self, file: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("policy", "approve", file, "--key", key, "--name", "Dr Jane Doe") == 2
        assert "--package DIR" in capsys.readouterr().err

    def test_a_key_is_not_overwritten(self, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = key.read_bytes()
        assert run("policy", "key", key) == 2
        assert key.read_bytes() == before
        assert "is there already" in capsys.readouterr().err
