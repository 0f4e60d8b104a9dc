"""A modality: makes small studies for the tiny package and sends them as a PACS would, again until acknowledged."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from stepwedge.simulate import wrap_image

from service import PATIENCE_SECONDS

BRIGHT, MIDDLE, DARK = 0.75, 0.5, 0.25  # what the tiny package acts on, leaves to a person, and clears


@dataclass(frozen=True)
class Sent:
    """A study of one image."""

    study_uid: str
    file: Path


def make_study(
    folder: Path, number: int, brightness: float = BRIGHT, *, study_uid: str | None = None, patient: int | None = None
) -> Sent:
    """A DX image whose mean is ``brightness`` of its range, of an invented patient (by default one of its own)."""
    patient = number if patient is None else patient
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0:1:96j, 0:1:80j]
    ribs = np.cos(rows * rng.uniform(20, 40) + columns * rng.uniform(2, 6)) + 0.3 * np.cos(columns * 12)
    texture = 0.1 * ribs + rng.normal(0, 0.01, ribs.shape)
    pixels = np.clip((brightness + texture - texture.mean()) * 255, 0, 255).astype(np.uint8)
    dataset = wrap_image(pixels, rng=rng, shortest_side=80, age_years=4, patient_name=f"Invented^Patient {patient:03}")
    dataset.PatientID = f"INV{patient:03}"
    if study_uid is not None:
        dataset.StudyInstanceUID = study_uid
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"study-{number:03}-{dataset.SOPInstanceUID[-6:]}.dcm"
    dataset.save_as(file, enforce_file_format=True)
    return Sent(str(dataset.StudyInstanceUID), file)


def send_once(port: int, file: Path, *, caller: str = "MODALITY") -> int | None:
    """C-STORE; the status, or None if there was no answer."""
    with socket.socket() as probe:
        # pynetdicom leaves a socket open that nobody answered.
        if probe.connect_ex(("127.0.0.1", port)):
            return None
    dataset = pydicom.dcmread(file)
    application = AE(ae_title=caller)
    application.connection_timeout = application.acse_timeout = application.dimse_timeout = 10
    application.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = application.associate("127.0.0.1", port, ae_title="STEPWEDGE")
    if not association.is_established:
        return None
    try:
        answer = association.send_c_store(dataset)
        return int(answer.Status) if "Status" in answer else None
    except (ValueError, RuntimeError):
        return None  # the association went away
    finally:
        if association.is_established:
            association.release()


def send(port: int, file: Path) -> None:
    """Send until it is acknowledged."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while send_once(port, file) != 0:
        if time.monotonic() > deadline:
            raise AssertionError("the node does not acknowledge")
        time.sleep(0.3)


def echo(port: int) -> bool:
    """Whether the node answers a C-ECHO."""
    application = AE(ae_title="MODALITY")
    application.connection_timeout = 5
    application.add_requested_context(Verification)
    association = application.associate("127.0.0.1", port, ae_title="STEPWEDGE")
    if not association.is_established:
        return False
    answer = association.send_c_echo()
    association.release()
    return "Status" in answer and answer.Status == 0
