"""Reading JSON with errors that name the place."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from configs.errors import UserError


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


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file.

    Raises:
        UserError: there is no such file; names the folder's nearest file.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}{_neighbours(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the {what} itself") from None


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. NaN and Infinity pass, as they do with Python's own parser.

    Raises:
        UserError: there is no such file, or it is not JSON; names the line.
    """
    content = read_bytes(path, what)
    try:
        return from_json(content, cache_strings="keys")
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}: was the file written to its end?") from None


def line_of_item(path: Path, index: int) -> int:
    """Line, from 1, on which item `index` of a JSON list begins. Slow: for error messages."""
    text = Path(path).read_text(encoding="utf-8-sig")
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        position = decoder.raw_decode(text, _skip(text, position))[1]
    return text.count("\n", 0, _skip(text, position)) + 1


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f": there is no folder {path.parent} either"
    alike = sorted(item.name for item in path.parent.iterdir() if item.suffix == path.suffix)
    return f": the folder has {', '.join(alike[:3])}{', ...' if len(alike) > 3 else ''}" if alike else ""


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

    def column(self, key: str, fix: str) -> list[Any]:
        """The values of a key that all records must have."""
        try:
            return list(map(itemgetter(key), self.items))
        except KeyError:
            bad = next(index for index, item in enumerate(self.items) if key not in item)
            raise self.error(bad, f"has no {key}: {fix}") from None

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
