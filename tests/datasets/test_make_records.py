"""Records of lists: each fault of a box is found and told once, whatever the readers call it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from configs.errors import UserError
from datasets import records as module
from datasets.make_records import box_faults, looks_like_fractions, make_records, repeated
from datasets.records import Records
from tests.datasets.conftest import write_image


def records_of(
    boxes: list[tuple[float, ...]],
    labels: list[int] | None = None,
    name: str = "a.jpg",
    class_names: tuple[str, ...] = ("cat", "dog"),
) -> Records:
    """An image of 100 x 60 (H x W), where boxes of 60 x 100 would leave it."""
    return make_records(
        images=[(name, "a", (100, 60))],
        boxes=boxes,
        labels=labels or [1] * len(boxes),
        counts=[len(boxes)],
        class_names=list(class_names),
        source="set",
        annotation_file="{}.xml",
    )


def test_each_box_has_one_fault_and_one_line(caplog) -> None:
    faults = {
        "box-reversed": (30, 20, 10, 40),
        "box-zero-extent": (10, 20, 11, 40),
        "box-off-image": (61, 20, 80, 40),
        "box-outside": (10, 20, 30, 102),
        "": (10, 20, 60.9, 100.9),  # less than a pixel outside
    }
    with caplog.at_level(logging.WARNING):
        found = box_faults(records_of(list(faults.values())))
    for number, code in enumerate(faults):
        assert [name for name, mark in found.items() if mark[number]] == ([code] if code else [])
    lines = [line for line in caplog.messages if "declared size" not in line]
    assert len(lines) == 4
    for number, line in enumerate(lines):
        assert line.startswith("set: 1 object ")
        assert line.endswith(f": a.xml object {number} (cat)")


def test_repeated_is_the_same_box_and_class_in_the_same_image() -> None:
    box, other = (10, 20, 30, 40), (10, 20, 30, 41)
    assert repeated(records_of([box, other, box, box], [1, 1, 2, 1])).tolist() == [False, False, False, True]


def test_images_are_looked_at_some_at_a_time(monkeypatch) -> None:
    """In any portions the faults are the same; images without objects stand between others."""
    rng = np.random.default_rng(0)
    boxes = rng.integers(-20, 120, (60, 4)).astype(float)
    boxes[0] = (5, 5, 5.5, 40)
    boxes[30:] = boxes[rng.integers(0, 30, 30)]
    counts = [0, 10, 0, 25, 1, 24, 0]
    images = [(f"{i}.jpg", str(i), (100, 60)) for i in range(len(counts))]
    options = {"class_names": ["cat"], "source": "set", "annotation_file": "{}.xml"}
    records = make_records(images=images, boxes=boxes, labels=[1] * 60, counts=counts, **options)
    whole = box_faults(records), records.trainable()
    assert all(mark.any() for mark in whole[0].values())
    for portion in (1, 2, 5):
        monkeypatch.setattr(module, "_IMAGES", portion)
        faults = box_faults(records)
        assert all((faults[code] == mark).all() for code, mark in whole[0].items())
        assert (records.trainable() == whole[1]).all()


def test_fractions_are_small_and_not_whole() -> None:
    assert looks_like_fractions(records_of([(0.1, 0.2, 1.0, 0.9)]))
    assert looks_like_fractions(records_of([(0.1, 0.2, 1.0, 1.5)]))
    assert not looks_like_fractions(records_of([(0, 0, 1, 1)]))
    assert not looks_like_fractions(records_of([(0.1, 0.2, 1.0, 1.6)]))
    assert not looks_like_fractions(records_of([]))


def test_an_area_that_is_not_given_is_the_boxs() -> None:
    np.testing.assert_array_equal(records_of([(10, 20, 30, 50), (30, 20, 10, 50)]).area, [600, 0])


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.xml object 0 \(cat\): a coordinate is not a finite number"):
        records_of([(10, 20, np.nan, 40)])
    with pytest.raises(UserError, match=r"the image name 'a\\nb\.jpga' holds a control character"):
        records_of([], name="a\nb.jpg")
    with pytest.raises(UserError, match="the name of 1 image is not UTF-8"):
        records_of([], name="a\udcff.jpg")
    with pytest.raises(UserError, match=r"the class name \\ud800 holds half of a surrogate pair"):
        records_of([], class_names=("\ud800",))


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([(50, 20, 40, 60)], "corners exchanged?"),  # 50 + 40 leaves the image, which is 60 wide
        ([(30, 20, 10, 40)], "corners exchanged, or width and height in place of xmax and ymax?"),
        ([(30, 20, 10, 40)] + [(n, 5, 30, 40) for n in range(4)], "width and height in place of xmax and ymax?"),
        ([(30, 20, 10, 40)] + [(n, 5, 59, 40) for n in range(4)], "corners exchanged, or width and height in place"),
    ],
)
def test_why_boxes_are_reversed(boxes, cause, caplog) -> None:
    records_of(boxes)
    line = next(line for line in caplog.messages if "ymax below ymin" in line)
    assert f"will not be trained on: {cause}" in line


def test_the_size_in_the_file_counts_where_a_box_leaves_the_declared_one(tmp_path) -> None:
    """Declared 100 x 60, in truth 120 x 90; a pixel too much is no reason to look."""
    name = str(write_image(tmp_path / "a.png", (120, 90)))
    assert records_of([(0, 0, 61, 101)], name=name).sizes.tolist() == [[100, 60]]
    assert records_of([(0, 0, 61.5, 100)], name=name).sizes.tolist() == [[120, 90]]
    assert records_of([(0, -1.5, 60, 100)], name=name).sizes.tolist() == [[120, 90]]


def test_records_are_annotated_unless_told_otherwise() -> None:
    assert records_of([]).annotated
