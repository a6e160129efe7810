"""Counts, sizes and doubts about a set, by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from datasets.make_records import make_records
from datasets.records import Records
from datasets.survey import (
    class_counts,
    class_table,
    collected_warnings,
    counts_from_zero,
    problems,
    rare_classes,
    resized_extents,
    size_lines,
)
from tests.datasets.conftest import write_image


def records_of(
    boxes: list, labels: list[int], counts: list[int], names: list[str], paths=None, size=(100, 200)
) -> Records:
    paths = paths or [f"/x/{i}.jpg" for i in range(len(counts))]
    return make_records(
        images=[(str(path), f"{i}", (100, 200)) for i, path in enumerate(paths)],
        boxes=boxes,
        labels=labels,
        counts=counts,
        class_names=names,
        source="set",
        annotation_file="{}",
    )


def test_counts() -> None:
    records = records_of([(1, 1, 9, 9)] * 4, [1, 1, 3, 1], [3, 0, 1], ["a", "b", "c"])
    objects, images = class_counts(records)
    assert objects.tolist() == [3, 0, 1]
    assert images.tolist() == [2, 0, 1]
    assert rare_classes(records, 2) == ["b (0)", "c (1)"]
    rows = [line.split() for line in class_table({"train": records, "val": records.subset([1])})]
    assert rows[0] == ["train", "val"]
    assert rows[1] == ["images", "3", "1"]
    assert rows[2] == ["empty", "1", "1"]
    assert rows[3] == ["a", "3", "in", "2", "0", "in", "0"]


def test_extents_are_those_that_the_network_sees() -> None:
    """100x200 to 50x100: half; what reaches out of the image is cut off, what has no extent is left out."""
    records = records_of([(0, 0, 40, 20), (190, 90, 230, 130), (5, 5, 5, 50)], [1, 2, 1], [3], ["a", "b"])
    extents, labels = resized_extents(records, 50, 100)
    assert extents.tolist() == [[20, 10], [5, 5]]
    assert labels.tolist() == [1, 2]
    lines = size_lines(records, 50, 100)
    assert "images     200x100" in lines[0]
    assert "height / width 0.53, 0.75, 0.97" in lines[1]  # of 10 / 20 and 5 / 5


def test_the_columns_of_the_table_stand_below_each_other() -> None:
    records = records_of([(1, 1, 9, 9)] * 2, [1, 2], [2], ["cat", "a class with a long name"])
    lines = class_table({"train": records, "val": records})
    assert len({len(line) for line in lines}) == 1
    assert lines[3].startswith("  cat ")
    assert len({line.rstrip().rfind(" ") for line in lines[3:]}) == 1


def test_doubts(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / "a.png", (100, 200)), write_image(tmp_path / "b.png", (50, 200))]
    (tmp_path / "c.png").write_text("no image")
    boxes = [(1, 1, 9, 9), (1, 1, 9, 9), (1, 1, 9, 9), (1, 1, 9, 9)]
    names = ["Red cell", "red_cell", "x"]
    text = " | ".join(
        problems(records_of(boxes, [1, 1, 2, 3], [2, 1, 1], names, [*paths, tmp_path / "c.png"]), "train")
    )
    assert "Red cell (2), red_cell (1), x (1)" in text
    assert "classes that may be one: Red cell, red_cell" in text
    assert "1 object is there twice, box and class, for example 0 object 1 (Red cell)" in text
    assert "c.png: cannot be read as an image" in text
    assert "b.png (200x50, declared 200x100)" in text


def test_nothing_to_doubt(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", (100, 200))
    boxes = [(i, i, i + 9, i + 9) for i in range(10)]
    assert problems(records_of(boxes, [1] * 10, [10], ["a"], [path]), "train") == []
    val = problems(records_of(boxes, [1] * 10, [10], ["a", "b"], [path]), "val")
    assert val == ["classes without objects, which cannot be measured: b (0)"]


@pytest.mark.parametrize(
    ("corners", "zero_based", "expected"),
    [
        ([0, 0, 50], True, True),
        ([1, 1, 50], True, False),
        ([0, 0, 50], False, False),  # the file says 1
        ([-1, -1, 0], False, True),  # two objects at 0, one at 1
        ([-1, 0, 0], False, False),  # one slip
        ([50, 60], False, None),
    ],
)
def test_where_pixels_count_from(corners: list[int], zero_based: bool, expected: bool | None) -> None:
    boxes = [(x, 40, 90, 90) for x in corners]
    records = records_of(boxes, [1] * len(boxes), [len(boxes)], ["a"])
    assert counts_from_zero(records, zero_based=zero_based) is expected


def test_warnings_are_collected_once_and_not_printed(capsys, caplog) -> None:
    logger = logging.getLogger("datasets.records")
    with collected_warnings() as found:
        for _ in range(2):
            logger.warning("%d objects", 3)
    assert found == ["3 objects"]
    assert caplog.text == ""
    assert capsys.readouterr().err == ""
    assert np.array_equal(logging.getLogger("datasets").handlers, [])
