"""ONNX Runtime: one loaded model, the provider it really runs on, and the proof that it still answers as built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepwedge.errors import EngineError, InferenceRefusedError
from stepwedge.manifest import GOLDEN, Package
from stepwedge.records import ModelReference

Device = Literal["auto", "cpu", "cuda"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

_DTYPES = {"tensor(float)": np.float32}


class OnnxEngine:
    """A model on ONNX Runtime. Thread-safe: a session's run may be called from several threads."""

    def __init__(self, package: Package, device: Device = "auto", threads: int = 0) -> None:
        """Load a package's model and check its golden inputs on the provider in use.

        Parameters
        ----------
        device
            ``cuda`` fails where CUDA cannot run the model; ``auto`` takes CUDA where it can and says which it took.
        threads
            Threads within one run on the CPU; 0 leaves it to ONNX Runtime.

        Raises
        ------
        EngineError
            If the model cannot be loaded, the provider asked for is not there, or a golden output differs.
        """
        self._package = package
        self._session = _open_session(package.model_file, device, threads)
        self._check_signature()
        self.golden_error = self._check_golden()

    @property
    def model(self) -> ModelReference:
        return self._package.reference

    @property
    def provider(self) -> str:
        """The execution provider in use."""
        return str(self._session.get_providers()[0])

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> tuple[dict[str, NDArray[np.float32]], str]:
        """Outputs by name. Raises InferenceRefusedError for a tensor that the model does not take."""
        self._check_inputs(inputs)
        names = [output.name for output in self._session.get_outputs()]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:
            raise InferenceRefusedError(f"{self.model.name}: the model cannot run on this input: {error}") from error
        return dict(zip(names, values, strict=True)), self.provider

    def _check_inputs(self, inputs: Mapping[str, NDArray[np.float32]]) -> None:
        wanted = {i.name: i for i in self._session.get_inputs()}
        if inputs.keys() != wanted.keys():
            raise InferenceRefusedError(f"{self.model.name}: got inputs {sorted(inputs)}, wanted {sorted(wanted)}")
        for name, value in inputs.items():
            shape = [d if isinstance(d, int) else None for d in wanted[name].shape]
            if value.dtype != _DTYPES.get(wanted[name].type):
                raise InferenceRefusedError(f"{self.model.name}: input {name} is {value.dtype}, wanted float32")
            if value.ndim != len(shape) or any(
                want is not None and want != have for want, have in zip(shape, value.shape, strict=False)
            ):
                raise InferenceRefusedError(f"{self.model.name}: input {name} is {value.shape}, wanted {shape}")
            if value.size == 0 or not np.isfinite(value).all():
                raise InferenceRefusedError(f"{self.model.name}: input {name} is empty or not finite")

    def _check_signature(self) -> None:
        manifest = self._package.manifest
        inputs = {i.name: i for i in self._session.get_inputs()}
        if set(inputs) != {manifest.input.name}:
            raise EngineError(
                f"{manifest.name}: the graph's inputs are {sorted(inputs)}, model.yaml says "
                f"{manifest.input.name}; correct model.yaml and build the package again"
            )
        if inputs[manifest.input.name].type not in _DTYPES:
            raise EngineError(
                f"{manifest.name}: input {manifest.input.name} is "
                f"{inputs[manifest.input.name].type}, wanted tensor(float)"
            )
        outputs = {o.name for o in self._session.get_outputs()}
        wanted = {manifest.output.scores, manifest.output.embedding} - {None}
        if not wanted <= outputs:
            raise EngineError(
                f"{manifest.name}: the graph's outputs are {sorted(outputs)}, model.yaml wants "
                f"{sorted(str(name) for name in wanted)}; correct model.yaml and build again"
            )

    def _check_golden(self) -> float:
        """The largest absolute difference from the golden outputs. Raises EngineError beyond the tolerance."""
        tolerance = self._package.manifest.golden_tolerance
        worst = 0.0
        with np.load(self._package.path / GOLDEN, allow_pickle=False) as golden:
            inputs = {n.removeprefix("input."): golden[n] for n in golden.files if n.startswith("input.")}
            wanted = {n.removeprefix("output."): golden[n] for n in golden.files if n.startswith("output.")}
        if not inputs or not wanted:
            raise EngineError(f"{self.model.name}: {GOLDEN} holds no cases; build the package again")
        outputs, _ = self.run(inputs)
        for name, want in wanted.items():
            if name not in outputs or outputs[name].shape != want.shape:
                raise EngineError(f"{self.model.name}: golden output {name} is missing or of another shape")
            worst = max(worst, float(np.abs(outputs[name] - want).max()))
        if not worst <= tolerance:
            raise EngineError(
                f"{self.model.name}: on {self.provider} the golden inputs give outputs that differ by {worst:.2g}, "
                f"more than {tolerance:.2g}; the model is not the one that was validated here: do not use it"
            )
        return worst


def _open_session(model: Path, device: Device, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Spinning threads take a whole core from the workers beside them and gain nothing at this size.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = [CPU]
    if device == "cuda" or (device == "auto" and CUDA in ort.get_available_providers()):
        if CUDA not in ort.get_available_providers():
            raise EngineError(
                "inference.device is cuda, but this ONNX Runtime has no CUDA provider; "
                "install stepwedge[service,cuda] or set inference.device to cpu"
            )
        ort.preload_dlls()
        providers = [CUDA, CPU]
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:
        raise EngineError(f"{model}: ONNX Runtime cannot load the model: {error}") from error
    # ONNX Runtime drops a provider that it cannot start and goes on with the next one.
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise EngineError(
            "inference.device is cuda, but CUDA did not start (driver, GPU or CUDA libraries are "
            "missing); mend that or set inference.device to cpu"
        )
    return session
