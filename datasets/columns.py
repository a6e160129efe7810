"""Records of JSON lists, read column by column with checked types. Imports no torch.

One typed reader for annotations and detections, so that training and evaluation judge a file alike. Good files take
the fast path: one pass in C over each column; only where a type is not the expected one is the culprit looked for.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.files import read_text
from datasets.findings import find

LARGEST = 1e9
"""Pixels. No coordinate and no side is larger; sums and products of such numbers are exact or nearly so."""

_MAX_ID = 2**63 - 1
_EXACT = 2.0**53
"""From here on not every whole number has a float of its own."""


class Rows:
    """The records of a JSON list, read column by column with checks; an error names the record and its line."""

    def __init__(self, path: Path, items: list[Any], what: str, *, is_whole_file: bool = True, first: int = 0) -> None:
        """Args:
        path: the file, for messages.
        items: dictionaries.
        what: what messages call a record, for example detection.
        is_whole_file: the list is the file's outermost value, so that its items' lines can be told.
        first: the first item's number in the file's list, of which these may be a part.
        """
        self.path, self.items, self.what, self.first = path, items, what, first
        self._is_whole_file = is_whole_file
        if set(map(type, items)) - {dict}:
            bad = next(index for index, item in enumerate(items) if type(item) is not dict)
            raise self.error(bad, f"is {short(items[bad])}, not an object {{...}}")

    def error(self, index: int, message: str) -> UserError:
        """The error about one record: its number from 0, its line or its id, and the message."""
        item = self.items[index]
        if self._is_whole_file:
            place = f" (line {line_of_item(self.path, index)})"
        else:
            place = f" (id {short(item['id'])})" if isinstance(item, dict) and item.get("id") is not None else ""
        return UserError(f"{self.path}: {self.what} {self.first + index}{place}: {message}")

    def column(self, key: str, fix: str) -> list[Any]:
        """The values of a key that all records must have."""
        try:
            return list(map(itemgetter(key), self.items))
        except KeyError:
            bad = next(index for index, item in enumerate(self.items) if key not in item)
            raise self.error(bad, f"has no {key}: {fix}") from None

    def optional(self, key: str) -> list[Any]:
        """The values of a key, None where a record lacks it."""
        try:
            return list(map(itemgetter(key), self.items))
        except KeyError:
            return [item.get(key) for item in self.items]

    def names(self, key: str, fix: str = "each needs one") -> list[Any]:
        """The values of a key that all records must have and that name something: as `column`, but of numbers with a
        decimal point, as tables write them, those are refused that have lost digits and may name another thing."""
        values = self.column(key, fix)
        if float in set(map(type, values)):
            bad = next((i for i, value in enumerate(values) if type(value) is float and abs(value) >= _EXACT), None)
            if bad is not None:
                raise self.error(
                    bad,
                    f"{key} is {short(values[bad])}: so large a number with a decimal point or an exponent has lost "
                    "digits: write the whole number",
                )
        return values

    def ids(self, key: str) -> list[int] | list[str]:
        """The values of a key that all records must have: all whole numbers (`1.0` is 1), or all texts."""
        values: list[Any] = self.names(key)
        kinds = set(map(type, values))
        if float in kinds:
            values = [int(value) if type(value) is float and value.is_integer() else value for value in values]
            kinds = set(map(type, values))
        if kinds - {int, str}:
            bad = next(index for index, value in enumerate(values) if type(value) not in (int, str))
            raise self.error(bad, f"{key} is {short(values[bad])}: give a whole number or a text")
        if len(kinds) == 2:
            bad = next(index for index, value in enumerate(values) if type(value) is not type(values[0]))
            raise self.error(bad, f"{key} is {_kind(values[bad])}, but others are partly numbers and partly text")
        if kinds == {int} and not -_MAX_ID <= min(values) <= max(values) <= _MAX_ID:
            bad = next(index for index, value in enumerate(values) if not -_MAX_ID <= value <= _MAX_ID)
            raise self.error(bad, f"{key} is {short(values[bad])}: a number must lie below 2**63; write it as a text")
        return values

    def lookup(self, key: str, table: dict[Any, int], *, missing: int, owner: str = "file's") -> np.ndarray:
        """(n,) int64: the table's entries for the values of a key; `missing` for those that it does not have.

        Args:
            key: whose values are looked up; all must have it.
            table: by id; the ids are all numbers or all texts.
            missing: for values that the table does not have.
            owner: whose ids the table has, for messages.
        """
        values = self.names(key)
        of_table = str if table and isinstance(next(iter(table)), str) else int
        fitting = {str} if of_table is str else {int, float}
        if table and set(map(type, values)) - fitting:
            bad = next(index for index, value in enumerate(values) if type(value) not in fitting)
            kinds = "texts" if of_table is str else "numbers"
            raise self.error(bad, f"{key} is {_kind(values[bad])}, but the {owner} ids are {kinds}")
        try:
            return np.fromiter(map(table.get, values, repeat(missing)), dtype=np.int64, count=len(values))
        except TypeError:
            bad = next(index for index, value in enumerate(values) if type(value) in (list, dict))
            raise self.error(bad, f"{key} is {short(values[bad])}: give a number or text") from None

    def numbers(self, key: str, values: list[Any], *, infinite: bool = False) -> np.ndarray:
        """(n,) float64 of a column of numbers; NaN is refused, infinity too unless `infinite`."""
        wrong_type = set(map(type, values)) - {int, float}
        if wrong_type:
            bad = next(index for index, value in enumerate(values) if type(value) in wrong_type)
            raise self.error(bad, f"{key} is {_kind(values[bad])}, not a number")
        array = _floats(values)
        usable = ~np.isnan(array) if infinite else np.isfinite(array)
        if not usable.all():
            bad = int(np.argmin(usable))
            raise self.error(bad, f"{key} is {array[bad]}: give a finite number")
        return array

    def flags(self, key: str) -> np.ndarray:
        """(n,) bool of a key whose values are 0, 1, true or false; missing and null are 0."""
        values = self.optional(key)
        if set(map(type, values)) - {int, bool, float, type(None)} or set(values) - {0, 1, None}:
            bad = next(i for i, v in enumerate(values) if type(v) in (str, list, dict) or v not in (0, 1, None))
            raise self.error(bad, f"{key} is {_kind(values[bad])}: give 0 or 1")
        return np.array(values, dtype=bool)

    def sides(self, key: str) -> np.ndarray:
        """(n,) int64 of the width or height of images in pixels; 0 where it is missing, null or 0."""
        values = [0 if value is None else value for value in self.optional(key)]
        array = self.numbers(key, values)
        sound = (array >= 0) & (array <= LARGEST) & (array == np.floor(array))
        if not sound.all():
            bad = int(np.argmin(sound))
            raise self.error(bad, f"{key} is {short(values[bad])}: give a whole number of pixels")
        return array.astype(np.int64)

    def texts(self, key: str, fix: str) -> list[str]:
        """The values of a key that all records must have, texts that are not blank; numbers are taken as text."""
        values = self.column(key, fix)
        if set(map(type, values)) - {str} or any(not value or value.isspace() for value in values):
            values = [str(value) if type(value) in (int, float) else value for value in values]
            bad = next((i for i, value in enumerate(values) if type(value) is not str or not value.strip()), None)
            if bad is not None:
                raise self.error(bad, f"{key} is {short(values[bad])}: {fix}")
        return values

    def boxes(self, layout: str) -> np.ndarray:
        """(n, 4) float64 of the key bbox.

        Args:
            layout: the names of the four numbers, for messages.
        """
        lists = self.column("bbox", f"give [{layout}]")
        if set(map(type, lists)) - {list} or set(map(len, lists)) - {4}:
            bad = next(index for index, box in enumerate(lists) if type(box) is not list or len(box) != 4)
            raise self.error(bad, f"bbox is {short(lists[bad])}, not four numbers [{layout}]")
        numbers = list(chain.from_iterable(lists))
        if set(map(type, numbers)) - {int, float}:
            bad = next(i for i, box in enumerate(lists) if set(map(type, box)) - {int, float})
            raise self.error(bad, f"bbox is {short(lists[bad])}, not four numbers [{layout}]")
        boxes = _floats(numbers).reshape(-1, 4)
        finite = np.isfinite(boxes).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise self.error(bad, f"bbox {short(lists[bad])} is not finite")
        bounded = (np.abs(boxes) <= LARGEST).all(axis=1)
        if not bounded.all():
            bad = int(np.argmin(bounded))
            raise self.error(bad, f"bbox {short(lists[bad])} is larger than any image")
        return boxes


def find_broken(path: Path, items: list[Any], what: str, check: Callable[[Rows], object]) -> None:
    """Find each record of a list that a check of `Rows` refuses by itself."""
    try:
        check(Rows(path, items, what, is_whole_file=False))
    except UserError:
        for number, item in enumerate(items):
            try:
                check(Rows(path, [item], what, is_whole_file=False, first=number))
            except UserError as error:
                thing, _, value = str(error).removeprefix(f"{path}: ").partition(": ")
                find("annotation-broken", path, thing, value)


class Growing:
    """An array to which parts are added: it grows in place, so that no value is ever there twice."""

    def __init__(self, dtype: type, *shape: int) -> None:
        """Args:
        dtype: of the values.
        shape: of one of them.
        """
        self._array, self._length = np.empty((0, *shape), dtype), 0

    def add(self, values: np.ndarray) -> None:
        """Add (n, *shape) values."""
        end = self._length + len(values)
        if end > len(self._array):
            self._resize(end + end // 8)
        self._array[self._length : end] = values
        self._length = end

    def array(self) -> np.ndarray:
        """All of them, (N, *shape); nothing may be added any more."""
        self._resize(self._length)
        return self._array

    def _resize(self, length: int) -> None:
        self._array.resize((length, *self._array.shape[1:]), refcheck=False)  # moves pages, where realloc can


def number_in(text: str) -> float:
    """The number that a text holds, NaN and infinity too.

    Raises:
        ValueError: none, or one of Python's own forms (1_000), which no file of data means.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def line_of_item(path: Path, index: int) -> int:
    """Line, from 1, on which item `index` of a JSON list begins. Slow: for error messages."""
    text = read_text(path, "file")
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for _ in range(index):
        position = decoder.raw_decode(text, _skip(text, position))[1]
    return text.count("\n", 0, _skip(text, position)) + 1


def distinct_names(names: Sequence[str], ids: Sequence[Any]) -> tuple[list[str], list[str]]:
    """The names of categories, those that several have told apart by their id; and which those are."""
    seen: set[str] = set()
    twice = {name for name in names if name in seen or seen.add(name)}
    told_apart = [
        f"{name} (id {identity})" if name in twice else name for name, identity in zip(names, ids, strict=True)
    ]
    return told_apart, sorted(twice)


def last_of_equal_ids(annotation_ids: list[Any] | np.ndarray) -> np.ndarray:
    """(M,) int64: for each annotation the one that pycocotools reads in its place, the last of its id."""
    if isinstance(annotation_ids, np.ndarray):
        _, backwards, which = np.unique(annotation_ids[::-1], return_index=True, return_inverse=True)
        return len(annotation_ids) - 1 - backwards[which[::-1]]
    last = {comparable(identity): index for index, identity in enumerate(annotation_ids)}
    if len(last) == len(annotation_ids) or None in last:
        return np.arange(len(annotation_ids))
    return np.array([last[comparable(identity)] for identity in annotation_ids], dtype=np.int64)


def comparable(identity: Any) -> Any:
    """An annotation's id in a form that can be compared, whatever it is."""
    return identity if isinstance(identity, str | int | float | None) else repr(identity)


def short(value: Any) -> str:
    """A value as a person writes it, at most 60 characters."""
    if value is None:
        return "null"
    text = repr(value)[:1000] if not isinstance(value, int) or abs(value) < 10**100 else "a number of many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


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


def _kind(value: Any) -> str:
    """A value with its type where the value alone misleads: the text '1'."""
    return f"the text {short(value)}" if isinstance(value, str) else short(value)


def _floats(values: list[Any]) -> np.ndarray:
    try:
        return np.fromiter(values, dtype=np.float64, count=len(values))
    except OverflowError:  # a whole number beyond 1e308
        return np.array([float(v) if abs(v) < 1e308 else np.inf for v in values], dtype=np.float64)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position
