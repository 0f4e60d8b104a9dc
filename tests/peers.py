"""Real peers: dcmtk's tools, Orthanc as the PACS, dciodvfy as the judge of our objects.

A program that is not installed skips the test that needs it, with its name; with STEPWEDGE_REQUIRE_TOOLS=1 it fails.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest


def require_tool(name: str) -> str:
    """The path of a program. The environment's own folder comes last: pynetdicom puts a storescu of its own there."""
    own = str(Path(sys.executable).parent)
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own]
    found = shutil.which(name, path=os.pathsep.join([*folders, own]))
    if found is None:
        if os.environ.get("STEPWEDGE_REQUIRE_TOOLS") == "1":
            pytest.fail(f"{name} is not installed, and STEPWEDGE_REQUIRE_TOOLS=1 asks for it")
        pytest.skip(f"{name} is not installed")
    return found


def dcmtk(name: str) -> str:
    """The path of one of dcmtk's tools, never of pynetdicom's tool of the same name."""
    path = require_tool(name)
    if Path(path).parent == Path(sys.executable).parent:
        if os.environ.get("STEPWEDGE_REQUIRE_TOOLS") == "1":
            pytest.fail(f"dcmtk's {name} is not installed, and STEPWEDGE_REQUIRE_TOOLS=1 asks for it")
        pytest.skip(f"dcmtk's {name} is not installed")
    return path


def dicom_errors(file: Path) -> list[str]:
    """What dciodvfy calls an error in a file."""
    result = subprocess.run([require_tool("dciodvfy"), str(file)], capture_output=True, text=True, check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]


class Orthanc:
    """A running Orthanc on loopback ports of its own."""

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self.dicom_port = dicom_port
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=30)

    @classmethod
    @contextmanager
    def started(cls, folder: Path, *, dicom_port: int | None = None) -> Iterator[Orthanc]:
        """Start Orthanc with its data in a folder, and stop it afterwards."""
        program = require_tool("Orthanc")
        ports = free_ports(2)
        own_dicom_port, http_port = dicom_port or ports[0], ports[1]
        file = folder / "orthanc.json"
        configuration = {
            "Name": "test",
            "DicomAet": "ORTHANC",
            "DicomPort": own_dicom_port,
            "HttpPort": http_port,
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomCheckCalledAet": False,
            "Plugins": [],
        }
        file.write_text(json.dumps(configuration))
        with (folder / "orthanc.log").open("wb") as log:
            process = subprocess.Popen([program, str(file)], stdout=log, stderr=log)
        pacs = cls(own_dicom_port, http_port)
        try:
            pacs._wait(process, folder / "orthanc.log")
            yield pacs
        finally:
            pacs._http.close()
            process.terminate()
            process.wait(60)

    def instances(self, study_uid: str) -> list[str]:
        """Orthanc's ids of the instances that it has of a study."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid}}
        answer = self._http.post("/tools/find", json=query)
        answer.raise_for_status()
        return [str(item) for item in answer.json()]

    def download(self, instance: str, folder: Path) -> Path:
        """An instance as a file."""
        file = folder / f"{instance}.dcm"
        file.write_bytes(self._http.get(f"/instances/{instance}/file").content)
        return file

    def tags(self, instance: str) -> dict[str, object]:
        """An instance's header as Orthanc reads it, by keyword."""
        tags: dict[str, object] = self._http.get(f"/instances/{instance}/simplified-tags").json()
        return tags

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self._http.get("/system").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"Orthanc did not start:\n{log.read_text(errors='replace')[-2000:]}")


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
