"""JSON records column by column: what is read, and the record, line and value of each mistake."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.columns import (
    Rows,
    distinct_names,
    last_of_equal_ids,
    line_of_item,
    no_garbage_collection,
    number_in,
    short,
)


def rows(*values: object, key: str = "x") -> Rows:
    """Records with these values of one key, within a larger file; `...` leaves the key out."""
    items = [{"id": number + 10, **({} if value is ... else {key: value})} for number, value in enumerate(values)]
    return Rows(Path("a.json"), items, "object", is_whole_file=False)


def message(call, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **options)
    return str(error.value)


def test_a_record_is_an_object():
    assert message(Rows, Path("a.json"), [{}, 3], "object", is_whole_file=False) == (
        "a.json: object 1: is 3, not an object {...}"
    )


def test_columns_and_missing_keys():
    assert rows(1, "a").column("x", "fix it") == [1, "a"]
    assert rows(1, ...).optional("x") == [1, None]
    assert message(rows(1, ...).column, "x", "fix it") == "a.json: object 1 (id 11): has no x: fix it"


def test_the_line_of_a_record_of_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n {"x": 1},\n\n {"x": [\n1, 2]}, {"x": 3},\n{"x": 4}]')
    assert [line_of_item(path, index) for index in range(4)] == [2, 4, 5, 6]
    items = json.loads(path.read_text())
    assert message(Rows(path, items, "detection").ids, "x") == (
        f"{path}: detection 1 (line 4): x is [1, 2]: give a whole number or a text"
    )


def test_ids_are_whole_numbers_or_texts():
    assert rows(3, 2.0, -1).ids("x") == [3, 2, -1]
    assert type(rows(2.0).ids("x")[0]) is int
    assert rows("a", "1").ids("x") == ["a", "1"]
    assert "object 1 (id 11): x is 1.5: give a whole number" in message(rows(1, 1.5).ids, "x")
    assert "x is True" in message(rows(1, True).ids, "x")
    assert "object 2 (id 12): x is the text '3', but others" in message(rows(1, 2, "3").ids, "x")
    assert rows(2**63 - 1).ids("x") == [2**63 - 1]
    assert "must lie below 2**63" in message(rows(1, 2**63).ids, "x")
    assert "must lie below 2**63" in message(rows(-(2**63)).ids, "x")
    assert rows(2.0**53 - 1, 2**53 + 1).ids("x") == [2**53 - 1, 2**53 + 1]


def test_numbers_with_a_decimal_point_that_lost_digits_name_nothing():
    lost = float(2**53 + 1)  # 2**53, another thing's id
    for read in (rows(lost).ids, rows(lost).names, lambda key: rows(-lost).lookup(key, {2**53: 0}, missing=-1)):
        assert "digits: write the whole number" in message(read, "x")
    assert rows(2.0**53 - 1).names("x") == [2.0**53 - 1]


def test_lookups():
    table = {3: 0, 7: 1}
    assert rows(7, 3, 8, 7.0).lookup("x", table, missing=-5).tolist() == [1, 0, -5, 1]
    assert rows("b").lookup("x", {"b": 4}, missing=0).dtype == np.int64
    assert "x is the text '7', but the categories' ids are numbers" in message(
        rows("7").lookup, "x", table, missing=0, owner="categories'"
    )
    assert "x is 7, but the file's ids are texts" in message(rows(7).lookup, "x", {"7": 0}, missing=0)
    assert "object 1 (id 11): x is [7]: give a number or text" in message(rows(1, [7]).lookup, "x", {}, missing=0)


def test_numbers():
    assert rows(1, 2.5, 10**400).numbers("x", [1, 2.5]).tolist() == [1, 2.5]
    assert "object 1 (id 11): x is the text '2', not a number" in message(rows(1, "2").numbers, "x", [1, "2"])
    assert "x is True, not a number" in message(rows(True).numbers, "x", [True])
    infinite = [1, float("inf")]
    assert rows(*infinite).numbers("x", infinite, infinite=True).tolist() == infinite
    assert "object 1 (id 11): x is inf: give a finite number" in message(rows(*infinite).numbers, "x", infinite)
    assert "x is nan" in message(rows(float("nan")).numbers, "x", [float("nan")], infinite=True)
    assert "x is inf: give a finite number" in message(rows(10**400).numbers, "x", [10**400])


def test_flags():
    assert rows(1, 0, True, None, ..., 1.0).flags("x").tolist() == [True, False, True, False, False, True]
    for bad in (2, "1", [1], -1, 0.5):
        assert "object 1 (id 11): x is " in message(rows(0, bad).flags, "x")


def test_sides():
    assert rows(480, 640.0, None, ..., 0).sides("x").tolist() == [480, 640, 0, 0, 0]
    for bad in (-1, 0.5, 2e9):
        assert "give a whole number of pixels" in message(rows(1, bad).sides, "x")


def test_texts():
    assert rows("a", 7, 1.5).texts("x", "fix it") == ["a", "7", "1.5"]
    for bad in ("", None, True, ["a"]):
        assert message(rows("a", bad).texts, "x", "fix it").startswith("a.json: object 1 (id 11): x is ")
    assert message(rows("a", None).texts, "x", "fix it").endswith("x is null: fix it")


def test_boxes():
    assert rows([1, 2.5, 3, 4], [0, 0, 1e9, 1], key="bbox").boxes("x, y, w, h").tolist() == [
        [1, 2.5, 3, 4], [0, 0, 1e9, 1]
    ]  # fmt: skip
    good = [1, 2, 3, 4]
    for bad, words in (
        ([1, 2, 3], "is [1, 2, 3], not four numbers [x, y, w, h]"),
        ("1234", "is '1234', not four numbers [x, y, w, h]"),
        ([1, 2, 3, "4"], "not four numbers"),
        ([1, 2, 3, None], "not four numbers"),
        ([1, 2, 3, float("nan")], "is not finite"),
        ([1, 2, 3, 10**400], "is not finite"),
        ([1, 2, 3, -1.1e9], "is larger than any image"),
    ):
        text = message(rows(good, bad, key="bbox").boxes, "x, y, w, h")
        assert text.startswith("a.json: object 1 (id 11): bbox ")
        assert words in text
    assert rows(key="bbox").boxes("x").shape == (0, 4)
    assert "has no bbox: give [x, y, w, h]" in message(rows(..., key="bbox").boxes, "x, y, w, h")


def test_names_that_several_have_are_told_apart():
    assert distinct_names(["cat", "dog", "cat"], [1, 2, 9]) == (["cat (id 1)", "dog", "cat (id 9)"], ["cat"])
    assert distinct_names(["a", "b"], [1, 2]) == (["a", "b"], [])
    many = [f"class {number}" for number in range(9)]
    assert distinct_names(many * 2, range(18))[1] == many


def test_numbers_in_texts():
    assert [number_in(text) for text in ("1e3", " -2 ", "inf")] == [1000, -2, np.inf]
    for text in ("1_000", "one", ""):
        with pytest.raises(ValueError):
            number_in(text)


def test_of_equal_ids_the_last_counts():
    assert last_of_equal_ids([5, 7, 5, 5]).tolist() == [3, 1, 3, 3]
    assert last_of_equal_ids([5, 6]).tolist() == [0, 1]
    assert last_of_equal_ids(np.array([5, 7, 5, 5])).tolist() == [3, 1, 3, 3]
    assert last_of_equal_ids([None, None, 5]).tolist() == [0, 1, 2]  # without ids nothing is the same
    assert last_of_equal_ids([[1], [1]]).tolist() == [1, 1]


def test_values_are_short():
    assert short(None) == "null"
    assert short(-(10**12)) == "-1000000000000"
    assert short("x" * 100) == f"'{'x' * 56}..."
    assert len(short(list(range(10**5)))) == 60
    assert short(10**5000) == "a number of many digits"


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_as_it_was(was_on):
    if not was_on:
        gc.disable()
    try:
        with no_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == was_on
        with pytest.raises(ZeroDivisionError), no_garbage_collection():
            1 / 0  # noqa: B018
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
