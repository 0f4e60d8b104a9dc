"""Reading data sets: what is no DICOM, what is too large once inflated, and what no log repeats."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from frames import LIMIT, grey, make
from pydicom import uid
from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.errors import DecodeError, UnusableInstanceError


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
