"""The settings that the chart writes are those that the programs take; rules and dashboards are monitoring's own."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from charts import CHART, NAME, VALUE_SETS, Resource, containers, environment, named, of_kind, pods, render, run_helm
from peers import require_tool
from starlette.routing import Route
from stepwatch.settings import load_settings as load_watch_settings
from stepwedge.page.app import build_app
from stepwedge.page.routes import page_routes
from stepwedge.policy import approvals_file
from stepwedge.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "monitoring" / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((ROOT / "monitoring" / "prometheus" / "rules").glob("*.yaml"))
SETS = list(VALUE_SETS)
DISTRIBUTED = [values for values in SETS if values != "laptop"]


def _file(resources: list[Resource], name: str, folder: Path) -> Path:
    """A settings file as it is mounted."""
    map_name = {"stepwedge.yaml": "settings", "stepwatch.yaml": "stepwatch"}[name]
    file = folder / name
    file.write_text(named(resources, "ConfigMap", map_name)["data"][name], encoding="utf-8")
    return file


@pytest.mark.parametrize("values", SETS)
def test_the_program_takes_the_settings_file(values: str, tmp_path: Path) -> None:
    file = _file(render(values), "stepwedge.yaml", tmp_path)
    command = [sys.executable, "-m", "stepwedge", "settings", "--check", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, f"{file}: valid\n"), result.stderr


@pytest.mark.parametrize("values", SETS)
def test_the_monitor_takes_its_settings_file(values: str, tmp_path: Path) -> None:
    file = _file(render(values), "stepwatch.yaml", tmp_path)
    command = [sys.executable, "-m", "stepwatch", "settings", "--config", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["models"]


def _settings_of(component: str, values: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a pod, from its file and its environment."""
    resources = render(values)
    (container,) = pods(resources)[component]["spec"]["containers"]
    with monkeypatch.context() as patch:
        for name, value in environment(container, pod_name=f"{NAME}-{component}-0").items():
            patch.setenv(name, value)
        return load_settings(_file(resources, "stepwedge.yaml", folder))


@pytest.mark.skipif("page" not in Settings.model_fields, reason="this version has no page of its own")
@pytest.mark.parametrize("values", DISTRIBUTED)
def test_the_page_takes_the_file_with_its_environment(
    values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _settings_of("page", values, tmp_path, monkeypatch).model_dump()
    assert told["watch"]["url"] == f"http://{NAME}-stepwatch:9108"
    assert bool(told["page"]["tokens_file"]) is not bool(told["page"]["oidc"]["issuer"])


@pytest.mark.parametrize("values", DISTRIBUTED)
def test_each_role_takes_the_file_with_its_own_environment(
    values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for component in ("listener", "worker", "inference", "constancy"):
        settings = _settings_of(component, values, tmp_path, monkeypatch)
        assert settings.database.upgrade_at_start is False
        assert settings.inference.base_url == f"http://{NAME}-inference:3000"
        if component == "worker":
            assert settings.worker.executor_id == f"{NAME}-worker-0"
        if component == "inference":
            assert settings.inference.device == ("cuda" if values == "one-gpu" else "cpu")
            assert settings.data_dir == Path("/tmp/inference")
            assert settings.inference.threads == 2


def test_the_migration_is_told_all_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = pods(render("ha-postgresql"))["migration"]["spec"]["containers"]
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value)
    # The image's own file is there, too.
    settings = load_settings(ROOT / "service" / "image" / "stepwedge.yaml")
    assert settings.database.url is not None
    assert settings.database.url.startswith("postgresql://stepwedge@db.example:5433/")
    assert settings.database.password_file == Path("/run/secrets/stepwedge-database/password")
    assert settings.database.upgrade_at_start is True


@pytest.mark.parametrize("values", SETS)
def test_every_path_in_the_settings_is_of_a_mount(values: str, tmp_path: Path) -> None:
    resources = render(values)
    found = pods(resources)
    for component, file, load in (
        ("worker", "stepwedge.yaml", load_settings),
        ("stepwatch", "stepwatch.yaml", load_watch_settings),
    ):
        pod = found.get(component) or found["single"]
        container = pod["spec"]["containers"][-1 if component == "stepwatch" else 0]
        mounts = [Path(item["mountPath"]) for item in container["volumeMounts"]]
        settings = load(_file(resources, file, tmp_path))
        for path in _paths(settings.model_dump()):
            assert any(path.is_relative_to(mount) for mount in mounts), f"{component}: {path}"


def _paths(value: Any) -> list[Path]:
    if isinstance(value, dict):
        return [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths(item)]
    return [value] if isinstance(value, Path) else []


def test_the_page_is_told_where_the_monitor_is_and_how_people_sign_in() -> None:
    (container,) = pods(render("ha-postgresql"))["page"]["spec"]["containers"]
    told = environment(container)
    assert told["STEPWEDGE_WATCH__URL"] == f"http://{NAME}-stepwatch:9108"
    assert told["STEPWEDGE_WATCH__TOKEN_FILE"] == "/run/secrets/stepwatch-token/token"
    assert told["STEPWEDGE_PAGE__URL"] == "https://stepwedge.example"
    assert told["STEPWEDGE_PAGE__OIDC__CLIENT_SECRET_FILE"] == "/run/secrets/stepwedge-oidc/client-secret"
    assert json.loads(told["STEPWEDGE_PAGE__OIDC__ROLES"]) == {
        "radiology-operators": "operator", "radiology-leads": "approver",
    }  # fmt: skip
    (container,) = pods(render("one-gpu"))["page"]["spec"]["containers"]
    assert environment(container)["STEPWEDGE_PAGE__TOKENS_FILE"] == "/run/secrets/stepwedge-page/tokens.yaml"


def test_alarms_can_be_acknowledged_on_the_page_of_one_pod_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = render("laptop", {"stepwatch": {"token": {"existingSecret": "webhook"}}})
    container, monitor = pods(resources)["single"]["spec"]["containers"]
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value)
    asked = load_settings(_file(resources, "stepwedge.yaml", tmp_path)).watch.token_file
    assert asked == load_watch_settings(_file(resources, "stepwatch.yaml", tmp_path)).http.token_file
    for each in (container, monitor):
        assert asked is not None
        assert str(asked.parent) in {item["mountPath"] for item in each["volumeMounts"]}
    # Without a token, and without the monitor, there is none to name.
    for changes in ({}, {"stepwatch": {"enabled": False, "token": {"existingSecret": "webhook"}}}):
        pod = pods(render("laptop", changes))["single"]
        assert "STEPWEDGE_WATCH__TOKEN_FILE" not in environment(pod["spec"]["containers"][0])
        assert "stepwatch-token" not in {volume["name"] for volume in pod["spec"]["volumes"]}


def _is_led_on(resources: list[Resource], address: str) -> bool:
    """Whether the ingress leads an address to the page, as Kubernetes matches paths."""
    (rule,) = named(resources, "Ingress", "page")["spec"]["rules"]
    return any(
        address == path["path"] or (path["pathType"] == "Prefix" and address.startswith(path["path"].rstrip("/") + "/"))
        for path in rule["http"]["paths"]
        if path["backend"]["service"] == {"name": f"{NAME}-page", "port": {"name": "http"}}
    )


def test_the_ingress_leads_to_all_of_the_page_and_to_nothing_beside_it() -> None:
    resources, unused = render("ha-postgresql"), cast("Any", None)
    pages = {re.sub(r"\{\w+\}", "a1b2", route.path) for route in page_routes(unused)}
    assert {"/", "/studies/a1b2", "/sign-in/callback"} <= pages
    assert {page for page in pages if not _is_led_on(resources, page)} == set()
    # Of the same port, and answered to anybody.
    health = {route.path for route in build_app({}, unused, None, unused).routes if isinstance(route, Route)}
    assert health == {"/livez", "/readyz", "/metrics"}
    assert {page for page in health if _is_led_on(resources, page)} == set()


def test_helm_is_told_to_wait_as_long_as_its_jobs_may_take() -> None:
    resources = render("one-gpu")
    longest = max(item["spec"]["activeDeadlineSeconds"] for item in of_kind(resources, "Job"))
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^`?helm (?:install|upgrade) site .*?$", readme, flags=re.MULTILINE)
    assert len(told) == 2
    for command in told:
        given = re.search(r"--timeout (\d+)m", command)
        assert given is not None
        assert int(given[1]) * 60 > longest


def test_a_policy_is_given_with_its_approvals() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    command = readme.partition("kube create configmap stepwedge-policies")[2].partition("\n```")[0]
    policy, *beside = (Path(name) for name in re.findall(r"--from-file=(\S+)", command))
    assert beside == [approvals_file(policy)], "a clinical policy without them is refused"


@pytest.mark.parametrize(
    ("ca", "volume"),
    [
        ({}, {"configMap": {"name": "hospital-ca"}}),
        ({"existingConfigMap": "", "existingSecret": "ca"}, {"secret": {"secretName": "ca", "defaultMode": 0o440}}),
        ({"existingConfigMap": ""}, {}),
    ],
    ids=["ConfigMap", "Secret", "neither"],
)
def test_the_page_trusts_the_authority_that_the_values_name(ca: dict[str, str], volume: dict[str, Any]) -> None:
    spec = pods(render("ha-postgresql", {"page": {"oidc": {"ca": ca}}}))["page"]["spec"]
    found = [each for each in spec["volumes"] if each["name"] == "oidc-ca"]
    assert found == ([{"name": "oidc-ca", **volume}] if volume else [])
    told = environment(spec["containers"][0]).get("STEPWEDGE_PAGE__OIDC__CA_FILE")
    assert told == ("/run/secrets/stepwedge-oidc-ca/ca.crt" if volume else None)


def test_no_value_holds_a_password_and_none_reaches_a_config_map() -> None:
    for values in SETS:
        for item in of_kind(render(values), "ConfigMap"):
            assert "password:" not in "".join(item["data"].values())
        for pod in pods(render(values)).values():
            for container in containers(pod):
                secret = [item for item in container.get("env", []) if item["name"].endswith("PASSWORD")]
                assert not [item for item in secret if "value" in item]


def test_the_schema_of_the_values_knows_the_settings_of_today() -> None:
    spec = importlib.util.spec_from_file_location("chart_schema", CHART / "schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert written == module.text(), "write it again: make chart"


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_the_dashboards_are_those_of_monitoring(file: Path) -> None:
    item = named(render("external-prometheus"), "ConfigMap", f"dashboard-{file.stem}")
    assert json.loads(item["data"][file.name]) == json.loads(file.read_text(encoding="utf-8"))
    assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert item["metadata"]["annotations"] == {"grafana_folder": "Radiology"}


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_the_rules_are_those_of_monitoring_and_prometheus_takes_them(file: Path, tmp_path: Path) -> None:
    rule = named(render("external-prometheus"), "PrometheusRule", f"rules-{file.stem}")
    text = file.read_text(encoding="utf-8").replace(
        "monitoring/RUNBOOK.md", "https://intranet.example/stepwedge/RUNBOOK.md"
    )
    assert rule["spec"] == yaml.safe_load(text)
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    command = [require_tool("promtool"), "check", "rules", str(rendered)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_a_prometheus_without_an_operator_gets_the_same_rules_as_files(file: Path) -> None:
    item = named(render("no-cluster-admin"), "ConfigMap", f"rules-{file.stem}")
    assert item["data"] == {f"{NAME}-{file.name}": file.read_text(encoding="utf-8").rstrip("\n")}


def test_the_packed_chart_holds_the_files_and_not_the_links(tmp_path: Path) -> None:
    status, said = run_helm("package", str(CHART), "--destination", str(tmp_path))
    assert status == 0, said
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        members = {item.name.removeprefix("stepwedge/"): item for item in archive.getmembers()}
        assert {f"files/dashboards/{file.name}" for file in DASHBOARDS} <= members.keys()
        assert {f"files/rules/{file.name}" for file in RULES} <= members.keys()
        assert all(item.isfile() for item in members.values())
        assert not {"schema.py", "schema.yaml"} & members.keys()


def test_nobody_waits_for_constancy_runs_that_nothing_makes(tmp_path: Path) -> None:
    for name, changes, awaited in (
        ("one-gpu", {}, True),
        ("one-gpu", {"constancy": {"enabled": False}}, False),
        ("laptop", {"constancy": {"enabled": False}}, True),  # the service makes them by itself
    ):
        file = _file(render(name, changes), "stepwedge.yaml", tmp_path)
        assert load_settings(file).constancy.enabled is awaited
