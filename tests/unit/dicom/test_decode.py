"""Reading headers and decoding pixel data: real files, made-up ones and damaged ones."""

from __future__ import annotations

import base64
import io
import random
import struct
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from stepwedge.dicom import codestream
from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import DECODABLE_TRANSFER_SYNTAXES, decode
from stepwedge.dicom.header import parse_age, read_header
from stepwedge.dicom.imagefile import COLOUR_NOTE, read_image_file
from stepwedge.errors import DecodeError, StepwedgeError, UnusableInstanceError

LIMIT = 536_870_912  # bytes
SAMPLES = Path(data_store.__file__).parent / "data"  # of pydicom-data

# 16 × 24 pixels in HTJ2K (reversible), written by OpenHTJ2K 0.4; the pixels follow ``htj2k_pixels``.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAYAAAAEAAAAAAAAAAAAAAAGAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAAC/9SAAwAAAABAAQEBEAB/1wAECCI"
    "kJCYkJCYkJCQiIiQ/2QAFwABT3BlbkhUSjJLIHZlcnNpb24gMP+QAAoAAAAAAisAAf+TwAAqADf9T/ABQjQAwAASwAATwAAJQOYA"
    "h3QA2uP9AII0AOUAB3QAwAAVsAAFbAAArXSU7v9CO/0AQQD7NgB2KcBRgBPrABEAfZYAALA9mlV/9wAiAPs2AMAAF0cAAF0sAAF0"
    "wLng+CBOzKXQQ6QwbfFtOL+lgJI1IH5zkSDM9QGhhYQgEZgAuTroEGdz609ifGHhQ5Z+2WFJHk3bM19Bg/gAAKSlHGICICKbAHXY"
    "2JzKbFS3LoHBhDfKJuFQy3NB/EtIH28XkfwC9ZJyBQggYzoAwAAvbYAAXusAAF66TyjRynko2cqHohRFywMUyxKFegq1XPnJjUSJ"
    "oOCopBSNAiUxQ22I4ohXFMcTy0S1PUmUKBuUolAqE82xiRmOJwB4AgBUqOf8eSihQEEBAEXmAAoQ2nE+rHVi9WfkP5ckMGIIBzIg"
    "AevwxGfcAQ9lUBJpw4FoHo4n5HlyAwciRENFQ1WGEurJ0Cc4KD9B0NCNykShQHkCak75SeUb2og+eYIaCiUbZRxDoYRCki1EibAn"
    "8p9oSaJw5xnnrInoJuot0dpEKwDueTcr5d6kr3WdihKuwWDyYMQgKvwhAM1RRGfeAUOJEkXUfMj5UIkiQpRooog6L5FEEnV+KCKi"
    "iZqf6ETNT4Roos2Hch7R5ocaish5oppPlCgSHUqECJH4BIBPDIP4QYAf/3AxfMQY10r7zx7CGIQCNcIgD78QQGfSAv/Z"
)


def htj2k_pixels() -> np.ndarray[Any, Any]:
    rows, columns = np.mgrid[0:16, 0:24]
    return (rows * 37 + columns * 91 + (rows * columns) % 13 * 50) % 4096


def make(pixels: np.ndarray[Any, Any], syntax: str = uid.ExplicitVRLittleEndian, **attributes: Any) -> Dataset:
    """A data set of one grey-scale frame; ``attributes`` override the defaults, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    bits = pixels.dtype.itemsize * 8
    defaults: dict[str, Any] = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": attributes.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
    }
    for keyword, value in (defaults | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def grey(dtype: str = "uint16", largest: int = 4095, shape: tuple[int, int] = (20, 30)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).integers(0, largest, shape, endpoint=True).astype(dtype)


def code_of(dataset: Dataset, maximum_bytes: int = LIMIT) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(dataset, maximum_bytes=maximum_bytes)
    return caught.value.code


def reread(dataset: Dataset, *, implicit: bool = False, little: bool = True) -> Dataset:
    """Through a file's bytes and back, as an instance arrives."""
    buffer = io.BytesIO()
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return read_dataset(buffer.getvalue())


# --- Real files


@pytest.mark.parametrize(
    ("name", "shape", "value_range"),
    [
        ("CR-MONO1-10-chest_no_meta.dcm", (440, 440), (0, 1023)),
        ("CR_modality_lut_sequence.dcm", (1576, 1976), (0, 1023)),
        ("CT1_big_endian.dcm", (512, 512), (-33792, 31743)),
        ("Fake_MONOHR1.dcm", (1024, 1024), (0, 255)),
        ("MG_GH133_jpll.dcm", (3062, 2394), (0, 4095)),
        ("RG1_J2KI.dcm", (1955, 1841), (0, 32767)),
        ("RG1_J2KR.dcm", (1955, 1841), (0, 32767)),
        ("RG1_JLSN.dcm", (1955, 1841), (0, 32767)),
        ("RG2_J2KI.dcm", (2140, 1760), (0, 1023)),
        ("RG2_JPLL.dcm", (2140, 1760), (0, 1023)),
        ("RG3_J2KI.dcm", (1760, 1760), (0, 1023)),
        ("RG3_JLSL.dcm", (1760, 1760), (0, 1023)),
        ("RG3_RLE.dcm", (1760, 1760), (0, 1023)),
        ("chest_jpeg_baseline.dcm", (1024, 1024), (0, 255)),
    ],
)
def test_a_real_file_decodes(shared: Path, name: str, shape: tuple[int, int], value_range: tuple[float, float]) -> None:
    image = decode(read_dataset(shared / "data/dicom" / name), maximum_bytes=LIMIT)
    assert image.pixels.shape == shape
    assert image.pixels.dtype == np.float32
    assert image.value_range == value_range
    assert image.pixels.min() >= value_range[0]
    assert image.pixels.max() <= value_range[1]
    assert image.pixels.std() > 0


def test_a_stream_that_breaks_the_jpeg_rules_is_undecodable(shared: Path) -> None:
    assert code_of(read_dataset(shared / "data/dicom/RG2_JPLY.dcm")) == "pixel_data_undecodable"


@pytest.mark.parametrize(
    ("one", "other", "tolerance"),
    [
        ("RG1_J2KR.dcm", "RG1_UNCR.dcm", 0),
        ("RG1_J2KI.dcm", "RG1_UNCI.dcm", 0),
        ("RG1_JLSN.dcm", "RG1_UNCR.dcm", 4),  # near-lossless
        ("RG3_JLSL.dcm", "RG3_UNCR.dcm", 0),
        ("RG3_RLE.dcm", "RG3_UNCR.dcm", 0),
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm", 0),
        ("RG2_JPLL.dcm", "RG2_J2KI.dcm", 90),  # the second is lossy
        ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
        ("693_J2KR.dcm", "693_UNCR.dcm", 0),  # signed in the header, another sign in the codestream
    ],
)
def test_one_image_is_the_same_in_every_transfer_syntax(shared: Path, one: str, other: str, tolerance: float) -> None:
    images = []
    for name in (one, other):
        path = shared / "data/dicom" / name
        images.append(decode(read_dataset(path if path.exists() else SAMPLES / name), maximum_bytes=LIMIT).pixels)
    assert np.abs(images[0] - images[1]).max() <= tolerance
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.9999


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_encodings_of_a_small_image_agree(name: str) -> None:
    reference = decode(read_dataset(Path(get_testdata_file("MR_small.dcm"))), maximum_bytes=LIMIT)
    image = decode(read_dataset(Path(get_testdata_file(name))), maximum_bytes=LIMIT)
    assert (image.pixels == reference.pixels).all()
    assert image.window == reference.window == (600, 1600)


def test_twelve_bit_jpeg_extended_decodes() -> None:
    image = decode(read_dataset(Path(get_testdata_file("JPGExtended.dcm"))), maximum_bytes=LIMIT)
    twin = decode(read_dataset(SAMPLES / "JPEG-LL.dcm"), maximum_bytes=LIMIT)
    assert image.pixels.shape == twin.pixels.shape
    assert np.corrcoef(image.pixels.ravel(), twin.pixels.ravel())[0, 1] > 0.98


def test_deflated_decodes() -> None:
    image = decode(read_dataset(Path(get_testdata_file("image_dfl.dcm"))), maximum_bytes=LIMIT)
    assert image.pixels.shape == (512, 512)


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_htj2k_decodes(syntax: str) -> None:
    dataset = make(htj2k_pixels().astype("uint16"), syntax, BitsStored=16, PixelData=encapsulate([HTJ2K]))
    assert (decode(dataset, maximum_bytes=LIMIT).pixels == htj2k_pixels()).all()


def test_every_offered_transfer_syntax_has_a_test_above() -> None:
    assert len(set(DECODABLE_TRANSFER_SYNTAXES)) == len(DECODABLE_TRANSFER_SYNTAXES) == 4 + 2 + 2 + 2 + 2 + 3 + 1


def test_decoding_in_threads_gives_the_same(shared: Path) -> None:
    names = ["RG3_RLE.dcm", "RG3_JLSL.dcm", "RG3_J2KI.dcm", "RG2_JPLL.dcm", "chest_jpeg_baseline.dcm"] * 3

    def total(name: str) -> float:
        return float(decode(read_dataset(shared / "data/dicom" / name), maximum_bytes=LIMIT).pixels.sum(dtype=float))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(total, names)) == [total(name) for name in names]


def test_an_uncompressed_dx_of_18_megabytes_decodes_within_a_second() -> None:
    dataset = make(np.tile(grey(shape=(300, 300)), (10, 10)), BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    start = time.perf_counter()
    decode(dataset, maximum_bytes=LIMIT)
    assert time.perf_counter() - start < 1


# --- What the attributes of the Image Pixel module mean


def test_stored_values_become_float32() -> None:
    pixels = grey()
    image = decode(make(pixels, BitsStored=12), maximum_bytes=LIMIT)
    assert (image.pixels == pixels).all()
    assert image.value_range == (0, 4095)
    assert image.window is None


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_pixels_survive_every_native_encoding(dtype: str, implicit: bool, little: bool) -> None:
    pixels = grey(dtype, 200, (5, 7)) - np.array(100 if dtype == "int16" else 0, dtype)
    syntax = {(True, True): uid.ImplicitVRLittleEndian, (False, True): uid.ExplicitVRLittleEndian}.get(
        (implicit, little), uid.ExplicitVRBigEndian
    )
    stored = pixels if little else pixels.astype(pixels.dtype.newbyteorder(">"))
    dataset = make(pixels, syntax, PixelData=stored.tobytes() + b"\0" * (stored.nbytes % 2))
    dataset["PixelData"].VR = "OB" if dtype == "uint8" and not implicit else "OW"
    assert (decode(reread(dataset, implicit=implicit, little=little), maximum_bytes=LIMIT).pixels == pixels).all()


def test_big_endian_bytes_in_words_are_swapped() -> None:
    pixels = grey("uint8", 255, (4, 6))
    dataset = make(pixels, uid.ExplicitVRBigEndian, PixelData=pixels.view("<u2").byteswap().tobytes())
    dataset["PixelData"].VR = "OW"
    assert (decode(dataset, maximum_bytes=LIMIT).pixels == pixels).all()


def test_signed_values_keep_their_sign() -> None:
    pixels = (grey() - np.array(2048, "uint16")).view("int16").clip(-2048, 2047)
    cut = (pixels & 0x0FFF).astype("uint16")  # the four high bits do not repeat the sign
    image = decode(make(cut, BitsStored=12, PixelRepresentation=1), maximum_bytes=LIMIT)
    assert (image.pixels == pixels).all()
    assert image.value_range == (-2048, 2047)


def test_overlay_bits_above_the_high_bit_are_cut_off() -> None:
    pixels = grey()
    overlaid = pixels | (grey(largest=1) << 12) | (grey(largest=1) << 15)
    assert (decode(make(overlaid, BitsStored=12), maximum_bytes=LIMIT).pixels == pixels).all()


def test_bits_stored_at_the_top_are_moved_down() -> None:
    pixels = grey()
    image = decode(make((pixels << 4) | 5, BitsStored=12, HighBit=15), maximum_bytes=LIMIT)
    assert (image.pixels == pixels).all()


def test_monochrome1_is_inverted_and_its_window_mirrored() -> None:
    pixels = grey()
    image = decode(
        make(
            pixels,
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            WindowCenter=[1000, 7],
            WindowWidth=[500, 9],
            RescaleSlope=2,
            RescaleIntercept=-100,
        ),
        maximum_bytes=LIMIT,
    )
    low, high = image.value_range
    assert (low, high) == (-100, 2 * 4095 - 100)
    assert (image.pixels == low + high - (pixels * 2.0 - 100)).all()
    assert image.window == (low + high - 1000, 500)


@pytest.mark.parametrize("width", [0, -5, "", None])
def test_a_window_without_a_width_is_none(width: Any) -> None:
    assert decode(make(grey(), WindowCenter=5, WindowWidth=width), maximum_bytes=LIMIT).window is None


def test_rescale_gives_the_range_of_the_stored_bits() -> None:
    image = decode(make(grey(), BitsStored=12, RescaleSlope=-2, RescaleIntercept=10), maximum_bytes=LIMIT)
    assert image.value_range == (10 - 2 * 4095, 10)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_modality_lut_replaces_rescale(implicit: bool) -> None:
    pixels = grey(largest=300)
    item = Dataset()
    item.LUTDescriptor = [200, 50, 16]
    item.LUTData = struct.pack("<200H", *(40000 - 7 * n for n in range(200)))
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    item.ModalityLUTType = "US"
    syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    dataset = make(pixels, syntax, ModalityLUTSequence=Sequence([item]), RescaleSlope=9)
    image = decode(reread(dataset, implicit=implicit), maximum_bytes=LIMIT)
    assert (image.pixels == 40000 - 7 * np.clip(pixels.astype(int) - 50, 0, 199)).all()
    assert image.value_range == (40000 - 7 * 199, 40000)


def test_a_modality_lut_shorter_than_it_says_is_undecodable() -> None:
    item = Dataset()
    item.LUTDescriptor = [200, 0, 16]
    item.LUTData = b"\0" * 100
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    assert code_of(make(grey(), ModalityLUTSequence=Sequence([item]))) == "pixel_data_undecodable"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_becomes_the_smallest_other_value(photometric: str) -> None:
    pixels = grey() // 2 + 100
    pixels[:5] = 4000
    dataset = make(pixels, BitsStored=12, PhotometricInterpretation=photometric, PixelPaddingValue=4000)
    image = decode(dataset, maximum_bytes=LIMIT)
    assert (image.pixels[:5] == image.pixels[5:].min()).all()


def test_a_range_of_padding_is_padding() -> None:
    pixels = grey() // 2 + 100
    pixels[:2], pixels[2:4] = 3500, 3800
    dataset = make(pixels, BitsStored=12, PixelPaddingValue=3900, PixelPaddingRangeLimit=3400)
    image = decode(dataset, maximum_bytes=LIMIT)
    assert (image.pixels[:4] == image.pixels[4:].min()).all()


def test_padding_of_signed_pixels_is_found_when_written_unsigned() -> None:
    pixels = grey("int16", 1000)
    pixels[0] = -2000
    dataset = make(pixels, PixelPaddingValue=65536 - 2000)
    assert decode(dataset, maximum_bytes=LIMIT).pixels.min() >= 0


# --- What cannot be decoded


def test_no_pixel_data() -> None:
    assert code_of(make(grey(), PixelData=None)) == "pixel_data_missing"
    assert code_of(make(grey(), PixelData=b"")) == "pixel_data_missing"


def test_short_pixel_data_is_truncated() -> None:
    dataset = make(grey())
    dataset.PixelData = dataset.PixelData[:-2]
    assert code_of(dataset) == "pixel_data_truncated"


def test_a_compressed_image_without_a_frame_is_truncated() -> None:
    empty_item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    assert code_of(make(grey(), uid.JPEG2000, PixelData=empty_item)) == "pixel_data_truncated"
    assert code_of(make(grey(), uid.JPEG2000, PixelData=empty_item * 2)) == "pixel_data_truncated"


@pytest.mark.parametrize("name", ["RG1_J2KR", "RG1_JLSN", "RG2_JPLL", "RG3_RLE", "chest_jpeg_baseline"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_half_a_codestream_is_never_an_image(shared: Path, name: str, kept: float) -> None:
    dataset = read_dataset(shared / f"data/dicom/{name}.dcm")
    stream = b"".join(pydicom.encaps.generate_fragments(dataset.PixelData))
    dataset.PixelData = encapsulate([stream[: int(kept * len(stream))]])
    assert code_of(dataset) in {"pixel_data_truncated", "pixel_data_undecodable"}


def test_several_frames() -> None:
    assert code_of(make(grey(), NumberOfFrames=2)) == "multi_frame"


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "PALETTE COLOR", None])
def test_colour_is_named(photometric: str | None) -> None:
    dataset = make(grey(), PhotometricInterpretation=photometric)
    with pytest.raises(DecodeError, match=photometric or "none stated") as caught:
        decode(dataset, maximum_bytes=LIMIT)
    assert caught.value.code == "photometric_not_supported"


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000, uid.JPEGLosslessSV1, uid.RLELossless])
def test_a_header_of_60000_squared_is_answered_at_once_without_memory(syntax: str) -> None:
    dataset = make(grey(), syntax, Rows=60000, Columns=60000)
    tracemalloc.start()
    start = time.perf_counter()
    code = code_of(dataset)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == "pixel_data_too_large"
    assert seconds < 0.1
    assert peak < 2**20


def test_a_huge_number_of_frames_is_too_large() -> None:
    assert code_of(make(grey(), NumberOfFrames=2_000_000)) == "pixel_data_too_large"


def huge_jpeg_2000() -> bytes:
    stream = bytearray(HTJ2K)
    struct.pack_into(">II", stream, 8, 60000, 60000)  # Xsiz, Ysiz
    struct.pack_into(">II", stream, 24, 60000, 60000)  # XTsiz, YTsiz
    return bytes(stream)


def huge_jpeg(marker: int) -> bytes:
    return (
        b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">HBHHBBBB", 11, 8, 60000, 60000, 1, 1, 0x11, 0) + b"\xff\xd9"
    )


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        (uid.JPEG2000, huge_jpeg_2000()),
        (uid.HTJ2K, huge_jpeg_2000()),
        (uid.JPEGBaseline8Bit, huge_jpeg(0xC0)),
        (uid.JPEGLosslessSV1, huge_jpeg(0xC3)),
        (uid.JPEGLSLossless, huge_jpeg(0xF7)),
    ],
)
def test_a_codestream_larger_than_its_header_says_is_answered_at_once(syntax: str, stream: bytes) -> None:
    dataset = make(grey(), syntax, PixelData=encapsulate([stream]))
    start = time.perf_counter()
    assert code_of(dataset) == "pixel_data_too_large"
    assert time.perf_counter() - start < 0.1


def test_too_many_jpeg_2000_tiles_are_refused() -> None:
    stream = bytearray(HTJ2K)
    struct.pack_into(">II", stream, 8, 2000, 2000)
    struct.pack_into(">II", stream, 24, 2, 2)
    dataset = make(grey(), uid.JPEG2000, Rows=2000, Columns=2000, PixelData=encapsulate([bytes(stream)]))
    assert code_of(dataset) == "pixel_data_undecodable"


def test_a_codestream_of_another_size_is_undecodable() -> None:
    dataset = make(grey(), uid.HTJ2K, Rows=24, Columns=16, PixelData=encapsulate([HTJ2K]))
    assert code_of(dataset) == "pixel_data_undecodable"


def test_an_unknown_transfer_syntax_is_undecodable() -> None:
    assert code_of(make(grey(), "1.2.840.10008.1.2.4.100")) == "pixel_data_undecodable"


@pytest.mark.parametrize(
    "wrong",
    [
        {"Rows": None},
        {"Columns": 0},
        {"BitsAllocated": 12},
        {"BitsAllocated": None},
        {"BitsStored": 17, "HighBit": 16},
        {"HighBit": 3, "BitsStored": 12},
        {"RescaleSlope": 0},
        {"RescaleSlope": "1e300"},
    ],
)
def test_a_header_that_contradicts_itself_is_undecodable(wrong: dict[str, Any]) -> None:
    assert code_of(make(grey(), **wrong)) == "pixel_data_undecodable"


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_RLE.dcm",  # the RLE decoder panics on some of these
        "MR_small_expb.dcm",
        "JPGExtended.dcm",
        "JPEG-LL.dcm",  # GDCM aborts on some of these
        "image_dfl.dcm",
    ],
)
def test_damaged_files_raise_nothing_but_our_errors(name: str) -> None:
    found = get_testdata_file(name, download=False)
    content = Path(found or SAMPLES / name).read_bytes()
    randomly = random.Random(name)
    start = max(300, content.find(b"\xe0\x7f\x10\x00"), content.find(b"\x7f\xe0\x00\x10"))
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(content)
        kind = randomly.randrange(4)
        if kind == 0:
            del damaged[randomly.randrange(len(damaged)) :]
        else:
            where = [(0, start), (start, min(start + 300, len(content))), (start, len(content))][kind - 1]
            for _ in range(randomly.randrange(1, 12)):
                damaged[randomly.randrange(*where)] = randomly.choice([0, 1, 255, 254, 127, 128])
        try:
            dataset = read_dataset(bytes(damaged))
            read_header(dataset)
            decode(dataset, maximum_bytes=LIMIT)
            outcomes.add("decoded")
        except (DecodeError, UnusableInstanceError) as error:
            outcomes.add(error.code)
    assert len(outcomes) > 2


def test_a_damaged_jpeg_lossless_stream_is_undecodable_and_the_process_lives_on() -> None:
    dataset = read_dataset(SAMPLES / "JPEG-LL.dcm")
    stream = bytearray(b"".join(pydicom.encaps.generate_fragments(dataset.PixelData)))
    stream[len(stream) // 2 : len(stream) // 2 + 4] = b"\xff\xda\xff\xfe"
    dataset.PixelData = encapsulate([bytes(stream)])
    assert code_of(dataset) == "pixel_data_undecodable"


# --- Reading data sets


def test_something_else_is_not_dicom(tmp_path: Path) -> None:
    for number, content in enumerate([b"", b"%PDF-1.7 " * 50, b"\0" * 132 + b"DICM", b"\x89PNG\r\n" * 100]):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(UnusableInstanceError) as caught:
            read_dataset(tmp_path / f"{number}")
        assert caught.value.code == "not_dicom"


def test_a_deflated_bomb_is_refused_before_it_is_inflated() -> None:
    dataset = make(grey(), uid.DeflatedExplicitVRLittleEndian)
    buffer = io.BytesIO()
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    content = buffer.getvalue()
    (group_length,) = struct.unpack_from("<I", content, 140)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = content[: 144 + group_length] + packer.compress(b"\0" * 2**26) + packer.flush()
    with pytest.raises(DecodeError) as caught:
        read_dataset(bomb, maximum_bytes=2**20)
    assert caught.value.code == "pixel_data_too_large"


def test_pydicom_repeats_no_values(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = make(grey(), PatientID="X" * 80, BodyPartExamined="chest not in upper case and long")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.PatientBirthDate = "DOE^JOHN"
        dataset.PatientAge = "DOE^JANE"
        dataset.SpecificCharacterSet = "NO SUCH SET"
        pydicom.dcmwrite(content, dataset, implicit_vr=False, little_endian=True)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        again = read_dataset(content.getvalue())
        read_header(again)
        str(again.get("PatientName"))
        decode(again, maximum_bytes=LIMIT)
    assert not caught
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# --- The header


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("045Y", 45),
        ("006M", 0.5),
        ("052W", pytest.approx(1, abs=0.01)),
        ("020D", pytest.approx(20 / 365.25, abs=1e-3)),
        ("62", 62),
        (" 7y ", 7),
        ("000Y", 0),
        ("131Y", None),
        ("-05Y", None),
        ("045", 45),
        ("45 years", None),
        ("1234", None),
        ("", None),
        ("٤٥", None),
    ],
)
def test_ages(text: str, years: float | None) -> None:
    assert parse_age(text) == years


@given(st.text(max_size=12))
def test_an_age_is_none_or_plausible(text: str) -> None:
    years = parse_age(text)
    assert years is None or 0 <= years <= 130


@given(st.integers(0, 130))
def test_an_age_string_in_years_is_read(years: int) -> None:
    assert parse_age(f"{years:03d}Y") == years


def header_of(**attributes: Any) -> Any:
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    return read_header(dataset)


@pytest.mark.parametrize(
    ("attributes", "years"),
    [
        ({"PatientAge": "005Y", "PatientBirthDate": "19500101", "StudyDate": "20200101"}, 5),
        ({"PatientBirthDate": "20150310", "StudyDate": "20200310"}, 5),
        ({"PatientBirthDate": "20150310", "SeriesDate": "20200310"}, 5),
        ({"PatientBirthDate": "20150310", "AcquisitionDate": "20200310"}, 5),
        ({"PatientBirthDate": "20150310", "ContentDate": "20200310"}, 5),
        ({"PatientBirthDate": "2015.03.10", "StudyDate": "20200310"}, 5),
        ({"PatientBirthDate": "20160229", "StudyDate": "20170301"}, 1),
        ({"PatientAge": "000Y", "PatientBirthDate": "20150310", "StudyDate": "20200310"}, 5),
        ({"PatientAge": "000Y"}, 0),
        ({"PatientAge": "000Y", "PatientBirthDate": "00000000", "StudyDate": "20200310"}, 0),
        ({"PatientAge": "rubbish", "PatientBirthDate": "20150310", "StudyDate": "20200310"}, 5),
        ({"PatientBirthDate": "00000000", "StudyDate": "20200310"}, None),
        ({"PatientBirthDate": "20210310", "StudyDate": "20200310"}, None),
        ({"PatientBirthDate": "18500310", "StudyDate": "20200310"}, None),
        ({"PatientBirthDate": "20151310", "StudyDate": "20200310"}, None),
        ({"PatientBirthDate": "20150310"}, None),
    ],
)
def test_age_comes_from_the_age_and_else_from_the_dates(attributes: dict[str, str], years: float | None) -> None:
    assert header_of(**attributes).age_years == years


def test_the_day_before_a_birthday_is_still_the_year_before() -> None:
    age = header_of(PatientBirthDate="20150310", StudyDate="20200309").age_years
    assert 4.99 < age < 5


def coded(value: str, scheme: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "any"
    return Sequence([item])


@pytest.mark.parametrize(
    ("attributes", "view"),
    [
        ({"ViewPosition": "pa "}, "PA"),
        ({"ViewPosition": "AP", "ViewCodeSequence": coded("272479007", "SCT")}, "AP"),
        ({"ViewCodeSequence": coded("272479007", "SCT")}, "PA"),
        ({"ViewCodeSequence": coded("R-10214", "SRT")}, "PA"),
        ({"ViewCodeSequence": coded("399348003", "SCT")}, "AP"),
        ({"ViewCodeSequence": coded("R-10206", "SNM3")}, "AP"),
        ({"ViewCodeSequence": coded("399067008", "SCT")}, "LATERAL"),
        ({"ViewCodeSequence": coded("R-10206", "99LOCAL")}, ""),
        ({"ViewCodeSequence": coded("1", "SCT")}, ""),
        ({}, ""),
    ],
)
def test_view(attributes: dict[str, Any], view: str) -> None:
    assert header_of(**attributes).view_position == view


@pytest.mark.parametrize(
    ("attributes", "body_part"),
    [
        ({"BodyPartExamined": "Chest "}, "CHEST"),
        ({"AnatomicRegionSequence": coded("T-D3000", "SRT")}, "CHEST"),
        ({"AnatomicRegionSequence": coded("51185008", "SCT")}, "CHEST"),
        ({"BodyPartExamined": "HAND", "AnatomicRegionSequence": coded("51185008", "SCT")}, "HAND"),
        ({}, ""),
    ],
)
def test_body_part(attributes: dict[str, Any], body_part: str) -> None:
    assert header_of(**attributes).body_part == body_part


def test_a_real_header_is_read(shared: Path) -> None:
    header = read_header(read_dataset(shared / "data/dicom/RG1_J2KR.dcm"), lambda name: f"<{len(name)}>")
    assert (header.modality, header.body_part, header.view_position) == ("CR", "CHEST", "PA")
    assert header.age_years == pytest.approx(64.48, abs=0.01)
    assert (header.rows, header.columns, header.bits_stored, header.frames) == (1955, 1841, 15, 1)
    assert header.photometric_interpretation == "MONOCHROME1"
    assert header.transfer_syntax_uid == uid.JPEG2000Lossless
    assert header.present


def test_nothing_in_a_header_identifies_the_patient() -> None:
    secret = "SECRET"
    header = header_of(
        PatientName=secret,
        PatientID=secret,
        AccessionNumber=secret,
        StationName=secret,
        InstitutionName=secret,
        StudyDescription=secret,
        ReferringPhysicianName=secret,
        PatientBirthDate="19610203",
        StudyDate="20200101",
    )
    assert secret not in repr(header)
    assert "1961" not in repr(header)


CODED = {
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ViewPosition": "view_position",
    "PhotometricInterpretation": "photometric_interpretation",
    "BurnedInAnnotation": "burned_in_annotation",
    "RequestedProcedurePriority": "priority",
}


@pytest.mark.parametrize("name", ["DOE^JOHN", "DOE JOHN", "MUSTERMANN", "doe=ドウ"])
def test_a_name_typed_into_a_coded_attribute_is_not_kept(name: str) -> None:
    header = header_of(**dict.fromkeys(CODED, name), PatientSex=name, SOPClassUID=name)
    assert {getattr(header, field) for field in CODED.values()} == {"OTHER"}
    assert (header.sex, header.sop_class_uid) == ("", "")


@pytest.mark.parametrize(
    ("keyword", "terms"),
    [
        ("Modality", ["CR", "DX", "MG", "CT"]),
        ("BodyPartExamined", ["CHEST", "THORAX", "BREAST", "EXTREMITY", "TSPINE", "PELVIS", "HAND"]),
        ("ViewPosition", ["AP", "PA", "LL", "RLD", "LATERAL", "LAT", "AP SUPINE", "CC", "MLO", "POSTERO-ANTERIOR"]),
        ("PhotometricInterpretation", ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL_422"]),
        ("BurnedInAnnotation", ["YES", "NO"]),
        ("RequestedProcedurePriority", ["STAT", "ROUTINE", "LOW"]),
    ],
)
def test_known_terms_are_kept(keyword: str, terms: list[str]) -> None:
    assert [getattr(header_of(**{keyword: f"{term.lower()} "}), CODED[keyword]) for term in terms] == terms


@pytest.mark.parametrize(("value", "sex"), [("M", "M"), ("f", "F"), ("O", "O"), ("", ""), ("female", "")])
def test_sex(value: str, sex: str) -> None:
    assert header_of(PatientSex=value).sex == sex


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("Fuji Photo Film Co.,Ltd.", "Fuji Photo Film Co. Ltd."),
        ("DigitalDiagnost 4.2 (R+)", "DigitalDiagnost 4.2 (R+)"),
        ("Acme <script>", "Acme script"),
        ("Doe^John", "OTHER"),
        ("Doe=John", "OTHER"),
        ("Mrs. MÜLLER, portable", "OTHER"),  # the patient of this test
        ("unit for PID-77431", "OTHER"),
        ("X" * 90, "X" * 64),
    ],
)
def test_maker_and_model_are_kept_unless_they_name_the_patient(value: str, kept: str) -> None:
    header = header_of(Manufacturer=value, ManufacturerModelName=value, PatientName="Müller^Eva", PatientID="PID-77431")
    assert (header.manufacturer, header.model_name) == (kept, kept)


@pytest.mark.parametrize(
    "attributes", [{"PatientAge": "104Y"}, {"PatientBirthDate": "19200102", "StudyDate": "20260101"}]
)
def test_an_age_above_89_is_90(attributes: dict[str, str]) -> None:
    assert header_of(**attributes).age_years == 90.0
    assert header_of(PatientAge="089Y").age_years == 89


def test_the_station_is_hashed() -> None:
    dataset = Dataset()
    dataset.StationName = "ROOM 5"
    assert read_header(dataset, lambda name: f"hash of {len(name)}").station == "hash of 6"


def test_priority_is_read() -> None:
    assert header_of(RequestedProcedurePriority="stat").priority == "STAT"


READ = [
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "Rows",
    "BitsStored",
    "NumberOfFrames",
    "Exposure",
    "KVP",
    "PixelSpacing",
    "ViewCodeSequence",
    "AnatomicRegionSequence",
    "StationName",
    "PhotometricInterpretation",
    "WindowCenter",
    "PixelPaddingValue",
    "RescaleSlope",
    "ModalityLUTSequence",
    "HighBit",
]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(READ),
            st.sampled_from(["AS", "CS", "DA", "DS", "IS", "US", "SS", "FD", "LO", "UN", "OB", "UI", "AT", "PN", "SQ"]),
            st.binary(max_size=24),
        ),
        max_size=8,
    )
)
def test_rubbish_in_any_attribute_is_read_without_an_error(rubbish: list[tuple[str, str, bytes]]) -> None:
    dataset = make(grey())
    for keyword, vr, content in rubbish:
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(content), content, 0, False, True)
    header = read_header(dataset)
    assert header.age_years is None or 0 <= header.age_years <= 90
    assert header.rows >= 0
    assert header.frames >= 1
    try:
        decode(dataset, maximum_bytes=LIMIT)
    except StepwedgeError as error:
        assert isinstance(error, DecodeError)  # noqa: PT017  any other kind would be the failure


# --- Plain image files


@pytest.mark.parametrize(
    ("suffix", "dtype", "value_range"),
    [("png", "uint8", (0, 255)), ("png", "uint16", (0, 65535)), ("tiff", "uint16", (0, 65535))],
)
def test_plain_grey_files_are_read_exactly(
    tmp_path: Path, suffix: str, dtype: str, value_range: tuple[int, int]
) -> None:
    pixels = grey(dtype, value_range[1])
    Pillow.fromarray(pixels).save(tmp_path / f"picture.{suffix}")
    image = read_image_file(tmp_path / f"picture.{suffix}")
    assert (image.pixels == pixels).all()
    assert image.value_range == value_range
    assert image.window is None
    assert not image.notes


def test_colour_files_become_luminance_and_say_so(tmp_path: Path) -> None:
    pixels = grey("uint8", 255)
    Pillow.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "equal.png")
    equal = read_image_file(tmp_path / "equal.png")
    assert (equal.pixels == pixels).all()
    assert not equal.notes
    Pillow.fromarray(np.stack([pixels, pixels // 2, pixels // 3], axis=-1)).save(tmp_path / "colour.png")
    assert read_image_file(tmp_path / "colour.png").notes == (COLOUR_NOTE,)


def test_a_real_jpeg_is_read(shared: Path) -> None:
    file = next((shared / "data/nih/images").glob("*.jpg"))
    assert read_image_file(file).pixels.shape == (256, 256)


def test_plain_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"nothing of the kind")
    Pillow.fromarray(grey("uint8", 255, (300, 300))).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20000])
    for name in ("no.png", "cut.png"):
        with pytest.raises(DecodeError) as caught:
            read_image_file(tmp_path / name)
        assert caught.value.code == "pixel_data_undecodable"


def test_a_plain_file_over_the_limit_is_not_decoded(tmp_path: Path) -> None:
    Pillow.new("L", (12_000, 12_000)).save(tmp_path / "large.png")
    with pytest.raises(DecodeError) as caught:
        read_image_file(tmp_path / "large.png", maximum_bytes=2**20)
    assert caught.value.code == "pixel_data_too_large"


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    page = Pillow.fromarray(grey("uint8", 255))
    page.save(tmp_path / "pages.tiff", save_all=True, append_images=[page])
    with pytest.raises(DecodeError) as caught:
        read_image_file(tmp_path / "pages.tiff")
    assert caught.value.code == "multi_frame"


def test_compressed_syntaxes_are_those_that_have_a_decoder() -> None:
    assert set(codestream.COMPRESSED) <= set(DECODABLE_TRANSFER_SYNTAXES)
