"""The chart's pods: what they refer to is there, they have the least rights, and each has what its role needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from charts import CHART, NAME, VALUE_SETS, Resource, containers, named, of_kind, pods, render, run_helm, selects
from stepwedge import __version__
from stepwedge.settings import Constancy, Worker

SETS = list(VALUE_SETS)
DISTRIBUTED = [values for values in SETS if values != "laptop"]
ROLES = {"listener": "listen", "worker": "work", "inference": "infer", "stepwatch": "serve", "page": "page"}


def _existing(values: Any) -> Iterator[str]:
    """Names of what the values say is there already."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key in {"existingSecret", "existingConfigMap", "existingClaim"} and value:
                yield f"{key.removeprefix('existing')} {value}"
            yield from _existing(value)


def _referred(pod: Resource) -> Iterator[str]:
    """Names of what a pod cannot start without."""
    for volume in pod["spec"].get("volumes", []):
        if "secret" in volume:
            yield f"Secret {volume['secret']['secretName']}"
        if "configMap" in volume:
            yield f"ConfigMap {volume['configMap']['name']}"
        if "persistentVolumeClaim" in volume:
            yield f"Claim {volume['persistentVolumeClaim']['claimName']}"
    for container in containers(pod):
        for item in container.get("env", []):
            if "secretKeyRef" in item.get("valueFrom", {}):
                yield f"Secret {item['valueFrom']['secretKeyRef']['name']}"


@pytest.mark.parametrize("values", SETS)
def test_what_a_pod_refers_to_is_made_or_said_to_be_there(values: str) -> None:
    resources = render(values)
    there = set(_existing(yaml.safe_load(VALUE_SETS[values].read_text(encoding="utf-8"))))
    there |= {f"ConfigMap {item['metadata']['name']}" for item in of_kind(resources, "ConfigMap")}
    there |= {f"Claim {item['metadata']['name']}" for item in of_kind(resources, "PersistentVolumeClaim")}
    for component, pod in pods(resources).items():
        assert set(_referred(pod)) <= there, component


@pytest.mark.parametrize("values", SETS)
def test_an_administrator_is_told_what_has_to_be_there(values: str) -> None:
    arguments = ("install", "site", str(CHART), "--dry-run=client", "--values", str(VALUE_SETS[values]))
    status, said = run_helm(*arguments, "--namespace", "radiology")
    assert status == 0, said
    listed = said.partition("What has to be there already in the namespace:")[2].partition("A pod that waits")[0]
    there = {line.strip().replace("PersistentVolumeClaim", "Claim") for line in listed.splitlines() if line.strip()}
    given = yaml.safe_load(VALUE_SETS[values].read_text(encoding="utf-8"))
    wanted = {f"Secret {name}" for name in given.get("images", {}).get("pullSecrets", [])} | set(_existing(given))
    if secret := given.get("page", {}).get("ingress", {}).get("tlsSecret"):
        wanted.add(f"Secret {secret}")
    assert there == wanted


@pytest.mark.parametrize("values", DISTRIBUTED)
def test_the_migration_needs_nothing_that_the_release_makes(values: str) -> None:
    pod = pods(render(values))["migration"]
    there = set(_existing(yaml.safe_load(VALUE_SETS[values].read_text(encoding="utf-8"))))
    assert set(_referred(pod)) <= there
    assert pod["spec"]["serviceAccountName"] == ("radiology" if values == "no-cluster-admin" else "default")


@pytest.mark.parametrize("values", SETS)
def test_the_chart_makes_no_secret(values: str) -> None:
    assert of_kind(render(values), "Secret") == []


@pytest.mark.parametrize("values", SETS)
def test_every_mount_has_its_volume_and_every_volume_its_mount(values: str) -> None:
    for component, pod in pods(render(values)).items():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        mounts = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounts == volumes, component


@pytest.mark.parametrize("values", SETS)
def test_every_service_finds_pods_and_their_ports(values: str) -> None:
    resources = render(values)
    for service in of_kind(resources, "Service"):
        found = [
            pod for pod in pods(resources).values() if selects(service["spec"]["selector"], pod["metadata"]["labels"])
        ]
        assert len(found) == 1, service["metadata"]["name"]
        ports = {port["name"] for item in containers(found[0]) for port in item.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("values", SETS)
def test_what_selects_pods_selects_those_of_its_own(values: str) -> None:
    resources = render(values)
    labels = {component: pod["metadata"]["labels"] for component, pod in pods(resources).items()}
    for item in of_kind(resources, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        component = item["metadata"]["labels"]["app.kubernetes.io/component"]
        # It cannot be changed later: nothing in it may come with a version.
        assert set(item["spec"]["selector"]["matchLabels"]) == {
            "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component",
        }  # fmt: skip
        assert [name for name, each in labels.items() if selects(item["spec"]["selector"], each)] == [component]


def test_prometheus_finds_each_role_once_under_the_names_that_the_rules_go_by() -> None:
    resources = render("external-prometheus")
    services = of_kind(resources, "Service")
    jobs = {}
    for monitor in of_kind(resources, "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        found = [
            service for service in services
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
            and endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        ]  # fmt: skip
        assert len(found) == 1, monitor["metadata"]["name"]
        jobs[monitor["metadata"]["labels"]["app.kubernetes.io/component"]] = endpoint["relabelings"][0]["replacement"]
    assert jobs == {
        "listener": "stepwedge", "worker": "stepwedge", "page": "stepwedge",
        "inference": "stepwedge-inference", "stepwatch": "stepwatch",
    }  # fmt: skip


@pytest.mark.parametrize(("component", "pod", "kept"), [
    ("worker", "site-stepwedge-worker-0", True), ("worker", "site-stepwedge-worker-1", False),
    ("worker", "site-stepwedge-worker-10", False), ("listener", "site-stepwedge-listener-5d9f-0", False),
    ("page", "site-stepwedge-page-0", False),
])  # fmt: skip
def test_what_the_database_holds_is_counted_once(component: str, pod: str, kept: bool) -> None:
    monitor = named(render("external-prometheus"), "ServiceMonitor", component)
    (rule,) = monitor["spec"]["endpoints"][0]["metricRelabelings"]
    assert (rule["action"], rule["sourceLabels"]) == ("drop", ["__name__", "pod"])
    for metric in ("stepwedge_units_in_state", "stepwedge_deliveries_in_state", "stepwedge_studies_open"):
        assert (re.fullmatch(rule["regex"], f"{metric};{pod}") is None) is kept
    # Its age is an alert's: it must not depend on one worker.
    assert not re.fullmatch(rule["regex"], f"stepwedge_queue_age_seconds;{pod}")


@pytest.mark.parametrize("values", SETS)
def test_no_container_has_more_rights_than_it_needs(values: str) -> None:
    for component, pod in pods(render(values)).items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "its variables would be read as settings"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        if values != "no-cluster-admin":
            assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, component  # fmt: skip
            assert set(container["resources"]) == {"requests", "limits"}
            assert "memory" in container["resources"]["limits"]


def test_a_cluster_that_gives_users_of_its_own_is_left_to_do_so() -> None:
    for pod in pods(render("no-cluster-admin")).values():
        assert pod["spec"]["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize("values", SETS)
def test_every_image_is_named_by_version_or_digest(values: str) -> None:
    for pod in pods(render(values)).values():
        for container in containers(pod):
            assert re.search(r":(?!latest)[\w.-]+$|@sha256:[0-9a-f]{64}$", container["image"])


def test_behind_an_air_gap_every_image_is_of_the_one_registry_and_by_digest() -> None:
    registry = "registry.hospital.example:5000/approved/"
    for pod in pods(render("air-gapped")).values():
        assert pod["spec"]["imagePullSecrets"] == [{"name": "approved-registry"}]
        for container in containers(pod):
            assert re.fullmatch(rf"{re.escape(registry)}[a-z-]+@sha256:[0-9a-f]{{64}}", container["image"])
    mounted = render("air-gapped", {"models": {"image": {"mount": "volume"}}})
    volume = next(item for item in pods(mounted)["worker"]["spec"]["volumes"] if item["name"] == "models")
    assert volume["image"]["reference"].startswith(registry)


@pytest.mark.parametrize("values", DISTRIBUTED)
def test_each_role_is_started_asked_and_given_time_to_end(values: str) -> None:
    found = pods(render(values))
    drain = 60 if values == "ha-postgresql" else 30
    for component, role in ROLES.items():
        (container,) = found[component]["spec"]["containers"]
        assert container["args"] == [role]
        for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": "http"}
        start = container["startupProbe"]
        assert start["periodSeconds"] * start["failureThreshold"] == 300
        if component in {"listener", "worker", "inference"}:
            assert found[component]["spec"]["terminationGracePeriodSeconds"] == drain + 30


@pytest.mark.parametrize("values", ["one-gpu", "laptop"])
def test_a_start_takes_as_long_as_it_is_given(values: str) -> None:
    """It grows with the studies that are there."""
    resources = render(values, {"probes": {"startupSeconds": 1801}})
    for component in ROLES if values == "one-gpu" else ["single"]:
        for container in pods(resources)[component]["spec"]["containers"]:
            start = container["startupProbe"]
            assert 1801 <= start["periodSeconds"] * start["failureThreshold"] < 1810
    if values == "one-gpu":
        job = named(resources, "Job", "constancy-start")["spec"]
        assert job["template"]["spec"]["containers"][0]["args"][-1] == "1801"
        assert job["activeDeadlineSeconds"] > 1801 + 600


def test_images_are_received_while_the_listeners_are_replaced() -> None:
    resources = render("ha-postgresql")
    listener = named(resources, "Deployment", "listener")
    assert listener["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    service = named(resources, "Service", "listener")["spec"]
    assert service["sessionAffinity"] == "ClientIP"
    assert service["externalTrafficPolicy"] == "Local"
    assert listener["spec"]["replicas"] > 1


@pytest.mark.parametrize("values", SETS)
def test_a_pod_with_a_wrong_image_is_replaced_when_the_image_is_put_right(values: str) -> None:
    """With OrderedReady it would be waited for, until somebody deletes it."""
    for item in of_kind(render(values), "StatefulSet"):
        assert item["spec"]["podManagementPolicy"] == "Parallel", item["metadata"]["name"]


def test_a_worker_has_the_stable_name_of_its_pod() -> None:
    worker = named(render("ha-postgresql"), "StatefulSet", "worker")
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    variable = next(item for item in container["env"] if item["name"] == "STEPWEDGE_WORKER__EXECUTOR_ID")
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_only_one_monitor_runs_and_it_has_no_patient_data() -> None:
    for values in DISTRIBUTED:
        resources = render(values)
        assert named(resources, "StatefulSet", "stepwatch")["spec"]["replicas"] == 1
        spec = pods(resources)["stepwatch"]["spec"]
        (mount,) = (item for item in spec["containers"][0]["volumeMounts"] if item["name"] == "data")
        assert mount["mountPath"] == "/data/watch"
        (volume,) = (item for item in spec["volumes"] if item["name"] == "data")
        assert volume["persistentVolumeClaim"]["claimName"] in {f"{NAME}-stepwatch", "stepwatch"}


@pytest.mark.parametrize("values", ["one-gpu", "laptop"])
def test_the_monitor_gets_the_files_that_its_settings_name(values: str) -> None:
    mounts = {"keys": {"existingConfigMap": "a"}, "secret": {"existingSecret": "b"}, "cases": {"existingClaim": "c"}}
    pod = pods(render(values, {"stepwatch": {"mounts": mounts}}))["stepwatch" if values == "one-gpu" else "single"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["mount-keys"]["configMap"] == {"name": "a"}
    assert volumes["mount-secret"]["secret"]["secretName"] == "b"
    assert volumes["mount-cases"]["persistentVolumeClaim"] == {"claimName": "c", "readOnly": True}
    for container in pod["spec"]["containers"]:
        found = {item["mountPath"] for item in container["volumeMounts"] if item["name"] in volumes}
        is_monitor = container["name"] == "stepwatch"
        assert ({"/mnt/keys", "/mnt/secret", "/mnt/cases"} <= found) is is_monitor


def test_the_inference_server_has_neither_studies_nor_the_database() -> None:
    for values in DISTRIBUTED:
        pod = pods(render(values))["inference"]
        assert not {"data", "database", "site-key"} & {volume["name"] for volume in pod["spec"]["volumes"]}


def test_a_gpu_is_asked_for_and_not_waited_for_by_two() -> None:
    inference = named(render("one-gpu"), "Deployment", "inference")
    spec = inference["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["containers"][0]["image"].endswith(":0.1.0-cuda")
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert spec["runtimeClassName"] == "nvidia"
    assert inference["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    others = [pod for name, pod in pods(render("one-gpu")).items() if name != "inference"]
    assert not [item for pod in others for c in containers(pod) for item in c["resources"]["limits"] if "gpu" in item]


def test_workers_are_added_by_the_age_of_the_queue_only_where_that_is_asked_for() -> None:
    scaled = render("ha-postgresql")
    (scaler,) = of_kind(scaled, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == f"{NAME}-worker"
    metric = scaler["spec"]["metrics"][0]["external"]
    assert metric["metric"]["name"] == "stepwedge_queue_age_seconds"
    assert metric["target"] == {"type": "Value", "value": "60"}
    assert "replicas" not in named(scaled, "StatefulSet", "worker")["spec"], "the two would fight over it"
    assert of_kind(render("one-gpu"), "HorizontalPodAutoscaler") == []


def test_a_budget_never_keeps_a_node_from_being_emptied() -> None:
    for values in SETS:
        resources = render(values)
        for budget in of_kind(resources, "PodDisruptionBudget"):
            assert budget["spec"]["maxUnavailable"] == 1
            assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", "its pods may be unready for long"
    components = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]
        for item in of_kind(render("ha-postgresql"), "PodDisruptionBudget")
    }
    assert components == {"listener", "worker", "inference", "page"}
    assert of_kind(render("one-gpu"), "PodDisruptionBudget") == []


def test_studies_and_requests_outlive_the_release() -> None:
    for claim in of_kind(render("one-gpu"), "PersistentVolumeClaim"):
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(render("no-cluster-admin"), "PersistentVolumeClaim") == []


def _constancy_jobs(resources: list[Resource]) -> dict[str, Resource]:
    """What runs the reference set, by name: the Jobs' specs."""
    return {
        "constancy": named(resources, "CronJob", "constancy")["spec"]["jobTemplate"]["spec"],
        "accept": named(resources, "CronJob", "accept")["spec"]["jobTemplate"]["spec"],
        "constancy-start": named(resources, "Job", "constancy-start")["spec"],
    }


def test_the_constancy_run_sends_to_the_listeners_and_is_not_repeated_when_it_finds_something() -> None:
    resources = render("ha-postgresql")
    assert named(resources, "CronJob", "constancy")["spec"]["concurrencyPolicy"] == "Forbid"
    for job in _constancy_jobs(resources).values():
        pod = job["template"]["spec"]
        variables = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
        assert variables["STEPWEDGE_NODE__HOST"] == f"{NAME}-listener"
        assert variables["STEPWEDGE_NODE__PORT"] == "11112"
        assert pod["restartPolicy"] == "Never"
        # One that could not send is tried again: its status is 2.
        assert job["backoffLimit"] > 0
        (rule,) = job["podFailurePolicy"]["rules"]
        assert rule == {
            "action": "FailJob", "onExitCodes": {"containerName": "constancy", "operator": "In", "values": [1]},
            "onPodConditions": [],
        }  # fmt: skip


def test_a_stuck_constancy_run_does_not_keep_later_ones_from_starting() -> None:
    assert Constancy().timeout_seconds == 600, "the chart takes it for the default"
    for changes, at_least in (
        ({}, 600),
        ({"settings": {"constancy": {"timeout_seconds": 1200.5}}}, 1201),
        ({"models": {"run": 2 * [{"package": "/models/a", "policy": "/models/p.yaml"}]}}, 1200),
    ):
        for job in _constancy_jobs(render("ha-postgresql", changes)).values():
            assert at_least + 300 < job["activeDeadlineSeconds"] <= at_least + 600


def test_every_release_has_a_constancy_run_once_its_roles_are_there() -> None:
    resources = render("ha-postgresql")
    job = named(resources, "Job", "constancy-start")
    assert job["metadata"]["annotations"] == {
        "helm.sh/hook": "post-install,post-upgrade,post-rollback", "helm.sh/hook-delete-policy": "before-hook-creation",
    }  # fmt: skip
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["constancy", "--after-start", "300"]
    without = render("ha-postgresql", {"constancy": {"afterRelease": False}})
    assert {"constancy", "accept"} <= pods(without).keys()
    assert "constancy-start" not in pods(without)
    off = render("ha-postgresql", {"constancy": {"enabled": False}})
    assert not {"constancy", "accept", "constancy-start"} & pods(off).keys()


def test_new_answers_are_accepted_only_by_a_person_who_makes_a_job_of_it() -> None:
    resources = render("ha-postgresql")
    waiting = named(resources, "CronJob", "accept")["spec"]
    assert waiting["suspend"] is True
    (container,) = pods(resources)["accept"]["spec"]["containers"]
    assert container["args"] == ["constancy", "--accept"]


def test_a_change_of_the_settings_rolls_the_pods() -> None:
    def sums(**changes: Any) -> dict[str, str]:
        found = pods(render("one-gpu", changes))
        return {name: found[name]["metadata"]["annotations"]["checksum/settings"] for name in ROLES}

    before, after = sums(), sums(settings={"log": {"level": "debug"}})
    assert not set(before.values()) & set(after.values())
    assert before == sums(listener={"replicas": 4})


def test_the_image_and_the_chart_are_of_the_same_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"] == __version__


def test_drain_seconds_of_the_product_are_those_that_the_chart_takes_for_default() -> None:
    assert Worker().drain_seconds == 30
