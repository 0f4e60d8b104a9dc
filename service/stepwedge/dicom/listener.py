"""The DICOM node: Verification and Storage SCP (PS3.4 annexes A and B).

It answers 0x0000 only for what the spool has made durable. The other answers, as administrators know them:

======  ==========================================================================================
0xA700  the volume is full, low or failing, the index fails, or the data set is larger than allowed
0xA900  the data set's SOP class or instance is not that of the command
0xC000  the data set cannot be parsed, has a bad UID, or came with different content too often
0x0122  the SOP class is not that of the presentation context
0x0110  an error of ours that nobody expected; the log names it
======  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import structlog
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, evt, timer
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer
from sqlalchemy.exc import SQLAlchemyError

from stepwedge import metrics, tracing
from stepwedge.dicom.decode import DECODABLE_TRANSFER_SYNTAXES
from stepwedge.dicom.encoded import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Received, clean_title
from stepwedge.dicom.spool import InstanceSpool
from stepwedge.errors import SpoolFullError, UnusableInstanceError
from stepwedge.settings import Node

log = structlog.get_logger()

# PS3.7 annex C and PS3.4 table B.2-1.
STATUS_SUCCESS = 0x0000
STATUS_PROCESSING_FAILURE = 0x0110
STATUS_SOP_CLASS_NOT_SUPPORTED = 0x0122
STATUS_OUT_OF_RESOURCES = 0xA700

# PS3.8 section 9.3.1: what a PDU begins with, and the types that exist.
_PDU_HEAD_BYTES = 6
_PDU_TYPES = range(0x01, 0x08)
_P_DATA = 0x04
# An association request names at most 128 presentation contexts; with every transfer syntax there is, and with user
# identity tokens, it stays far below this.
_LONGEST_OTHER_PDU_BYTES = 1_048_576
# Some senders leave the heads of the fragments out of the length that we ask them to keep to.
_PDU_TOLERANCE_BYTES = 4096
# What a type that does not exist looks like: pynetdicom answers it with A-ABORT, as PS3.8 section 9.2 wants.
_NO_PDU = b"\xff" + bytes(_PDU_HEAD_BYTES - 1)

# PS3.8 table 9-1: the state in which data may come; in every other one pynetdicom itself aborts or drops it.
_DATA_TRANSFER = "Sta6"
# PS3.8 annex E.2: the message control header.
_COMMAND, _LAST = 1, 2
# PS3.7 section E.1: elements of a command, and the requests that we serve: C-STORE, C-ECHO, C-CANCEL.
_COMMAND_FIELD, _COMMAND_DATA_SET_TYPE = 0x0100, 0x0800
_REQUESTS = frozenset({0x0001, 0x0030, 0x0FFF})
# A command holds a few UIDs, titles and numbers; with an error comment and the like it stays far below this.
_LONGEST_COMMAND_BYTES = 65_536

# Connections that the system keeps until they are accepted.
_BACKLOG = 128
# Connections beyond those that may associate: they wait to be told that the limit is reached.
_SPARE_CONNECTIONS = 32
# Threads that do not end this long after their connection was cut are left to the end of the process, seconds.
_ABORT_SECONDS = 3.0
_POLL_SECONDS = 0.02
# Between two looks at whether to stop. pynetdicom collects garbage at every 60th, which is not to be often.
_ACCEPT_SECONDS = 0.5

_REJECTIONS = {3: "rejected_caller", 7: "rejected_called", 2: "rejected_limit"}

# pynetdicom binds handlers that format every message, identifiers included, for a log that is never read.
_config.LOG_HANDLER_LEVEL = "none"
# Its timers ask for the time of day; time-outs must not end, or never end, because somebody sets a clock.
timer.time = SimpleNamespace(time=time.monotonic)


class Listener:
    """The listening socket and its associations."""

    def __init__(self, settings: Node, spool: InstanceSpool, *, own_callers: Sequence[str] = ()) -> None:
        """``own_callers`` are AE titles of our own, taken beside those that the settings allow."""
        self._settings = settings
        self._spool = spool
        self._own_callers = tuple(own_callers)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._aborted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sent: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()

    @property
    def port(self) -> int:
        """The TCP port in use."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, in threads of our own. Raises OSError if the address cannot be had."""
        settings = self._settings
        node = AE(ae_title=settings.ae_title)
        node.require_called_aet = True
        # None named: anybody may call.
        node.require_calling_aet = [*settings.allowed_callers, *self._own_callers] if settings.allowed_callers else []
        node.maximum_associations = settings.maximum_associations
        node.maximum_pdu_size = settings.maximum_pdu_bytes
        node.acse_timeout = settings.association_timeout
        node.dimse_timeout = settings.dimse_timeout
        node.network_timeout = settings.network_timeout
        node.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        node.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        contexts = [build_context(Verification, list(DECODABLE_TRANSFER_SYNTAXES))]
        contexts += [
            build_context(known.abstract_syntax, list(DECODABLE_TRANSFER_SYNTAXES))
            for known in AllStoragePresentationContexts
        ]
        handlers: list[Any] = [
            (evt.EVT_ACCEPTED, _count_accepted),
            (evt.EVT_REJECTED, _count_rejected),
            (evt.EVT_ABORTED, self._count_aborted),
            (evt.EVT_CONN_CLOSE, _end_unassociated),
            (evt.EVT_PDU_RECV, _check_data, [settings.maximum_instance_bytes]),
            (evt.EVT_C_STORE, self._answer),
        ]
        server = node.make_server(
            (settings.host, settings.port), contexts=contexts, evt_handlers=handlers, server_class=_Server
        )
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(_ACCEPT_SECONDS,), name="listener")
        self._thread.start()

    def stop(self, seconds: float = 0.0) -> None:
        """Take no more associations, let the open ones finish, then abort them.

        Parameters
        ----------
        seconds
            How long open associations may go on. What they were told is stored, is stored in any case.
        """
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        _wait_until_none(self._server, seconds)
        for association in self._server.active_associations:
            if association.is_established:  # others have nothing to abort, and are cut
                association.abort(block=False)
        _wait_until_none(self._server, _ABORT_SECONDS / 2)
        self._server.cut_connections()
        _wait_until_none(self._server, _ABORT_SECONDS / 2)
        self._server = self._thread = None

    def is_sending(self, study: str) -> bool:
        """Whether an association is open that has sent an instance of this study."""
        with self._lock:
            return any(study in studies and association.is_established for association, studies in self._sent.items())

    def _answer(self, event: evt.Event) -> int:
        """The answer to a C-STORE request, counted."""
        began = time.monotonic()
        size = len(event.request.DataSet.getbuffer()) if event.request.DataSet else 0
        status = self._store(event)
        metrics.INSTANCES.labels(f"{status:04X}").inc()
        metrics.STORE_SECONDS.observe(time.monotonic() - began)
        if status == STATUS_SUCCESS:
            metrics.INSTANCE_BYTES.inc(size)
        return status

    def _store(self, event: evt.Event) -> int:
        began = time.time()
        request, sender = event.request, clean_title(event.assoc.requestor.ae_title)
        if request.AffectedSOPClassUID != event.context.abstract_syntax:
            log.warning("instance_refused", reason="sop_class_not_supported", sender=sender)
            return STATUS_SOP_CLASS_NOT_SUPPORTED
        data = request.DataSet.getvalue() if request.DataSet else b""
        if len(data) > self._settings.maximum_instance_bytes:
            log.warning("instance_refused", reason="larger than node.maximum_instance_bytes", sender=sender)
            return STATUS_OUT_OF_RESOURCES
        received = Received(
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            sender=sender,
            data=data,
        )
        try:
            stored = self._spool.store(received)
        except UnusableInstanceError as error:
            return self._refuse(received, error)
        except SpoolFullError:
            log.error("spool_full", sender=sender, size=len(data))
            return STATUS_OUT_OF_RESOURCES
        except (OSError, SQLAlchemyError) as error:
            log.error("instance_not_stored", sender=sender, error=type(error).__name__)
            return STATUS_OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001 - the edge: an answer must go out, and pynetdicom's would be 0xC211
            log.error("instance_not_stored", sender=sender, error=type(error).__name__)
            return STATUS_PROCESSING_FAILURE
        with self._lock:
            self._sent.setdefault(event.assoc, set()).add(stored.study)
        tracing.record(
            "C-STORE",
            under=tracing.of_study(stored.study),
            kind="server",
            began=began,
            ended=time.time(),
            study=stored.study,
            instance=stored.instance,
            bytes=len(data),
            new=stored.new,
        )
        log.info(
            "instance_stored",
            study=stored.study,
            instance=stored.instance,
            sender=sender,
            size=len(data),
            new=stored.new,
        )
        return STATUS_SUCCESS

    def _count_aborted(self, event: evt.Event) -> None:
        with self._lock:
            if event.assoc in self._aborted:
                return  # an abort of ours is told twice: when it is sent, and when the association has ended
            self._aborted.add(event.assoc)
        metrics.ASSOCIATIONS.labels("aborted").inc()
        log.warning("association_aborted", sender=clean_title(event.assoc.requestor.ae_title or ""))

    def _refuse(self, received: Received, error: UnusableInstanceError) -> int:
        try:
            self._spool.quarantine.keep(received, error)
        except (OSError, SQLAlchemyError) as failure:
            log.error("quarantine_failed", reason=error.code, error=type(failure).__name__)
        return error.status


def _count_accepted(event: evt.Event) -> None:
    metrics.ASSOCIATIONS.labels("accepted").inc()
    log.debug("association_accepted", sender=clean_title(event.assoc.requestor.ae_title))


def _count_rejected(event: evt.Event) -> None:
    outcome = _REJECTIONS.get(event.assoc.acceptor.primitive.diagnostic, "rejected_other")
    metrics.ASSOCIATIONS.labels(outcome).inc()
    request = event.assoc.requestor.primitive
    log.warning(
        "association_rejected",
        outcome=outcome,
        caller=clean_title(request.calling_ae_title),
        called=clean_title(request.called_ae_title),
    )


def _end_unassociated(event: evt.Event) -> None:
    """End the thread of a connection that closed without an association, as probes do; it would wait for a request."""
    if event.assoc.requestor.primitive is None:
        event.assoc.dul.to_user_queue.put(None)


def _check_data(event: evt.Event, maximum_bytes: int) -> None:
    """Look at what a P-DATA PDU brings before pynetdicom does.

    A fragment without contents, or a command that is none of ours, aborts the association: pynetdicom's thread would
    die of it. What a data set has beyond the limit is dropped, so that memory is bounded; its length then shows that
    it was larger.
    """
    if not isinstance(event.pdu, P_DATA_TF) or event.assoc.dul.state_machine.current_state != _DATA_TRANSFER:
        return
    message = event.assoc.dimse.message
    command = message.encoded_command_set.getvalue() if message is not None else b""
    length = message.data_set.tell() if message is not None and message.data_set is not None else 0
    for item in event.pdu.presentation_data_value_items:
        fragment = item.presentation_data_value
        if not fragment:
            _abort(event, "an empty fragment")
            return
        if not fragment[0] & _COMMAND:
            length += len(fragment) - 1
            if length > maximum_bytes + len(fragment):
                item.presentation_data_value = fragment[:1]
            continue
        command += fragment[1:]
        if len(command) > _LONGEST_COMMAND_BYTES or (fragment[0] & _LAST and not _is_command(command)):
            _abort(event, "no command of Storage or Verification")
            return
        if fragment[0] & _LAST:
            command, length = b"", 0


def _abort(event: evt.Event, reason: str) -> None:
    event.pdu.presentation_data_value_items = []
    log.warning("association_refused", reason=reason)
    # This is the connection's own thread, which would wait for itself: whether ``abort`` waits by default is for
    # whichever of the association's threads set it last.
    event.assoc.abort(block=False)


def _is_command(encoded: bytes) -> bool:
    """Whether this is a whole command set (PS3.7 section 6.3.1) with a request that we serve."""
    fields = {}
    position = 0
    while position < len(encoded):
        if position + 8 > len(encoded):
            return False
        group, element, length = struct.unpack_from("<HHL", encoded, position)
        position += 8 + length
        if group or position > len(encoded):
            return False
        fields[element] = encoded[position - length : position]
    kind, data_set = fields.get(_COMMAND_FIELD, b""), fields.get(_COMMAND_DATA_SET_TYPE, b"")
    return len(data_set) == 2 and len(kind) == 2 and int.from_bytes(kind, "little") in _REQUESTS


class _Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Accepts connections, each behind a guard."""

    request_queue_size = _BACKLOG

    def __init__(self, node: AE, *args: Any, **kwargs: Any) -> None:
        self._connections: weakref.WeakSet[_GuardedSocket] = weakref.WeakSet()
        super().__init__(node, *args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted, address = super().get_request()
        guarded = _GuardedSocket(
            accepted,
            longest_data_pdu=self.ae.maximum_pdu_size + _PDU_TOLERANCE_BYTES,
            timeout=self.ae.network_timeout,
        )
        self._connections.add(guarded)
        return guarded, address

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the parent's signature
        """Drop a connection when so many are open that not even a rejection can be had."""
        return len(self.active_associations) < int(self.ae.maximum_associations) + _SPARE_CONNECTIONS

    def shutdown(self) -> None:
        """Stop accepting. Open associations go on."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()

    def cut_connections(self) -> None:
        """Cut every connection that is open."""
        for connection in list(self._connections):
            connection.cut()


class _GuardedSocket(socket.socket):
    """A connection that follows the PDUs that are read from it, and cuts one that does not keep to the rules.

    pynetdicom believes any announced length and waits for the rest without end. Here a PDU must be of a type that
    exists, not longer than was agreed, and complete within the network timeout (twice that if it comes drop by drop),
    so that a peer that talks nonsense, announces 4 GiB or stalls holds its threads hardly longer than an idle one.
    """

    def __init__(self, accepted: socket.socket, *, longest_data_pdu: int, timeout: float) -> None:
        super().__init__(fileno=accepted.detach())
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.settimeout(timeout)
        self._longest_data_pdu = longest_data_pdu
        self._timeout = timeout
        self._head = b""
        self._missing = 0  # bytes of the current PDU after its head
        self._deadline = 0.0
        self._refused = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As socket.recv. The end of the stream once a PDU was refused; TimeoutError for one that takes too long."""
        if self._refused:
            return b""
        if (self._missing or self._head) and time.monotonic() > self._deadline:
            log.warning("connection_cut", reason="PDU not complete within node.network_timeout")
            raise TimeoutError("the PDU was not complete in time")
        if self._missing:
            data = super().recv(min(size, self._missing), flags)
            self._missing -= len(data)
            return data
        return self._begin(super().recv(min(size, _PDU_HEAD_BYTES - len(self._head)), flags))

    def cut(self) -> None:
        """End the connection, whoever waits for it."""
        with contextlib.suppress(OSError):  # it may be closed already
            self.shutdown(socket.SHUT_RDWR)

    def _begin(self, data: bytes) -> bytes:
        if not self._head:
            self._deadline = time.monotonic() + self._timeout
        self._head += data
        if len(self._head) < _PDU_HEAD_BYTES:
            return data
        kind, length = struct.unpack(">BxL", self._head)
        longest = self._longest_data_pdu if kind == _P_DATA else _LONGEST_OTHER_PDU_BYTES
        if kind not in _PDU_TYPES or length > longest:
            log.warning("connection_refused", reason="no PDU" if kind not in _PDU_TYPES else "PDU too long")
            self._refused = True
            return _NO_PDU[-len(data) :]
        self._head, self._missing = b"", length
        return data


def _wait_until_none(server: _Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while server.active_associations and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
