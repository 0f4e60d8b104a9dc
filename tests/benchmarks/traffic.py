"""What the benchmarks of the whole service send it, and the PACS that takes its answers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
from pynetdicom import AE, evt
from pynetdicom.presentation import StoragePresentationContexts
from sender import send
from stepwedge.simulate import load_simulator, simulate, to_dicom

from service import Service, until

MODELS = Path(__file__).parents[2] / "models" / "chest-pneumonia"


class Receiver:
    """A PACS that notes when each study's report comes back."""

    def __init__(self) -> None:
        self.reports: dict[str, float] = {}
        application = AE(ae_title="BENCH")
        application.supported_contexts = StoragePresentationContexts
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = application.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.socket.getsockname()[1])

    def _store(self, event: evt.Event) -> int:
        dataset = event.dataset
        if dataset.Modality == "SR":
            self.reports[str(dataset.StudyInstanceUID)] = time.time()
        return 0x0000

    def stop(self) -> None:
        self._server.shutdown()


def write_studies(folder: Path, count: int) -> list[tuple[str, Path]]:
    """Simulated children at the size of a real radiograph, DX, uncompressed."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    simulator = load_simulator(MODELS / "simulated.npz")
    made = []
    for number in range(count):
        label = ("bacterial", "viral", "normal")[number % 3]
        dataset = to_dicom(
            simulate(simulator, label, rng),
            rng=rng,
            age_years=3,
            patient_name=f"Simulated^Bench {number}",
            modality="DX",
        )
        file = folder / f"{number}.dcm"
        dataset.save_as(file, enforce_file_format=True)
        made.append((str(dataset.StudyInstanceUID), file))
    return made


def burst(service: Service, receiver: Receiver, studies: list[tuple[str, Path]]) -> float:
    """Seconds from the first study that is sent, by four senders at once, to the last report."""
    started = time.time()
    senders = [
        threading.Thread(target=lambda part=studies[k::4]: [send(service.settings.node.port, f) for _, f in part])
        for k in range(4)
    ]
    for each in senders:
        each.start()
    for each in senders:
        each.join()
    until(lambda: all(uid in receiver.reports for uid, _ in studies), "every report arrives", service)
    return max(receiver.reports[uid] for uid, _ in studies) - started
