"""A file is there whole or not at all, and an error names it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.files import replacing, write_bytes, write_text


def test_content_and_folders(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "x.bin", b"\0\r\n\xff")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\0\r\n\xff"
    write_text(tmp_path / "ä.txt", "ß\r\n")
    assert (tmp_path / "ä.txt").read_bytes() == "ß\r\n".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "ä.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyError("x")

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_it_replaces_at_the_end_of_the_block_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_name_of_the_greatest_length(tmp_path: Path) -> None:
    write_text(tmp_path / ("ä" * 127), "x")
    assert (tmp_path / ("ä" * 127)).read_text() == "x"


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"file/x: cannot be written: .*/file is not a folder"):
        write_text(tmp_path / "file" / "x", "")
    with pytest.raises(UserError, match=r"folder: cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_what_the_block_cannot_read_is_not_called_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), replacing(tmp_path / "x"):
        (tmp_path / "absent").read_text()
