from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from onnx import TensorProto, helper
from packages import EMBEDDING, INPUT, LOGITS, expected_outputs, graph, seal
from stepwedge.errors import EngineError, InferenceRefusedError, InferenceUnavailableError, PackageError
from stepwedge.inference import engine as engine_module
from stepwedge.inference.engine import CPU, OnnxEngine, cuda_obstacle, operators_on
from stepwedge.manifest import GOLDEN, MANIFEST, load_package

no_gpu = pytest.mark.skipif(cuda_obstacle() is None, reason="this machine has a working GPU")


def image(brightness: float = 0.5, batch: int = 1) -> np.ndarray:
    return np.full((batch, 1, 32, 32), brightness, np.float32)


def test_outputs_are_those_of_the_graph_and_name_their_provider(engine: OnnxEngine) -> None:
    images = np.random.default_rng(1).random((5, 1, 32, 32), dtype=np.float32)
    outputs, provider = engine.run({INPUT: images})
    assert provider == CPU
    for name, want in expected_outputs(images).items():
        np.testing.assert_allclose(outputs[name], want, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({INPUT: image().astype(np.float64)}, "is float64, wanted float32"),
        ({INPUT: image()[:, :, :31]}, r"is \(1, 1, 31, 32\), wanted \('batch', 1, 32, 32\)"),
        ({INPUT: image()[0]}, "wanted"),
        ({INPUT: image(np.nan)}, "not finite"),
        ({INPUT: image(np.inf)}, "not finite"),
        ({INPUT: image(batch=0)}, "empty"),
        ({"picture": image()}, r"got inputs \['picture'\], wanted \['image'\]"),
        ({INPUT: image(), "age": image()}, "got inputs"),
        ({}, "got inputs"),
    ],
)
def test_a_tensor_that_the_model_does_not_take_is_refused(
    engine: OnnxEngine, inputs: dict[str, np.ndarray], why: str
) -> None:
    with pytest.raises(InferenceRefusedError, match=why):
        engine.run(inputs)


def test_one_altered_byte_in_the_model_is_found_before_it_is_loaded(own_package: Path) -> None:
    model = own_package / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(PackageError, match=r"model\.onnx is not the file that the package was built with"):
        load_package(own_package)


def rewrite_golden(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    with np.load(folder / GOLDEN) as golden:
        values = change({name: golden[name] for name in golden.files})
    np.savez(folder / GOLDEN, allow_pickle=False, **values)
    seal(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v: v | {f"output.{LOGITS}": v[f"output.{LOGITS}"] + 0.01}, "differ by 0.01"),
        (lambda v: v | {f"output.{EMBEDDING}": v[f"output.{EMBEDDING}"] * np.float32(np.nan)}, "differ by nan"),
        (lambda v: v | {f"output.{LOGITS}": v[f"output.{LOGITS}"][:, :1]}, "of another shape"),
        (lambda v: v | {"output.other": v[f"output.{LOGITS}"]}, "other is missing"),
        (lambda v: v | {f"input.{INPUT}": v[f"input.{INPUT}"][:, :, 1:]}, "do not run"),
        (lambda v: {f"output.{LOGITS}": v[f"output.{LOGITS}"]}, "no inputs"),
        (lambda v: {f"input.{INPUT}": v[f"input.{INPUT}"]}, "no scores"),
    ],
)
def test_a_model_that_does_not_give_its_golden_outputs_is_not_loaded(
    own_package: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], why: str
) -> None:
    rewrite_golden(own_package, change)
    with pytest.raises(EngineError, match=why):
        OnnxEngine(load_package(own_package), "cpu")


def test_golden_outputs_that_cannot_be_read_are_an_error_of_the_package(own_package: Path) -> None:
    (own_package / GOLDEN).write_bytes(b"not a zip file")
    seal(own_package)
    with pytest.raises(EngineError, match="cannot be read"):
        OnnxEngine(load_package(own_package), "cpu")


def test_a_file_that_is_no_graph_is_not_loaded(own_package: Path) -> None:
    (own_package / "model.onnx").write_bytes(b"not a graph")
    seal(own_package)
    with pytest.raises(EngineError, match="cannot load the model"):
        OnnxEngine(load_package(own_package), "cpu")


@pytest.mark.parametrize(
    ("section", "change", "why"),
    [
        ("input", {"name": "picture"}, "the graph's inputs are"),
        ("input", {"rows": 64}, "model.yaml says"),
        ("input", {"channels": 3}, "model.yaml says"),
        ("output", {"scores": "probabilities"}, "outputs are"),
        ("output", {"embedding": "features"}, "outputs are"),
        ("output", {"classes": ["normal", "ill", "other"]}, "names 3 classes"),
    ],
)
def test_a_graph_that_is_not_as_described_is_not_loaded(
    own_package: Path, section: str, change: dict[str, object], why: str
) -> None:
    manifest = yaml.safe_load((own_package / MANIFEST).read_text())
    manifest[section] |= change
    (own_package / MANIFEST).write_text(yaml.safe_dump(manifest))
    seal(own_package)
    with pytest.raises(EngineError, match=why):
        OnnxEngine(load_package(own_package), "cpu")


def test_outputs_of_another_type_are_left_out(own_package: Path) -> None:
    model = graph(32, 32)
    model.graph.node.append(helper.make_node("ArgMax", [LOGITS], ["class"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("class", TensorProto.INT64, ["batch", 1]))
    onnx.save(model, own_package / "model.onnx")
    seal(own_package)
    outputs, _ = OnnxEngine(load_package(own_package), "cpu").run({INPUT: image()})
    assert set(outputs) == {LOGITS, EMBEDDING}


@no_gpu
def test_without_a_gpu_auto_runs_quietly_on_the_cpu_and_says_why(
    own_package: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = OnnxEngine(load_package(own_package), "auto")
    assert engine.provider == CPU
    assert engine.note.startswith("CUDA is not used: ")
    assert capfd.readouterr() == ("", "")


@no_gpu
def test_without_a_gpu_cuda_is_refused_with_the_reason_and_the_remedy(
    own_package: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=r"CUDA cannot run the model: .+; mend that or set inference\.device to cpu"):
        OnnxEngine(load_package(own_package), "cuda")
    assert capfd.readouterr() == ("", "")


@no_gpu
def test_a_driver_without_the_cuda_libraries_is_no_working_gpu(
    own_package: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if engine_module.CUDA not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime is built without CUDA")
    monkeypatch.setattr(engine_module, "cuda_obstacle", lambda: None)
    package = load_package(own_package)
    assert "Failed to load libcu" in OnnxEngine(package, "auto").note
    with pytest.raises(EngineError, match="Failed to load libcu"):
        OnnxEngine(package, "cuda")
    assert capfd.readouterr() == ("", "")


def test_operators_on_the_cpu_can_be_told(engine: OnnxEngine) -> None:
    session = engine._session
    assert {"ReduceMean", "Mul", "Concat"} <= operators_on(session, CPU)
    assert operators_on(session, engine_module.CUDA) == set()


def test_a_graph_that_lands_partly_on_the_cpu_is_refused_for_cuda_and_noted_for_auto(
    own_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for a GPU: what decides is the placement that ONNX Runtime reports.
    class OnCuda(ort.InferenceSession):
        def get_providers(self) -> list[str]:
            return [engine_module.CUDA, CPU]

    def session(model: Path, providers: list[object], threads: int) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return OnCuda(str(model), options, providers=[CPU])

    monkeypatch.setattr(engine_module, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(engine_module, "_session", session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    package = load_package(own_package)
    with pytest.raises(EngineError, match="operators Flatten, ReduceMax, ReduceMean, ReduceMin are placed on the CPU"):
        OnnxEngine(package, "cuda")
    assert OnnxEngine(package, "auto").note.startswith("partly on the CPU: ")


@pytest.mark.parametrize(
    ("message", "provider", "expected"),
    [
        ("CUDA failure 700: an illegal memory access", engine_module.CUDA, InferenceUnavailableError),
        ("Failed to allocate memory for requested buffer", CPU, InferenceUnavailableError),
        ("Non-zero status code while running Reshape", CPU, InferenceRefusedError),
    ],
)
def test_a_failure_of_the_device_can_be_tried_again_and_one_of_the_tensor_cannot(
    own_package: Path, monkeypatch: pytest.MonkeyPatch, message: str, provider: str, expected: type[Exception]
) -> None:
    engine = OnnxEngine(load_package(own_package), "cpu")

    def fail(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(engine._session, "run", fail)
    monkeypatch.setattr(engine._session, "get_providers", lambda: [provider])
    with pytest.raises(expected, match=message):
        engine.run({INPUT: image()})
