"""The UIDs that we make."""

from __future__ import annotations

import hashlib
import json


def derived_uid(*parts: str) -> str:
    """The UID that belongs to these texts, always the same one.

    A UUID of version 8 (RFC 9562 section 5.8) made of the first 128 bits of SHA-256 over the parts, written as a UID
    under 2.25 (PS3.5 section B.2).
    """
    digest = hashlib.sha256(json.dumps(["stepwedge", *parts]).encode()).digest()
    number = int.from_bytes(digest[:16], "big")
    number = number & ~(0xF << 76) | 0x8 << 76  # version 8
    number = number & ~(0x3 << 62) | 0x2 << 62  # variant of RFC 9562
    return f"2.25.{number}"


def result_uid(*, node: str, study_uid: str, revision: int, model_digest: str, policy_digest: str, kind: str) -> str:
    """The UID of an object (or series, or tracked finding) of a result: a function of what it is a result of.

    ``kind`` tells the objects of one result apart, e.g. ``sr``, ``series-sr``.
    """
    return derived_uid("result", node, study_uid, str(revision), model_digest, policy_digest, kind)


def device_uid(node: str) -> str:
    """The UID of this node as a device."""
    return derived_uid("device", node)
