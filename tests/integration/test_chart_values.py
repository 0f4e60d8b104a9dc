"""Wrong values are refused before anything is installed, by a message that names the key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from charts import CHART, VALUE_SETS, refusal, render, run_helm

CLAIM, SECRET = {"existingClaim": "a"}, {"existingSecret": "a"}
DIGEST = "sha256:" + 64 * "a"


def nested(path: str, value: Any) -> dict[str, Any]:
    """A value at a place that is named by dots."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# By the schema: a place, a value, the place that is to be named, and the key at it that is too many or missing.
OF_THE_WRONG_KIND: list[tuple[str, Any, str, str]] = [
    ("lisener", {}, "", "lisener"),
    ("listener.replica", 2, "listener", "replica"),
    ("listener.replicas", -1, "listener.replicas", ""),
    ("listener.replicas", 0, "listener.replicas", ""),
    ("listener.replicas", "two", "listener.replicas", ""),
    ("listener.service.port", 70000, "listener.service.port", ""),
    ("listener.service.type", "ExternalName", "listener.service.type", ""),
    ("worker.replicas", 0, "worker.replicas", ""),
    ("worker.resources.limits.memory", "2 GB", "worker.resources.limits.memory", ""),
    ("worker.autoscaling.queueAgeSeconds", 0, "worker.autoscaling.queueAgeSeconds", ""),
    ("inference.gpu.count", 0, "inference.gpu.count", ""),
    ("mode", "cluster", "mode", ""),
    ("stepwatch.mounts", {"Keys": {"existingSecret": "a"}}, "stepwatch.mounts", "Keys"),
    ("stepwatch.mounts", {"keys": {}}, "stepwatch.mounts.keys", ""),
    ("stepwatch.mounts", {"keys": {"existingSecret": "a", "existingClaim": "b"}}, "stepwatch.mounts.keys", ""),
    ("probes.startupSeconds", 0, "probes.startupSeconds", ""),
    ("images.service.tag", "latest", "images.service.tag", ""),
    ("images.service.digest", "sha256:12", "images.service.digest", ""),
    ("images.pullSecrets", [""], "images.pullSecrets.0", ""),
    ("images.registry", "https://registry.example", "images.registry", ""),
    ("database.url", "postgresql://stepwedge:secret@db/stepwedge", "database.url", ""),
    ("database.url", "mysql://stepwedge@db/stepwedge", "database.url", ""),
    ("database.url", "postgresql://stepwedge@db/stepwedge?password=secret", "database.url", ""),
    ("database.url", "postgresql://stepwedge@db/stepwedge?sslmode=require&password=secret", "database.url", ""),
    ("database.url", "postgresql://stepwedge@db/stepwedge?pass%77ord=secret", "database.url", ""),
    ("database.url", "postgresql://stepwedge@one:5432,two:5433/stepwedge", "database.url", ""),
    ("database.url", "postgresql://stepwedge@db/stepwedge?host=other", "database.url", ""),
    ("database.password", "secret", "database", "password"),
    ("database.existingSecret", "Not A Name", "database.existingSecret", ""),
    ("models.run", [{"package": "/models/a"}], "models.run.0", "policy"),
    ("models.run", [{"package": "../a", "policy": "/models/p"}], "models.run.0.package", ""),
    ("data.accessModes", ["ReadOnlyMany"], "data.accessModes.0", ""),
    ("networkPolicy.senders", ["10.20.0.5"], "networkPolicy.senders.0", ""),
    ("networkPolicy.database", [{"cidr": "10.0.0.1/32"}], "networkPolicy.database.0", "cidr"),
    ("constancy.schedule", "daily", "constancy.schedule", ""),
    ("page.oidc.roles", {"group": "admin"}, "page.oidc.roles.group", ""),
    ("monitoring.rules.kind", "Rules", "monitoring.rules.kind", ""),
    # The product's own settings.
    ("settings.node.ae_titel", "X", "settings.node", "ae_titel"),
    ("settings.worker.concurrency", 0, "settings.worker.concurrency", ""),
    ("settings.log.level", "loud", "settings.log.level", ""),
    ("settings.destinations", [{"name": "pacs", "host": "a", "port": 104}], "settings.destinations.0", "ae_title"),
    ("stepwatch.settings.performance.audit_share", 2, "stepwatch.settings.performance.audit_share", ""),
    # What the chart sets itself.
    ("settings.data_dir", "/elsewhere", "settings", "data_dir"),
    ("settings.database.url", "postgresql://a@b/c", "settings", "database"),
    ("settings.node.host", "127.0.0.1", "settings.node", "host"),
    ("settings.trust.keys", ["/a"], "settings", "trust"),
    ("settings.page.oidc.ca_file", "/a", "settings.page.oidc", "ca_file"),
    ("stepwatch.settings.database_url", "x", "stepwatch.settings", "database_url"),
]

# By the templates: what belongs together, and what excludes each other.
NOT_TOGETHER: list[tuple[str, dict[str, Any], str]] = [
    ("one-gpu", nested("database.url", ""), "database.url is empty"),
    ("one-gpu", nested("database.existingSecret", ""), "database.existingSecret is empty"),
    ("one-gpu", nested("stepwatch.token.existingSecret", ""), "stepwatch.token.existingSecret is empty"),
    ("one-gpu", nested("page.tokens.existingSecret", ""), "page.tokens.existingSecret and page.oidc.issuer are both"),
    ("one-gpu", nested("models.existingClaim", "a"), "models.existingClaim and models.image.repository are both set"),
    ("one-gpu", nested("models.image.repository", ""), "models.image.repository are both empty"),
    ("one-gpu", nested("models.run", []), "models.run is empty"),
    ("one-gpu", nested("models.policies", CLAIM), "models.policies: existingClaim, existingConfigMap and"),
    ("one-gpu", nested("models.policies.existingConfigMap", ""), "models.policies names no claim, ConfigMap or Secret"),
    ("one-gpu", nested("trust", SECRET), "trust.existingSecret and trust.existingConfigMap are both set"),
    ("one-gpu", nested("trust.existingConfigMap", ""), "trust.files names keys, and neither"),
    ("one-gpu", nested("trust.files", []), "trust.files is empty"),
    ("one-gpu", nested("settings.node.allowed_callers", []), "settings.node.allowed_callers is empty"),
    ("one-gpu", nested("networkPolicy.senders", []), "networkPolicy.senders is empty"),
    ("one-gpu", nested("networkPolicy.database", []), "networkPolicy.database is empty"),
    ("one-gpu", nested("settings.tracing.endpoint", "http://c:4318"), "networkPolicy.collector is empty"),
    ("one-gpu", nested("monitoring.serviceMonitor.enabled", True), "networkPolicy.prometheus is empty"),
    ("one-gpu", nested("page.ingress", {"enabled": True, "host": "a.example"}), "networkPolicy.page is empty"),
    ("one-gpu", nested("page.ingress.enabled", True), "page.ingress.host is empty"),
    ("ha-postgresql", nested("database.ca", SECRET), "database.ca.existingSecret and database.ca.existingConfigMap"),
    ("ha-postgresql", nested("page.oidc.ca", SECRET), "page.oidc.ca.existingSecret and page.oidc.ca.existingConfigMap"),
    ("ha-postgresql", nested("page.oidc.clientSecret.existingSecret", ""), "page.oidc.issuer needs"),
    ("ha-postgresql", nested("page.url", ""), "page.oidc.issuer needs"),
    ("ha-postgresql", nested("networkPolicy.oidc", []), "networkPolicy.oidc is empty"),
    ("ha-postgresql", nested("networkPolicy.destinations", []), "networkPolicy.destinations is empty"),
    ("ha-postgresql", nested("worker.autoscaling.minReplicas", 9), "worker.autoscaling.minReplicas is more than"),
    ("one-gpu", nested("data.accessModes", ["ReadWriteOncePod"]), "data.accessModes has ReadWriteOncePod"),
    ("one-gpu", nested("listener.service", {"type": "NodePort", "loadBalancerClass": "a"}), "loadBalancerClass is set"),
    ("one-gpu", nested("fullnameOverride", "1.x"), "fullnameOverride, or else the release's name, makes the name 1.x"),
    ("one-gpu", {"podLabels": {"app.kubernetes.io/component": "a"}}, "podLabels has app.kubernetes.io/component"),
    ("one-gpu", {"podLabels": {"helm.sh/chart": "a"}}, "podLabels has helm.sh/chart"),
    ("one-gpu", nested("images.inference.tag", ""), "images.inference is empty"),
    ("one-gpu", nested("stepwatch.settings.retrain.keys", ["/keys/a.pub"]), "stepwatch.settings.retrain.keys names /k"),
    ("one-gpu", nested("stepwatch.settings.retrain.locked_data", "/mnt/a"), "stepwatch.settings.retrain.locked_data"),
    ("laptop", nested("inference.gpu.enabled", True), "images.inference is empty"),
    ("laptop", nested("settings.node.allowed_callers", []), "settings.node.allowed_callers is empty"),
    ("laptop", nested("monitoring.serviceMonitor.enabled", True), "monitoring.serviceMonitor.enabled is set"),
    ("laptop", nested("monitoring.scrapeAnnotations", True), "monitoring.scrapeAnnotations is set"),
    ("laptop", nested("monitoring.rules.kind", "PrometheusRule"), "monitoring.rules.kind is set"),
    ("laptop", nested("monitoring.rules.kind", "ConfigMap"), "monitoring.rules.kind is set"),
    ("laptop", nested("monitoring.dashboards.enabled", True), "monitoring.dashboards.enabled is set"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "place", "key"), OF_THE_WRONG_KIND)
def test_a_wrong_value_is_named_by_its_place(path: str, value: Any, place: str, key: str) -> None:
    said = refusal("one-gpu", nested(path, value))
    # As Helm 4 says it, and as Helm 3 does.
    assert f"at '/{place.replace('.', '/')}'" in said.replace("at ''", "at '/'") or f"- {place or '(root)'}: " in said
    assert key in said


@pytest.mark.parametrize(("values", "changes", "said"), NOT_TOGETHER)
def test_what_is_missing_or_excludes_another_is_named(values: str, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(values, changes)


def test_without_values_the_first_thing_to_say_is_named() -> None:
    status, said = run_helm("template", "site", str(CHART))
    assert status != 0
    assert "models.run is empty" in said


def test_a_release_whose_name_no_service_may_have_is_refused() -> None:
    arguments = ("template", "site.one", str(CHART), "--values", str(VALUE_SETS["one-gpu"]))
    status, said = run_helm(*arguments)
    assert status != 0
    assert "makes the name site.one-stepwedge" in said
    assert run_helm(*arguments, changes={"fullnameOverride": "site-one"})[0] == 0


def test_one_machine_may_keep_its_volume_to_itself() -> None:
    assert render("laptop", nested("data.accessModes", ["ReadWriteOncePod"]))


def test_every_value_is_of_the_schema_and_the_other_way_round() -> None:
    """A key that only one of them knows is a key that does nothing, or cannot be set."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def walk(value: Any, described: dict[str, Any], place: str) -> list[str]:
        if "$ref" in described:
            described = schema["definitions"][described["$ref"].rpartition("/")[2]]
        if not isinstance(value, dict) or "properties" not in described or place.endswith("settings"):
            return []
        wrong = [f"{place}.{key}" for key in set(value) ^ set(described["properties"])]
        known = [key for key in value if key in described["properties"]]
        return wrong + [
            item for key in known for item in walk(value[key], described["properties"][key], f"{place}.{key}")
        ]

    assert set(walk(values, schema, "")) == {".global"}


def test_a_digest_comes_before_a_tag() -> None:
    image = {"images": {"service": {"tag": "1.2.3", "digest": DIGEST}}}
    job = next(item for item in render("one-gpu", image) if item["kind"] == "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == f"registry.example/radiology/stepwedge@{DIGEST}"
