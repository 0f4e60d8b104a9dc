"""Sending results to a PACS: a Storage SCU (PS3.4 annex B)."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, _config, build_context, evt, timer

from stepwedge.errors import DeliveryError
from stepwedge.settings import Destination

log = structlog.get_logger()

# pynetdicom formats every message, identifiers included, for its log.
_config.LOG_HANDLER_LEVEL = "none"
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
# Send a file's bytes as they lie on disk: read and encoded again they might differ from what was sent before.
_config.STORE_SEND_CHUNKED_DATASET = True

# pynetdicom's timers ask for the time of day; time-outs must not end, or never end, because somebody sets a clock.
timer.time = SimpleNamespace(time=time.monotonic)

_SUCCESS = 0x0000
_WARNINGS = range(0xB000, 0xC000)  # stored, though not as sent (PS3.4 section B.2.3)
_MEANINGS = {  # PS3.4 table B.2-1, PS3.7 annex C
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0xA700: "out of resources",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot understand",
}


# Objects that only add to a result: a node that does not take their class gets the others.
_OPTIONAL = frozenset({"1.2.840.10008.5.1.4.1.1.11.1"})  # Grayscale Softcopy Presentation State


class DicomSink:
    """A destination that takes results by C-STORE."""

    def __init__(self, destination: Destination, *, calling_ae: str) -> None:
        self._destination = destination
        self._calling_ae = calling_ae

    def send(self, files: list[Path]) -> None:
        """Send DICOM files; all are stored when this returns. Raises DeliveryError."""
        send(self._destination, self._calling_ae, files)


def send(destination: Destination, calling_ae: str, files: Sequence[Path]) -> None:
    """Send DICOM files over one association, byte by byte as they are; all are stored when this returns.

    A presentation state is left out where the node does not take its class. A status of warning (0xBxxx) counts as
    stored. Sending the same files again does no harm: their UIDs are the same.

    Raises
    ------
    DeliveryError
        If the node cannot be reached, refuses, breaks off, does not answer in time, or answers with a failure for
        any of the files. The message names the destination and the status, and no identifier.
    """
    if not files:
        return
    kinds = [_kind_of(file, destination) for file in files]
    with _association(destination, calling_ae, list(dict.fromkeys(kinds))) as association:
        taken = _taken(association)
        for index, (file, kind) in enumerate(zip(files, kinds, strict=True), start=1):
            if kind in taken:
                _store(association, destination, file, f"object {index} of {len(files)}")
            else:
                log.warning("not_taken", destination=destination.name, sop_class=kind[0])


def _kind_of(file: Path, destination: Destination) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    try:
        meta = read_file_meta_info(file)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except OSError as error:
        raise DeliveryError(f"{_name(destination)}: a result's file cannot be read: {error.strerror}") from None
    except (InvalidDicomError, AttributeError, EOFError, ValueError):
        raise DeliveryError(f"{_name(destination)}: a result's file is not a DICOM file; restore it") from None


@contextmanager
def _association(destination: Destination, calling_ae: str, kinds: Sequence[tuple[str, str]]) -> Iterator[Any]:
    """An association with an accepted presentation context for every kind of object.

    It is released at the end, or aborted where that came by an exception, and its socket is closed: pynetdicom leaves
    it open where the peer broke off first.
    """
    entity = AE(ae_title=calling_ae)
    entity.connection_timeout = destination.timeout_seconds
    entity.acse_timeout = destination.timeout_seconds
    entity.dimse_timeout = destination.timeout_seconds
    entity.network_timeout = destination.timeout_seconds
    connections: list[socket.socket] = []
    try:
        association = entity.associate(
            destination.host,
            destination.port,
            # One transfer syntax a context, so that what is accepted is what the file is in.
            contexts=[build_context(sop_class, [syntax]) for sop_class, syntax in kinds],
            ae_title=destination.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, _opened, [connections])],
        )
    except OSError as error:
        raise DeliveryError(f"{_name(destination)} cannot be found: {error.strerror}") from None
    try:
        _check_accepted(association, destination, calling_ae, kinds, connected=bool(connections))
        yield association
        # All is stored; whether the farewell is heard does not matter.
        association.release()
    finally:
        if association.is_established:
            association.abort()
        association.kill()
        for connection in connections:
            connection.close()


def _opened(event: Any, connections: list[socket.socket]) -> None:
    connection = event.assoc.dul.socket.socket
    # Without this the kernel holds small packets back until the peer has acknowledged those before (Nagle).
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connections.append(connection)


def _check_accepted(
    association: Any, destination: Destination, calling_ae: str, kinds: Sequence[tuple[str, str]], *, connected: bool
) -> None:
    """Raise DeliveryError unless every kind of object may be sent."""
    if not connected:
        raise DeliveryError(f"{_name(destination)} does not answer at its address and port; see whether it runs")
    if association.is_rejected:
        answer = association.acceptor.primitive
        raise DeliveryError(
            f"{_name(destination)} refused the association (result {answer.result}, source {answer.result_source}, "
            f"reason {answer.diagnostic}); let it accept the calling AE title {calling_ae}"
        )
    refused = sorted({kind[0] for kind in set(kinds) - _taken(association) if kind[0] not in _OPTIONAL})
    if refused and (association.is_established or association.rejected_contexts):
        raise DeliveryError(
            f"{_name(destination)} does not take objects of SOP class {', '.join(refused)} in the transfer syntax that "
            "they are in (Explicit VR Little Endian); let it accept that class"
        )
    if not association.is_established:
        raise DeliveryError(
            f"{_name(destination)} broke off, or did not answer in time, while the association was made"
        )


def _taken(association: Any) -> set[tuple[str, str]]:
    """SOP classes and transfer syntaxes that the node has accepted."""
    return {
        (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
    }


def _store(association: Any, destination: Destination, file: Path, which: str) -> None:
    try:
        answer = association.send_c_store(file)
    except (RuntimeError, ValueError, OSError):
        # pynetdicom raises these where the association has ended in the meantime; its messages quote identifiers.
        raise DeliveryError(f"{_name(destination)} broke off before {which} was sent") from None
    if "Status" not in answer:
        raise DeliveryError(f"{_name(destination)} broke off, or gave no answer in time, for {which}")
    status = int(answer.Status)
    if status in _WARNINGS:
        log.warning("stored_with_warning", destination=destination.name, status=f"0x{status:04X}")
    elif status != _SUCCESS:
        meaning = _MEANINGS.get(status) or _MEANINGS.get(status & 0xFF00) or _MEANINGS.get(status & 0xF000)
        raise DeliveryError(
            f"{_name(destination)} answered 0x{status:04X} for {which}" + (f": {meaning}" if meaning else "")
        )


def _name(destination: Destination) -> str:
    return f"destination {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
