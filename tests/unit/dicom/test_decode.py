"""Decoding pixel data: real files, made-up ones and damaged ones."""

from __future__ import annotations

import base64
import io
import random
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import data_store
import numpy as np
import pydicom
import pytest
from frames import LIMIT, grey, make
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from stepwedge.dicom import codestream
from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import DECODABLE_TRANSFER_SYNTAXES, decode
from stepwedge.dicom.header import read_header
from stepwedge.errors import DecodeError, UnusableInstanceError

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


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes to a decoder is undecodable."""
    monkeypatch.setattr(codestream, "_DECODERS", {})
    monkeypatch.setattr(codestream, "_rle", None)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEG2000, uid.JPEGLosslessSV1, uid.RLELossless])
def test_a_header_of_60000_squared_is_answered_before_anything_is_decoded(syntax: str, no_decoder: None) -> None:
    dataset = make(grey(), syntax, Rows=60000, Columns=60000)
    tracemalloc.start()
    code = code_of(dataset)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == "pixel_data_too_large"
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
def test_a_codestream_larger_than_its_header_says_is_answered_before_it_is_decoded(
    syntax: str, stream: bytes, no_decoder: None
) -> None:
    dataset = make(grey(), syntax, PixelData=encapsulate([stream]))
    assert code_of(dataset) == "pixel_data_too_large"


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


def test_compressed_syntaxes_are_those_that_have_a_decoder() -> None:
    assert set(codestream.COMPRESSED) <= set(DECODABLE_TRANSFER_SYNTAXES)
