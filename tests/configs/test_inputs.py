"""What a reading looked at is noted, with states and digests that change with the content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.files import is_file, is_folder, read_json, read_lines
from configs.inputs import ABSENT, digest_of, note, noting, state_of


def test_noted_only_while_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1\n")
    read_lines(path)
    with noting() as outer:
        read_lines(path)
        with noting() as inner:
            is_file(tmp_path / "sub" / "b.jpg")
            is_folder(tmp_path)
    note(tmp_path / "c")
    assert set(inner) == {str(tmp_path / "sub"), str(tmp_path)}
    assert set(outer) == {str(path), *inner}
    assert outer[str(path)] == state_of(str(path)) != ABSENT
    assert inner[str(tmp_path / "sub")] == ABSENT


def test_the_first_state_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    with noting() as seen:
        note(path)
        path.write_text("23")
        note(path)
    assert seen[str(path)][0] == 1


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1")
    file, folder = digest_of(str(path)), digest_of(str(tmp_path))
    os.utime(path, (1, 1))
    assert digest_of(str(path)) == file
    path.write_text("2")
    assert digest_of(str(path)) != file
    assert digest_of(str(tmp_path)) == folder  # the names are the same
    (tmp_path / "b").touch()
    assert digest_of(str(tmp_path)) != folder
    assert digest_of(str(tmp_path / "c")) == bytes(32)


def test_what_never_ends_is_refused_and_a_shells_pipe_is_read(tmp_path: Path) -> None:
    """A pipe without a writer blocks, a device has no end; `<(...)` is a pipe of this process."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "link.json", "zero.json"):
        for read in (read_lines, read_json):
            with pytest.raises(
                UserError, match=rf"{name}: cannot read the list: it is no file \(a pipe, a socket or a"
            ):
                read(tmp_path / name, "list")
        assert digest_of(str(tmp_path / name)) == bytes(32)
    reader, writer = os.pipe()
    os.write(writer, b"a\nb\n")
    os.close(writer)
    assert read_lines(f"/dev/fd/{reader}") == ["a", "b"]
    os.close(reader)
