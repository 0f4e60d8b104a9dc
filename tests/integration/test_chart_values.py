"""Wrong values are refused before anything is installed, by a message that names the key."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from charts import CHART, refusal, render, run_helm

CLAIM, SECRET = {"existingClaim": "a"}, {"existingSecret": "a"}
DIGEST = "sha256:" + 64 * "a"


def nested(path: str, value: Any) -> dict[str, Any]:
    """A value at a place that is named by dots."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# By the schema: the place and the value.
OF_THE_WRONG_KIND: list[tuple[str, Any, str]] = [
    ("lisener", {}, "'lisener' not allowed"),
    ("listener.replica", 2, "at '/listener': additional properties 'replica' not allowed"),
    ("listener.replicas", -1, "at '/listener/replicas': minimum"),
    ("listener.replicas", 0, "at '/listener/replicas': minimum"),
    ("listener.replicas", "two", "at '/listener/replicas': got string, want integer"),
    ("listener.service.port", 70000, "at '/listener/service/port': maximum"),
    ("listener.service.type", "ExternalName", "at '/listener/service/type'"),
    ("worker.replicas", 0, "at '/worker/replicas': minimum"),
    ("worker.resources.limits.memory", "2 GB", "at '/worker/resources/limits/memory'"),
    ("worker.autoscaling.queueAgeSeconds", 0, "at '/worker/autoscaling/queueAgeSeconds': minimum"),
    ("inference.gpu.count", 0, "at '/inference/gpu/count': minimum"),
    ("mode", "cluster", "at '/mode'"),
    ("images.service.tag", "latest", "at '/images/service/tag'"),
    ("images.service.digest", "sha256:12", "at '/images/service/digest'"),
    ("images.registry", "https://registry.example", "at '/images/registry'"),
    ("database.url", "postgresql://stepwedge:secret@db/stepwedge", "at '/database/url'"),
    ("database.url", "mysql://stepwedge@db/stepwedge", "at '/database/url'"),
    ("database.password", "secret", "at '/database': additional properties 'password' not allowed"),
    ("database.existingSecret", "Not A Name", "at '/database/existingSecret'"),
    ("models.run", [{"package": "/models/a"}], "at '/models/run/0': missing property 'policy'"),
    ("models.run", [{"package": "../a", "policy": "/models/p"}], "at '/models/run/0/package'"),
    ("data.accessModes", ["ReadOnlyMany"], "at '/data/accessModes/0'"),
    ("networkPolicy.senders", ["10.20.0.5"], "at '/networkPolicy/senders/0'"),
    (
        "networkPolicy.database",
        [{"cidr": "10.0.0.1/32"}],
        "at '/networkPolicy/database/0': additional properties 'cidr'",
    ),
    ("constancy.schedule", "daily", "at '/constancy/schedule'"),
    ("page.oidc.roles", {"group": "admin"}, "at '/page/oidc/roles/group'"),
    ("monitoring.rules.kind", "Rules", "at '/monitoring/rules/kind'"),
    # The product's own settings.
    ("settings.node.ae_titel", "X", "at '/settings/node': additional properties 'ae_titel' not allowed"),
    ("settings.worker.concurrency", 0, "at '/settings/worker/concurrency': minimum"),
    ("settings.log.level", "loud", "at '/settings/log/level'"),
    ("settings.destinations", [{"name": "pacs", "host": "a", "port": 104}], "missing property 'ae_title'"),
    ("stepwatch.settings.performance.audit_share", 2, "at '/stepwatch/settings/performance/audit_share': maximum"),
    # What the chart sets itself.
    ("settings.data_dir", "/elsewhere", "at '/settings': additional properties 'data_dir' not allowed"),
    ("settings.database.url", "postgresql://a@b/c", "at '/settings': additional properties 'database' not allowed"),
    ("settings.node.host", "127.0.0.1", "at '/settings/node': additional properties 'host' not allowed"),
    ("settings.trust.keys", ["/a"], "at '/settings': additional properties 'trust' not allowed"),
    ("stepwatch.settings.database_url", "x", "at '/stepwatch/settings': additional properties 'database_url' not"),
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
    ("ha-postgresql", nested("page.oidc.clientSecret.existingSecret", ""), "page.oidc.issuer needs"),
    ("ha-postgresql", nested("page.url", ""), "page.oidc.issuer needs"),
    ("ha-postgresql", nested("networkPolicy.oidc", []), "networkPolicy.oidc is empty"),
    ("ha-postgresql", nested("networkPolicy.destinations", []), "networkPolicy.destinations is empty"),
    ("ha-postgresql", nested("worker.autoscaling.minReplicas", 9), "worker.autoscaling.minReplicas is more than"),
    ("laptop", nested("settings.node.allowed_callers", []), "settings.node.allowed_callers is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), OF_THE_WRONG_KIND)
def test_a_wrong_value_is_named_by_its_place(path: str, value: Any, said: str) -> None:
    assert said in refusal("one-gpu", nested(path, value))


@pytest.mark.parametrize(("values", "changes", "said"), NOT_TOGETHER)
def test_what_is_missing_or_excludes_another_is_named(values: str, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(values, changes)


def test_without_values_the_first_thing_to_say_is_named() -> None:
    status, said = run_helm("template", "site", str(CHART))
    assert status != 0
    assert "models.run is empty" in said


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
