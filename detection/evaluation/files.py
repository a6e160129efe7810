"""Reading JSON with errors that name the place, and writing without leaving half a file behind."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import read_text


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary file beside `path` and move it there."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a temporary file beside `path` and move it there; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the collector from walking over millions of fresh dictionaries, again and again, for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def line_of_item(path: Path, index: int) -> int:
    """Line, from 1, on which item `index` of a JSON list begins. Slow: for error messages."""
    text = read_text(path, "file")
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        position = decoder.raw_decode(text, _skip(text, position))[1]
    return text.count("\n", 0, _skip(text, position)) + 1


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


# ---------------------------------------------------------------------------------------------- columns of records


class Rows:
    """The records of a JSON list, read column by column with checks; an error names the record and its line."""

    def __init__(self, path: Path, items: list[Any], what: str, *, is_whole_file: bool = True) -> None:
        """Args:
        path: the file, for messages.
        items: dictionaries.
        what: what messages call a record, for example detection.
        is_whole_file: the list is the file's outermost value, so that its items' lines can be told.
        """
        self.path, self.items, self.what = path, items, what
        self._is_whole_file = is_whole_file
        if set(map(type, items)) - {dict}:
            bad = next(index for index, item in enumerate(items) if type(item) is not dict)
            raise self.error(bad, "is not an object {...}")

    def error(self, index: int, message: str) -> UserError:
        """The error about one record."""
        place = f" (line {line_of_item(self.path, index)})" if self._is_whole_file else ""
        return UserError(f"{self.path}: {self.what} {index}{place}: {message}")

    def column(self, key: str, mend: str) -> list[Any]:
        """The values of a key that all records must have."""
        try:
            return list(map(itemgetter(key), self.items))
        except KeyError:
            bad = next(index for index, item in enumerate(self.items) if key not in item)
            raise self.error(bad, f"has no {key}: {mend}") from None

    def lookup(self, key: str, table: dict[Any, int], *, missing: int) -> np.ndarray:
        """(n,) int64: the table's entries for the values of a key; `missing` for those that it does not have."""
        values = self.column(key, "each needs one")
        try:
            return np.fromiter((table.get(value, missing) for value in values), dtype=np.int64, count=len(values))
        except TypeError:
            bad = next(index for index, value in enumerate(values) if type(value) in (list, dict))
            raise self.error(bad, f"{key} is {_short(values[bad])}: give a number or text") from None

    def numbers(self, key: str, values: list[Any], *, infinite: bool = False) -> np.ndarray:
        """(n,) float64 of a column of numbers; NaN is refused, infinity too unless `infinite`."""
        wrong_type = set(map(type, values)) - {int, float}
        if wrong_type:
            bad = next(index for index, value in enumerate(values) if type(value) in wrong_type)
            raise self.error(bad, f"{key} is {_short(values[bad])}, not a number")
        array = np.fromiter(values, dtype=np.float64, count=len(values))
        usable = ~np.isnan(array) if infinite else np.isfinite(array)
        if not usable.all():
            bad = int(np.argmin(usable))
            raise self.error(bad, f"{key} is {array[bad]}: give a finite number")
        return array

    def boxes(self, layout: str) -> np.ndarray:
        """(n, 4) float64 of the key bbox.

        Args:
            layout: the names of the four numbers, for messages.
        """
        lists = self.column("bbox", f"give [{layout}]")
        if set(map(type, lists)) - {list} or set(map(len, lists)) - {4}:
            bad = next(index for index, box in enumerate(lists) if type(box) is not list or len(box) != 4)
            raise self.error(bad, f"bbox is {_short(lists[bad])}, not four numbers [{layout}]")
        if set(map(type, chain.from_iterable(lists))) - {int, float}:
            bad = next(i for i, box in enumerate(lists) if set(map(type, box)) - {int, float})
            raise self.error(bad, f"bbox is {_short(lists[bad])}, not four numbers [{layout}]")
        boxes = np.fromiter(chain.from_iterable(lists), dtype=np.float64, count=4 * len(lists)).reshape(-1, 4)
        finite = np.isfinite(boxes).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise self.error(bad, f"bbox {_short(lists[bad])} is not finite")
        return boxes


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
