"""From one compressed frame to the integers it holds, checked against the codestream's own header first.

Every decoder here is native code that allocates what the codestream asks for, so the codestream's header is read in
Python and compared with the DICOM header before a decoder sees the stream. Each transfer syntax has one decoder:

=========================  ====================================================================================
JPEG Baseline, Extended    Pillow (libjpeg-turbo) with 8 bits, GDCM with 12
JPEG Lossless              GDCM, in a process of its own (see ``isolated.py``): it aborts on some malformed streams
JPEG-LS                    pyjpegls (CharLS)
JPEG 2000, HTJ2K           pylibjpeg-openjpeg (OpenJPEG)
RLE                        pylibjpeg-rle
=========================  ====================================================================================

They are called directly: pydicom's decoder classes would choose GDCM in this process for some of them.
"""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jpeg_ls  # type: ignore[import-untyped]  # publishes no types
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode_pixel_data as decode_jpeg_2000
from PIL import Image as Pillow
from pydicom import uid
from pydicom.errors import BytesLengthException, InvalidDicomError
from rle.utils import decode_pixel_data as decode_rle

from stepwedge.errors import DecodeError

# What foreign decoders and parsers have been seen to raise on malformed input.
FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    BytesLengthException,
    InvalidDicomError,
)

JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
RLE = (uid.RLELossless,)
COMPRESSED: tuple[str, ...] = tuple(str(syntax) for syntax in JPEG + JPEG_LOSSLESS + JPEG_LS + JPEG_2000 + HTJ2K + RLE)
# Decoded samples of these may lie a little beyond the stored range and are clipped, not masked.
LOSSY: frozenset[str] = frozenset(str(syntax) for syntax in (*JPEG, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K))

# JPEG 2000 tiles: OpenJPEG allocates about 7 KB for each that the header announces; real images have one to a hundred.
_MAXIMUM_TILES = 4096
# Bytes after the end marker that padding may take; the standard allows one (PS3.5 section A.4).
_TRAILING_BYTES = 64
# Seconds for the process that runs GDCM; 4 megapixels take 0.1 s.
_ISOLATED_SECONDS = 60
# GDCM tries its 8-bit decoder first, which says this of every 12-bit stream.
_NO_COMPLAINT = b"Unsupported JPEG data precision 12"
# Its address space in bytes: the interpreter's and GDCM's own, and copies of the image for each decoded byte.
_ISOLATED_BASE_BYTES = 512 * 2**20
_ISOLATED_COPIES = 10

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_FRAMES_OF = {
    **dict.fromkeys(JPEG, frozenset({0xC0, 0xC1, 0xC2})),
    **dict.fromkeys(JPEG_LOSSLESS, frozenset({0xC3})),
    **dict.fromkeys(JPEG_LS, frozenset({0xF7})),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Decoded integers, (rows, columns), and the codestream's own word on them."""

    values: NDArray[Any]  # uint8, uint16, uint32 or the signed types
    signed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _FrameHeader:
    rows: int
    columns: int
    components: int
    precision: int  # bits
    signed: bool = False
    kind: int = 0  # JPEG's marker, without 0xFF
    start: int = 0  # where the codestream begins


def decode_frame(
    stream: bytes, syntax: str, *, rows: int, columns: int, bits_allocated: int, maximum_bytes: int
) -> Samples:
    """Decode one frame.

    Parameters
    ----------
    stream
        The fragments of the frame, joined (PS3.5 section A.4).
    syntax
        Transfer syntax UID, one of ``COMPRESSED``.
    rows, columns, bits_allocated
        What the DICOM header says.
    maximum_bytes
        The limit on the decoded image as float32.

    Raises
    ------
    DecodeError
        ``pixel_data_too_large`` if the codestream announces more than the limit, ``pixel_data_truncated`` if its end
        is missing, ``photometric_not_supported`` if it holds colour, ``pixel_data_undecodable`` otherwise.
    """
    if syntax in RLE:
        return _rle(stream, rows, columns, bits_allocated)
    read = _jpeg_2000_header if syntax in JPEG_2000 + HTJ2K else _jpeg_header
    try:
        header = read(stream)
    except (struct.error, IndexError):
        raise DecodeError("pixel_data_truncated", "the compressed image ends within its own header") from None
    size = header.rows * header.columns * max(header.components, 1) * np.dtype(np.float32).itemsize
    if size > maximum_bytes:
        raise DecodeError(
            "pixel_data_too_large",
            f"the compressed image says {header.rows} × {header.columns}, {size} bytes, limit {maximum_bytes}",
        )
    if (header.rows, header.columns) != (rows, columns):
        raise _undecodable(
            f"the compressed image says {header.rows} × {header.columns}, the DICOM header {rows} × {columns}"
        )
    if header.components != 1:
        raise DecodeError("photometric_not_supported", f"the compressed image has {header.components} components")
    end = stream.rfind(b"\xff\xd9", max(0, len(stream) - _TRAILING_BYTES))
    if end < 0:
        raise DecodeError("pixel_data_truncated", "the compressed image has no end marker")
    if not 1 <= header.precision <= 16:
        raise _undecodable(f"{header.precision} bits in a compressed sample, at most 16 are handled")
    if syntax in _FRAMES_OF and header.kind not in _FRAMES_OF[uid.UID(syntax)]:
        raise _undecodable(f"JPEG process {header.kind - 0xC0} does not belong to the transfer syntax")
    return _DECODERS[syntax](stream[header.start :], syntax, header)


def _undecodable(message: str) -> DecodeError:
    return DecodeError("pixel_data_undecodable", message)


def _jpeg_header(stream: bytes) -> _FrameHeader:
    """The frame header of JPEG and JPEG-LS (ISO/IEC 10918-1 section B.2, 14495-1 annex C)."""
    if stream[:2] != b"\xff\xd8":
        raise _undecodable("not a JPEG codestream")
    position = 2
    while True:
        if stream[position] != 0xFF:
            raise _undecodable("the JPEG header is damaged")
        while stream[position] == 0xFF:  # fill bytes may precede a marker
            position += 1
        marker = stream[position]
        position += 1
        (length,) = struct.unpack_from(">H", stream, position)
        if marker in _START_OF_FRAME:
            precision, rows, columns, components = struct.unpack_from(">BHHB", stream, position + 2)
            return _FrameHeader(rows=rows, columns=columns, components=components, precision=precision, kind=marker)
        if marker in {0xD9, 0xDA} or length < 2:
            raise _undecodable("the JPEG header is damaged")
        position += length


def _jpeg_2000_header(stream: bytes) -> _FrameHeader:
    """The SIZ marker segment of a JPEG 2000 codestream (ISO/IEC 15444-1 section A.5.1)."""
    start = _skip_jp2_boxes(stream)
    if stream[start : start + 4] != b"\xff\x4f\xff\x51":
        raise _undecodable("not a JPEG 2000 codestream")
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack_from(">8IH", stream, start + 8)
    depth, step_x, step_y = struct.unpack_from(">3B", stream, start + 42)
    if x <= x0 or y <= y0 or tile_x == 0 or tile_y == 0 or tile_x0 > x0 or tile_y0 > y0:
        raise _undecodable("the JPEG 2000 header contradicts itself")
    if step_x != 1 or step_y != 1:
        raise _undecodable("subsampled JPEG 2000")
    tiles = -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y)
    if tiles > _MAXIMUM_TILES:
        raise _undecodable(f"{tiles} JPEG 2000 tiles, at most {_MAXIMUM_TILES} are handled")
    return _FrameHeader(
        rows=y - y0,
        columns=x - x0,
        components=components,
        precision=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        start=start,
    )


def _skip_jp2_boxes(stream: bytes) -> int:
    """Where the codestream starts. Some senders wrap it as a JP2 file, which PS3.5 section A.4.4 forbids."""
    position = 0
    if stream[4:8] != b"jP  ":
        return position
    while True:
        length, kind = struct.unpack_from(">I4s", stream, position)
        if kind == b"jp2c":
            return position + 8
        if length < 8:
            raise _undecodable("the JP2 file around the JPEG 2000 codestream is damaged")
        position += length


def _jpeg(stream: bytes, syntax: str, header: _FrameHeader) -> Samples:
    if header.precision == 12:
        return _isolated(stream, syntax, header)
    if header.precision != 8:
        raise _undecodable(f"JPEG Extended with {header.precision} bits, 8 and 12 are handled")
    try:
        with Pillow.open(io.BytesIO(stream), formats=("JPEG",)) as picture:
            values = np.array(picture)
    except FOREIGN_ERRORS:
        raise _undecodable("the JPEG codestream is damaged") from None
    return Samples(values=_shaped(values.tobytes(), header), signed=False)


def _jpeg_ls(stream: bytes, _syntax: str, header: _FrameHeader) -> Samples:
    try:
        decoded, _ = jpeg_ls.decode_pixel_data(stream)
    except FOREIGN_ERRORS:
        raise _undecodable("the JPEG-LS codestream is damaged") from None
    return Samples(values=_shaped(decoded, header), signed=False)


def _jpeg_2000(stream: bytes, _syntax: str, header: _FrameHeader) -> Samples:
    try:
        decoded = decode_jpeg_2000(stream, version=2)
    except FOREIGN_ERRORS:
        raise _undecodable("the JPEG 2000 codestream is damaged") from None
    return Samples(values=_shaped(decoded, header), signed=header.signed)


def _isolated(stream: bytes, syntax: str, header: _FrameHeader) -> Samples:
    decoded_bytes = header.rows * header.columns * 2
    memory = _ISOLATED_BASE_BYTES + _ISOLATED_COPIES * decoded_bytes + 2 * len(stream)
    numbers = (header.rows, header.columns, header.precision, memory)
    try:
        done = subprocess.run(  # noqa: S603  our own file, numbers, and a UID from a fixed list
            [sys.executable, "-P", Path(__file__).with_name("isolated.py"), syntax, *map(str, numbers)],
            input=stream,
            capture_output=True,
            timeout=_ISOLATED_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _undecodable(f"decoding took more than {_ISOLATED_SECONDS} s") from None
    # The decoder goes on with garbage where the stream is damaged and only says so ("Corrupt JPEG data: …").
    complaints = [line for line in done.stderr.splitlines() if line.strip() != _NO_COMPLAINT]
    if done.returncode != 0 or complaints:
        raise _undecodable("the JPEG codestream is damaged or does not conform")
    return Samples(values=_shaped(done.stdout, header), signed=False)


def _rle(stream: bytes, rows: int, columns: int, bits_allocated: int) -> Samples:
    """RLE has no header but the offsets of its segments, one a byte plane (PS3.5 section G.5)."""
    size = bits_allocated // 8
    if len(stream) < 64:
        raise DecodeError("pixel_data_truncated", "the RLE frame ends within its own header")
    segments, *offsets = struct.unpack_from("<16I", stream)
    if segments != size:
        raise _undecodable(f"{segments} RLE segments, wanted {size} for {bits_allocated} bits allocated")
    if any(offset >= len(stream) for offset in offsets[:segments]):
        raise DecodeError("pixel_data_truncated", "an RLE segment begins after the end of the pixel data")
    try:
        decoded = decode_rle(stream, version=2, rows=rows, columns=columns, bits_allocated=bits_allocated)
    except BaseException as error:
        # Where a segment overruns the decoder panics, which PyO3 raises as a BaseException that cannot be imported.
        if isinstance(error, FOREIGN_ERRORS) or type(error).__name__ == "PanicException":
            raise _undecodable("the RLE frame is damaged") from None
        raise
    values = np.frombuffer(decoded, f"<u{size}")
    if values.size != rows * columns:
        raise DecodeError("pixel_data_truncated", "the RLE frame holds fewer pixels than the header says")
    return Samples(values=values.reshape(rows, columns), signed=False)


def _shaped(decoded: bytes | bytearray | NDArray[Any], header: _FrameHeader) -> NDArray[Any]:
    """Decoded bytes as (rows, columns), little endian, in the container that the precision takes."""
    size = 1 if header.precision <= 8 else 2
    values = np.frombuffer(decoded, f"<{'i' if header.signed else 'u'}{size}")
    if values.size != header.rows * header.columns:
        raise _undecodable("the decoder gave another number of pixels than the compressed image says")
    return values.reshape(header.rows, header.columns)


_DECODERS: dict[str, Callable[[bytes, str, _FrameHeader], Samples]] = {
    **dict.fromkeys(map(str, JPEG), _jpeg),
    **dict.fromkeys(map(str, JPEG_LOSSLESS), _isolated),
    **dict.fromkeys(map(str, JPEG_LS), _jpeg_ls),
    **dict.fromkeys(map(str, JPEG_2000 + HTJ2K), _jpeg_2000),
}
