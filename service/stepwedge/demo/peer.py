"""The PACS at both ends: what sends the studies, and what takes the results."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pydicom
from PIL import Image as Pillow
from pynetdicom import AE, _config, evt
from pynetdicom.presentation import StoragePresentationContexts
from pynetdicom.sop_class import SecondaryCaptureImageStorage

CALLER, RECEIVER = "DEMO-SENDER", "DEMO-PACS"


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An object that came back to the receiving node."""

    study_uid: str
    instance_uid: str
    at: float  # seconds since the epoch


class Receiver:
    """Our end of the PACS: a Storage SCP that keeps what comes back."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._arrivals: list[Arrival] = []
        self._lock = threading.Lock()
        application = AE(ae_title=RECEIVER)
        application.supported_contexts = StoragePresentationContexts
        self._server = application.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)]
        )
        self.port = int(self._server.socket.getsockname()[1])

    def of_study(self, study_uid: str) -> list[Arrival]:
        """What has come back for a study."""
        with self._lock:
            return [arrival for arrival in self._arrivals if arrival.study_uid == study_uid]

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def _keep(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        file = self.folder / f"{dataset.SOPInstanceUID}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        if dataset.SOPClassUID == SecondaryCaptureImageStorage:
            Pillow.fromarray(dataset.pixel_array).save(file.with_suffix(".png"))
        with self._lock:
            self._arrivals.append(
                Arrival(
                    study_uid=str(dataset.StudyInstanceUID), instance_uid=str(dataset.SOPInstanceUID), at=time.time()
                )
            )
        return 0x0000


def send(file: Path, port: int) -> tuple[int, float]:
    """C-STORE a file as it is, broken or not; the status (-1: no answer), and when it was answered."""
    _config.STORE_SEND_CHUNKED_DATASET = True
    meta = pydicom.filereader.read_file_meta_info(file)
    application = AE(ae_title=CALLER)
    application.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    association = application.associate("127.0.0.1", port, ae_title="STEPWEDGE")
    if not association.is_established:
        return -1, time.time()
    try:
        answer = association.send_c_store(file)
        return int(getattr(answer, "Status", -1)), time.time()
    finally:
        association.release()
