"""What a data set must be to be stored, found without decoding it."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from pathlib import Path

import data_store
import pydicom
import pydicom.data
import pytest
from hypothesis import given
from hypothesis import strategies as st
from instances import encode, make_instance
from pydicom import Dataset, Sequence
from pydicom.encaps import encapsulate
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from stepwedge.dicom.encoded import check_command, clean_title, file_meta, is_uid, read_identity, split_file
from stepwedge.errors import UnusableInstanceError

LIMIT = 100_000_000


def nested() -> Dataset:
    """An image with sequences of defined and undefined length, one in the other."""
    dataset = make_instance(rows=4, columns=4)
    inner, outer = Dataset(), Dataset()
    inner.CodeValue = "1"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    dataset.SourceImageSequence = Sequence([outer, outer])
    dataset["SourceImageSequence"].is_undefined_length = True
    dataset.ReferencedStudySequence = Sequence([inner])
    return dataset


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_uncompressed_encoding_is_read(syntax: str) -> None:
    dataset = nested()
    found = read_identity(encode(dataset, syntax), syntax, maximum_bytes=LIMIT)
    assert found.sop_uid == dataset.SOPInstanceUID
    assert found.sop_class_uid == dataset.SOPClassUID
    assert found.study_uid == dataset.StudyInstanceUID
    assert found.series_uid == dataset.SeriesInstanceUID
    assert (found.modality, found.has_pixels) == ("DX", True)


@pytest.mark.parametrize("agreed", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("sent", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_sender_that_mixes_up_explicit_and_implicit_is_understood(agreed: str, sent: str) -> None:
    assert read_identity(encode(nested(), sent), agreed, maximum_bytes=LIMIT).modality == "DX"


def test_the_deflated_encoding_is_read_up_to_the_limit_only() -> None:
    deflater = zlib.compressobj(wbits=-15)
    data = deflater.compress(encode(make_instance())) + deflater.flush()
    read_identity(data, DeflatedExplicitVRLittleEndian, maximum_bytes=LIMIT)
    for broken in (data[:-3], data[: len(data) // 2], b"\xff" * 50):
        with pytest.raises(UnusableInstanceError):
            read_identity(broken, DeflatedExplicitVRLittleEndian, maximum_bytes=LIMIT)
    with pytest.raises(UnusableInstanceError, match="larger than the limit"):
        read_identity(data, DeflatedExplicitVRLittleEndian, maximum_bytes=100)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_data_set_cut_within_an_element_is_found_wherever_it_was_cut(syntax: str) -> None:
    dataset = nested()
    data = encode(dataset, syntax)
    boundaries, length = set(), 0
    for element in dataset:
        one = Dataset()
        one.add(element)
        length += len(encode(one, syntax))
        boundaries.add(length)
    assert length == len(data)
    for length in range(len(data)):
        code = "taken"
        try:
            read_identity(data[:length], syntax, maximum_bytes=LIMIT)
        except UnusableInstanceError as error:
            code = error.code
        assert code in ({"taken", "bad_uid"} if length in boundaries else {"not_dicom"})


def test_encapsulated_pixel_data_is_walked_to_its_end() -> None:
    dataset = make_instance(pixels=False)
    dataset.PixelData = encapsulate([b"\x01" * 100, b"\x02" * 50])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    data = encode(dataset, JPEGBaseline8Bit)
    assert read_identity(data, JPEGBaseline8Bit, maximum_bytes=LIMIT).has_pixels
    for cut in (1, 9, 60, 150):
        with pytest.raises(UnusableInstanceError) as refusal:
            read_identity(data[:-cut], JPEGBaseline8Bit, maximum_bytes=LIMIT)
        assert (refusal.value.code, refusal.value.status) == ("not_dicom", 0xC000)


def test_pixel_data_shorter_than_the_image_is_not_refused_here() -> None:
    dataset = make_instance(rows=64, columns=64)
    dataset.PixelData = dataset.PixelData[:100]
    assert read_identity(encode(dataset), ExplicitVRLittleEndian, maximum_bytes=LIMIT).has_pixels


def test_sequences_nested_without_end_are_refused_and_not_followed() -> None:
    level = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    with pytest.raises(UnusableInstanceError, match="nested deeper"):
        read_identity(level * 100_000, ExplicitVRLittleEndian, maximum_bytes=LIMIT)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize(
    "value", [None, "", "../../etc/passwd", "1.2/3", "1.2.", ".1", "1..2", "1.2.a", "1\\2", "1" * 65]
)
def test_a_missing_or_invalid_uid_is_refused_by_the_code_for_it(keyword: str, value: str | None) -> None:
    dataset = make_instance()
    if value is None:
        del dataset[keyword]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(dataset, keyword, value)
    with pytest.raises(UnusableInstanceError) as refusal:
        read_identity(encode(dataset), ExplicitVRLittleEndian, maximum_bytes=LIMIT)
    assert (refusal.value.code, refusal.value.status) == ("bad_uid", 0xC000)
    if value:
        assert value not in str(refusal.value)


def test_a_uid_may_have_64_characters_and_an_old_device_s_leading_zeros() -> None:
    assert is_uid("1." + "2" * 62)
    assert is_uid("1.2.0045")
    assert not is_uid("1.2\n")


def test_a_command_that_announces_another_object_is_told_so() -> None:
    dataset = make_instance()
    identity = read_identity(encode(dataset), ExplicitVRLittleEndian, maximum_bytes=LIMIT)
    check_command(identity, sop_class_uid=dataset.SOPClassUID, sop_uid=dataset.SOPInstanceUID)
    for sop_class, sop in (("1.2", dataset.SOPInstanceUID), (dataset.SOPClassUID, "1.2")):
        with pytest.raises(UnusableInstanceError) as refusal:
            check_command(identity, sop_class_uid=sop_class, sop_uid=sop)
        assert (refusal.value.code, refusal.value.status) == ("identity_mismatch", 0xA900)


@given(st.binary(max_size=300), st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]))
def test_rubbish_is_refused_and_never_harms(data: bytes, syntax: str) -> None:
    with pytest.raises(UnusableInstanceError):
        read_identity(data, syntax, maximum_bytes=LIMIT)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_taken_or_refused_and_never_harms(position: int, value: int) -> None:
    data = bytearray(encode(FIXED))
    data[position % len(data)] = value
    with contextlib.suppress(UnusableInstanceError):
        read_identity(bytes(data), ExplicitVRLittleEndian, maximum_bytes=LIMIT)


FIXED = nested()


@pytest.mark.filterwarnings("ignore")
def test_real_files_of_many_makers_are_read_as_pydicom_reads_them() -> None:
    compared, refused = 0, set()
    folders = [Path(pydicom.data.__file__).parent / "test_files", Path(data_store.__file__).parent]
    for file in [file for folder in folders for file in sorted(folder.rglob("*.dcm"))]:
        try:
            dataset = pydicom.dcmread(file)
        except (InvalidDicomError, EOFError, OSError):
            continue
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        if not syntax or not all(is_uid(str(dataset.get(keyword, ""))) for keyword in keywords):
            continue
        contents = file.read_bytes()
        data = contents[_start_of_data(contents) :]
        try:
            found = read_identity(data, syntax, maximum_bytes=LIMIT)
        except UnusableInstanceError:
            refused.add(file.name)
            continue
        assert found.sop_uid == dataset.SOPInstanceUID, file
        assert found.study_uid == dataset.StudyInstanceUID, file
        assert found.has_pixels == ("PixelData" in dataset), file
        compared += 1
    assert compared > 50
    assert refused == {"MR_truncated.dcm", "rtplan_truncated.dcm"}  # as their names say


def _start_of_data(contents: bytes) -> int:
    assert contents[132:140] == b"\x02\x00\x00\x00UL\x04\x00"
    return 144 + int(struct.unpack_from("<I", contents, 140)[0])


def test_file_meta_information_is_what_pydicom_reads_and_splits_off_again() -> None:
    dataset = make_instance()
    data = encode(dataset)
    meta = file_meta(
        sop_class_uid=dataset.SOPClassUID,
        sop_uid=dataset.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        sender="MODALITY1",
        receiver="STEPWEDGE",
    )
    read = pydicom.dcmread(pydicom.filebase.DicomBytesIO(meta + data))
    assert read.file_meta.SendingApplicationEntityTitle == "MODALITY1"
    assert read.file_meta.SourceApplicationEntityTitle == "MODALITY1"
    assert read.file_meta.ReceivingApplicationEntityTitle == "STEPWEDGE"
    assert read.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert read == dataset
    assert split_file(meta + data) == (str(ExplicitVRLittleEndian), "MODALITY1", data)
    for broken in (b"", meta[:100], meta[:150], data):
        with pytest.raises(UnusableInstanceError):
            split_file(broken)


def test_a_title_that_may_be_kept_is_short_and_printable() -> None:
    assert clean_title("  MODALITY ") == "MODALITY"
    assert clean_title("A\\B\x1b[31m\n") == "A?B?[31m"
    assert clean_title("X" * 40) == "X" * 16
