"""Named tensors as bytes: what the inference server and its client say to each other.

All integers are unsigned and little-endian. Tensors are float32, row-major, little-endian.

=========================  =====================================================================================
part                       content
=========================  =====================================================================================
magic                      4 bytes, ``SWT1``
number of tensors          1 byte, 1…16
then for each tensor       length of the name (1 byte, 1…255), name (UTF-8), type (1 byte, 1 = float32),
                           number of dimensions (1 byte, 0…8), dimensions (4 bytes each, 1 or more)
padding                    zeros up to the next multiple of 16
then for each tensor       its values
=========================  =====================================================================================

The values end where the message ends. Parsing copies nothing and allocates nothing that the message does not hold.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stepwedge.errors import StepwedgeError

MEDIA_TYPE = "application/vnd.stepwedge.tensors"
PROVIDER_HEADER = "X-Stepwedge-Provider"
MILLISECONDS_HEADER = "X-Stepwedge-Milliseconds"
PRIORITY_HEADER = "X-Stepwedge-Priority"

_MAGIC = b"SWT1"
_FLOAT32 = 1
_ITEM_BYTES = 4
_ALIGNMENT = 16
MAXIMUM_TENSORS = 16
MAXIMUM_DIMENSIONS = 8
MAXIMUM_NAME_BYTES = 255


class WireError(StepwedgeError):
    """The message is not a list of named tensors."""


def encode(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Named float32 tensors of any shape without a zero in it, as bytes. Raises WireError for anything else."""
    if not 1 <= len(tensors) <= MAXIMUM_TENSORS:
        raise WireError(f"{len(tensors)} tensors, wanted 1 to {MAXIMUM_TENSORS}")
    head = bytearray(_MAGIC + bytes([len(tensors)]))
    for name, value in tensors.items():
        encoded = name.encode("utf-8", "replace")
        if not 1 <= len(encoded) <= MAXIMUM_NAME_BYTES:
            raise WireError(f"a tensor's name has {len(encoded)} bytes, wanted 1 to {MAXIMUM_NAME_BYTES}")
        if value.dtype != np.float32:
            raise WireError(f"tensor {name} is {value.dtype}, wanted float32")
        if value.ndim > MAXIMUM_DIMENSIONS or value.size == 0:
            raise WireError(f"tensor {name} has the shape {value.shape}, wanted up to {MAXIMUM_DIMENSIONS} sizes of 1+")
        head += bytes([len(encoded)]) + encoded
        head += struct.pack(f"<BB{value.ndim}I", _FLOAT32, value.ndim, *value.shape)
    head += bytes(-len(head) % _ALIGNMENT)
    return b"".join([head, *(np.ascontiguousarray(v, dtype="<f4").data for v in tensors.values())])


def decode(message: bytes | bytearray | memoryview) -> dict[str, NDArray[np.float32]]:
    """The named tensors of a message, as read-only views into it.

    Raises
    ------
    WireError
        For every message that ``encode`` would not have written; nothing else is raised.
    """
    view = memoryview(message).cast("B").toreadonly()
    shapes, start = _read_head(view)
    wanted = start + sum(_ITEM_BYTES * math.prod(shape) for shape in shapes.values())
    if len(view) != wanted:
        raise WireError(f"the message has {len(view)} bytes, wanted {wanted} for the shapes that it announces")
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        tensors[name] = np.frombuffer(view, dtype="<f4", count=count, offset=start).reshape(shape)
        start += _ITEM_BYTES * count
    return tensors


def _read_head(view: memoryview) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes by name, and where the values start."""
    if view[:4] != _MAGIC:
        raise WireError("the message does not start with SWT1")
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        count, at = view[4], 5
        if not 1 <= count <= MAXIMUM_TENSORS:
            raise WireError(f"{count} tensors, wanted 1 to {MAXIMUM_TENSORS}")
        for _ in range(count):
            name_end = at + 1 + view[at]
            name = bytes(view[at + 1 : name_end]).decode("utf-8")
            kind, dimensions = struct.unpack_from("<BB", view, name_end)
            if kind != _FLOAT32:
                raise WireError(f"tensor type {kind}, wanted {_FLOAT32} (float32)")
            if dimensions > MAXIMUM_DIMENSIONS:
                raise WireError(f"{dimensions} dimensions, wanted {MAXIMUM_DIMENSIONS} or fewer")
            shape = struct.unpack_from(f"<{dimensions}I", view, name_end + 2)
            if not name or name in shapes or 0 in shape:
                raise WireError("a tensor has no name, the name of another, or a size of zero")
            shapes[name] = shape
            at = name_end + 2 + _ITEM_BYTES * dimensions
    except (IndexError, struct.error):
        raise WireError("the message ends within its head") from None
    except UnicodeDecodeError:
        raise WireError("a tensor's name is not UTF-8") from None
    start = at + -at % _ALIGNMENT
    if any(view[at:start]):
        raise WireError("the padding after the head is not zero")
    return shapes, start
