"""Runs the pods of the rendered chart as processes, with a stand-in for the cluster.

What is as in a cluster: arguments, environment, settings, Secrets, ConfigMaps and claims, each where the pod mounts it
and nowhere else. What is not: containers and the network. A path of a mount becomes a folder here, the name of a
Service a loopback address, and each pod listens on a loopback port of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from charts import Resource, of_kind, pods


class Kubelet:
    """The processes of pods. ``given`` are the Secrets, ConfigMaps and claims that are there, by kind and name."""

    def __init__(
        self, folder: Path, resources: list[Resource], given: Mapping[str, Path], services: Mapping[str, str]
    ) -> None:
        self._folder, self._pods, self._services = folder, pods(resources), services
        self._given = dict(given)
        for item in of_kind(resources, "ConfigMap"):
            self._given[f"ConfigMap {item['metadata']['name']}"] = _written(folder / "maps", item)
        for item in of_kind(resources, "PersistentVolumeClaim"):
            claim = folder / "claims" / item["metadata"]["name"]
            claim.mkdir(parents=True)
            self._given[f"Claim {item['metadata']['name']}"] = claim
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, component: str, name: str, number: int = 0, **network: str) -> subprocess.Popen[bytes]:
        """Start one of a pod's containers; ``network`` are its own addresses."""
        pod = self._pods[component]
        container = pod["spec"]["containers"][number]
        own = self._folder / "pods" / f"{name}-{len(list(self._folder.glob(f'pods/{name}-*')))}"
        mounts = {
            mount["mountPath"]: self._volume(volume, own / mount["name"])
            for mount in container["volumeMounts"]
            for volume in pod["spec"]["volumes"]
            if volume["name"] == mount["name"]
        }
        variables = {"PATH": os.environ["PATH"], "HOME": str(mounts["/tmp"])}
        for item in container.get("env", []):
            variables[item["name"]] = self._moved(self._value(item, name), mounts)
        for settings in (file for path in mounts.values() for file in path.glob("step*.yaml")):
            settings.write_text(self._moved(settings.read_text(encoding="utf-8"), mounts), encoding="utf-8")
        program = container["image"].rpartition("/")[2].partition(":")[0]
        command = container.get("command", ["python", "-m", program])
        arguments = [self._moved(item, mounts) for item in container["args"]]
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command[1:], *arguments],
                env=variables | network, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.running[name] = process
        return process

    def run(self, component: str, name: str, **network: str) -> tuple[int, str]:
        """Run a pod to its end: status and what it said."""
        status = self.start(component, name, **network).wait(200)
        del self.running[name]
        return status, self.log(name).read_text(errors="replace")

    def probe(self, component: str, number: int, probe: str) -> bool:
        """Whether a probe that is a command says that all is well."""
        command = self._pods[component]["spec"]["containers"][number][probe]["exec"]["command"]
        told = [self._moved(item, {"/unused": self._folder}) for item in command[1:]]
        return subprocess.run([sys.executable, *told], capture_output=True, check=False).returncode == 0

    def log(self, name: str) -> Path:
        """Where a pod writes."""
        return self._folder / f"{name}.log"

    def stop(self, name: str) -> int:
        """SIGTERM, and the status."""
        process = self.running.pop(name)
        process.terminate()
        try:
            return process.wait(100)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            raise

    def end(self) -> None:
        """Stop all that still runs."""
        for process in self.running.values():
            process.terminate()
        for name in list(self.running):
            self.stop(name)

    def _volume(self, volume: Resource, own: Path) -> Path:
        """The folder of a volume; of Secrets and ConfigMaps a copy, as in a pod."""
        if "persistentVolumeClaim" in volume:
            return self._given[f"Claim {volume['persistentVolumeClaim']['claimName']}"]
        own.mkdir(parents=True)
        source, named = volume.get("secret"), ""
        if source is not None:
            named = f"Secret {source['secretName']}"
        elif "configMap" in volume:
            source, named = volume["configMap"], f"ConfigMap {volume['configMap']['name']}"
        if source is not None:
            keys = {file.name: file.name for file in self._given[named].iterdir()}
            keys = {item["key"]: item["path"] for item in source.get("items", [])} or keys
            for key, path in keys.items():
                (own / path).write_bytes((self._given[named] / key).read_bytes())
        return own

    def _value(self, item: Resource, name: str) -> str:
        if "value" in item:
            return str(item["value"])
        if "fieldRef" in item["valueFrom"]:
            return name
        if "secretKeyRef" in item["valueFrom"]:
            key = item["valueFrom"]["secretKeyRef"]
            return (self._given[f"Secret {key['name']}"] / key["key"]).read_text(encoding="utf-8")
        return "2"  # a limit of resources

    def _moved(self, text: str, mounts: Mapping[str, Path]) -> str:
        for service, address in self._services.items():
            text = text.replace(service, address)
        longest = sorted(mounts, key=len, reverse=True)
        pattern = rf"(?<![\w.:-])({'|'.join(map(re.escape, longest))})(?=/|$|\s)"
        return re.sub(pattern, lambda found: str(mounts[found[1]]), text)


def _written(folder: Path, item: Resource) -> Path:
    own = folder / item["metadata"]["name"]
    own.mkdir(parents=True)
    for key, text in item["data"].items():
        (own / key).write_text(text, encoding="utf-8")
    return own
