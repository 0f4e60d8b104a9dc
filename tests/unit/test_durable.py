"""A small file is there whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwedge.durable import write_durably


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
