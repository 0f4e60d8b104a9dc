"""ONNX Runtime: one loaded model, the provider it really runs on, and the proof that it still answers as built."""

from __future__ import annotations

import contextlib
import ctypes
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from stepwedge.errors import EngineError, InferenceRefusedError, InferenceUnavailableError
from stepwedge.manifest import GOLDEN, Package
from stepwedge.records import ModelReference

Device = Literal["auto", "cpu", "cuda"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

_FLOAT = "tensor(float)"
_NVIDIA_DRIVER = "libcuda.so.1"

# Convolutions in TensorFloat-32 differ from the CPU's by more than the golden outputs allow.
CUDA_OPTIONS = {"use_tf32": "0"}

# ONNX Runtime puts these on the CPU on purpose when they compute shapes (a few integers). Any other operator there
# means that pixels travel to the CPU and back, which nobody who asked for a GPU wants unannounced.
# fmt: off
_SHAPE_OPERATORS = frozenset({
    "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather", "Identity",
    "Mod", "Mul", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Unsqueeze",
    "Where",
})
# fmt: on


class OnnxEngine:
    """A model on ONNX Runtime. Thread-safe: a session's run may be called from several threads."""

    def __init__(self, package: Package, device: Device = "auto", threads: int = 0) -> None:
        """Load a package's model and check its golden inputs on the provider in use.

        Parameters
        ----------
        device
            ``cuda`` fails where CUDA cannot run the whole model; ``auto`` takes CUDA where it can and says why not
            where it cannot (``note``).
        threads
            Threads within one run on the CPU; 0 leaves it to ONNX Runtime.

        Raises
        ------
        EngineError
            If the model cannot be loaded, the provider asked for is not there, or a golden output differs.
        """
        self._package = package
        self._session, self.note = _open_session(package.model_file, device, threads)
        self._outputs = [output.name for output in self._session.get_outputs() if output.type == _FLOAT]
        self._check_signature()
        self.golden_error = self.check_golden()

    @property
    def model(self) -> ModelReference:
        return self._package.reference

    @property
    def provider(self) -> str:
        """The execution provider in use."""
        return str(self._session.get_providers()[0])

    def run(
        self,
        inputs: Mapping[str, NDArray[np.float32]],
        *,
        urgent: bool = False,  # noqa: ARG002 - part of the seam
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        """Every float32 output by name, and the provider. Nothing waits here, so that ``urgent`` changes nothing.

        Raises
        ------
        InferenceRefusedError
            For a tensor that the model does not take.
        InferenceUnavailableError
            If the provider fails on a tensor that the model takes, e.g. for want of memory.
        """
        self._check_inputs(inputs)
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            if _is_the_inputs_fault(error, self.provider):
                raise InferenceRefusedError(f"{self.model.name}: the model cannot run on this: {error}") from error
            raise InferenceUnavailableError(f"{self.model.name}: {self.provider} failed: {error}") from error
        return dict(zip(self._outputs, values, strict=True)), self.provider

    def check_golden(self) -> float:
        """Run the golden inputs and give the largest absolute difference from the golden outputs.

        Raises
        ------
        EngineError
            If the difference is beyond the package's tolerance, or the check cannot be made.
        """
        name, tolerance = self.model.name, self._package.manifest.golden_tolerance
        try:
            with np.load(self._package.path / GOLDEN, allow_pickle=False) as golden:
                inputs = {n.removeprefix("input."): golden[n] for n in golden.files if n.startswith("input.")}
                wanted = {n.removeprefix("output."): golden[n] for n in golden.files if n.startswith("output.")}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise EngineError(f"{name}: {GOLDEN} cannot be read: {error}; build the package again") from error
        if not inputs or self._package.manifest.output.scores not in wanted:
            raise EngineError(f"{name}: {GOLDEN} holds no inputs or no scores; build the package again")
        try:
            outputs, _ = self.run(inputs)
        except (InferenceRefusedError, InferenceUnavailableError) as error:
            raise EngineError(f"{name}: the golden inputs do not run: {error}") from error
        for output, want in wanted.items():
            if output not in outputs or outputs[output].shape != want.shape:
                raise EngineError(f"{name}: golden output {output} is missing or of another shape")
        # numpy's maximum keeps a NaN, Python's max loses it.
        worst = float(np.max([np.abs(outputs[output] - want).max() for output, want in wanted.items()]))
        if not worst <= tolerance:
            raise EngineError(
                f"{name}: on {self.provider} the golden inputs give outputs that differ by {worst:.2g}, "
                f"more than {tolerance:.2g}; the model is not the one that was validated here: do not use it"
            )
        return worst

    def _check_inputs(self, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        wanted = {i.name: i for i in self._session.get_inputs()}
        if inputs.keys() != wanted.keys():
            raise InferenceRefusedError(f"{self.model.name}: got inputs {sorted(inputs)}, wanted {sorted(wanted)}")
        for name, value in inputs.items():
            if value.dtype != np.float32:
                raise InferenceRefusedError(f"{self.model.name}: input {name} is {value.dtype}, wanted float32")
            if not _matches(value.shape, wanted[name].shape):
                raise InferenceRefusedError(
                    f"{self.model.name}: input {name} is {value.shape}, wanted {tuple(wanted[name].shape)}"
                )
            if value.size == 0 or not np.isfinite(value).all():
                raise InferenceRefusedError(f"{self.model.name}: input {name} is empty or not finite")

    def _check_signature(self) -> None:
        """Raises EngineError where the graph is not what model.yaml says."""
        manifest = self._package.manifest
        remedy = "correct model.yaml and build the package again"
        inputs = {i.name: i for i in self._session.get_inputs()}
        named = [spec.name for spec in manifest.inputs]
        if set(inputs) != set(named):
            raise EngineError(
                f"{manifest.name}: the graph's inputs are {', '.join(sorted(inputs))}, model.yaml says "
                f"{', '.join(sorted(named))}; {remedy}"
            )
        for spec in manifest.inputs:
            images = () if spec.unit == "instance" else (1,)
            shape = (1, *images, spec.channels, spec.rows, spec.columns)
            declared = inputs[spec.name]
            if declared.type != _FLOAT:
                raise EngineError(f"{manifest.name}: input {spec.name} is {declared.type}, wanted {_FLOAT}")
            if not _matches(shape, declared.shape):
                raise EngineError(
                    f"{manifest.name}: input {spec.name} is {tuple(declared.shape)}, model.yaml says {shape}; {remedy}"
                )
        output = manifest.output
        optional = (output.embedding, output.activation_map)
        wanted = {output.scores, *(name for name in optional if name is not None)}
        if not wanted <= set(self._outputs):
            raise EngineError(
                f"{manifest.name}: the graph's {_FLOAT} outputs are {sorted(self._outputs)}, model.yaml wants "
                f"{sorted(wanted)}; {remedy}"
            )
        scores = next(o for o in self._session.get_outputs() if o.name == manifest.output.scores)
        if scores.shape and not _matches((1, len(manifest.output.classes)), scores.shape):
            raise EngineError(
                f"{manifest.name}: output {scores.name} is {tuple(scores.shape)}, model.yaml names "
                f"{len(manifest.output.classes)} classes; {remedy}"
            )


def cuda_obstacle() -> str | None:
    """Why CUDA cannot start here, or None. Asks the driver only; nothing is written to standard error."""
    if CUDA not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider; install stepwedge[service,cuda]"
    try:
        driver = ctypes.CDLL(_NVIDIA_DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({_NVIDIA_DRIVER})"
    count = ctypes.c_int()
    # CUDA driver API: both give 0 (CUDA_SUCCESS) or a code.
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the NVIDIA driver does not start (CUDA error {code})"
    return None if count.value else "the NVIDIA driver sees no GPU"


def _matches(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """Whether a shape fits one in which names and None stand for any size."""
    return len(shape) == len(declared) and all(
        not isinstance(want, int) or want == have for have, want in zip(shape, declared, strict=True)
    )


def _is_the_inputs_fault(error: Exception, provider: str) -> bool:
    if isinstance(error, ort_errors.InvalidArgument):
        return True
    # On a GPU most failures are the device's. On a CPU little can fail but memory, which says so.
    return provider == CPU and "alloc" not in str(error).lower()


def _open_session(model: Path, device: Device, threads: int) -> tuple[ort.InferenceSession, str]:
    """A session, and a note for people: why it is not on a GPU, or nothing."""
    # What ONNX Runtime has to say comes as an exception or a note, not between the lines of our log.
    ort.set_default_logger_severity(4)
    if device == "cpu":
        return _session(model, [CPU], threads), ""
    obstacle = cuda_obstacle()
    if obstacle is None:
        session, obstacle = _cuda_session(model, threads)
        if session is not None and obstacle is None:
            return session, ""
        if session is not None and device == "auto":
            return session, f"partly on the CPU: {obstacle}"
    if device == "cuda":
        raise EngineError(
            f"inference.device is cuda, but CUDA cannot run the model: {obstacle}; mend that or set inference.device "
            "to cpu"
        )
    return _session(model, [CPU], threads), f"CUDA is not used: {obstacle}"


def _cuda_session(model: Path, threads: int) -> tuple[ort.InferenceSession | None, str | None]:
    """A session on CUDA where one can be had, and what is wrong with it (nothing: None)."""
    said = io.StringIO()
    # It prints the libraries that it misses.
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    missing = " ".join(said.getvalue().split())
    try:
        session = _session(model, [(CUDA, CUDA_OPTIONS), CPU], threads)
    except EngineError as error:
        return None, f"{error} {missing}".strip()
    # ONNX Runtime drops a provider that it cannot start and goes on with the next one.
    if session.get_providers()[0] != CUDA:
        return None, missing or "ONNX Runtime does not say why"
    on_cpu = sorted(operators_on(session, CPU) - _SHAPE_OPERATORS)
    return session, f"operators {', '.join(on_cpu)} are placed on the CPU" if on_cpu else None


def operators_on(session: ort.InferenceSession, provider: str) -> set[str]:
    """The types of the graph's operators that ONNX Runtime placed on a provider."""
    placed = session.get_provider_graph_assignment_info()
    return {node.op_type for part in placed if part.ep_name == provider for node in part.get_nodes()}


def _session(model: Path, providers: list[Any], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Spinning threads take a whole core from the workers beside them and gain nothing at this size.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        # The fallback would replace the session by one on the CPU after a failure, in the middle of other runs.
        return ort.InferenceSession(str(model), options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise EngineError(f"{model}: ONNX Runtime cannot load the model: {error}") from error
