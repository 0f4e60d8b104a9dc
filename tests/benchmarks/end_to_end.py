"""End-to-end rate and latency of the service on this machine, split by stage, beside raw ONNX Runtime in the same run.

``make bench``. Prints a table, and JSON as its last line. Absolute times are the machine's; ratios are to be compared.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from pynetdicom import AE, evt
from pynetdicom.presentation import StoragePresentationContexts

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "acceptance")]

from sender import send  # noqa: E402 - after the path to it
from stepwedge.manifest import load_package  # noqa: E402
from stepwedge.observation import Observation  # noqa: E402
from stepwedge.simulate import load_simulator, simulate, to_dicom  # noqa: E402

from service import Service, destination, settings_for, until  # noqa: E402

MODELS = TESTS.parent / "models" / "chest-pneumonia"
ONE_BY_ONE, BURST = 12, 40  # studies
QUIET_SECONDS = 1.0


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


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="stepwedge-bench-"))
    receiver = Receiver()
    values = settings_for(
        MODELS / "1.1.0",
        MODELS / "policy.yaml",
        [destination(receiver.port, ae_title="BENCH")],
        completeness={"quiet_seconds": QUIET_SECONDS, "poll_seconds": 0.05},
        log={"level": "warning"},
    )
    service = Service(folder / "service", values)
    print("making studies …", file=sys.stderr)
    studies = _studies(folder / "studies", ONE_BY_ONE + BURST)
    try:
        print("starting the service …", file=sys.stderr)
        started = time.monotonic()
        service.start()
        ready = time.monotonic() - started
        print(f"ready after {ready:.1f} s; one study at a time …", file=sys.stderr)
        latencies = [_one(service, receiver, uid, file) for uid, file in studies[:ONE_BY_ONE]]
        print(f"{BURST} studies from four senders …", file=sys.stderr)
        rate = _burst(service, receiver, studies[ONE_BY_ONE:])
        with service.store() as store:
            rows = [Observation.from_json(body) for _, body in store.observations()][:ONE_BY_ONE]
        raw = _raw_onnxruntime()
    finally:
        service.stop()
        receiver.stop()
        shutil.rmtree(folder, ignore_errors=True)
    result = _result(latencies, rate, ready, rows, raw)
    _print_table(result)
    print(json.dumps(result))
    return 0


def _studies(folder: Path, count: int) -> list[tuple[str, Path]]:
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


def _one(service: Service, receiver: Receiver, uid: str, file: Path) -> float:
    """Seconds from the acknowledgement of a study's last instance to its report at the PACS, quiet period excluded."""
    send(service.settings.node.port, file)
    sent = time.time()
    until(lambda: uid in receiver.reports, "the report arrives", service)
    return receiver.reports[uid] - sent - QUIET_SECONDS


def _burst(service: Service, receiver: Receiver, studies: list[tuple[str, Path]]) -> float:
    """Reports a second, from the first study sent to the last report, with the quiet period taken off once."""
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
    return len(studies) / (max(receiver.reports[uid] for uid, _ in studies) - started - QUIET_SECONDS)


def _raw_onnxruntime() -> float:
    """Milliseconds of one run of the model alone, median of many, with the engine's own threading."""
    package = load_package(MODELS / "1.1.0")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(package.model_file), options, providers=["CPUExecutionProvider"])
    spec = package.manifest.input
    tensor = np.random.default_rng(0).normal(size=(1, spec.channels, spec.rows, spec.columns)).astype(np.float32)
    times = []
    for _ in range(120):
        started = time.perf_counter()
        session.run(None, {spec.name: tensor})
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[20:])


def _result(latencies: list[float], rate: float, ready: float, rows: list[Observation], raw: float) -> dict[str, Any]:
    stages = {name: statistics.median(row.ms[name] for row in rows if name in row.ms) for name in rows[0].ms}
    ordered = sorted(latencies)
    return {
        "studies": {"one_by_one": ONE_BY_ONE, "burst": BURST},
        "ready_seconds": round(ready, 1),
        "latency_seconds": {
            "median": round(statistics.median(ordered), 3),
            "largest": round(ordered[-1], 3),
        },
        "reports_per_second_in_a_burst": round(rate, 2),
        "stage_ms_median": {name: round(value, 2) for name, value in stages.items()},
        "raw_onnxruntime_ms": round(raw, 2),
        "infer_stage_over_raw": round(stages["infer"] / raw, 2) if "infer" in stages else None,
    }


def _print_table(result: dict[str, Any]) -> None:
    print(f"{'ready after':<44}{result['ready_seconds']:>10} s")
    print(f"{'last instance to report, quiet period excluded':<44}")
    print(f"{'  median':<44}{result['latency_seconds']['median']:>10} s")
    print(f"{'  largest of ' + str(ONE_BY_ONE):<44}{result['latency_seconds']['largest']:>10} s")
    print(f"{'reports a second, four senders':<44}{result['reports_per_second_in_a_burst']:>10}")
    print("stages, median of one study at a time")
    for name, value in result["stage_ms_median"].items():
        print(f"{'  ' + name:<44}{value:>10} ms")
    print(f"{'raw ONNX Runtime, the model alone':<44}{result['raw_onnxruntime_ms']:>10} ms")
    print(f"{'infer stage over raw ONNX Runtime':<44}{result['infer_stage_over_raw']!s:>10}")


if __name__ == "__main__":
    sys.exit(main())
