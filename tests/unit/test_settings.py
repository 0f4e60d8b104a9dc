"""Settings come from one YAML file and the environment, and what is wrong with them is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from stepwedge.errors import SettingsError
from stepwedge.settings import Settings, load_settings
from stepwedge.settings_reference import reference


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("STEPWEDGE_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, values: Any) -> Path:
    file = tmp_path / "stepwedge.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return file


def refused(file: Path | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    return str(caught.value)


def _leaves(values: Any) -> list[Any]:
    return [leaf for value in values.values() for leaf in _leaves(value)] if isinstance(values, dict) else [values]


class TestDefaults:
    def test_without_a_file_everything_has_a_default(self) -> None:
        settings = load_settings()
        assert settings.node.ae_title == "STEPWEDGE"
        assert settings.node.port == 11112
        assert settings.http.port == 8080
        assert settings.inference.base_url == "http://127.0.0.1:3000"
        assert settings.data_dir == Path("stepwedge-data")

    def test_nobody_is_trusted(self) -> None:
        assert load_settings().trust.keys == []

    def test_nothing_listens_beyond_loopback(self) -> None:
        settings = load_settings()
        assert {settings.node.host, settings.http.host, settings.inference.host} == {"127.0.0.1"}

    def test_an_empty_file_is_the_defaults(self, tmp_path: Path) -> None:
        assert load_settings(write(tmp_path, "")) == load_settings()

    def test_settings_do_not_change(self) -> None:
        settings = load_settings()
        with pytest.raises(ValueError, match="frozen"):
            settings.node.port = 1  # type: ignore[misc]


class TestSources:
    def test_the_file_overrides_the_defaults_of_what_it_names_only(self, tmp_path: Path) -> None:
        settings = load_settings(write(tmp_path, {"node": {"port": 104}}))
        assert settings.node.port == 104
        assert settings.node.ae_title == "STEPWEDGE"

    def test_the_environment_overrides_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_NODE__PORT", "11113")
        settings = load_settings(write(tmp_path, {"node": {"port": 104, "ae_title": "WARD"}}))
        assert settings.node.port == 11113
        assert settings.node.ae_title == "WARD"

    def test_the_environment_overrides_a_default_and_leaves_its_neighbours(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEPWEDGE_WORKER__CONCURRENCY", "5")
        settings = load_settings()
        assert settings.worker.concurrency == 5
        assert settings.worker.executor_id == "worker-1"

    def test_null_in_the_environment_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_HTTP__PORT", "null")
        assert load_settings().http.port is None

    def test_null_in_the_environment_overrides_a_number_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEPWEDGE_HTTP__PORT", "null")
        assert load_settings(write(tmp_path, {"http": {"port": 9000}})).http.port is None

    def test_lists_come_from_the_environment_as_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_NODE__ALLOWED_CALLERS", '["PACS", "CT1"]')
        assert load_settings().node.allowed_callers == ["PACS", "CT1"]

    def test_entries_of_a_mapping_are_added_to_its_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_COMPLETENESS__QUIET_SECONDS_BY_MODALITY", '{"CT": 5}')
        periods = load_settings().completeness.quiet_seconds_by_modality
        assert periods["CT"] == 5
        assert periods["MR"] == 60

    def test_stepwedge_config_names_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_CONFIG", str(write(tmp_path, {"node": {"port": 104}})))
        assert load_settings().node.port == 104

    def test_a_file_that_is_given_goes_before_the_one_that_stepwedge_config_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEPWEDGE_CONFIG", str(tmp_path / "no-such-file.yaml"))
        assert load_settings(write(tmp_path, {"node": {"port": 104}})).node.port == 104


class TestPaths:
    def test_relative_paths_are_relative_to_the_file(self, tmp_path: Path) -> None:
        models = [{"package": "models/tiny", "policy": "policy.yaml"}]
        trust = {"keys": ["keys/one.pub", "/etc/two.pub"]}
        settings = load_settings(write(tmp_path, {"data_dir": "data", "models": models, "trust": trust}))
        assert settings.data_dir == tmp_path / "data"
        assert settings.models[0].package == tmp_path / "models" / "tiny"
        assert settings.models[0].policy == tmp_path / "policy.yaml"
        assert settings.trust.keys == [tmp_path / "keys" / "one.pub", Path("/etc/two.pub")]

    def test_every_file_that_a_group_names_is_relative_to_the_file(self, tmp_path: Path) -> None:
        values = {
            "site_key_file": "site.json",
            "database": {"password_file": "password"},
            "tracing": {"headers_file": "headers"},
            "watch": {"config": "stepwatch.yaml", "token_file": "token"},
            "page": {"tokens_file": "tokens.yaml", "oidc": {"client_secret_file": "secret", "ca_file": "hospital.pem"}},
        }
        told = load_settings(write(tmp_path, values)).model_dump(exclude_defaults=True)
        assert set(_leaves(told)) == {tmp_path / name for name in _leaves(values)}

    def test_absolute_paths_stay(self, tmp_path: Path) -> None:
        assert load_settings(write(tmp_path, {"data_dir": "/srv/stepwedge"})).data_dir == Path("/srv/stepwedge")

    def test_everything_that_is_kept_lies_under_the_data_folder(self, tmp_path: Path) -> None:
        settings = load_settings(write(tmp_path, {"data_dir": "data"}))
        for path in (settings.database_file, settings.queue_file):
            assert path.is_relative_to(tmp_path / "data")


class TestMistakes:
    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"nodes": {}}, "nodes"),
            ({"node": {"prot": 104}}, "node.prot"),
            ({"node": {"port": "often"}}, "node.port"),
            ({"node": {"port": 70000}}, "node.port"),
            ({"node": {"ae_title": "A_TITLE_OF_17_CHR"}}, "node.ae_title"),
            ({"node": {"ae_title": ""}}, "node.ae_title"),
            ({"node": {"ae_title": "BACK\\SLASH"}}, "node.ae_title"),
            ({"node": {"allowed_callers": ["FINE", "ÜBER"]}}, "node.allowed_callers.1"),
            ({"completeness": {"quiet_seconds": -1}}, "completeness.quiet_seconds"),
            ({"completeness": {"quiet_seconds": float("inf")}}, "completeness.quiet_seconds"),
            ({"worker": {"concurrency": 0}}, "worker.concurrency"),
            ({"worker": {"executor_id": "two words"}}, "worker.executor_id"),
            ({"inference": {"device": "tpu"}}, "inference.device"),
            ({"models": [{"package": "there"}]}, "models.0.policy"),
            ({"models": "there"}, "models"),
            ({"trust": {"keys": "one.pub"}}, "trust.keys"),
            ({"trust": {"keys": [1]}}, "trust.keys.0"),
            ({"trust": {"key": []}}, "trust.key"),
            ({"destinations": [{"name": "PACS", "host": "h", "port": 1, "ae_title": "A"}]}, "destinations.0.name"),
            ({"page": {"trusted_proxies": ["10.0.0.1", "10.0.0.0/99"]}}, "page.trusted_proxies.1"),
            ({"log": {"level": "loud"}}, "log.level"),
        ],
    )
    def test_each_wrong_setting_is_named_with_its_file(
        self, tmp_path: Path, values: dict[str, Any], named: str
    ) -> None:
        file = write(tmp_path, values)
        assert f"{file}: {named}: " in refused(file)

    def test_all_wrong_settings_are_named_at_once_and_what_was_found(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, {"node": {"port": "often", "host": 3}, "spool": {"reserve": 1}}))
        assert len(message.splitlines()) == 3
        assert "node.port" in message
        assert "'often'" in message
        assert "node.host" in message
        assert "spool.reserve" in message

    def test_a_wrong_environment_variable_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_NODE__PORT", "often")
        assert "node.port" in refused()

    def test_a_list_in_the_environment_that_is_no_json_is_refused_by_its_group(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEPWEDGE_NODE__ALLOWED_CALLERS", "PACS,CT1")
        assert '"node"' in refused()

    def test_a_top_level_list_in_the_environment_that_is_no_json_is_refused_by_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STEPWEDGE_DESTINATIONS", "pacs")
        assert "destinations" in refused()

    def test_two_destinations_of_one_name_are_refused(self, tmp_path: Path) -> None:
        one = {"name": "pacs", "host": "h", "port": 104, "ae_title": "PACS"}
        assert "different names" in refused(write(tmp_path, {"destinations": [one, one]}))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "missing.yaml"
        assert refused(file) == f"{file}: the settings file cannot be read: No such file or directory"

    @pytest.mark.parametrize("text", ["node: [", "a: b: c", "- node", "just words", "\x00"])
    def test_a_file_that_is_no_mapping_is_refused_and_named(self, tmp_path: Path, text: str) -> None:
        file = write(tmp_path, text)
        assert refused(file).startswith(f"{file}: ")

    def test_a_binary_file_is_refused_and_named(self, tmp_path: Path) -> None:
        file = tmp_path / "stepwedge.yaml"
        file.write_bytes(b"\xff\xfe\xd8\x00")
        assert refused(file).startswith(f"{file}: ")


class TestExposure:
    def test_listening_beyond_loopback_needs_a_list_of_callers(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, {"node": {"host": "0.0.0.0"}}))
        assert "node.allowed_callers" in message
        assert "0.0.0.0" in message

    def test_with_a_list_of_callers_it_is_allowed(self, tmp_path: Path) -> None:
        file = write(tmp_path, {"node": {"host": "0.0.0.0", "allowed_callers": ["PACS"]}})
        assert load_settings(file).node.host == "0.0.0.0"

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    def test_loopback_needs_none(self, tmp_path: Path, host: str) -> None:
        assert load_settings(write(tmp_path, {"node": {"host": host}})).node.host == host

    def test_the_environment_cannot_get_around_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWEDGE_NODE__HOST", "192.0.2.7")
        assert "node.allowed_callers" in refused()


class TestReference:
    def test_it_lists_every_setting_with_its_default_and_its_meaning(self) -> None:
        rows = {
            cells[0].strip("`"): cells[1:]
            for line in reference().splitlines()
            if line.startswith("| `")
            for cells in [[cell.strip() for cell in line.strip("|").split(" | ")]]
        }
        expected = set(leaves(Settings, ""))
        assert rows.keys() == expected
        for name, (variable, default, meaning) in rows.items():
            assert default, name
            assert len(meaning) > 4, name
            assert variable == ("" if "[]" in name else f"`STEPWEDGE_{name.replace('.', '__').upper()}`")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("node.port", "11112"), ("http.port", "8080"), ("log.level", "info"), ("inference.url", "null")],
    )
    def test_the_defaults_are_those_that_hold(self, name: str, value: str) -> None:
        (row,) = (line for line in reference().splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| `{value}` |" in row

    def test_what_must_be_given_says_so(self) -> None:
        (row,) = (line for line in reference().splitlines() if line.startswith("| `models[].package` |"))
        assert "| required |" in row


def leaves(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        nested = [
            item
            for item in (info.annotation, *getattr(info.annotation, "__args__", ()))
            if isinstance(item, type) and issubclass(item, BaseModel)
        ]
        is_group = nested and nested[0] is info.annotation
        if not is_group:
            yield f"{prefix}{name}"
        for item in nested:
            yield from leaves(item, f"{prefix}{name}." if is_group else f"{prefix}{name}[].")
