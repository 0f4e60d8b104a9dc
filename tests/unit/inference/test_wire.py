from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from stepwedge.inference.wire import MAXIMUM_TENSORS, WireError, decode, encode

printable_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
tensors = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=5, min_side=1, max_side=4),
    elements=st.floats(width=32),
)
messages = st.dictionaries(printable_names, tensors, min_size=1, max_size=MAXIMUM_TENSORS)


def head(name: bytes = b"x", kind: int = 1, shape: tuple[int, ...] = (1,), count: int = 1) -> bytes:
    text = b"SWT1" + bytes([count])
    for _ in range(count):
        text += bytes([len(name)]) + name + bytes([kind, len(shape)]) + struct.pack(f"<{len(shape)}I", *shape)
    return text + bytes(-len(text) % 16)


@given(messages)
def test_what_was_encoded_is_decoded_bit_for_bit(values: dict[str, np.ndarray]) -> None:
    decoded = decode(encode(values))
    assert list(decoded) == list(values)
    for name, value in values.items():
        assert decoded[name].shape == value.shape
        assert decoded[name].tobytes() == value.tobytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(message: bytes) -> None:
    decodes_or_refuses(message)


@given(st.binary(max_size=120))
def test_any_bytes_after_the_magic_are_decoded_or_refused(message: bytes) -> None:
    decodes_or_refuses(b"SWT1" + message)


@given(messages, st.data())
def test_an_altered_message_is_decoded_or_refused(values: dict[str, np.ndarray], data: st.DataObject) -> None:
    message = bytearray(encode(values))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, min(len(message) - 1, 300)))] = data.draw(st.integers(0, 255))
    decodes_or_refuses(bytes(message))


@given(messages, st.data())
def test_a_cut_message_is_refused(values: dict[str, np.ndarray], data: st.DataObject) -> None:
    message = encode(values)
    with pytest.raises(WireError):
        decode(message[: data.draw(st.integers(0, len(message) - 1))])


def decodes_or_refuses(message: bytes) -> None:
    try:
        decoded = decode(message)
    except WireError:
        return
    assert encode(decoded) == message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "start"),
        (b"PK\x03\x04" + bytes(40), "start"),
        (head(count=0), "0 tensors"),
        (head(count=17) + bytes(4 * 17), "17 tensors"),
        (head(kind=2) + bytes(4), "type 2"),
        (head(shape=(1,) * 9) + bytes(4), "9 dimensions"),
        (head(shape=(0,)), "size of zero"),
        (head(name=b"") + bytes(4), "no name"),
        (head(count=2) + bytes(8), "the name of another"),
        (head(name=b"\xff") + bytes(4), "UTF-8"),
        (head(shape=(2**32 - 1,) * 8), "the message has"),
        (head() + bytes(5), "the message has 21 bytes, wanted 20"),
        (head()[:-1] + b"x" + bytes(4), "padding"),
    ],
)
def test_a_malformed_message_is_refused_with_the_reason(message: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode(message)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"x": np.zeros(3, np.float64)},
        {"x": np.zeros((0, 3), np.float32)},
        {"": np.zeros(3, np.float32)},
        {"x" * 256: np.zeros(3, np.float32)},
        {"x": np.zeros((1,) * 9, np.float32)},
        {str(n): np.zeros(1, np.float32) for n in range(17)},
    ],
)
def test_what_the_format_cannot_hold_is_not_encoded(values: dict[str, np.ndarray]) -> None:
    with pytest.raises(WireError):
        encode(values)


def test_arrays_that_are_not_contiguous_are_encoded_by_value() -> None:
    value = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    assert np.array_equal(decode(encode({"x": value}))["x"], value)


def test_decoding_makes_no_copy_and_nobody_can_write_into_it() -> None:
    message = bytearray(encode({"x": np.ones(4, np.float32)}))
    value = decode(message)["x"]
    assert np.shares_memory(value, np.frombuffer(message, np.uint8))
    assert not value.flags.writeable
