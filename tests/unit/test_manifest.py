"""A package is loaded whole, unaltered and consistent, or not at all, and the message says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packages import seal, write_package
from stepwedge.errors import PackageError
from stepwedge.manifest import load_package, read_manifest, selects
from stepwedge.signing import ensure_key, sign_folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that nobody alters."""
    return write_package(tmp_path_factory.mktemp("built") / "tiny")


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A package to alter."""
    return Path(shutil.copytree(built, tmp_path / "tiny"))


FILES = ("model.yaml", "model.onnx", "golden.npz", "calibration.json")


def refused(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        load_package(folder)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change model.yaml and seal the package again, as somebody would who builds it wrongly."""
    file = folder / "model.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    seal(folder)


class TestALoadedPackage:
    def test_it_says_which_model_it_is(self, built: Path) -> None:
        package = load_package(built)
        assert package.reference.name == "tiny"
        assert package.reference.version == "1.0.0"
        assert package.reference.digest == package.digest
        assert package.model_file == built / "model.onnx"

    def test_its_digest_is_that_of_the_list_of_digests(self, built: Path) -> None:
        assert load_package(built).digest == hashlib.sha256((built / "SHA256SUMS").read_bytes()).hexdigest()

    def test_its_digest_is_the_same_wherever_and_whenever_it_is_loaded(self, built: Path, own: Path) -> None:
        assert load_package(own).digest == load_package(built).digest == load_package(built).digest

    def test_another_version_has_another_digest(self, built: Path, own: Path) -> None:
        rewrite(own, lambda values: values.update(version="1.0.1"))
        assert load_package(own).digest != load_package(built).digest

    def test_one_that_is_signed_says_by_whom_and_one_that_is_not_says_nobody(
        self, built: Path, own: Path, tmp_path: Path
    ) -> None:
        signer = sign_folder(own, ensure_key(tmp_path / "key.pem"))
        assert load_package(own).signer == signer
        assert load_package(built).signer is None

    def test_the_list_of_digests_is_in_the_format_of_sha256sum(self, built: Path) -> None:
        lines = (built / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        assert {name for _, name in (line.split("  ") for line in lines)} == set(FILES)
        for line in lines:
            digest, name = line.split("  ")
            assert digest == hashlib.sha256((built / name).read_bytes()).hexdigest()


class TestAnAlteredPackage:
    @pytest.mark.parametrize("name", FILES)
    @settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
    def test_one_altered_byte_anywhere_is_refused_and_the_file_named(
        self, own: Path, name: str, where: float, flip: int
    ) -> None:
        file = own / name
        original = file.read_bytes()
        altered = bytearray(original)
        altered[int(where * len(altered))] ^= flip
        file.write_bytes(altered)
        try:
            message = refused(own)
        finally:
            file.write_bytes(original)
        assert f"{own}: {name} is not the file that the package was built with" in message

    @pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "calibration.json"])
    def test_a_missing_file_is_named(self, own: Path, name: str) -> None:
        (own / name).unlink()
        assert f"{own}: {name} is missing" in refused(own)

    @pytest.mark.parametrize("name", ["notes.txt", "model.onnx.data", ".hidden", "folder/inside"])
    def test_a_file_that_does_not_belong_is_named(self, own: Path, name: str) -> None:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text("extra")
        assert f"{own}: {name} does not belong to the package" in refused(own)

    def test_a_digest_of_the_list_itself_altered_is_refused(self, own: Path) -> None:
        sums = own / "SHA256SUMS"
        text = sums.read_text(encoding="utf-8")
        sums.write_text(("1" if text[0] == "0" else "0") + text[1:], encoding="utf-8")
        assert "is not the file that the package was built with" in refused(own)

    @pytest.mark.parametrize("added", ["\n", "0  \n", " "])
    def test_a_list_with_anything_added_is_refused(self, own: Path, added: str) -> None:
        with (own / "SHA256SUMS").open("a", encoding="utf-8") as sums:
            sums.write(added)
        refused(own)

    def test_a_list_with_other_ends_of_lines_is_refused(self, own: Path) -> None:
        sums = own / "SHA256SUMS"
        sums.write_bytes(sums.read_bytes().replace(b"\n", b"\r\n"))
        refused(own)

    @pytest.mark.parametrize("name", ["folder/SHA256SUMS", "folder/model.sig"])
    def test_a_file_called_like_the_list_or_the_signature_elsewhere_does_not_belong(self, own: Path, name: str) -> None:
        (own / "folder").mkdir()
        (own / name).write_text("extra")
        assert f"{own}: {name} does not belong to the package" in refused(own)

    def test_a_signature_that_is_none_is_refused(self, own: Path) -> None:
        (own / "model.sig").write_bytes(b"signature")
        assert "model.sig is there but not signer.pub" in refused(own)

    def test_without_its_list_of_digests_it_is_refused(self, own: Path) -> None:
        (own / "SHA256SUMS").unlink()
        assert "SHA256SUMS is missing" in refused(own)

    def test_an_unreadable_list_of_digests_is_refused(self, own: Path) -> None:
        (own / "SHA256SUMS").write_bytes(b"\xff\xfe\x00")
        assert "SHA256SUMS is missing or unreadable" in refused(own)

    @pytest.mark.parametrize("name", ["", "nowhere"])
    def test_a_folder_without_a_package_is_refused(self, tmp_path: Path, name: str) -> None:
        assert "no model package here (model.yaml is missing)" in refused(tmp_path / name)


def the_finding(values: dict[str, Any]) -> dict[str, Any]:
    finding: dict[str, Any] = values["findings"][0]
    return finding


def another_finding(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["findings"].append(the_finding(values) | {"name": "other"} | changes)


def into(*path: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    """A change of some keys of a mapping inside the manifest."""

    def change(values: dict[str, Any]) -> None:
        for name in path:
            values = values[name]
        values.update(changes)

    return change


class TestAWrongManifest:
    @pytest.mark.parametrize(
        ("change", "field", "words"),
        [
            (into(schema=2), "schema", "1"),
            (into(name="Not A Name"), "name", "pattern"),
            (into(version="1.0"), "version", "pattern"),
            (into(surprise=1), "surprise", "not permitted"),
            (lambda values: values.pop("licence"), "licence", "required"),
            (into(golden_tolerance=0), "golden_tolerance", "greater than 0"),
            (into(aggregation="median"), "aggregation", "'max' or 'mean'"),
            (into("intended_use", modality=[]), "intended_use.modality", "at least 1"),
            (into("intended_use", age_years=[5]), "intended_use.age_years", "required"),
            (into("input", rows=8), "input.rows", "16"),
            (into("input", columns=5000), "input.columns", "4096"),
            (into("input", channels=2), "input.channels", "1 or 3"),
            (into("input", fit="squeeze"), "input.fit", "stretch"),
            (into("input", resampling="nearest"), "input.resampling", "bilinear"),
            (into("input", sd=[0.0]), "input", "sd must be positive"),
            (into("input", mean=[0.1, 0.2]), "input", "mean has 2 values, wanted 1 or 1"),
            (into("input", presentation={"kind": "gamma"}), "input.presentation", "gamma"),
            (into("input", presentation={"kind": "percentile", "low": 60, "high": 99}), "low", "less than 50"),
            (into("input", presentation={"kind": "percentile", "low": 1, "high": 40}), "high", "greater than 50"),
            (into("input", presentation={"kind": "window", "centre": 1}), "centre", "not permitted"),
            (into("output", classes=["ill", "ill"]), "output", "classes must differ"),
            (into("output", classes=["ill"]), "output", "at least two classes"),
            (into("output", activation="sigmoid"), "output", "needs kind independent"),
            (into("output", activation="softmax", kind="independent"), "output", "needs kind exclusive"),
            (into("output", kind="ordinal"), "output.kind", "exclusive"),
            (lambda values: values.update(findings=[]), "findings", "at least 1"),
            (lambda values: the_finding(values).update(name="Ill!"), "findings.0.name", "pattern"),
            (lambda values: the_finding(values).update(positive=[]), "findings.0.positive", "at least 1"),
            (lambda values: the_finding(values)["code"].update(value="1" * 17), "findings.0.code.value", "16"),
            (lambda values: the_finding(values)["code"].pop("meaning"), "findings.0.code.meaning", "required"),
            (lambda values: the_finding(values).update(positive=["sick"]), "finding ill", "'sick' is not one of"),
            (lambda values: the_finding(values).update(among=["well"]), "finding ill", "'well' is not one of"),
            (lambda values: the_finding(values).update(positive=["ill", "normal"]), "finding ill", "part of among"),
            (lambda values: the_finding(values).update(among=["normal"]), "finding ill", "part of among"),
            (lambda values: the_finding(values).update(given="ill"), "finding ill", "earlier finding"),
            (another_finding(given="later"), "finding other", "earlier finding"),
            (another_finding(name="ill"), "findings", "different names"),
        ],
    )
    def test_it_is_refused_and_the_field_named(
        self, own: Path, change: Callable[[dict[str, Any]], object], field: str, words: str
    ) -> None:
        rewrite(own, change)
        message = refused(own)
        assert message.startswith(f"{own / 'model.yaml'}: ")
        assert field in message
        assert words in message

    def test_independent_classes_take_one_positive_and_no_among(self, own: Path) -> None:
        rewrite(own, into("output", kind="independent"))
        load_package(own)
        rewrite(own, lambda values: the_finding(values).update(among=["ill", "normal"]))
        assert "independent classes take one positive and no among" in refused(own)

    @pytest.mark.parametrize("text", ["- a list", "words", "", "a: [", "\x00"])
    def test_what_is_no_mapping_is_refused(self, own: Path, text: str) -> None:
        (own / "model.yaml").write_text(text)
        seal(own)
        assert refused(own).startswith(f"{own / 'model.yaml'}: ")

    def test_what_is_no_text_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "model.yaml"
        file.write_bytes(b"\xff\xfe\xd8")
        with pytest.raises(PackageError, match="cannot be read as YAML"):
            read_manifest(file)

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PackageError, match="nowhere"):
            read_manifest(tmp_path / "nowhere.yaml")


class TestAWrongCalibration:
    def calibrate(self, folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        file = folder / "calibration.json"
        values = json.loads(file.read_text())
        change(values["findings"])
        file.write_text(json.dumps(values))
        seal(folder)

    @pytest.mark.parametrize("wrong", [{"prevalence": 0}, {"prevalence": 1}, {"method": "magic"}, {"positives": -1}])
    def test_it_is_refused_and_the_field_named(self, own: Path, wrong: dict[str, Any]) -> None:
        self.calibrate(own, lambda findings: findings["ill"].update(wrong))
        assert f"calibration.json: findings.ill.{next(iter(wrong))}" in refused(own)

    def test_every_finding_needs_one(self, own: Path) -> None:
        self.calibrate(own, lambda findings: findings.clear())
        assert "no calibration for ill" in refused(own)

    @pytest.mark.parametrize("number", ["NaN", "Infinity"])
    @pytest.mark.parametrize("field", ["slope", "intercept"])
    def test_its_numbers_are_finite(self, own: Path, field: str, number: str) -> None:
        self.calibrate(own, lambda findings: findings["ill"].update({field: float(number.lower())}))
        assert field in refused(own)

    def test_a_package_built_without_one_is_refused(self, own: Path) -> None:
        (own / "calibration.json").unlink()
        seal(own)
        assert "calibration.json is missing" in refused(own)

    def test_what_is_no_json_is_refused(self, own: Path) -> None:
        (own / "calibration.json").write_text("{")
        seal(own)
        assert "calibration.json" in refused(own)


class TestSelection:
    @pytest.mark.parametrize(
        ("modality", "has_pixels", "selected"),
        [("DX", True, True), ("cr", True, True), ("CT", True, False), ("DX", False, False), ("", True, False)],
    )
    def test_a_model_selects_images_of_its_modalities(
        self, built: Path, modality: str, has_pixels: bool, selected: bool
    ) -> None:
        manifest = load_package(built).manifest
        assert selects(manifest, modality=modality, has_pixels=has_pixels) is selected
