"""A small file is there whole, or as it was."""

from __future__ import annotations

import errno
import json
import sqlite3
from pathlib import Path

import pytest
from psycopg.errors import DiskFull
from sqlalchemy.exc import DBAPIError
from stepwedge.durable import is_full, reserved, write_durably


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path: Path, beside: bool) -> None:
    (tmp_path / "beside").mkdir()
    file = tmp_path / "folder" / "note.json"
    file.parent.mkdir()
    for contents in (b"first", b"second"):
        write_durably(file, contents, tmp_path / "beside" if beside else None)
        assert file.read_bytes() == contents
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["note.json"]


def test_where_the_file_cannot_be_put_the_error_is_raised_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "something").touch()
    with pytest.raises(OSError, match="taken"):
        write_durably(folder / "taken", b"")
    assert [path.name for path in folder.iterdir()] == ["taken"]


def test_a_file_whose_room_is_taken_is_written_or_leaves_nothing(tmp_path: Path) -> None:
    with reserved(tmp_path / "receipt.json", 64) as write:
        (taken,) = tmp_path.iterdir()
        assert taken.stat().st_size == 64
        write(b'{"at": 1.5}')
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]
    assert json.loads((tmp_path / "receipt.json").read_text()) == {"at": 1.5}
    with pytest.raises(ValueError, match="not sent"), reserved(tmp_path / "another.json", 64):
        raise ValueError("not sent")
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]


def test_only_what_says_that_a_volume_is_full_counts_as_full() -> None:
    def sqlite(code: int) -> sqlite3.Error:
        error = sqlite3.OperationalError()
        error.sqlite_errorcode = code
        return error

    assert is_full(OSError(errno.EDQUOT, "quota"))
    assert is_full(sqlite(sqlite3.SQLITE_FULL))
    assert is_full(sqlite(sqlite3.SQLITE_IOERR_SHMSIZE))
    wrapped = DBAPIError("statement", None, DiskFull())
    wrapped.__cause__ = wrapped.orig
    assert is_full(wrapped)
    assert not is_full(sqlite(sqlite3.SQLITE_IOERR_READ))
    assert not is_full(OSError(errno.EIO, "broken"))
