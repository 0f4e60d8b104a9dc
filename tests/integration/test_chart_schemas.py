"""Each set of values renders to what Kubernetes and the Prometheus Operator take, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
from charts import CHART, VALUE_SETS, Resource, containers, of_kind, pods, render, run_helm
from cloudcoil.models.prometheus_operator import v1 as operator
from kubernetes_validate import utils

OLDEST, NEWEST = "1.28", "1.37"
SETS = list(VALUE_SETS)
OPERATOR = {"ServiceMonitor": operator.ServiceMonitor, "PrometheusRule": operator.PrometheusRule}


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """The library reads a megabyte of schemas for each resource anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


def test_there_are_six_sets_of_values() -> None:
    wanted = {"air-gapped", "external-prometheus", "ha-postgresql", "laptop", "no-cluster-admin", "one-gpu"}
    assert set(SETS) == wanted


@pytest.mark.parametrize("values", SETS)
def test_the_chart_is_linted_strictly(values: str) -> None:
    status, said = run_helm("lint", str(CHART), "--strict", "--values", str(VALUE_SETS[values]))
    assert status == 0, said
    assert "[WARNING]" not in said


def test_the_oldest_kubernetes_is_the_one_that_the_chart_asks_for() -> None:
    assert f'kubeVersion: ">={OLDEST}.0-0"' in (CHART / "Chart.yaml").read_text(encoding="utf-8")


def _is_of_kubernetes(resource: Resource) -> bool:
    return resource["kind"] not in OPERATOR


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", SETS)
def test_kubernetes_takes_every_resource(values: str, version: str) -> None:
    # A volume from an image came later: with the oldest version, the packages are copied out of it.
    changes = {"models": {"image": {"mount": "copy"}}} if version == OLDEST else None
    resources = [item for item in render(values, changes) if _is_of_kubernetes(item)]
    assert resources
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("mode", ["copy", "volume"])
def test_packages_come_out_of_an_image_in_either_way(mode: str) -> None:
    for resource in render("air-gapped", {"models": {"image": {"mount": mode}}}):
        kubernetes_validate.validate(resource, NEWEST, strict=True)


def test_the_schemas_would_find_a_field_that_is_not_there() -> None:
    service = of_kind(render("laptop"), "Service")[0]
    service["spec"]["sesionAffinity"] = "ClientIP"
    with pytest.raises(kubernetes_validate.ValidationError, match="sesionAffinity"):
        kubernetes_validate.validate(service, NEWEST, strict=True)


def _without_unknown_fields(resource: Resource) -> Any:
    read = OPERATOR[resource["kind"]].model_validate(resource)
    return read.model_dump(mode="json", by_alias=True, exclude_unset=True)


def test_the_operator_takes_every_custom_resource() -> None:
    found = [item for item in render("external-prometheus") if not _is_of_kubernetes(item)]
    assert {item["kind"] for item in found} == set(OPERATOR)
    for resource in found:
        # What the operator does not know is dropped: then something of it would be missing.
        assert _without_unknown_fields(resource) == resource


def test_the_operators_models_would_find_a_field_that_is_not_there() -> None:
    monitor = of_kind(render("external-prometheus"), "ServiceMonitor")[0]
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    assert _without_unknown_fields(monitor) != monitor


@pytest.mark.parametrize("values", sorted(set(SETS) - {"external-prometheus"}))
def test_without_the_operator_no_custom_resource_is_asked_for(values: str) -> None:
    assert [item["kind"] for item in render(values) if not _is_of_kubernetes(item)] == []


@pytest.mark.parametrize("values", SETS)
def test_nothing_belongs_to_the_whole_cluster(values: str) -> None:
    namespaced = {
        "ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "Ingress", "Job", "NetworkPolicy",
        "PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "PrometheusRule", "Service", "ServiceAccount",
        "ServiceMonitor", "StatefulSet",
    }  # fmt: skip
    resources = render(values)
    assert {item["kind"] for item in resources} <= namespaced
    assert not [item for item in resources if "namespace" in item["metadata"]]


def _labels(resource: Any) -> Iterator[tuple[str, str]]:
    """Every label and selector, wherever it stands."""
    if isinstance(resource, list):
        for item in resource:
            yield from _labels(item)
    elif isinstance(resource, dict):
        for key, value in resource.items():
            if key in {"labels", "matchLabels"} and isinstance(value, dict):
                yield from value.items()
            yield from _labels(value)


@pytest.mark.parametrize("values", SETS)
def test_what_the_server_asks_for_beyond_its_schemas_holds(values: str) -> None:
    resources = render(values)
    for key, value in _labels(resources):
        assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", key)
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)
    for item in of_kind(resources, "ConfigMap"):
        assert sum(len(text.encode()) for text in item["data"].values()) < 1 << 20
    for pod in pods(resources).values():
        names = [container["name"] for container in containers(pod)]
        assert len(set(names)) == len(names)
        for container in containers(pod):
            ports = [port["name"] for port in container.get("ports", [])]
            assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,14}", port) for port in ports)
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(set(mounts)) == len(mounts)
            variables = [item["name"] for item in container.get("env", [])]
            assert len(set(variables)) == len(variables)
            for name, most in container["resources"]["requests"].items():
                limit = container["resources"]["limits"].get(name)
                assert limit is None or _amount(str(most)) <= _amount(str(limit))


def _amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(\D*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * {"": 1, "m": 1e-3, "Mi": 1 << 20, "Gi": 1 << 30}[unit]


@pytest.mark.parametrize("values", SETS)
def test_names_are_unique_and_short_enough(values: str) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in render(values)]
    assert len(set(names)) == len(names)
    long = render(values, {"fullnameOverride": "a-site-with-a-very-long-name-that-somebody-has-chosen"})
    for item in long:
        # A Job of a CronJob has eleven characters more, a pod of a StatefulSet a few.
        assert len(item["metadata"]["name"]) <= 63
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", item["metadata"]["name"])
    assert all(len(item["metadata"]["name"]) <= 52 for item in of_kind(long, "CronJob", "StatefulSet"))
