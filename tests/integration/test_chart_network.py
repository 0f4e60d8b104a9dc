"""The network policies let through what the roles need, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from charts import VALUE_SETS, Resource, named, of_kind, pods, render
from networks import OURS, End, allowed

DICOM, ROLE, INFERENCE, WATCH, DATABASE = 11112, 8080, 3000, 9108, 5433
PROMETHEUS = End({"app.kubernetes.io/name": "prometheus"}, "monitoring")
ALERTMANAGER = End({"app.kubernetes.io/name": "alertmanager"}, "monitoring")
INGRESS = End({}, "ingress-nginx")
DNS = End({"k8s-app": "kube-dns"}, "kube-system")
STRANGER, NEIGHBOUR = End({}, "elsewhere"), End({"app": "other"}, OURS)
SENDER, DATABASE_SERVER, PACS, ARCHIVE, PROVIDER, INTERNET = (
    End(address=address) for address in
    ("10.20.0.5", "10.30.0.7", "10.20.0.77", "10.20.0.9", "10.40.0.7", "93.184.215.14")
)  # fmt: skip
COLLECTOR = End({}, "observability")
# On top of the set with everything: a monitoring system in another namespace.
WATCHED: dict[str, Any] = {
    "networkPolicy": {
        "prometheus": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                        "podSelector": {"matchLabels": PROMETHEUS.labels}}],
        "alertmanager": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                          "podSelector": {"matchLabels": ALERTMANAGER.labels}}],
    }
}  # fmt: skip

LISTENER, WORKER, SERVER, MONITOR, PAGE = "listener", "worker", "inference", "stepwatch", "page"
CONSTANCY = ("constancy", "constancy-start", "accept")
NEEDED = [
    (SENDER, LISTENER, DICOM), ("test", LISTENER, DICOM), *((each, LISTENER, DICOM) for each in CONSTANCY),
    (WORKER, SERVER, INFERENCE), (WORKER, PACS, 104), (WORKER, ARCHIVE, 11113),
    *((role, DATABASE_SERVER, DATABASE) for role in (LISTENER, WORKER, MONITOR, PAGE, "migration", *CONSTANCY)),
    *((role, DNS, 53) for role in (LISTENER, WORKER, SERVER, MONITOR, PAGE, "migration", *CONSTANCY, "test")),
    *((role, COLLECTOR, 4318) for role in (LISTENER, WORKER, SERVER)),
    (PAGE, MONITOR, WATCH), (PAGE, SERVER, INFERENCE), (PAGE, PROVIDER, 443), (INGRESS, PAGE, ROLE),
    *((PROMETHEUS, role, ROLE) for role in (LISTENER, WORKER, PAGE)),
    (PROMETHEUS, SERVER, INFERENCE), (PROMETHEUS, MONITOR, WATCH), (ALERTMANAGER, MONITOR, WATCH),
    ("test", WORKER, ROLE), ("test", PAGE, ROLE), ("test", SERVER, INFERENCE), ("test", MONITOR, WATCH),
]  # fmt: skip
FORBIDDEN = [
    (STRANGER, LISTENER, DICOM), (NEIGHBOUR, LISTENER, DICOM), (INTERNET, LISTENER, DICOM),
    (SENDER, LISTENER, ROLE), (SENDER, PAGE, ROLE), (SENDER, MONITOR, WATCH), (SENDER, SERVER, INFERENCE),
    (STRANGER, SERVER, INFERENCE), (NEIGHBOUR, SERVER, INFERENCE), (LISTENER, SERVER, INFERENCE),
    *((each, SERVER, INFERENCE) for each in CONSTANCY),
    (STRANGER, PAGE, ROLE), (NEIGHBOUR, MONITOR, WATCH), (WORKER, MONITOR, WATCH),
    (INGRESS, MONITOR, WATCH), (INGRESS, LISTENER, DICOM), (ALERTMANAGER, LISTENER, ROLE), (ALERTMANAGER, PAGE, ROLE),
    (SERVER, DATABASE_SERVER, DATABASE), (SERVER, PACS, 104), (SERVER, INTERNET, 443),
    (LISTENER, PACS, 104), (PAGE, PACS, 104), (MONITOR, PACS, 104), (MONITOR, INTERNET, 443), (PAGE, INTERNET, 443),
    (WORKER, INTERNET, 104), (WORKER, PACS, 443), (WORKER, DATABASE_SERVER, 22), (WORKER, LISTENER, DICOM),
    (MONITOR, PROVIDER, 443), ("migration", PACS, 104), ("migration", LISTENER, DICOM),
    ("test", DATABASE_SERVER, DATABASE), (PROMETHEUS, LISTENER, DICOM), (DNS, LISTENER, DICOM),
]  # fmt: skip


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return render("ha-postgresql", WATCHED)


def _end(resources: list[Resource], who: str | End) -> End:
    return who if isinstance(who, End) else End(pods(resources)[who]["metadata"]["labels"], OURS)


def _is_allowed(resources: list[Resource], source: str | End, target: str | End, port: int) -> bool:
    protocol = "UDP" if port == 53 else "TCP"
    return allowed(resources, _end(resources, source), _end(resources, target), port, protocol)


@pytest.mark.parametrize(("source", "target", "port"), NEEDED)
def test_what_a_role_needs_is_let_through(
    resources: list[Resource], source: str | End, target: str | End, port: int
) -> None:
    assert _is_allowed(resources, source, target, port)


@pytest.mark.parametrize(("source", "target", "port"), FORBIDDEN)
def test_what_none_needs_is_not(resources: list[Resource], source: str | End, target: str | End, port: int) -> None:
    assert not _is_allowed(resources, source, target, port)


@pytest.mark.parametrize("values", VALUE_SETS)
def test_every_pod_is_shut_but_for_what_is_named(values: str) -> None:
    rendered = render(values)
    for component in pods(rendered):
        assert not _is_allowed(rendered, STRANGER, component, 22)
        assert not _is_allowed(rendered, component, INTERNET, 443)


def test_one_pod_alone_takes_from_its_senders_and_gives_to_its_pacs() -> None:
    rendered = render("laptop")
    sender, pacs = End(address="192.168.1.7"), End(address="192.168.1.20")
    assert _is_allowed(rendered, sender, "single", DICOM)
    assert _is_allowed(rendered, "single", pacs, 104)
    assert not _is_allowed(rendered, sender, "single", ROLE)
    assert not _is_allowed(rendered, "single", pacs, 22)


def _weight(resource: Resource) -> int:
    return int(resource["metadata"]["annotations"].get("helm.sh/hook-weight", 0))


def test_a_migration_reaches_its_database_whatever_the_release_before_let_through() -> None:
    """Hooks come before all else, in the order of their weights: the migration's own policy first."""
    resources = render("ha-postgresql")
    job, policy = named(resources, "Job", "migration"), named(resources, "NetworkPolicy", "migration")
    assert {item["metadata"]["annotations"]["helm.sh/hook"] for item in (job, policy)} == {"pre-install,pre-upgrade"}
    assert _weight(policy) < _weight(job)
    assert of_kind(resources, "NetworkPolicy") != [policy]
    assert [each for each in of_kind(resources, "NetworkPolicy") if "annotations" in each["metadata"]] == [policy]
    # Of the release before: one pod without a database, and another database than is named now.
    for before in (render("laptop"), render("external-prometheus")):
        there = [each for each in of_kind(before, "NetworkPolicy") if "annotations" not in each["metadata"]]
        source = _end(resources, "migration")
        assert not allowed(there, source, DATABASE_SERVER, DATABASE)
        assert allowed([*there, policy], source, DATABASE_SERVER, DATABASE)
        assert allowed([*there, policy], source, DNS, 53, "UDP")


def test_the_port_of_a_database_without_one_in_its_address_is_postgresqls() -> None:
    rendered = render("external-prometheus")
    assert _is_allowed(rendered, "worker", DATABASE_SERVER, 5432)


def test_without_policies_there_is_none() -> None:
    assert of_kind(render("laptop", {"networkPolicy": {"enabled": False, "senders": []}}), "NetworkPolicy") == []
