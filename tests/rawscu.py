"""A Storage SCU on a bare socket, for what a well-behaved one cannot be made to do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Self

from instances import DX, encode
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
# Far more than a listener on a slow machine needs; a test that waits this long has failed.
PATIENCE_SECONDS = 60.0


def pdu(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    """A PDU (PS3.8 section 9.3), which may lie about its length."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def fragment(data: bytes, *, command: bool, last: bool = True, context: int = 1) -> bytes:
    """A presentation data value (PS3.8 section 9.3.5)."""
    return struct.pack(">LBB", len(data) + 2, context, command | last << 1) + data


def find_command() -> bytes:
    """The command set of a C-FIND request (PS3.7 section 9.3.2)."""
    return store_command("1.2.840.10008.5.1.4.1.2.2.1", "").replace(
        struct.pack("<HHLH", 0, 0x0100, 2, 1), struct.pack("<HHLH", 0, 0x0100, 2, 0x0020)
    )


def store_command(sop_class: str, sop: str) -> bytes:
    """The command set of a C-STORE request (PS3.7 section 9.3.1)."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = b"".join(
        (
            element(0x0002, sop_class.encode()),
            element(0x0100, struct.pack("<H", 1)),
            element(0x0110, struct.pack("<H", 1)),
            element(0x0700, struct.pack("<H", 0)),
            element(0x0800, struct.pack("<H", 1)),
            element(0x1000, sop.encode()),
        )
    )
    return element(0x0000, struct.pack("<L", len(body))) + body


class RawSCU:
    """One connection, and the association on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def associate(
        self, sop_classes: Sequence[str] = (DX,), *, caller: str = "RAWSCU", called: str = "STEPWEDGE"
    ) -> tuple[int, bytes]:
        """Ask for an association; the answer's kind and contents."""

        def item(kind: int, body: bytes) -> bytes:
            return struct.pack(">BxH", kind, len(body)) + body

        contexts = b"".join(
            item(
                0x20,
                bytes([2 * number + 1, 0, 0, 0])
                + item(0x30, sop_class.encode())
                + item(0x40, ExplicitVRLittleEndian.encode()),
            )
            for number, sop_class in enumerate(sop_classes)
        )
        user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
        titles = called.ljust(16).encode() + caller.ljust(16).encode()
        body = struct.pack(">HH", 1, 0) + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user
        self.socket.sendall(pdu(ASSOCIATE_RQ, body))
        return self.receive()

    def established(self, sop_classes: Sequence[str] = (DX,)) -> Self:
        """With an association that must be accepted."""
        kind, _ = self.associate(sop_classes)
        assert kind == ASSOCIATE_AC
        return self

    def store(
        self,
        dataset: Dataset,
        *,
        data: bytes | None = None,
        sop_class: str | None = None,
        sop: str | None = None,
        step: int = 100_000,
    ) -> int:
        """Send an instance; the status that is answered."""
        command = store_command(sop_class or dataset.SOPClassUID, sop or dataset.SOPInstanceUID)
        self.socket.sendall(pdu(P_DATA, fragment(command, command=True)))
        data = encode(dataset) if data is None else data
        for start in range(0, max(len(data), 1), step):
            part = data[start : start + step]
            self.socket.sendall(pdu(P_DATA, fragment(part, command=False, last=start + step >= len(data))))
        kind, body = self.receive()
        assert kind == P_DATA, f"PDU of type {kind} instead of an answer"
        at = body.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
        return int(struct.unpack_from("<H", body, at)[0])

    def release(self) -> None:
        """End the association as one should."""
        self.socket.sendall(pdu(RELEASE_RQ, bytes(4)))
        kind, _ = self.receive()
        assert kind == RELEASE_RP

    def receive(self) -> tuple[int, bytes]:
        """The next PDU; kind 0 if the connection has ended."""
        try:
            head = self._read(6)
            kind, length = struct.unpack(">BxL", head)
            return int(kind), self._read(length)
        except (ConnectionError, EOFError):
            return 0, b""

    def has_ended(self) -> bool:
        """Wait for the peer to abort or close."""
        kind, _ = self.receive()
        return kind in {0, ABORT}

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data
