"""The VOC reader: coordinates by hand, flags, and one readable line for each thing that can be wrong."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.make_records import make_records
from datasets.voc import corners_from_zero, read_annotation, read_voc
from detection.evaluation.ground_truth import read_voc_ground_truth
from tests.datasets.conftest import annotation_xml, write_image


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


def test_a_rounded_border_does_not_count_from_zero(write_voc, caplog) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (0.9998, 1, 20, 20))])})
    assert read_voc(root, "train").boxes.tolist() == [[0.9998 - 1, 0, 20, 20]]
    assert not caplog.text


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
    with pytest.raises(UserError, match=r"two\.xml: .*, though .*/ImageSets/Main/train\.txt lists two: ") as error:
        read_voc(root, "train")
    _one_line(error)


def test_missing_image(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])})
    (root / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(UserError, match=r"one\.jpg: .*, though .*/ImageSets/Main/train\.txt lists one$"):
        read_voc(root, "train")


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<annotation><object>", "not a valid annotation file"),
        ("<annotation><object><bndbox/></object></annotation>", "object 0: has no <name>"),
        ("<annotation><objects><object/></objects></annotation>", "an <object> that is no <object> directly in <ann"),
        ("<annotation><Object/></annotation>", "has an <Object> that is no <object>"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>x</xmax></bndbox></object>"
            "</annotation>",
            "object 0: <bndbox><xmax> is 'x', not a number",
        ),
        ("<annotation><object><name>a</name></object></annotation>", "object 0: has no <bndbox><xmin>"),
        (
            "<annotation><object><name>a</name><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax>"
            "</bndbox></object></annotation>",
            "object 0: <bndbox><xmin> is nan: give a finite number",
        ),
        ("<html><body/></html>", "it is a web page"),
        ("<objects/>", "begins with <objects>, not <annotation>"),
        ("<annotation><size><width>wide</width><height>3</height></size></annotation>", "<width> is 'wide'"),
        ("<annotation><size><width>1e400</width><height>3</height></size></annotation>", "<width> is 1e400"),
        (annotation_xml([("a", (1, 1, "3_0", 3))], None), "<bndbox><xmax> is '3_0', not a number"),
        (annotation_xml([("a", (1, 1, 1e300, 3))], None), "<bndbox><xmax> is 1e+300"),
        (
            annotation_xml([("a", (1, 1, 3, 3))], None).replace("<xmin>", "<xmin>7</xmin><xmin>"),
            "<xmin> more than once",
        ),
        (annotation_xml([("a", (1, 1, 3, 3))], None).replace(">0<", ">perhaps<"), "<difficult> is 'perhaps'"),
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


def test_an_image_set_of_a_name_that_no_file_can_have_is_missing(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])})
    with pytest.raises(UserError) as error:
        read_voc(root, "a" * 100_000)
    _one_line(error)


# ---------------------------------------------------------------------------------------------- names and encodings


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        ("img (1)\nimg (2)\n", ["img (1)", "img (2)"]),
        ("img (1) 0\nimg (2)  -1\nplain 1", ["img (1)", "img (2)", "plain"]),
        ('"img (1)" -1\r\n"plain"\r\n', ["img (1)", "plain"]),
        ("plain.jpg\nimg (2).JPG\n", ["plain", "img (2)"]),
        ("JPEGImages\\plain.jpg\nC:\\data\\img (1).jpg\n/home/me/a,b #1.xml", ["plain", "img (1)", "a,b #1"]),
        ("cafe\u0301\n", ["caf\u00e9"]),
        ("img (1) 1 1\n", ["img (1) 1"]),
        ("PLAIN.JPG\nIMG (2) -1\n", ["plain", "img (2)"]),
    ],
)
def test_lines_of_an_image_set_are_whole_names_where_those_exist(write_voc, lines: str, ids: list[str]) -> None:
    names = ("img (1)", "img (2)", "plain", "a,b #1", "caf\u00e9", "img (1) 1", "img")
    root = write_voc({name: ((30, 40), [("cat", (5, 5, 9, 9))]) for name in names})
    (root / "ImageSets" / "Main" / "train.txt").write_text(lines, encoding="utf-8", newline="")
    assert read_voc(root, "train").image_ids.tolist() == ids
    assert read_voc_ground_truth(root, "train").image_ids == ids


@pytest.mark.parametrize("line", ["../two", "/etc/passwd", "a/../../two"])
def test_image_sets_do_not_lead_out_of_the_folder(write_voc, line: str) -> None:
    root = write_voc({"one": ((30, 40), [])})
    (root / "ImageSets" / "Main" / "train.txt").write_text(line)
    with pytest.raises(UserError, match="leads out of"):
        read_voc(root, "train")


def test_images_in_folders_below(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [])})
    for folder in ("x", "y"):  # the same file name in several folders
        write_image(root / "JPEGImages" / folder / "one.png", (20, 30))
        (root / "Annotations" / folder).mkdir()
        (root / "Annotations" / folder / "one.xml").write_text(annotation_xml([(folder, (1, 1, 9, 9))], (20, 30)))
    (root / "ImageSets" / "Main" / "train.txt").write_text("x/one\none\ny/one.png")
    records = read_voc(root, "train")
    assert records.image_ids.tolist() == ["x/one", "one", "y/one"]
    assert records.sizes.tolist() == [[20, 30], [30, 40], [20, 30]]
    assert records.class_names == ["x", "y"]


@pytest.mark.parametrize("encoding", ["gb2312", "utf-8-sig", "utf-16"])
def test_annotations_in_other_encodings(write_voc, encoding: str) -> None:
    root = write_voc({"one": ((30, 40), [("\u7ea2", (5, 5, 9, 9))])})
    xml = (root / "Annotations" / "one.xml").read_text()
    declaration = "" if encoding == "utf-8-sig" else f'<?xml version="1.0" encoding="{encoding}"?>\n'
    (root / "Annotations" / "one.xml").write_bytes((declaration + xml).encode(encoding))
    assert read_voc(root, "train").class_names == ["\u7ea2"]


def test_hidden_files_are_passed_over(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (5, 5, 9, 9))])})
    for path in ("JPEGImages/._one.jpg", "Annotations/._one.xml", "ImageSets/Main/._train.txt", "JPEGImages/Thumbs.db"):
        (root / path).write_bytes(b"\0\5\x16\7")
    assert read_voc(root, "train").image_ids.tolist() == ["one"]
    with pytest.raises(UserError, match=r"there are: train$"):
        read_voc(root, "test")


def test_of_images_that_differ_in_suffix_the_annotations_own_is_taken(write_voc, caplog) -> None:
    root = write_voc({"one": ((30, 40), [])})
    write_image(root / "JPEGImages" / "one.png", (20, 50))
    assert read_voc(root, "train").image_paths[0].endswith("one.jpg")
    assert "holds one.jpg and one.png: the first is taken" in caplog.text
    xml = root / "Annotations" / "one.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>one.png</filename>"))
    assert read_voc(root, "train").image_paths[0].endswith("one.png")


@pytest.mark.parametrize(
    ("word", "difficult"),
    [("yes", True), ("True", True), (" 1 ", True), ("no", False), ("Unspecified", False), ("", False)],
)
def test_difficult_in_words(write_voc, word: str, difficult: bool) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (5, 5, 9, 9))])})
    xml = root / "Annotations" / "one.xml"
    xml.write_text(xml.read_text().replace("<difficult>0<", f"<difficult>{word}<"))
    assert read_voc(root, "train").difficult.tolist() == [difficult]


def test_reversed_boxes_are_told_apart(write_voc, caplog) -> None:
    root = write_voc({"one": ((48, 64), [("a", (25, 6, 6, 25)), ("b", (60, 40, 20, 18))])})
    read_voc(root, "train")
    assert "2 objects with xmax below xmin or ymax below ymin will not be trained on: corners exchanged?" in caplog.text
    caplog.clear()
    sides = [("a", (x, y, 12, 10)) for x, y in ((2, 3), (20, 30), (40, 20), (50, 30), (30, 10))]
    read_voc(write_voc({"one": ((48, 64), sides)}), "train")
    assert "4 objects with xmax below xmin" in caplog.text
    assert "on: width and height in place of xmax and ymax?" in caplog.text


def test_a_wrong_declared_size_is_taken_from_the_image(write_voc, caplog) -> None:
    root = write_voc({"one": ((96, 128), [("cat", (91, 61, 120, 90))])})
    xml = root / "Annotations" / "one.xml"
    xml.write_text(xml.read_text().replace("<width>128", "<width>64").replace("<height>96", "<height>48"))
    records = read_voc(root, "train")
    assert records.sizes.tolist() == [[96, 128]]
    assert records.trainable().tolist() == [True]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 image is not of the declared size" in message
    assert "is 128 wide and 96 high, declared 64 and 48" in message


def test_names_that_are_not_utf8_are_one_line() -> None:
    name = os.fsdecode(b"Mu\xf1oz")
    with pytest.raises(UserError, match=r"set: the name of 1 image is not UTF-8, the first: /x/Mu.udcf1oz.jpg: rename"):
        make_records(
            images=[(f"/x/{name}.jpg", name, (3, 4))], boxes=[], labels=[], counts=[0], class_names=[], source="set",
            annotation_file="{}",
        )  # fmt: skip


def test_suffixes_in_upper_case_and_names_that_begin_with_a_blank(write_voc) -> None:
    root = write_voc({name: ((30, 40), [("cat", (5, 5, 20, 20))]) for name in ("a", " b")})
    (root / "Annotations/a.xml").rename(root / "Annotations/a.XML")
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/a.JPG")
    records = read_voc(root, "train")
    assert records.image_ids.tolist() == ["a", " b"]
    assert len(records.labels) == read_voc_ground_truth(root, "train").labels.size == 2


def test_names_of_image_and_annotation_that_differ_in_case(write_voc) -> None:
    root = write_voc({"one": ((30, 40), [("cat", (5, 5, 20, 20))])})
    (root / "JPEGImages/one.jpg").rename(root / "JPEGImages/One.jpg")
    for listed in ("one", "One"):
        (root / "ImageSets/Main/train.txt").write_text(listed)
        records = read_voc(root, "train")
        assert records.image_paths[0].endswith("One.jpg")
        assert records.boxes.tolist() == [[4, 4, 20, 20]]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ([[0, 5], [1, 0]], True),  # two at 0, one at 1
        ([[0.9, 5], [1.9, 1]], False),
        ([[0.9998, 5], [0.9998, 1.7]], False),  # from YOLO's fractions
        ([[-0.0002, 5]], True),
        ([[0, 1]], False),  # in doubt from 1, as VOC has it
        ([[2, 9], [-1, 3]], None),
    ],
)
def test_where_the_first_pixel_is(corners, expected) -> None:
    assert corners_from_zero(np.array(corners, float)) is expected


def test_rotated_boxes_are_told(write_voc, caplog, monkeypatch) -> None:
    """CVAT writes the box as it was before the turn, and the angle beside it."""
    monkeypatch.setattr("datasets.complaints._told", set())
    root = write_voc({"one": ((30, 40), [("cat", (3, 4, 20, 10))])})
    path = root / "Annotations" / "one.xml"
    attribute = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    for value, told in (("0.0", False), ("30.0", True)):
        path.write_text(
            annotation_xml([("cat", (3, 4, 20, 10))], (30, 40)).replace("</object>", attribute.format(value))
        )
        read_voc(root, "train")
        assert ("one.xml object 0 (cat): has a rotation, which is not read" in caplog.text) == told
