"""A small hospital: a service with its monitor, a tiny model with a baseline, locked cases, and a person with a key."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from chained import TOKEN
from instances import write_file
from packages import seal, write_package, write_policy
from peers import dcmtk, free_ports
from radiographs import radiograph, write_picture
from referenced import write_studies
from stepwedge.casefile import open_case
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.observation import Observation
from stepwedge.package.observe import write_baseline
from stepwedge.package.reference_set import put_reference
from stepwedge.pipeline import analyse_image, combine, equip, observation_of
from stepwedge.policy import load_policy
from stepwedge.records import UnitResult
from stepwedge.signing import ensure_key

from service import PATIENCE_SECONDS, Service, settings_for, until

HERE = Path(__file__).parents[1]
SCANNERS, NEW_SCANNER = ("Wall stand", "Bedside"), "Borealis Ray 7"
BASELINE, OF_THE_NEW = 600, 200
LOCKED = 80


def brightnesses(count: int, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).uniform(0.2, 0.8, count)]


def write_study(file: Path, brightness: float, scanner: str) -> Path:
    dataset = radiograph(brightness)
    dataset.ManufacturerModelName = scanner
    return write_file(dataset, file)


def observed(folder: Path, release: Path, scanners: Sequence[str], count: int, seed: int) -> list[Observation]:
    """What the service would observe in eight weeks, on working days: so any day is one."""
    package = load_package(release / "package")
    equipment = equip(
        package, OnnxEngine(package, "cpu", 1), load_policy(release / "policy.yaml", package), explain=False
    )
    monday = datetime(2026, 1, 5, 8, tzinfo=UTC)
    rows = []
    for index, brightness in enumerate(brightnesses(count, seed)):
        file = write_study(folder / f"baseline-{seed}.dcm", brightness, scanners[index % len(scanners)])
        image, _ = analyse_image(open_case(file), equipment)
        state, reasons, findings = combine([image], equipment)
        days, hours = divmod(40 * index / count, 1)
        week, day = divmod(int(days), 5)
        when = monday + timedelta(weeks=week, days=day, hours=8 * hours, minutes=index % 7)
        assert equipment.policy is not None
        unit = UnitResult(
            unit=f"b{seed}-{index}", study=f"b{seed}-{index}", revision=1, state=state, reasons=reasons,
            findings=findings, images=(image,), model=replace(package.reference, digest=""),
            policy=equipment.policy.reference, created_at=when.isoformat(),
        )  # fmt: skip
        rows.append(replace(observation_of(unit, {}), senders=("MODALITY",)))
    return rows


def write_labelled(folder: Path, seed: int) -> Path:
    """Labelled pictures of known patients."""
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["file", "patient", "label"])
        for index, brightness in enumerate(brightnesses(LOCKED, seed)):
            name = f"{index:03}.png"
            write_picture(folder / name, brightness)
            table.writerow([name, f"p{index}", "ill" if brightness > 0.5 else "normal"])
    return folder


class Department:
    """A service with its monitor, watched by Prometheus, and a person with a key."""

    def __init__(self, folder: Path, *, reference: bool = False, destinations: Sequence[dict[str, Any]] = ()) -> None:
        """``reference``: whether the first package has a reference set."""
        self.folder = folder
        self.dicom, self.watch, self.prometheus, self.alertmanager = free_ports(4)
        release = folder / "releases" / "1.0.0"
        write_package(release / "package")
        write_policy(release / "policy.yaml")
        rows = observed(folder, release, SCANNERS, BASELINE, 1)
        write_baseline(release / "package", rows)
        if reference:
            package = load_package(write_package(folder / "plain"))
            put_reference(
                package.model_copy(update={"path": release / "package"}),
                OnnxEngine(package, "cpu", 1),
                write_studies(folder / "reference"),
            )
        seal(release / "package")
        further = folder / "further"
        further.mkdir()
        write_baseline(further, [*rows, *observed(folder, release, [NEW_SCANNER], OF_THE_NEW, 2)])
        self.live = folder / "live"
        self.live.symlink_to(release)
        locked, training = write_labelled(folder / "locked", 5), write_labelled(folder / "training", 6)
        self.key = folder / "jane.pem"
        ensure_key(self.key)
        (folder / "service").mkdir()
        (folder / "token").write_text(TOKEN)
        self.config = folder / "service" / "stepwatch.yaml"
        train = [
            sys.executable, str(HERE / "refit.py"), str(release), str(training), str(training / "labels.csv"),
            str(further / "baseline.parquet"), "1.1.0",
        ]  # fmt: skip
        watch = {
            "database_url": f"sqlite:///{folder / 'service' / 'data' / 'stepwedge.db'}",
            "http": {"port": self.watch, "token_file": str(folder / "token")},
            "detection": {"poll_seconds": 0.2, "save_seconds": 0},
            "retrain": {
                "keys": [str(folder / "jane.pub")],
                "command": train,
                "locked_data": str(locked),
                "locked_labels": str(locked / "labels.csv"),
                "live_link": str(self.live),
                "reload_command": ["stepwedge", "reload", "--config", str(folder / "service" / "stepwedge.yaml")],
            },
        }
        values = settings_for(
            self.live / "package", self.live / "policy.yaml", list(destinations),
            watch={"enabled": True, "config": self.config.name},
        )  # fmt: skip
        self.service = Service(folder / "service", values)
        watch["database_url"] = f"sqlite:///{self.service.settings.database_file.absolute()}"
        watch["data_dir"] = str(self.service.settings.data_dir.absolute() / "watch")
        watch["models"] = [{"package": str(self.live / "package"), "policy": str(self.live / "policy.yaml")}]
        self.config.write_text(yaml.safe_dump(watch))
        self.sent = 0

    def send(self, scanners: Sequence[str], count: int) -> None:
        for brightness in brightnesses(count, 100 + self.sent):
            self.sent += 1
            file = write_study(self.folder / "study.dcm", brightness, scanners[self.sent % len(scanners)])
            subprocess.run(
                [dcmtk("storescu"), "-aet", "MODALITY", "-aec", "STEPWEDGE", "127.0.0.1",
                 str(self.service.settings.node.port), str(file)],
                check=True, timeout=PATIENCE_SECONDS,
            )  # fmt: skip
        sent = self.sent

        def all_observed() -> bool:
            with self.service.store() as store:
                return len({json.loads(body)["study"] for _, body in store.observations()}) == sent

        until(all_observed, "every study is observed", self.service)

    @property
    def ports(self) -> dict[str, int]:
        """Where each of Prometheus's jobs finds its metrics."""
        settings = self.service.settings
        assert settings.http.port is not None
        return {
            "stepwedge": settings.http.port,
            "stepwedge-inference": settings.inference.port,
            "stepwatch": self.watch,
        }

    def retrain(self, *arguments: str, signed: bool = True, status: int = 0) -> str:
        """What ``stepwatch retrain`` says."""
        key = ["--key", str(self.key)] if signed else []
        done = subprocess.run(
            [sys.executable, "-m", "stepwatch", "retrain", *arguments, *key, "--config", str(self.config)],
            capture_output=True, text=True, timeout=PATIENCE_SECONDS * 2, env=dict(os.environ),
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr + self.service.log()[-3000:]
        return done.stdout + done.stderr

    def requests(self) -> list[dict[str, Any]]:
        said = self.retrain("list", "--json", signed=False)
        return [json.loads(line) for line in said.splitlines()]

    def metrics(self) -> str:
        try:
            return httpx.get(f"http://127.0.0.1:{self.watch}/metrics", timeout=10).text
        except httpx.HTTPError:
            return ""

    def versions(self) -> list[str]:
        """The model's version in every observation, in order."""
        with self.service.store() as store:
            return [json.loads(body)["model_version"] for _, body in store.observations()]
