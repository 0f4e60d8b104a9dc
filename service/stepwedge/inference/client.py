"""The engine at the other end of a network connection."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

import httpx
import numpy as np
from numpy.typing import NDArray

from stepwedge import tracing
from stepwedge.errors import InferenceRefusedError, InferenceUnavailableError
from stepwedge.inference.wire import MEDIA_TYPE, PRIORITY_HEADER, PROVIDER_HEADER, WireError, decode, encode
from stepwedge.records import ModelReference

# The server closes a connection that was idle for 5 s; whoever writes into it at that moment is refused.
_KEEP_ALIVE_SECONDS = 3.0
_CONNECT_SECONDS = 5.0

# Besides every 5xx: what another server of the same address, or the same one a little later, may answer differently.
_TRY_AGAIN = frozenset({404, 408, 429})


class InferenceClient:
    """One model on an inference server. Thread-safe; its connections are kept open between requests."""

    def __init__(self, base_url: str, model: ModelReference, timeout: float) -> None:
        """Nothing is sent before the first ``run``.

        Parameters
        ----------
        timeout
            Seconds that the server may be silent.
        """
        self._model = model
        self._http = httpx.Client(
            base_url=base_url,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_SECONDS),
            # Pixels go to the server that the settings name, not to a proxy that the environment names.
            trust_env=False,
        )

    @property
    def model(self) -> ModelReference:
        return self._model

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        """Outputs by name (read-only), and the execution provider that gave them.

        Parameters
        ----------
        urgent
            Go ahead of the requests that wait.

        Raises
        ------
        InferenceUnavailableError
            If the server does not answer, is too busy, or does not (or not yet, or no longer) serve this model.
        InferenceRefusedError
            If the tensors cannot be sent, or the server refuses them.
        """
        try:
            body = encode(inputs)
        except WireError as error:
            raise InferenceRefusedError(f"{self._model.name}: {error}") from None
        with tracing.span("request", kind="client", model=self._model.name, bytes=len(body), urgent=urgent) as span:
            response = self._post(body, urgent=urgent)
            span.note(status=response.status_code)
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response)
        try:
            return decode(response.content), response.headers.get(PROVIDER_HEADER, "")
        except WireError as error:
            raise InferenceUnavailableError(
                f"{self._http.base_url}: the answer is not one of an inference server: {error}"
            ) from None

    def _post(self, body: bytes, *, urgent: bool) -> httpx.Response:
        """Any answer of the server. Raises InferenceUnavailableError if there is none."""
        headers = {"Content-Type": MEDIA_TYPE} | ({PRIORITY_HEADER: "stat"} if urgent else {}) | tracing.header()
        try:
            return self._http.post(f"/v1/models/{self._model.digest}/infer", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise InferenceUnavailableError(
                f"{self._http.base_url}: the inference server does not answer ({type(error).__name__}: {error})"
            ) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refusal(self, response: httpx.Response) -> InferenceUnavailableError | InferenceRefusedError:
        status = response.status_code
        try:
            content = response.json()
            said = f"{content['code']}: {content['message']}"
        except (ValueError, KeyError, TypeError):
            said = "no reason given"
        message = f"{self._http.base_url}: {self._model.name} {self._model.version}: HTTP {status}, {said}"
        # An unknown model is a roll-out in progress: the server still has the other version of the package, or already.
        if status in _TRY_AGAIN or not 400 <= status < 500:
            return InferenceUnavailableError(message)
        return InferenceRefusedError(message)


def ready(base_url: str, timeout: float = 2.0) -> bool:
    """Whether the inference server at an address has its models loaded."""
    try:
        response = httpx.get(f"{base_url}/readyz", timeout=timeout, trust_env=False)
    except httpx.HTTPError:
        return False
    return response.status_code == httpx.codes.OK
