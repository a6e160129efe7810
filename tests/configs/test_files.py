"""Text and JSON in any encoding, messages that name file and line; a file is written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from configs import files
from configs.errors import MESSAGE_LIMIT, UserError, printable
from configs.files import (
    check_output,
    decode_text,
    decode_xml,
    home,
    is_file,
    is_folder,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    refuse_overwriting,
    replacing,
    write_bytes,
    write_text,
)  # fmt: skip
from configs.inputs import noting

WORDS = "caf\u00e9 \u7ea2 \u84dd"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_are_obeyed_and_passed_over(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(f"{WORDS}\r\nb\r\n".encode(encoding))
    assert read_lines(tmp_path / "a.txt") == [WORDS, "b"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_told_by_its_zero_bytes(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("0 .5 .5 .2 .2\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "0 .5 .5 .2 .2\n"


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [
        ("gbk", "\u7ea2", "GBK"),
        ("shift_jis", "\u732b", "Shift-JIS"),
        ("latin-1", "caf\u00e9", "Latin-1"),
    ],
)
def test_other_encodings_are_refused_by_name_and_line(tmp_path, encoding, text, name):
    (tmp_path / "a.txt").write_bytes(f"a\n{text}\n".encode(encoding))
    with pytest.raises(UserError, match=rf"a\.txt: line 2 is not text in UTF-8 .*{name}.*save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_binary_files_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def\0\0g")
    with pytest.raises(UserError, match="zero bytes"):
        read_text(tmp_path / "a.txt")


def test_only_line_ends_part_lines(tmp_path):
    (tmp_path / "a.txt").write_text("a\x0cb\u2028c\rd\r\ne\n\n", encoding="utf-8", newline="")
    assert read_lines(tmp_path / "a.txt") == ["a\x0cb\u2028c", "d", "e", ""]


@pytest.mark.parametrize("codec", ["gb2312", "GBK", "Shift_JIS", "EUC-KR", "Big5", "utf-8", "ISO-8859-1", "utf-16"])
def test_xml_is_read_by_its_declared_encoding(codec):
    letter = {"EUC-KR": "\ud55c", "ISO-8859-1": "\u00e9", "Shift_JIS": "\u732b"}.get(codec, "\u4e2d")
    data = f'<?xml version="1.0" encoding="{codec}"?>\n<a>{letter}</a>'.encode(codec)
    assert decode_xml(data, "a.xml").strip() == f"<a>{letter}</a>"


def test_a_declared_utf16_that_was_saved_as_utf8_is_read():
    assert decode_xml('<?xml version="1.0" encoding="utf-16"?><a>\u4e2d</a>'.encode(), "a.xml") == "<a>\u4e2d</a>"


@pytest.mark.parametrize("codec", ["ANSI", "base64", "undefined", "idna", "unicode_escape", "klingon", "x" * 300])
def test_xml_of_an_unknown_encoding_is_one_line(codec):
    with pytest.raises(UserError, match=r"a\.xml: declares the unknown encoding"):
        decode_xml(f'<?xml version="1.0" encoding="{codec}"?><a/>'.encode(), "a.xml")


def test_json_with_a_mark_or_in_utf16(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "a.json").write_bytes(json.dumps({"a": [1, WORDS]}, ensure_ascii=False).encode(encoding))
        assert read_json(tmp_path / "a.json", "file") == {"a": [1, WORDS]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,', "not valid JSON.*line 1"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"images": [{"id": 7, "width": 1, "width": 2}]}', "that with id 7.*'width' twice"),
        (b'{"images": [], "images": []}', "'images' twice"),
        ('{"a": "\u7ea2"}'.encode("gbk"), "not text in UTF-8.*GBK"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r"a\.json: it is a Git LFS pointer: run git lfs",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", r"a\.json: it is a web page"),
        (b"\x1f\x8b\x08\x00", r"a\.json: it is compressed with gzip"),
    ],
)
def test_bad_json_is_one_line(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", "file")


def test_missing_files_and_folders_are_named(tmp_path):
    (tmp_path / "b.json").touch()
    for path, message in (
        (tmp_path / "a.json", r"no such file of labels: the folder has b\.json"),
        (tmp_path / "x" / "a.json", "no folder"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "cannot read the file of labels"),
    ):
        with pytest.raises(UserError, match=message):
            read_bytes(path, "file of labels")


def test_messages_hold_no_control_characters_and_are_bounded():
    message = str(UserError(f"a.xml: class \x1b[31mred\udcf1 {'x' * 100_000}: rename it"))
    assert message.startswith("a.xml: class \\x1b[31mred\\udcf1 ")
    assert message.endswith(": rename it")
    assert len(message) < MESSAGE_LIMIT + 100
    assert printable("caf\u00e9\n\t\u7ea2") == "caf\u00e9\n\t\u7ea2"


def test_inputs_are_not_overwritten(tmp_path):
    (tmp_path / "dt").mkdir()
    for name in ("gt.json", "dt/comp4_det_test_cat.txt", "dt/metrics.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "gt.json")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "gt.json")
    inputs = [tmp_path / "gt.json", tmp_path / "dt"]
    for name in ("gt.json", "link.json", "hard.json", "dt/../gt.json", "dt/comp4_det_test_cat.txt"):
        with pytest.raises(UserError, match="would overwrite the input"):
            refuse_overwriting(tmp_path / name, inputs)
    for name in ("new.json", "dt/metrics.json", "dt/new.txt"):
        refuse_overwriting(tmp_path / name, inputs)


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


def test_an_output_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, as_folder, words in [
        ("file/a/b", False, "/file is not a folder"), ("file/a", True, "/file is not a folder"),
        ("file", True, "is a file"), ("folder", False, "is a folder"),
        ("x" * 300, False, "File name too long"),
        ("/proc/run", True, "No such file"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=f"cannot be written: .*{words}"):
            check_output(tmp_path / path, is_folder=as_folder)
    check_output(tmp_path / "file")
    check_output(tmp_path / "folder", is_folder=True)
    check_output(tmp_path / "new/x.json")
    check_output(tmp_path / "new/x", is_folder=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_name_that_is_not_utf8_in_a_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: cannot be written: the name Mu\\udcf1oz/a is not UTF-8"):
        write_text(tmp_path / "x.yaml", "root: Mu\udcf1oz/a\n")
    assert not os.listdir(tmp_path)


def test_what_the_block_cannot_read_is_not_called_unwritable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"), replacing(tmp_path / "x"):
        (tmp_path / "absent").read_text()


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # of zeros, without room on the disk
    with pytest.raises(UserError, match=r"a\.txt: has 1099511627776 bytes, more than 268435456: is it a text file\?"):
        read_text(path)
    with pytest.raises(UserError, match=r"a\.txt: has 1099511627776 bytes, more than 4294967296: is it a list\?"):
        read_json(path, "list")


def test_where_what_is_kept_lies(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RESIDUAL_DETECTION_HOME", raising=False)
    assert home() == tmp_path / ".cache" / "residual-detection"
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", "~/elsewhere")
    assert home() == tmp_path / "elsewhere"


def test_questions_for_files_and_folders_are_inputs_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b").mkdir()
    with noting() as found:
        assert is_file(tmp_path / "a.txt")
        assert list(found) == [str(tmp_path)], "the folder's names decide"
        assert is_folder(tmp_path / "b")
        assert list(found) == [str(tmp_path), str(tmp_path / "b")]
        assert not is_folder(tmp_path / "a.txt")
        assert not is_file(tmp_path)
        assert not is_file(tmp_path / ("x" * 5000))


def test_too_many_bytes_for_a_text(monkeypatch) -> None:
    monkeypatch.setattr(files, "TEXT_LIMIT", 4)
    assert decode_text(b"four", "a.txt") == "four"
    for decode in (decode_text, decode_xml):
        with pytest.raises(UserError, match=r"a\.txt: has 5 bytes, more than 4: is it a text file\?"):
            decode(b"fives", "a.txt")
    with pytest.raises(UserError, match=r"a\.txt: .*zip"):
        decode_text(b"PK\x03\x04", "a.txt")
