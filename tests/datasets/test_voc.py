"""The VOC reader: coordinates by hand, flags, and one readable line for each thing that can be wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.voc import read_annotation, read_voc


def test_coordinates_by_hand(write_voc) -> None:
    # 1-based inclusive: columns 5 to 10 are 6 pixels wide; rows 2 to 20 are 19 high. The image is 30 high, 40 wide.
    objects = [("cat", (5, 2, 10, 20)), ("dog", (1, 1, 40, 30), {"difficult", "truncated"})]
    root = write_voc({"one": ((30, 40), objects)})
    records = read_voc(root, "train")
    assert records.boxes.tolist() == [[4, 1, 10, 20], [0, 0, 40, 30]]
    assert records.boxes.dtype == np.float64
    assert records.area.tolist() == [6 * 19, 40 * 30]
    assert records.class_names == ["cat", "dog"]
    assert records.labels.tolist() == [1, 2]
    assert records.difficult.tolist() == records.truncated.tolist() == [False, True]
    assert records.iscrowd.tolist() == [False, False]
    assert records.sizes.tolist() == [[30, 40]]
    assert records.image_ids.tolist() == ["one"]


def test_zero_based_takes_the_numbers_as_they_are(write_voc, caplog) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (0, 0, 40, 30))])})
    assert read_voc(root, "train", zero_based=True).boxes.tolist() == [[0, 0, 40, 30]]
    assert not caplog.records


def test_zero_in_a_one_based_set_is_reported_and_never_wrapped(write_voc, caplog) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (5, 5, 9, 9)), ("cat", (0, 3, 20, 30))])})
    records = read_voc(root, "train")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "one.xml object 1 (cat)" in message
    assert "zero_based" in message
    assert records.boxes[1].tolist() == [-1, 2, 20, 30]  # as the official tool has it
    assert records.target(0).boxes[1].tolist() == [0, 2, 20, 30]  # as it is trained on


def test_real_numbers_parts_and_words_in_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        "<annotation><filename> a.jpg </filename><object><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "<name>person</name><difficult>Unspecified</difficult><bndbox><ymin>2.5</ymin><xmin>1.25</xmin>"
        "<xmax>45.70000076293945</xmax><ymax>60</ymax></bndbox></object></annotation>"
    )
    annotation = read_annotation(path)
    assert annotation.filename == "a.jpg"
    assert annotation.size is None
    (item,) = annotation.objects
    assert (item.name, item.box) == ("person", (1.25, 2.5, 45.70000076293945, 60.0))
    assert not item.difficult
    assert not item.truncated


def test_missing_size_is_read_from_the_image(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])})
    for text in ("<annotation/>", "<annotation><size><width>0</width><height>0</height></size></annotation>"):
        (root / "Annotations" / "one.xml").write_text(text)
        records = read_voc(root, "train")
        assert records.sizes.tolist() == [[30, 40]]
        assert records.target(0).boxes.shape == (0, 4)


def test_boxes_without_extent_are_kept_for_the_evaluator_and_named(write_voc, caplog) -> None:
    objects = [("cat", (5, 5, 9, 9)), ("cat", (7, 3, 7, 9)), ("dog", (9, 3, 8, 9))]
    records = read_voc(write_voc({"one": ((30, 40), objects)}), "train")
    assert len(records.boxes) == 3
    assert len(records.target(0)) == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 objects" in message
    assert "one.xml object 1 (cat)" in message
    assert "one.xml object 2 (dog)" in message


def test_boxes_outside_are_reported_and_clipped(write_voc, caplog) -> None:
    records = read_voc(write_voc({"one": ((30, 40), [("cat", (5, 5, 41, 30)), ("cat", (5, 5, 50, 30))])}), "train")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{records.source}: 1 object ")  # one pixel too many is rounding
    assert "one.xml object 1 (cat)" in message
    assert records.target(0).boxes[:, 2].tolist() == [40, 40]
    assert records.boxes[1, 2] == 50


def test_order_columns_and_doubles_of_the_image_set(write_voc, caplog) -> None:
    images = {name: ((30, 40), []) for name in ("b", "a", "c")}
    root = write_voc(images, suffix=".png")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("c  1\n\na -1\nc  1\n")
    assert read_voc(root, "train").image_ids.tolist() == ["b", "a", "c"]
    with caplog.at_level(logging.WARNING):
        assert read_voc(root, "cat_train").image_ids.tolist() == ["c", "a"]
    assert "more than once" in caplog.text


def test_set_without_any_annotation_is_images_only(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (5, 5, 9, 9))]), "two": ((20, 50), [])})
    for path in (root / "Annotations").iterdir():
        path.unlink()
    records = read_voc(root, "train")
    assert not records.annotated
    assert records.sizes.tolist() == [[30, 40], [20, 50]]
    (root / "Annotations").rmdir()
    assert len(read_voc(root, "train")) == 2


def _one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_some_annotations_missing(write_voc) -> None:
    root = write_voc({"one": ((30, 40), []), "two": ((30, 40), [])})
    (root / "Annotations" / "two.xml").unlink()
    with pytest.raises(UserError, match=r"two\.xml") as error:
        read_voc(root, "train")
    _one_line(error)


def test_missing_image(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])})
    (root / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(UserError, match=r"one\.jpg"):
        read_voc(root, "train")


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<annotation><object>", "not a valid annotation file"),
        ("<annotation><object><bndbox/></object></annotation>", "object 0: has no <name>"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>x</xmax></bndbox></object>"
            "</annotation>",
            "object 0: <bndbox><xmax> is 'x', not a number",
        ),
        ("<annotation><object><name>a</name></object></annotation>", "object 0: has no <bndbox><xmin>"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax>"
            "</bndbox></object></annotation>",
            "object 0 (a): a coordinate is not a finite number",
        ),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "not a valid annotation file"),
    ],
)
def test_broken_xml(write_voc, xml: str, said: str) -> None:
    root = write_voc({"one": ((30, 40), [])})
    (root / "Annotations" / "one.xml").write_text(xml)
    with pytest.raises(UserError) as error:
        read_voc(root, "train")
    line = _one_line(error)
    assert "one.xml" in line
    assert said in line


def test_missing_folder_of_an_official_set_names_the_tool(tmp_path: Path) -> None:
    for year in ("2007", "2012"):
        with pytest.raises(UserError) as error:
            read_voc(tmp_path / "VOCdevkit" / f"VOC{year}", "trainval")
        line = _one_line(error)
        assert f"{tmp_path}/VOCdevkit/VOC{year}" in line
        assert f"tools/prepare_data.py voc{year} --data-root {tmp_path}" in line


def test_missing_folder_of_ones_own(tmp_path: Path, write_voc) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder: a VOC folder holds"):
        read_voc(tmp_path / "nowhere", "train")
    root = write_voc({"one": ((30, 40), [])}, folder="outer/inner")
    with pytest.raises(UserError, match=f"did you mean root: {root}"):
        read_voc(tmp_path / "outer", "train")


def test_missing_image_set_names_the_nearest(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])}, image_set="trainval")
    with pytest.raises(UserError, match=r"did you mean trainval\?") as error:
        read_voc(root, "trainvall")
    _one_line(error)
    (root / "ImageSets" / "Main" / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no image"):
        read_voc(root, "empty")
