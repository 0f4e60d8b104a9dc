"""End-to-end rate and latency of the service on this machine, split by stage, beside raw ONNX Runtime in the same run.

``make bench``. Prints a table, and JSON as its last line. Absolute times are the machine's; ratios are to be compared.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "acceptance")]

from sender import send  # noqa: E402 - after the path to it
from stepwedge.manifest import load_package  # noqa: E402
from stepwedge.observation import Observation  # noqa: E402
from traffic import MODELS, Receiver, burst, write_studies  # noqa: E402

from service import Service, destination, settings_for, until  # noqa: E402

ONE_BY_ONE, BURST = 12, 40  # studies
QUIET_SECONDS = 1.0


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
    studies = write_studies(folder / "studies", ONE_BY_ONE + BURST)
    try:
        print("starting the service …", file=sys.stderr)
        started = time.monotonic()
        service.start()
        ready = time.monotonic() - started
        print(f"ready after {ready:.1f} s; one study at a time …", file=sys.stderr)
        latencies = [_one(service, receiver, uid, file) for uid, file in studies[:ONE_BY_ONE]]
        print(f"{BURST} studies from four senders …", file=sys.stderr)
        rate = BURST / (burst(service, receiver, studies[ONE_BY_ONE:]) - QUIET_SECONDS)
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


def _one(service: Service, receiver: Receiver, uid: str, file: Path) -> float:
    """Seconds from the acknowledgement of a study's last instance to its report at the PACS, quiet period excluded."""
    send(service.settings.node.port, file)
    sent = time.time()
    until(lambda: uid in receiver.reports, "the report arrives", service)
    return receiver.reports[uid] - sent - QUIET_SECONDS


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
