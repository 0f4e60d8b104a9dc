"""A GPU's own limits, measured by ONNX Runtime on it: what no model on this card can go beyond."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pynvml
from onnx import TensorProto, helper

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

_SIDE = 8192  # of the matrices that are multiplied
_COPY_FLOATS = 2**28  # 1 GiB, far beyond any cache
_TRANSFER_FLOATS = 2**26  # 256 MiB
_RUNS = 12


def describe() -> dict[str, Any]:
    """The card's name, driver and memory, as the driver tells them."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name = pynvml.nvmlDeviceGetName(handle)
        return {
            "name": name,
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "memory_mib": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20),
            "compute_capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
            "onnxruntime": ort.__version__,
        }
    finally:
        pynvml.nvmlShutdown()


def memory_in_use_mib() -> int:
    """Of the card's memory, by everybody."""
    pynvml.nvmlInit()
    try:
        return round(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used / 2**20)
    finally:
        pynvml.nvmlShutdown()


def limits() -> dict[str, float]:
    """Arithmetic, memory and transfer rates of the card; medians of a dozen runs each, inputs random."""
    return {
        "float32_tflops": _arithmetic(tf32=False),
        "tensorfloat32_tflops": _arithmetic(tf32=True),
        "memory_gb_a_second": _memory(),
        **_transfers(),
    }


def _arithmetic(*, tf32: bool) -> float:
    """10¹² operations a second of a product of two large matrices."""
    matrix = [_SIDE, _SIDE]
    session = _one_node("MatMul", [matrix, matrix], matrix, use_tf32="1" if tf32 else "0")
    values = [np.random.default_rng(n).normal(size=matrix).astype(np.float32) for n in range(2)]
    return 2 * _SIDE**3 / _on_device(session, values) / 1e12


def _memory() -> float:
    """10⁹ bytes a second, read and written, of a change of sign."""
    shape = [_COPY_FLOATS]
    session = _one_node("Neg", [shape], shape)
    values = [np.random.default_rng(0).random(_COPY_FLOATS, dtype=np.float32)]
    return 2 * 4 * _COPY_FLOATS / _on_device(session, values) / 1e9


def _transfers() -> dict[str, float]:
    """10⁹ bytes a second to the card and back, from ordinary memory, as a request's tensors travel."""
    values = np.random.default_rng(0).random(_TRANSFER_FLOATS, dtype=np.float32)
    there = ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0)
    return {
        "to_card_gb_a_second": values.nbytes / _median_seconds(lambda: there.update_inplace(values)) / 1e9,
        "from_card_gb_a_second": values.nbytes / _median_seconds(there.numpy) / 1e9,
    }


def _one_node(kind: str, inputs: list[list[int]], output: list[int], **options: str) -> ort.InferenceSession:
    named = [f"x{n}" for n in range(len(inputs))]
    graph = helper.make_graph(
        [helper.make_node(kind, named, ["y"])],
        kind,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(named, inputs, strict=True)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=[(CUDA, options), CPU])
    assert session.get_providers()[0] == CUDA
    return session


def _on_device(session: ort.InferenceSession, values: list[np.ndarray[Any, Any]]) -> float:
    """Seconds of a run whose inputs and outputs stay on the card."""
    binding = session.io_binding()
    for spec, value in zip(session.get_inputs(), values, strict=True):
        binding.bind_ortvalue_input(spec.name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    shape = session.get_outputs()[0].shape
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0))
    return _median_seconds(lambda: session.run_with_iobinding(binding))


def _median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS + 3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times[3:]))
