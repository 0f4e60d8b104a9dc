"""Inference on a GPU: that it really runs there, that it answers as the CPU does, how fast, and how near the limits.

``make bench-gpu``, on a machine with an NVIDIA GPU. Prints tables, and JSON as its last line; ``--out FILE`` keeps it.
Ends with 1 where a model does not run on the GPU altogether, or where its answers leave the stated tolerance.

Everything is measured side by side in one run: raw ONNX Runtime, the inference server over its network connection, and
the card's own limits; then the whole service, on the GPU and on the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import yaml
from numpy.typing import NDArray

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "acceptance")]

import card  # noqa: E402 - after the path to what it needs
from densenet import multiply_adds, write_densenet_package  # noqa: E402
from packages import write_policy  # noqa: E402
from peers import free_ports  # noqa: E402
from stepwedge.decision.calibrate import calibrated, finding_scores  # noqa: E402
from stepwedge.inference.client import InferenceClient, ready  # noqa: E402
from stepwedge.inference.engine import CPU, CUDA, CUDA_OPTIONS, OnnxEngine, cuda_obstacle, operators_on  # noqa: E402
from stepwedge.inference.preprocess import normalised, resized  # noqa: E402
from stepwedge.manifest import Package, load_package  # noqa: E402
from stepwedge.observation import Observation  # noqa: E402
from stepwedge.simulate import load_simulator, simulate  # noqa: E402
from traffic import MODELS, Receiver, burst, write_studies  # noqa: E402

from service import Service, destination, settings_for, until  # noqa: E402

# The largest difference of a logit between GPU and CPU that we call agreement: what the packages' golden cases allow.
TOLERANCE = 0.002
ARITHMETIC = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"})
BATCHES = (1, 4, 16, 64)  # 4: an image with its tamper variants
SIDES = (224, 512)  # of DenseNet-121's input; a CPU alone would take too long
CLIENTS = (1, 4, 16)
CASES, SECONDS, STUDIES, WARM_UP = 192, 2.0, 120, 12
QUIET_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
_SEED = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the figures as JSON")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script itself")
    options = parser.parse_args()
    cuda = options.device == "cuda"
    if cuda and (obstacle := cuda_obstacle()):
        print(f"there is nothing to measure: {obstacle}", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="stepwedge-gpu-"))
    try:
        result = _measured(folder, cuda=cuda)
        _print(result)
        _keep(result, options.out)
        for device in ("cuda", "cpu") if cuda else ("cpu",):
            _say(f"the whole service on {device}")
            row = result["service"][device] = _service(folder / f"service-{device}", device)
            rate, took = row["studies_an_hour"], row["infer_ms_median"]
            print(f"whole service on {device}: {rate} studies an hour, infer {took:.1f} ms", flush=True)
        _keep(result, options.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))
    failed = [f"{model['name']}: {why}" for model in result["models"] for why in model["objections"]]
    print("\n".join(failed), file=sys.stderr)
    return int(bool(failed))


def _measured(folder: Path, *, cuda: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"service": {}, "cpu_cores": len(psutil.Process().cpu_affinity() or ())}
    if cuda:
        ort.preload_dlls()
        _say("the card's limits")
        result |= {"card": card.describe(), "limits": card.limits()}
    packages = [load_package(MODELS / "1.1.0")]
    packages += [
        load_package(write_densenet_package(folder / f"densenet121-{side}", side)) for side in (SIDES if cuda else ())
    ]
    policies = [MODELS / "policy.yaml"]
    policies += [write_policy(folder / f"{p.manifest.name}.yaml", model=p.manifest.name) for p in packages[1:]]
    result["models"] = [_model(package, result.get("limits"), cuda=cuda) for package in packages]
    for concurrency in (2, 8):
        _say(f"the inference server, {concurrency} at once")
        with _server(folder / f"server-{concurrency}", packages, policies, concurrency, cuda=cuda) as url:
            for model, package in zip(result["models"], packages, strict=True):
                model["server"][str(concurrency)] = _served(url, package, cuda=cuda)
    return result


def _model(package: Package, limits: dict[str, float] | None, *, cuda: bool) -> dict[str, Any]:
    """One model: where it runs, how its answers differ, its raw rates."""
    _say(package.manifest.name)
    before = card.memory_in_use_mib() if cuda else 0
    engine = OnnxEngine(package, "cuda" if cuda else "cpu")
    reference = OnnxEngine(package, "cpu")
    flops = 2 * multiply_adds(package.model_file)
    raw = _raw(package, flops, limits, cuda=cuda)
    placed = _placed(package) if cuda else {}
    agreement = _agreement(package, engine, reference, cuda=cuda)
    objections = []
    if cuda:
        if engine.provider != CUDA or engine.note:
            objections.append(f"runs on {engine.provider}: {engine.note}")
        if set(placed["arithmetic_kernels"]) != {CUDA}:
            objections.append(f"convolutions and linear layers ran on {placed['arithmetic_kernels']}")
        if not agreement["largest_logit_difference"] <= TOLERANCE:
            objections.append(f"logits differ by {agreement['largest_logit_difference']:.2g}, more than {TOLERANCE}")
    return {
        "name": package.manifest.name,
        "provider": engine.provider,
        "golden_error": engine.golden_error,
        "giga_operations_an_image": round(flops / 1e9, 2),
        "card_memory_mib": card.memory_in_use_mib() - before if cuda else None,
        "placed": placed,
        "agreement": agreement,
        "raw": raw,
        "algorithm_search": _searches(package) if cuda else {},
        "cpu_images_a_second": _rate(_session(package, None), package, 1),
        "server": {},
        "objections": objections,
    }


def _placed(package: Package) -> dict[str, Any]:
    """Which provider each kernel ran on, from ONNX Runtime's own profile of a run; and what the graph assigns."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = ort.InferenceSession(str(package.model_file), options, providers=[(CUDA, CUDA_OPTIONS), CPU])
        session.run(None, {package.manifest.input.name: _random(package, 4)})
        on_cpu = sorted(operators_on(session, CPU))
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"] for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith("_kernel_time")]
    arithmetic = [args["provider"] for args in ran if args["op_name"] in ARITHMETIC]
    return {
        "kernels": dict(Counter(args["provider"] for args in ran)),
        "arithmetic_kernels": dict(Counter(arithmetic)),
        "operators_on_cpu": on_cpu,
    }


def _agreement(package: Package, engine: OnnxEngine, reference: OnnxEngine, *, cuda: bool) -> dict[str, Any]:
    """The largest differences of logits and probabilities from the CPU's, over cases that differ."""
    cases = _cases(package)
    spec, output = package.manifest.input, package.manifest.output
    ours = _in_batches(lambda x: engine.run({spec.name: x})[0][output.scores], cases)
    theirs = _in_batches(lambda x: reference.run({spec.name: x})[0][output.scores], cases)
    result = {
        "cases": len(cases),
        "logits_spread": float(theirs.std(axis=0).max()),
        "largest_logit_difference": float(np.abs(ours - theirs).max()),
        "largest_probability_difference": max(
            float(np.abs(_probabilities(package, name, ours) - _probabilities(package, name, theirs)).max())
            for name in package.calibration.findings
        ),
    }
    if cuda:
        fast = _session(package, {**CUDA_OPTIONS, "use_tf32": "1"})
        rough = _in_batches(lambda x: fast.run([output.scores], {spec.name: x})[0], cases)
        result["largest_logit_difference_in_tensorfloat32"] = float(np.abs(rough - theirs).max())
    return result


def _probabilities(package: Package, name: str, scores: NDArray[np.float32]) -> NDArray[np.float64]:
    [finding] = [f for f in package.manifest.findings if f.name == name]
    return calibrated(finding_scores(scores, package.manifest.output, finding), package.calibration.findings[name])


def _cases(package: Package) -> NDArray[np.float32]:
    """Simulated children for the shipped model; for the others, whose weights are random, random images."""
    rng = np.random.default_rng(_SEED)
    spec = package.manifest.input
    if package.manifest.name != "chest-pneumonia":
        contrast = rng.uniform(0.1, 1, (CASES // 4, 1, 1, 1)).astype(np.float32)
        return contrast * rng.random((CASES // 4, spec.channels, spec.rows, spec.columns), dtype=np.float32)
    simulator = load_simulator(MODELS / "simulated.npz")
    labels = ("bacterial", "viral", "normal")
    planes = [np.clip(resized(simulate(simulator, labels[n % 3], rng), spec), 0, 1) for n in range(CASES)]
    return normalised(np.stack(planes), spec)


def _in_batches(run: Any, cases: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([run(cases[start : start + 4]) for start in range(0, len(cases), 4)])


def _raw(package: Package, flops: int, limits: dict[str, float] | None, *, cuda: bool) -> dict[str, Any]:
    """Raw ONNX Runtime with the engine's options: from and to the memory of the process, and within the card's."""
    session = _session(package, CUDA_OPTIONS if cuda else None)
    rows = {}
    for batch in BATCHES:
        rate = _rate(session, package, batch)
        within = _rate_within(session, package, batch) if cuda else None
        share = within * flops / limits["float32_tflops"] / 1e12 if within and limits else None
        rows[str(batch)] = {
            "images_a_second": rate,
            "ms_a_run": 1000 * batch / rate,
            "images_a_second_within_card": within,
            "share_of_float32_limit": share,
        }
    return rows


def _searches(package: Package) -> dict[str, Any]:
    """How cuDNN's algorithms are chosen: what that costs at the first run of a shape, what it gains, what it moves."""
    reference = _session(package, None)
    inputs = {package.manifest.input.name: _random(package, 4)}
    scores = [package.manifest.output.scores]
    want = reference.run(scores, inputs)[0]
    rows = {}
    for search in ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"):
        answers, first = [], 0.0
        for _ in range(3):
            session = _session(package, {**CUDA_OPTIONS, "cudnn_conv_algo_search": search})
            began = time.perf_counter()
            answers.append(session.run(scores, inputs)[0])
            first = max(first, time.perf_counter() - began)
        rows[search.lower()] = {
            "first_run_ms": 1000 * first,
            "images_a_second": {str(batch): _rate(session, package, batch) for batch in (1, 4, 16)},
            "largest_logit_difference": float(np.abs(answers[0] - want).max()),
            "same_in_three_sessions": all(np.array_equal(answers[0], other) for other in answers[1:]),
        }
    return rows


def _session(package: Package, cuda: Mapping[str, str] | None) -> ort.InferenceSession:
    """A session as the engine makes it, on the card with these options, or on the CPU."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [CPU] if cuda is None else [(CUDA, dict(cuda)), CPU]
    return ort.InferenceSession(str(package.model_file), options, providers=providers)


def _rate(session: ort.InferenceSession, package: Package, batch: int) -> float:
    names = [output.name for output in session.get_outputs()]
    inputs = [{package.manifest.input.name: _random(package, batch, seed)} for seed in range(4)]
    return batch * _runs_a_second(lambda n: session.run(names, inputs[n % 4]))


def _rate_within(session: ort.InferenceSession, package: Package, batch: int) -> float:
    binding = session.io_binding()
    value = ort.OrtValue.ortvalue_from_numpy(_random(package, batch), "cuda", 0)
    binding.bind_ortvalue_input(package.manifest.input.name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    return batch * _runs_a_second(lambda _: session.run_with_iobinding(binding))


def _runs_a_second(run: Any) -> float:
    for n in range(5):
        run(n)
    times: list[float] = []
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < SECONDS / 2 or len(times) < 5:
        run(len(times))
        times.append(time.perf_counter() - now)
    return 1 / statistics.median(times)


def _random(package: Package, batch: int, seed: int = 0) -> NDArray[np.float32]:
    spec = package.manifest.input
    shape = (batch, spec.channels, spec.rows, spec.columns)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@contextmanager
def _server(
    folder: Path, packages: Sequence[Package], policies: Sequence[Path], concurrency: int, *, cuda: bool
) -> Iterator[str]:
    folder.mkdir()
    [port] = free_ports(1)
    pairs = zip(packages, policies, strict=True)
    settings = {
        "data_dir": "data",
        "models": [{"package": str(package.path), "policy": str(policy)} for package, policy in pairs],
        "inference": {"port": port, "device": "cuda" if cuda else "cpu", "concurrency": concurrency},
        "log": {"level": "warning"},
    }
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    with (folder / "log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "stepwedge", "infer", "--config", str(folder / "settings.yaml")],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready(url):
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
        yield url
    finally:
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=30)
        for each in alive:
            each.kill()


def _served(url: str, package: Package, *, cuda: bool) -> dict[str, Any]:
    """The server's rates, with one image a request, and with an image and three variants."""
    rows: dict[str, Any] = {}
    for batch in (1, 4):
        for clients in CLIENTS:
            asked = _asked(url, package, batch, clients, CUDA if cuda else CPU)
            times = [seconds for one in asked for seconds in one]
            rows[f"{batch}x{clients}"] = {
                "images_a_second": batch * sum(len(one) / sum(one) for one in asked),
                "ms_median": 1000 * statistics.median(times),
                "ms_99th": 1000 * float(np.quantile(times, 0.99)),
            }
    return rows


def _asked(url: str, package: Package, batch: int, clients: int, provider: str) -> list[list[float]]:
    """Seconds of each request, by client; each is a process that asks one after the other."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(clients)
    answers = context.Queue()
    processes = [
        context.Process(target=_ask, args=(url, package, batch, seed, start, answers, provider))
        for seed in range(clients)
    ]
    for process in processes:
        process.start()
    times = [answers.get(timeout=PATIENCE_SECONDS) for _ in processes]
    for process in processes:
        process.join()
    return times


def _ask(url: str, package: Package, batch: int, seed: int, start: Any, answers: Any, provider: str) -> None:
    times = []
    inputs = {package.manifest.input.name: _random(package, batch, seed)}
    with InferenceClient(url, package.reference, 30) as client:
        for _ in range(3):
            client.run(inputs)
        start.wait(PATIENCE_SECONDS)
        end = time.perf_counter() + SECONDS
        while (began := time.perf_counter()) < end:
            _, ran_on = client.run(inputs)
            assert ran_on == provider, ran_on
            times.append(time.perf_counter() - began)
    answers.put(times)


def _service(folder: Path, device: str) -> dict[str, Any]:
    """The whole service: a burst of studies by C-STORE to the reports at the PACS, and what each answer ran on."""
    receiver = Receiver()
    folder.mkdir()
    values = settings_for(
        MODELS / "1.1.0",
        MODELS / "policy.yaml",
        [destination(receiver.port, ae_title="BENCH")],
        completeness={"quiet_seconds": QUIET_SECONDS, "poll_seconds": 0.05},
        worker={"concurrency": min(8, os.cpu_count() or 2)},
        inference={"device": device},
        log={"level": "warning"},
    )
    service = Service(folder / "service", values)
    studies = write_studies(folder / "studies", WARM_UP + STUDIES)
    try:
        service.start()
        burst(service, receiver, studies[:WARM_UP])
        seconds = burst(service, receiver, studies[WARM_UP:]) - QUIET_SECONDS
        until(lambda: len(_observations(service)) == len(studies), "every study is observed", service)
        rows = _observations(service)
    finally:
        service.stop()
        receiver.stop()
    rows = [row for row in rows[WARM_UP:] if "infer" in row.ms]  # the gate refuses some before
    providers = sorted({row.provider for row in rows})
    assert providers == [CUDA if device == "cuda" else CPU], providers
    return {
        "studies": STUDIES,
        "inferred": len(rows),
        "studies_an_hour": round(3600 * STUDIES / seconds),
        "infer_ms_median": statistics.median(row.ms["infer"] for row in rows),
        "providers": providers,
    }


def _observations(service: Service) -> list[Observation]:
    with service.store() as store:
        return [Observation.from_json(body) for _, body in store.observations()]


def _say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def _print(result: dict[str, Any]) -> None:
    if "card" in result:
        print(f"{result['card']['name']}, driver {result['card']['driver']}, ONNX Runtime {ort.__version__}")
        for name, value in result["limits"].items():
            print(f"  {name:<26}{value:>10.1f}")
    for model in result["models"]:
        agreement = model["agreement"]
        print(f"\n{model['name']}: {model['provider']}, {model['giga_operations_an_image']} GFLOP an image")
        print(f"  kernels {model['placed'].get('kernels')}, on the CPU {model['placed'].get('operators_on_cpu')}")
        for name, value in agreement.items():
            print(f"  {name:<44}{value:>12.3g}")
        print(f"  {'raw ONNX Runtime, the CPU alone':<44}{model['cpu_images_a_second']:>12.0f} images/s")
        for batch, row in model["raw"].items():
            within, share = row["images_a_second_within_card"], row["share_of_float32_limit"]
            also = f"{within:>10.0f} within the card, {share:.0%} of its float32" if within is not None else ""
            print(f"  raw, {batch:>3} at once {row['images_a_second']:>10.0f} images/s{row['ms_a_run']:>8.2f} ms{also}")
        for search, row in model["algorithm_search"].items():
            rates = ", ".join(f"{rate:.0f} ({batch})" for batch, rate in row["images_a_second"].items())
            same = "the same" if row["same_in_three_sessions"] else "NOT the same"
            print(
                f"  search {search:<11} first run {row['first_run_ms']:>7.0f} ms, then {rates} images/s; {same} thrice"
            )
        for concurrency, rows in model["server"].items():
            for name, row in rows.items():
                batch, clients = name.split("x")
                rate, raw = row["images_a_second"], model["raw"][batch]["images_a_second"]
                times = f"{row['ms_median']:>8.2f} ms{row['ms_99th']:>8.2f} ms (99 %)"
                asked = f"server ({concurrency}), {batch} an ask, {clients:>2} clients"
                print(f"  {asked}{rate:>9.0f} images/s{times}{rate / raw:>7.2f} of raw, one after the other")


def _keep(result: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
