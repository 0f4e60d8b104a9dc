"""The chart as Helm renders it: values in, resources out. What is rendered is read as Kubernetes would read it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from peers import require_tool

CHART = Path(__file__).parents[1] / "helm" / "stepwedge"
VALUE_SETS = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*.yaml"))}
NAMESPACE, NAME = "radiology", "site-stepwedge"

Resource = dict[str, Any]

# The same, faster, where PyYAML was built with libyaml.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def run_helm(*arguments: str, changes: Mapping[str, Any] | None = None) -> tuple[int, str]:
    """Status and what Helm says; ``changes`` are values over those of the files."""
    command = [require_tool("helm"), *arguments]
    given = None
    if changes is not None:
        command += ["--values", "-"]
        given = json.dumps(changes)
    result = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    errors = [line for line in result.stderr.splitlines() if "symbolic link" not in line]
    return result.returncode, result.stdout + "\n".join(errors)


def render(values: str, changes: Mapping[str, Any] | None = None) -> list[Resource]:
    """The resources of a set of values, with changes."""
    return [item for item in yaml.load_all(_rendered(values, json.dumps(changes or {})), Loader=_Loader) if item]


@cache
def _rendered(values: str, changes: str) -> str:
    status, said = run_helm(
        "template", "site", str(CHART), "--namespace", NAMESPACE, "--values", str(VALUE_SETS[values]),
        changes=json.loads(changes),
    )  # fmt: skip
    assert status == 0, said
    return said


def refusal(values: str, changes: Mapping[str, Any]) -> str:
    """What Helm says of values that it does not take."""
    status, said = run_helm(
        "template", "site", str(CHART), "--values", str(VALUE_SETS[values]), changes=changes
    )  # fmt: skip
    assert status != 0, "the values were taken"
    return said


def of_kind(resources: Iterable[Resource], *kinds: str) -> list[Resource]:
    """The resources of some kinds."""
    return [item for item in resources if item["kind"] in kinds]


def named(resources: Iterable[Resource], kind: str, name: str) -> Resource:
    """The one resource of this kind and name; the name is what stands behind the release's."""
    full = f"{NAME}-{name}" if name else NAME
    found = [item for item in resources if item["kind"] == kind and item["metadata"]["name"] == full]
    assert len(found) == 1, f"{len(found)} of {kind} {full}"
    return found[0]


def pods(resources: Iterable[Resource]) -> dict[str, Resource]:
    """Every pod that will be, by what stands behind the release's name, or its component: its `metadata` and `spec`."""
    found: dict[str, Resource] = {}
    for item in resources:
        kind, name, spec = item["kind"], item["metadata"]["name"], item.get("spec", {})
        template = {
            "Deployment": lambda spec=spec: spec["template"],
            "StatefulSet": lambda spec=spec: spec["template"],
            "Job": lambda spec=spec: spec["template"],
            "CronJob": lambda spec=spec: spec["jobTemplate"]["spec"]["template"],
            "Pod": lambda item=item: item,
        }.get(kind)
        if template is not None:
            pod = template()
            component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
            found[component if name == NAME else name.removeprefix(f"{NAME}-")] = pod
    return found


def containers(pod: Resource) -> Iterator[Resource]:
    """The containers of a pod, the initial ones too."""
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of either of its forms here, matches labels."""
    wanted = selector.get("matchLabels", {}) if "matchLabels" in selector or not selector else selector
    return all(labels.get(key) == value for key, value in wanted.items())


def environment(container: Resource, *, pod_name: str = "") -> dict[str, str]:
    """The environment variables that are known before the pod runs."""
    known = {}
    for item in container.get("env", []):
        if "value" in item:
            known[item["name"]] = item["value"]
        elif "fieldRef" in item["valueFrom"]:
            known[item["name"]] = pod_name
        elif "resourceFieldRef" in item["valueFrom"]:
            known[item["name"]] = "2"
    return known
