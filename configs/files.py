"""Files: one reader of text for all formats and one of JSON, and one way to write, whole or not at all.

They are here because every package may import `configs`. A mistake is told in one line.

Encodings, decided once: a byte order mark is obeyed and passed over (UTF-8, UTF-16, UTF-32); UTF-16 without a mark is
known by its zero bytes; everything else is UTF-8. Latin-1, GBK, Shift-JIS and others cannot be told apart, so they
are never guessed: the message names the file, the line, and what the text could be. XML may declare its encoding.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from configs.errors import UserError, examples
from configs.inputs import note, note_place, open_file

TEXT_LIMIT = 1 << 28
"""Bytes. A text file that is larger is not one that a person or a labelling tool wrote."""

DOUBLE_KEYS_LIMIT = 1 << 25
"""Bytes. Larger JSON files, which programs wrote, are not searched for keys that appear twice in one object."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']([^\"']*)[\"'][^>]*\?>")
_NO_ENCODINGS = ("idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape")
"""Python's own codecs that are no encodings of files."""
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"%pdf": "a PDF",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"pk\x03\x04": "a zip archive: unpack it",
}
"""First bytes, in lower case, of files that are often taken for others."""
_LEGACY = {"gb18030": "GBK", "shift_jis": "Shift-JIS", "big5": "Big5", "euc_kr": "EUC-KR", "cp1252": "Latin-1"}


def home() -> Path:
    """The folder that downloaded files, and annotations that were read once, are kept in."""
    return Path(os.environ.get("RESIDUAL_DETECTION_HOME") or Path.home() / ".cache" / "residual-detection").expanduser()


def read_bytes(path: str | Path, what: str, limit: int = 1 << 32) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: what messages call it, for example `label file`.
        limit: bytes; a larger file is refused before it is read.

    Raises:
        UserError: there is no such file (names the folder's others of its kind), it is too large or no file, or it
            cannot be read.
    """
    path = Path(path)
    note(path)
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(f"{path}: has {size} bytes, more than {limit}: is it a {what}?")
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}{_neighbours(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the {what} itself") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: cannot read the {what}: {getattr(error, 'strerror', None) or error}") from None


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; False too for names from data that no file can have (too long, a zero byte)."""
    note_place(path)
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    note(path)
    return path.is_dir()


def read_text(path: str | Path, what: str = "text file") -> str:
    """The text of a file, line ends as they are; see the module's first lines for encodings.

    Raises:
        UserError: the file is missing, too large, or not text in an encoding that is certain.
    """
    return decode_text(read_bytes(path, what, TEXT_LIMIT), path)


def read_lines(path: str | Path, what: str = "text file") -> list[str]:
    """The lines of a text file without their ends (Unix, Windows or old Macintosh), empty ones included.

    Unlike `str.splitlines`, only line ends part them: a name may hold any other character.
    """
    lines = read_text(path, what).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def decode_text(data: bytes, path: str | Path) -> str:
    """The text that bytes of a file hold, without a byte order mark.

    Raises:
        UserError: too many bytes, or no encoding is certain; names the line.
    """
    _check_text(data, path)
    return _decode(data, _encoding_of(data), path)


def decode_xml(data: bytes, path: str | Path) -> str:
    """The text of an XML file without its declaration, by its mark or the encoding that it declares.

    Every codec that Python has is read, GBK and Shift-JIS among them, which the parser itself refuses.

    Raises:
        UserError: an unknown encoding, or the bytes are not in it.
    """
    _check_text(data, path)
    encoding = _encoding_of(data)
    if encoding == "utf-8":
        found = _DECLARATION.match(data[:512].decode("ascii", "replace"))
        declared = found[1].strip() if found else ""
        # Who could read the declaration byte by byte holds no UTF-16, whatever it says.
        if declared and not declared.lower().replace("-", "").startswith(("utf8", "utf16", "utf32", "ucs")):
            try:
                codec = codecs.lookup(declared)
                if not codec._is_text_encoding or codec.name in _NO_ENCODINGS:  # base64, rot13, zip, ...
                    raise LookupError
            except (LookupError, ValueError):
                raise UserError(f"{path}: declares the unknown encoding {declared!r}: save it as UTF-8") from None
            encoding = codec.name
    text = _decode(data, encoding, path)
    return _DECLARATION.sub("", text, count=1)


def read_json(path: str | Path, what: str) -> Any:
    """The content of a JSON file. NaN and Infinity pass, as they do with Python's own parser.

    Raises:
        UserError: there is no such file, it is not JSON (names the line), or an object has a key twice.
    """
    data = read_bytes(path, what)
    _refuse_foreign(data, path)
    encoding = _encoding_of(data)
    if encoding != "utf-8":
        data = _decode(data, encoding, path).encode("utf-8", "surrogatepass")
    try:
        content = from_json(data, cache_strings="keys")
    except ValueError as error:
        _decode(data, "utf-8", path)  # raises the better message where the encoding is at fault
        raise UserError(f"{path}: not valid JSON: {error}: was the file written to its end?") from None
    if len(data) <= DOUBLE_KEYS_LIMIT:
        json.loads(data, object_pairs_hook=lambda pairs: _without_doubles(pairs, path))
    return content


# ---------------------------------------------------------------------------------------------- writing


_noted: list[set[Path]] = []


@contextmanager
def noting_written() -> Iterator[set[Path]]:
    """The files, from the root on, that are written within the block by this module or told to `note_written`."""
    written: set[Path] = set()
    _noted.append(written)
    try:
        yield written
    finally:
        _noted[:] = [other for other in _noted if other is not written]


def note_written(path: Path) -> None:
    """Note a file that was written without this module."""
    for written in _noted:
        written.add(path.absolute())


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends; makes the folder.

    If the block raises, `path` stays what it was and nothing is left behind.

    Raises:
        UserError: the folder or the file cannot be written (no permission, no space, a folder of that name); names it.
    """
    path = Path(path)
    # Cut, so that a name of the greatest length that the file system allows still fits. Processes and threads may
    # write the same file at a time: the last one stays.
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
            note_written(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path, *path.parents):
            raise  # of another file: the block read something
        raise _unwritable(path, error) from error


def check_output(path: Path, *, is_folder: bool = False) -> None:
    """See that a file, or files in a folder, can be written, before what they hold is computed; nothing is written.

    Raises:
        UserError: see `replacing`.
    """
    place = path.absolute()
    try:
        there = next(each for each in (place, *place.parents) if _is_there(each))
        if there != place and not there.is_dir():
            raise FileExistsError(errno.EEXIST, "", str(there))
        if there == place and there.is_dir() != is_folder:
            raise OSError(f"is a {'file' if is_folder else 'folder'}")
        with tempfile.TemporaryFile(dir=there if there.is_dir() else there.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _is_there(path: Path) -> bool:
    """As `Path.exists` until Python 3.13: names that are too long and the like are errors."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = f"{error.filename} is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
    return UserError(f"{path}: cannot be written: {reason}")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write bytes whole or not at all.

    Raises:
        UserError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write text as UTF-8, whole or not at all; line ends stay as they are.

    Raises:
        UserError: see `replacing`; or the text holds the name of a file that is not UTF-8.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        word = next(word for word in text.split() if not word.isprintable() and error.object[error.start] in word)
        raise UserError(
            f"{path}: cannot be written: the name {word} is not UTF-8: rename that file or folder"
        ) from None
    write_bytes(path, content)


def refuse_overwriting(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, under whatever name, or a file of an input folder.

    A .json file in an input folder is taken for an earlier output.

    Raises:
        UserError: names both.
    """
    for given in inputs:
        same = output.exists() and given.exists() and output.samefile(given)
        inside = given.is_dir() and output.is_file() and given.resolve() in output.resolve().parents
        if (same and not output.is_dir()) or (inside and output.suffix != ".json"):
            raise UserError(f"{output}: would overwrite the input {given}: choose another output")


# ---------------------------------------------------------------------------------------------- parts


def _refuse_foreign(data: bytes, path: str | Path) -> None:
    """Refuse what is known by its first bytes to be something else."""
    start = data[:200].lstrip().lower()
    for mark, what in FOREIGN.items():
        if start.startswith(mark):
            raise UserError(f"{path}: it is {what}")


def _without_doubles(pairs: list[tuple[str, Any]], path: str | Path) -> None:
    if len(pairs) != len(dict(pairs)):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        some = next((f" (that with {key} {value!r:.40})" for key, value in pairs if key in ("id", "image_id")), "")
        raise UserError(f"{path}: an object{some} has the key {twice!r} twice: remove one")


def _check_text(data: bytes, path: str | Path) -> None:
    if len(data) > TEXT_LIMIT:
        raise UserError(f"{path}: has {len(data)} bytes, more than {TEXT_LIMIT}: is it a text file?")
    _refuse_foreign(data, path)


def _encoding_of(data: bytes) -> str:
    """The encoding that a mark or zero bytes tell, else UTF-8."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    start = data[:256]
    if len(start) >= 4 and len(data) % 2 == 0 and b"\0" in start:
        even, odd = start[0::2].count(0), start[1::2].count(0)
        if odd > len(start) // 4 and not even:
            return "utf-16-le"
        if even > len(start) // 4 and not odd:
            return "utf-16-be"
    return "utf-8"


def _decode(data: bytes, encoding: str, path: str | Path) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.upper().removesuffix("-SIG")
        raise UserError(
            f"{path}: line {line} is not text in {name} (byte 0x{data[error.start]:02x}){_could_be(data)}: "
            "save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: holds zero bytes: it is not a text file")
    return text


def _could_be(data: bytes) -> str:
    """' (it could be GBK or Latin-1)': the encodings in which all the bytes mean something."""
    fitting = []
    for codec, name in _LEGACY.items():
        try:
            data.decode(codec)
        except UnicodeDecodeError:
            continue
        fitting.append(name)
    return f"; it could be {' or '.join(fitting)}" if fitting else ""


def _neighbours(path: Path) -> str:
    """What lies in the folder of a missing file."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent} either"
    try:
        similar = sorted(item.name for item in path.parent.iterdir() if item.suffix == path.suffix)
    except OSError:
        return ""
    return f": the folder has {examples(similar, 3)}" if similar else ""
