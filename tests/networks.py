"""Who may talk to whom under network policies, as Kubernetes defines it: what no policy of either end forbids.

A pod that some policy selects for a direction may do in it what one of those policies allows, and nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from charts import Resource, of_kind, selects

OURS = "radiology"


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod by its labels and namespace, or an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = ""


def allowed(policies: Sequence[Resource], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection may be made."""
    return _lets(policies, "egress", source, target, port, protocol) and _lets(
        policies, "ingress", target, source, port, protocol
    )


def _lets(policies: Sequence[Resource], direction: str, end: End, other: End, port: int, protocol: str) -> bool:
    """Whether the policies of one end let it talk to the other."""
    if end.namespace != OURS:
        return True
    own = [
        policy["spec"]
        for policy in of_kind(policies, "NetworkPolicy")
        if direction.capitalize() in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], end.labels)
    ]
    return not own or any(
        _is_peer(rule, direction, other) and _is_port(rule, port, protocol)
        for spec in own
        for rule in spec.get(direction) or []
    )


def _is_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return "ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"]


def _is_peer(rule: dict[str, Any], direction: str, other: End) -> bool:
    peers = rule.get("from" if direction == "ingress" else "to")
    return not peers or any(_matches(peer, other) for peer in peers)


def _matches(peer: dict[str, Any], other: End) -> bool:
    if "ipBlock" in peer:
        return bool(other.address) and ipaddress.ip_address(other.address) in ipaddress.ip_network(
            peer["ipBlock"]["cidr"]
        )
    if other.address:
        return False
    namespace = {"kubernetes.io/metadata.name": other.namespace}
    there = selects(peer["namespaceSelector"], namespace) if "namespaceSelector" in peer else other.namespace == OURS
    return there and selects(peer.get("podSelector", {}), other.labels)
