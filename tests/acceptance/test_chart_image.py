"""The image of the service has what the chart asks of it: programs of hooks and probes, roles with a read-only root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from charts import containers, environment, named, pods, render
from containers import Container, require_image
from peers import free_ports, require_tool

from service import until

IMAGE = "stepwedge:dev"
MODELS = Path(__file__).parents[2] / "models"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    require_tool("helm")
    text = named(render("external-prometheus"), "ConfigMap", "settings")["data"]["stepwedge.yaml"]
    # The stand-in for the engine has the packages at another place.
    config = {"stepwedge.yaml": text.replace("/models/", "/mnt/")}
    with Container.of(require_image(IMAGE), tmp_path_factory.mktemp("image"), MODELS, config=config) as container:
        yield container


def test_it_has_the_programs_of_hooks_and_probes(image: Container, tmp_path: Path) -> None:
    for values in ("external-prometheus", "laptop"):
        for component, pod in pods(render(values)).items():
            for container in containers(pod):
                hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
                if hook is not None:
                    command = [word if word != "5" else "0" for word in hook["command"]]
                    assert image.run(tmp_path / f"{component}.log", *command)[0] == 0
                if "exec" in container.get("livenessProbe", {}):
                    command = container["livenessProbe"]["exec"]["command"]
                    status, said = image.run(tmp_path / f"{container['name']}.log", *command)
                    assert status == 1
                    assert "Connection refused" in said


def test_helms_test_runs_in_it(image: Container, tmp_path: Path) -> None:
    (container,) = pods(render("external-prometheus"))["test"]["spec"]["containers"]
    [port] = free_ports(1)
    arguments = [container["args"][0], f"127.0.0.1:{port}", *container["args"][2:4]]
    status, said = image.run(tmp_path / "log", *container["command"], *arguments)
    assert (status, said) == (1, f"127.0.0.1:{port} takes no association\n")


def test_the_migration_names_a_secret_that_is_not_there(image: Container, tmp_path: Path) -> None:
    (container,) = pods(render("external-prometheus"))["migration"]["spec"]["containers"]
    variables = [f"{name}={value}" for name, value in environment(container).items()]
    status, said = image.run(tmp_path / "log", "env", *variables, "stepwedge", *container["args"])
    assert status == 2
    assert "database.password_file: /run/secrets/stepwedge-database/password: the password cannot be read" in said


def test_the_inference_server_runs_without_a_volume(image: Container, tmp_path: Path) -> None:
    (container,) = pods(render("external-prometheus"))["inference"]["spec"]["containers"]
    [port] = free_ports(1)
    own = {"STEPWEDGE_INFERENCE__HOST": "127.0.0.1", "STEPWEDGE_INFERENCE__PORT": str(port)}
    variables = [f"{name}={value}" for name, value in (environment(container) | own).items()]
    log = tmp_path / "log"
    process = image.start(log, "env", *variables, "stepwedge", *container["args"], entrypoint=())
    try:
        until(lambda: process.poll() is not None or _is_ready(port), "the inference server is ready")
        assert process.poll() is None, log.read_text()
    finally:
        if process.poll() is None:
            assert image.stop(process) == 0, log.read_text()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False
