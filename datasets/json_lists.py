"""The lists of a large JSON object, some records at a time and only the keys that are wanted. Imports no torch.

COCO's annotation files hold mostly outlines that nothing here reads. Parsed whole, train2017 takes 2.7 GB; parsed in
parts, with the outlines dropped by the parser before they become Python's objects, it takes what the columns take.

Where a part ends is guessed (`}, {` between records, `}]` after the last), and the guess is proved by the parser: the
text from a known beginning of a record to the guess is a list of whole records if, and only if, it parses as one. Where
a guess fails, the file is parsed whole: it is either unusual or broken, and the whole file's parser says how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import SchemaValidator, core_schema, from_json

from configs.errors import UserError
from configs.files import DOUBLE_KEYS_LIMIT, read_json
from configs.inputs import note

PART = 1 << 23
"""Bytes that are parsed at a time."""

_SPACE = b" \t\r\n"
_LAST = re.compile(rb"\}\s*\]")
_BETWEEN = re.compile(rb"\}\s*,\s*\{")
_LONGEST_SPACE = 64  # between the brackets of `_LAST`; where it is longer, a guess fails
_TRIES = 4
_LARGEST_VALUE = 1 << 22  # bytes of one that is no list


class _UnusualError(Exception):
    """The file has to be parsed whole."""


@dataclass(frozen=True)
class JsonLists:
    """The values of a JSON file's object; its lists in parts."""

    path: Path
    what: str
    """What messages call the file."""
    content: Mapping[str, Any] | None
    """The whole object, whose values may be anything; None: it is read in parts, and they are lists."""
    extents: Mapping[str, tuple[int, int]]
    """Where the records of each list begin and end in the file; of empty lists (0, 0)."""

    def __contains__(self, key: str) -> bool:
        return key in (self.extents if self.content is None else self.content)

    def parts(self, key: str, wanted: Sequence[str]) -> Iterator[list[Any]]:
        """The records of a list, some at a time, with at least the `wanted` keys.

        Raises:
            UserError: the file is not JSON.
        """
        if self.content is not None:
            yield self.content[key]
            return
        done = 0
        try:
            for part in _parts(self.path, self.extents[key], _parser(wanted)):
                yield part
                done += len(part)
        except _UnusualError:  # the records that were given are right: the parser has proved it
            yield read_json(self.path, self.what)[key][done:]


def read_lists(path: Path, what: str, wanted: Sequence[str], *, limit: int = DOUBLE_KEYS_LIMIT) -> JsonLists:
    """The object in a JSON file, whose `wanted` lists can be had in parts where the file is large.

    Args:
        path: the file.
        what: what messages call it.
        wanted: keys of lists; the other values are only checked to be JSON.
        limit: bytes up to which a file is parsed whole.

    Raises:
        UserError: the file is missing, not JSON (see `configs.files.read_json`), or no object.
    """
    try:
        if path.stat().st_size > limit:
            note(path)
            return JsonLists(path, what, None, _extents(path, wanted))
    except (OSError, ValueError, _UnusualError):
        pass
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a COCO annotation file (an object with images, annotations, categories)")
    return JsonLists(path, what, content, {})


# ---------------------------------------------------------------------------------------------- parts


def _parser(wanted: Sequence[str]) -> Any:
    """A function from the text of a list of objects to these with the wanted keys; the others cost no object."""
    field = core_schema.typed_dict_field(core_schema.any_schema(), required=False)
    record = core_schema.typed_dict_schema(dict.fromkeys(wanted, field), extra_behavior="ignore")
    return SchemaValidator(core_schema.list_schema(record)).validate_json


def _parts(path: Path, extent: tuple[int, int], parse: Any) -> Iterator[list[Any]]:
    position, end = extent
    with open(path, "rb") as file:
        while position < end:
            file.seek(position)
            data = file.read(min(PART, end - position))
            last = position + len(data) == end
            for length in [len(data)] if last else _cuts(data):
                try:
                    records = parse(b"[" + data[:length] + b"]")
                except ValueError:
                    continue
                break
            else:
                raise _UnusualError
            position += length
            yield records
            if not last:
                file.seek(position)
                between = file.read(_LONGEST_SPACE * 2)
                position += between.index(b"{")  # `_cuts` has seen it


def _cuts(data: bytes) -> list[int]:
    """Lengths of the text after which a record seems to end and another to begin, the greatest first."""
    for start in (max(0, len(data) - (1 << 16)), 0):
        found = [match for match in _BETWEEN.finditer(data, start) if match.end() - match.start() < _LONGEST_SPACE]
        if found:
            return [match.start() + 1 for match in reversed(found[-_TRIES:])]
    return []


# ---------------------------------------------------------------------------------------------- extents


def _extents(path: Path, wanted: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Where the wanted lists' records begin and (so far as can be guessed) end."""
    extents: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    with open(path, "rb") as file:
        position = _skip(file, 0, b"{")
        while True:
            key, position = _value(file, position)
            if not isinstance(key, str):
                raise _UnusualError
            position = _skip(file, position, b":")
            beginning = _peek(file, position)
            if key in wanted or beginning == b"[":
                extent, position = _list(file, position)
                extents[key] = extent
                if key not in wanted:
                    for _ in _parts(path, extent, from_json):
                        pass
            else:
                _, position = _value(file, position)
            if _peek(file, position) == b"}":
                break
            position = _skip(file, position, b",")
        position = _skip(file, position, b"}")
        if position != size and _peek(file, position) != b"":
            raise _UnusualError
    return {key: extent for key, extent in extents.items() if key in wanted}


def _peek(file: Any, position: int) -> bytes:
    """The first byte at or after a position that is no blank; empty at the file's end."""
    return _at(file, position)[1]


def _at(file: Any, position: int) -> tuple[int, bytes]:
    file.seek(position)
    while block := file.read(4096):
        stripped = block.lstrip(_SPACE)
        if stripped:
            return position + len(block) - len(stripped), stripped[:1]
        position += len(block)
    return position, b""


def _skip(file: Any, position: int, expected: bytes) -> int:
    """The position behind blanks and the expected byte."""
    position, found = _at(file, position)
    if found != expected:
        raise _UnusualError
    return position + 1


def _list(file: Any, position: int) -> tuple[tuple[int, int], int]:
    """The extent of a list's records, and the position behind the list."""
    start, first = _at(file, _skip(file, position, b"["))
    if first == b"]":
        return (0, 0), start + 1
    if first != b"{":
        raise _UnusualError
    file.seek(start)
    kept, position = b"", start
    while block := file.read(PART):
        data = kept + block
        if found := _LAST.search(data):
            begin = position - len(kept)
            return (start, begin + found.start() + 1), begin + found.end()
        kept, position = data[-_LONGEST_SPACE:], position + len(block)
    raise _UnusualError


def _value(file: Any, position: int) -> tuple[Any, int]:
    """A small value (a key, a number, an object of a few lines), and the position behind it."""
    position, _ = _at(file, position)
    length = 1 << 12
    while True:
        file.seek(position)
        data = file.read(length)
        try:
            text = data.decode("utf-8", "strict" if len(data) < length else "ignore")
            value, end = json.JSONDecoder().raw_decode(text)
            if end < len(text):  # else a number could go on
                return value, position + len(text[:end].encode())
        except ValueError:
            pass
        if len(data) < length or length > _LARGEST_VALUE:
            raise _UnusualError
        length *= 8
