"""What can be swapped, as Protocols."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stepwedge.records import ModelReference


class Engine(Protocol):
    """Runs one model: in this process, or on an inference server."""

    @property
    def model(self) -> ModelReference: ...

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        """Outputs by name, and the ONNX Runtime execution provider that gave them.

        Parameters
        ----------
        urgent
            Go ahead of other requests, where requests wait.

        Raises
        ------
        InferenceUnavailableError
            If nobody answers; the work can be tried again.
        InferenceRefusedError
            If the request is answered with a refusal.
        """
        ...


class ResultSink(Protocol):
    """Takes the objects of one result to where they belong."""

    def send(self, files: list[Path]) -> None:
        """Send DICOM files; all are stored when this returns.

        Raises
        ------
        DeliveryError
            If any of them was not stored. Sending the same files again does no harm.
        """
        ...
