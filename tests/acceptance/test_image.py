"""The built images do the main job as they would in a hospital: with a read-only root, as nobody in particular."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
import yaml
from containers import USER, Container, require_image
from peers import Orthanc, dicom_errors, free_ports
from pydicom.data import get_testdata_file
from sender import send

from service import destination, settings_for, until

MODELS = Path(__file__).parents[2] / "models"
SERVICE, MONITOR = "stepwedge:dev", "stepwatch:dev"
LARGEST_MB = {SERVICE: 700, MONITOR: 800}

# As a module that costs minutes where the images are, and nothing where they are not.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[SERVICE, MONITOR])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Container]]:
    with Container.of(require_image(request.param), tmp_path_factory.mktemp("image"), MODELS) as container:
        yield request.param, container


def test_it_is_no_larger_than_promised(image: tuple[str, Container]) -> None:
    reference, container = image
    assert container.size_mb <= LARGEST_MB[reference]


def test_it_runs_as_nobody_in_particular_and_writes_only_where_it_may(
    image: tuple[str, Container], tmp_path: Path
) -> None:
    _, container = image
    assert container.configuration["User"] == f"{USER}:{USER}"
    script = (
        "id -u; touch /data/a /tmp/a && echo written; "
        "for f in / /etc /opt/stepwedge /usr /var/tmp /home; do touch $f/a 2>/dev/null && echo LEAK $f; done; true"
    )
    status, said = container.run(tmp_path / "log", "sh", "-c", script)
    assert (status, said.split()) == (0, [str(USER), "written"])


def test_nothing_in_it_compiles_installs_or_gains_rights(image: tuple[str, Container]) -> None:
    _, container = image
    for name in ("gcc", "cc", "g++", "ld", "make", "pip", "pip3", "git", "curl", "wget"):
        assert not [
            p for p in ("usr/bin", "usr/local/bin", "opt/stepwedge/bin") if (container.root / p / name).exists()
        ]
    libraries = next((container.root / "opt/stepwedge/lib").glob("python3.*")) / "site-packages"
    assert not [name for name in ("pip", "setuptools", "wheel", "hatchling") if (libraries / name).exists()]
    files = (file for file in container.root.rglob("*") if file.is_file() and not file.is_symlink())
    assert [file for file in files if file.stat().st_mode & 0o6000] == []


def test_it_holds_its_bill_of_materials_and_no_address_of_where_it_was_built(image: tuple[str, Container]) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    _, container = image
    text = (container.root / "usr/share/doc/stepwedge/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    names = {part["name"] for part in json.loads(text)["components"]}
    assert {"stepwedge", "numpy", "libc6"} <= names
    assert not names & {"hatchling", "pytest", "pylibjpeg-libjpeg"}
    licences = (container.root / "usr/share/doc/stepwedge/licences.txt").read_text()
    assert "python\tnumpy\t" in licences
    assert not (container.root / "etc/pip.conf").exists()
    assert not [name for name in container.configuration["Env"] if name.startswith(("PIP_", "http", "HTTP"))]


def test_without_settings_it_says_what_is_missing(image: tuple[str, Container], tmp_path: Path) -> None:
    _, container = image
    process = container.start(tmp_path / "log", "serve")
    assert process.wait(120) == 2
    assert "models" in (tmp_path / "log").read_text()


def test_a_real_radiograph_comes_back_with_its_report_and_the_monitor_draws_its_page(tmp_path: Path) -> None:
    require_image(SERVICE), require_image(MONITOR)
    [watch_port] = free_ports(1)
    file = Path(str(get_testdata_file("RG1_UNCR.dcm", download=False)))
    uid = str(pydicom.dcmread(file, stop_before_pixels=True).StudyInstanceUID)
    with Orthanc.started(tmp_path) as pacs:
        package, policy = Path("/mnt/chest-pneumonia/1.1.0"), Path("/mnt/chest-pneumonia/policy.yaml")
        values = settings_for(package, policy, [destination(pacs.dicom_port)], data_dir="/data")
        watch = {
            "database_url": "sqlite:////data/db/stepwedge.sqlite",
            "data_dir": "/data/watch",
            "models": [{"package": str(package), "policy": str(policy)}],
            "http": {"port": watch_port},
        }
        own = {"stepwedge.yaml": yaml.safe_dump(values)}
        with Container.of(SERVICE, tmp_path, MODELS, config=own) as service:
            log = tmp_path / "service.log"
            serve = service.start(log, "serve")
            until(
                lambda: serve.poll() is not None or _answers(values["http"]["port"], "/readyz"), "the service is ready"
            )
            assert serve.poll() is None, log.read_text()
            assert service.user_of(serve) == USER
            assert service.healthy(serve)
            send(values["node"]["port"], file)
            until(lambda: _reports(pacs, uid, tmp_path), "the report is in the PACS")
            [report] = _reports(pacs, uid, tmp_path)
            assert dicom_errors(report) == []
            with Container.of(MONITOR, tmp_path, MODELS, config={"stepwatch.yaml": yaml.safe_dump(watch)}) as monitor:
                _watch(monitor, watch_port, tmp_path)
            assert service.stop(serve) == 0, log.read_text()


def _watch(monitor: Container, port: int, folder: Path) -> None:
    log = folder / "monitor.log"
    serve = monitor.start(log, "serve")
    until(lambda: serve.poll() is not None or _answers(port, "/readyz"), "the monitor is ready")
    assert serve.poll() is None, log.read_text()
    assert monitor.healthy(serve)
    until(lambda: "stepwatch_database_up 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text, "it sees the rows")
    baseline = "/mnt/chest-pneumonia/1.1.0/baseline.parquet"
    arguments = ("snapshot", "--baseline", baseline, "--rows", baseline, "--out", "/data/page.html")
    status, said = monitor.run(folder / "page.log", "stepwatch", *arguments)
    assert status == 0, said
    assert (monitor.data / "page.html").stat().st_size > 100_000
    assert monitor.stop(serve) == 0, log.read_text()


def _answers(port: int, path: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def _reports(pacs: Orthanc, uid: str, folder: Path) -> list[Path]:
    files = [pacs.download(instance, folder) for instance in pacs.instances(uid)]
    return [file for file in files if pydicom.dcmread(file, stop_before_pixels=True).Modality == "SR"]
