"""A site policy belongs to one model, states costs and prevalence, and is clinical only as people approved it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from packages import write_package, write_policy
from stepwedge.errors import PolicyError
from stepwedge.manifest import Manifest, Package, load_package
from stepwedge.package.site import approve, revoke
from stepwedge.policy import Policy, approvals_file, load_policy, read_approvals
from stepwedge.records import Costs
from stepwedge.signing import Trust, ensure_key, load_trust, sign_folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load_package(write_package(tmp_path_factory.mktemp("package") / "tiny")).manifest


def write(tmp_path: Path, **changes: Any) -> Path:
    """The policy with some of its keys replaced, or left out where the change is None."""
    file = write_policy(tmp_path / "policy.yaml")
    values = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return file


def refused(file: Path, model: Manifest | Package) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(file, model)
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


def test_whether_it_is_a_demonstration_is_not_for_the_file_to_say(tmp_path: Path, manifest: Manifest) -> None:
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
        ({"clinical": "yes"}, "clinical"),
        ({"clinical": 1}, "clinical"),
        ({"workload_cap": 0}, "workload_cap"),
        ({"workload_cap": 1}, "workload_cap"),
        ({"workload_cap": "0.1"}, "workload_cap"),
        ({"destinations": []}, "destinations"),
        ({"fitted": {}}, "fitted.gate"),
        ({"fitted": "yesterday"}, "fitted"),
    ],
)
def test_each_wrong_field_is_named(tmp_path: Path, manifest: Manifest, changes: dict[str, Any], field: str) -> None:
    file = write(tmp_path, **changes)
    assert f"{file}: {field}" in refused(file, manifest)


@pytest.mark.parametrize("field", ["miss", "false_alarm", "deferral", "prevalence"])
@pytest.mark.parametrize(
    "value", [0, -1, None, "much", "1", "0.5", True, [1], float("nan"), float("inf"), -float("inf")]
)
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


@pytest.mark.parametrize("name", ["threshold", "thresholds", "clear_below", "act_from", "cutoff", "operating_point"])
@pytest.mark.parametrize("where", ["top", "finding"])
def test_a_threshold_typed_by_hand_is_refused_and_told_where_thresholds_come_from(
    tmp_path: Path, manifest: Manifest, name: str, where: str
) -> None:
    costs = {"miss": 10, "false_alarm": 1, "deferral": 0.3, "prevalence": 0.5}
    file = (
        write(tmp_path, findings={"ill": costs | {name: 0.5}}) if where == "finding" else write(tmp_path, **{name: 1})
    )
    message = refused(file, manifest)
    assert f"{name}: thresholds are computed from the costs and the prevalence and never typed in" in message


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("  ill: {miss: 1, false_alarm: 1, deferral: 1, prevalence: 0.5}\n", "ill"),
        ("model: tiny\n", "model"),
    ],
)
def test_what_stands_twice_is_refused_by_name(tmp_path: Path, manifest: Manifest, text: str, twice: str) -> None:
    file = write_policy(tmp_path / "policy.yaml")
    file.write_text(file.read_text() + text)
    assert f"{twice} stands twice" in refused(file, manifest)


@pytest.mark.parametrize("content", [b"", b"words", b"- a\n- list", b"a: [", b"\x00\x01", b"\xff\xfe\xd8\x00"])
def test_what_is_no_mapping_is_refused_and_the_file_named(tmp_path: Path, manifest: Manifest, content: bytes) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes(content)
    assert refused(file, manifest).startswith(f"{file}: ")


class TestAFittedPolicy:
    """What ``policy fit`` writes, by hand."""

    @pytest.fixture
    def package(self, tmp_path: Path) -> Package:
        return load_package(write_package(tmp_path / "tiny"))

    @pytest.fixture
    def file(self, tmp_path: Path, package: Package) -> Path:
        for name in ("gate", "baseline"):
            (tmp_path / name).write_bytes(name.encode())
        return write(tmp_path, fitted=fitted(package))

    def test_it_knows_its_files(self, file: Path, package: Package) -> None:
        policy = load_policy(file, package)
        assert policy.gate_file == file.parent / "gate"
        assert policy.baseline_file == file.parent / "baseline"

    @pytest.mark.parametrize("name", ["gate", "baseline"])
    def test_a_missing_file_is_named(self, file: Path, package: Package, name: str) -> None:
        (file.parent / name).unlink()
        message = refused(file, package)
        assert f"fitted.{name}: {file.parent / name}: No such file" in message
        assert "stepwedge policy fit" in message

    @pytest.mark.parametrize("name", ["gate", "baseline"])
    def test_an_altered_file_is_named(self, file: Path, package: Package, name: str) -> None:
        (file.parent / name).write_bytes(b"other")
        assert f"fitted.{name}: {file.parent / name} is not the file that was fitted" in refused(file, package)

    @pytest.mark.parametrize("name", ["../gate", "/etc/passwd", "folder/gate", "..", ".gate", "", "gate\n"])
    def test_a_file_elsewhere_is_refused(self, tmp_path: Path, package: Package, name: str) -> None:
        values = fitted(package)
        values["gate"]["file"] = name
        assert "fitted.gate.file" in refused(write(tmp_path, fitted=values), package)

    def test_one_that_was_fitted_for_another_package_is_refused(self, file: Path, tmp_path: Path) -> None:
        other = load_package(write_package(tmp_path / "other", version="2.0.0"))
        message = refused(file, other)
        assert "fitted for the package tiny 1.0.0" in message
        assert "fit the policy again" in message

    def test_a_cap_that_was_not_fitted_is_refused(self, tmp_path: Path, package: Package) -> None:
        assert "workload_cap: no cost of a deferral was fitted for 0.1" in refused(
            write(tmp_path, workload_cap=0.1), package
        )

    def test_the_cost_that_keeps_within_the_cap_is_the_one_that_applies(self, file: Path, package: Package) -> None:
        costs = {"miss": 10, "false_alarm": 1, "deferral": 0.3, "prevalence": 0.5}
        deferrals = {"ill": {"deferral": 0.6, "deferred": 0.09, "stated": costs}}
        values = fitted(package) | {"workload_cap": 0.1, "deferrals": deferrals}
        file = write(file.parent, workload_cap=0.1, fitted=values)
        finding = load_policy(file, package).finding("ill")
        assert finding is not None
        assert finding.costs == Costs(miss=10, false_alarm=1, deferral=0.6)

        changed = write(file.parent, workload_cap=0.1, fitted=values, findings={"ill": costs | {"miss": 20}})
        assert "findings.ill: changed since the cost of a deferral was fitted" in refused(changed, package)
        other_cap = write(file.parent, workload_cap=0.2, fitted=values)
        assert "no cost of a deferral was fitted for 0.2" in refused(other_cap, package)


def fitted(package: Package) -> dict[str, Any]:
    """A ``fitted`` section that names the files ``gate`` and ``baseline``."""
    return {
        "date": "2026-11-24",
        "package": {"name": "tiny", "version": "1.0.0", "digest": package.digest},
        "studies": 100,
        "patients": 90,
        "images": 110,
        "refused": 3,
        "false_rejection": 0.01,
        "gate": {"file": "gate", "sha256": hashlib.sha256(b"gate").hexdigest()},
        "baseline": {"file": "baseline", "sha256": hashlib.sha256(b"baseline").hexdigest()},
    }


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Clinic:
    """A signed package that may be used on patients, a policy that asks for it, and two trusted keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vendor, self.doctor = ensure_key(folder / "vendor.pem"), ensure_key(folder / "doctor.pem")
        self.stranger = ensure_key(folder / "stranger.pem")
        self.package_folder = write_package(folder / "tiny", manifest={"demonstration_only": False})
        sign_folder(self.package_folder, self.vendor)
        self.file = write(folder, clinical=True)

    @property
    def trust(self) -> Trust:
        return load_trust([self.folder / "vendor.pub", self.folder / "doctor.pub"])

    @property
    def package(self) -> Package:
        return load_package(self.package_folder)

    @property
    def log(self) -> Path:
        return approvals_file(self.file)

    def approve(self, key: Path | None = None) -> None:
        approve(self.file, self.package, key or self.doctor, by="Dr Jane Doe", now=NOON)

    def load(self, trust: Trust | None = None) -> Policy:
        return load_policy(self.file, self.package, self.trust if trust is None else trust)

    def refused(self) -> str:
        with pytest.raises(PolicyError) as caught:
            self.load()
        return str(caught.value)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


class TestAnApprovedPolicy:
    def test_it_is_no_demonstration(self, clinic: Clinic) -> None:
        clinic.approve()
        policy = clinic.load()
        assert policy.demonstration_because == ""
        assert not policy.reference.demonstration
        assert policy.approval is not None
        assert policy.approval.by == "Dr Jane Doe"

    def test_with_its_approval_revoked_and_approved_again_it_is_none_either(self, clinic: Clinic) -> None:
        clinic.approve()
        revoke(clinic.file, clinic.doctor, by="Dr John Roe")
        clinic.approve()
        assert not clinic.load().reference.demonstration
        assert [line.action for line in read_approvals(clinic.file)] == ["approve", "revoke", "approve"]

    def test_changed_and_approved_again_it_is_none_either(self, clinic: Clinic) -> None:
        clinic.approve()
        clinic.file.write_text(clinic.file.read_text() + "# now with a comment\n")
        clinic.approve()
        assert not clinic.load().reference.demonstration


class TestADemonstration:
    """Everything is right but for one thing, and the policy says which."""

    def because(self, clinic: Clinic, trust: Trust | None = None) -> str:
        policy = clinic.load(trust)
        assert policy.reference.demonstration
        return policy.demonstration_because

    def test_where_the_policy_does_not_ask_for_more(self, clinic: Clinic) -> None:
        clinic.file = write(clinic.folder, clinical=False)
        assert "does not ask for clinical use" in self.because(clinic)
        clinic.approve()
        assert "does not ask for clinical use" in self.because(clinic)

    def test_where_no_keys_are_trusted(self, clinic: Clinic) -> None:
        clinic.approve()
        assert "no keys are trusted" in self.because(clinic, Trust())

    def test_where_the_package_is_made_for_nothing_else(self, clinic: Clinic) -> None:
        write_package(clinic.package_folder, manifest={"demonstration_only": True})
        sign_folder(clinic.package_folder, clinic.vendor)
        clinic.approve()
        assert "made for demonstration only" in self.because(clinic)

    def test_where_the_package_is_not_signed_by_a_trusted_key(self, clinic: Clinic) -> None:
        clinic.approve()
        assert "not signed by a trusted key" in self.because(clinic, load_trust([clinic.folder / "doctor.pub"]))

    def test_where_the_package_is_not_signed(self, clinic: Clinic) -> None:
        for name in ("model.sig", "signer.pub"):
            (clinic.package_folder / name).unlink()
        write_package(clinic.package_folder, manifest={"demonstration_only": False})
        clinic.approve()
        assert "not signed by a trusted key" in self.because(clinic)

    def test_where_the_package_is_not_at_hand(self, clinic: Clinic) -> None:
        clinic.approve()
        policy = load_policy(clinic.file, clinic.package.manifest, clinic.trust)
        assert policy.reference.demonstration
        assert "not held against the package" in policy.demonstration_because


class TestAPolicyWhoseApprovalDoesNotHold:
    def test_one_that_asks_for_clinical_use_and_that_nobody_approved_is_refused(self, clinic: Clinic) -> None:
        message = clinic.refused()
        assert "asks for clinical use, and nobody has approved it" in message
        assert "stepwedge policy approve" in message

    def test_one_whose_approval_was_revoked_is_refused(self, clinic: Clinic) -> None:
        clinic.approve()
        revoke(clinic.file, clinic.doctor, by="Dr John Roe", now=NOON)
        assert "Dr John Roe revoked its approval on 2026-11-24" in clinic.refused()

    @pytest.mark.parametrize("clinical", [True, False])
    def test_one_that_was_changed_afterwards_is_refused_and_told_who_approved_it_when(
        self, clinic: Clinic, clinical: bool
    ) -> None:
        clinic.file = write(clinic.folder, clinical=clinical)
        clinic.approve()
        clinic.file.write_text(clinic.file.read_text().replace("miss: 10", "miss: 20"))
        assert "changed since Dr Jane Doe approved it on 2026-11-24" in clinic.refused()

    def test_one_that_was_approved_for_another_package_is_refused(self, clinic: Clinic) -> None:
        clinic.approve()
        write_package(clinic.package_folder, version="1.0.1", manifest={"demonstration_only": False})
        sign_folder(clinic.package_folder, clinic.vendor)
        assert "approved it for the package tiny 1.0.0" in clinic.refused()

    def test_one_that_an_unknown_key_approved_is_refused_by_its_id(self, clinic: Clinic) -> None:
        clinic.approve(clinic.stranger)
        message = clinic.refused()
        (line,) = read_approvals(clinic.file)
        assert line.key in message
        assert "not among trust.keys" in message

    def test_an_approval_copied_from_another_policy_does_not_count(self, clinic: Clinic) -> None:
        clinic.approve()
        log = clinic.log.read_bytes()
        clinic.file = write_policy(clinic.folder / "other.yaml")
        clinic.log.write_bytes(log)
        assert "changed since" in clinic.refused()


class TestATamperedLog:
    @pytest.fixture(autouse=True)
    def _log(self, clinic: Clinic) -> None:
        clinic.approve()
        revoke(clinic.file, clinic.doctor, by="Dr John Roe", now=NOON)
        clinic.approve()
        clinic.load()

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda lines: lines[1:], 1),
            (lambda lines: [lines[0], lines[2]], 2),
            (lambda lines: [lines[1], lines[0], lines[2]], 1),
            (lambda lines: [*lines, lines[0]], 4),
            (lambda lines: [*lines, b"{}"], 4),
            (lambda lines: [*lines, b""], 4),
            (lambda lines: [lines[0], lines[1], lines[2] + b" "], 3),
            (lambda lines: [b"\xff", *lines], 1),
        ],
        ids=["first removed", "middle removed", "swapped", "repeated", "added", "blank", "space", "no text"],
    )
    def test_lines_removed_moved_or_added_are_noticed(
        self, clinic: Clinic, change: Callable[[list[bytes]], list[bytes]], line: int
    ) -> None:
        lines = clinic.log.read_bytes().splitlines()
        clinic.log.write_bytes(b"".join(line + b"\n" for line in change(lines)))
        message = clinic.refused()
        assert f"{clinic.log}: line {line} " in message
        assert "the approvals do not count" in message

    @pytest.mark.parametrize("field", ["by", "time", "action", "policy", "package", "note", "key", "previous"])
    def test_a_changed_field_is_noticed(self, clinic: Clinic, field: str) -> None:
        lines = clinic.log.read_text().splitlines()
        values = json.loads(lines[0])
        changes = {"action": "revoke", "time": "2020-01-01T00:00:00Z", "key": "0" * 16, "previous": "0" * 64}
        other = {"name": "x", "version": "1", "digest": "0" * 64}
        values[field] = changes.get(field, other if field in ("policy", "package") else "Dr Eve")
        lines[0] = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        clinic.log.write_text("".join(f"{line}\n" for line in lines))
        assert f"{clinic.log}: line 1 " in clinic.refused()

    def test_any_changed_byte_is_noticed(self, clinic: Clinic) -> None:
        original = clinic.log.read_bytes()
        for position in range(0, len(original), 7):
            altered = bytearray(original)
            altered[position] ^= 1
            clinic.log.write_bytes(altered)
            assert str(clinic.log) in clinic.refused()

    def test_a_line_that_was_cut_short_is_noticed(self, clinic: Clinic) -> None:
        clinic.log.write_bytes(clinic.log.read_bytes()[:-1])
        assert "line 3 is not a line as it was written" in clinic.refused()

    def test_a_log_that_cannot_be_read_is_named(self, clinic: Clinic) -> None:
        clinic.log.unlink()
        clinic.log.mkdir()
        assert f"{clinic.log}: the approvals cannot be read" in clinic.refused()
