"""Conversions there and back give the same images, boxes and classes; what a format cannot hold is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from datasets.convert import convert, losses, new_names
from datasets.make_records import make_records
from datasets.records import Records, join
from tests.datasets.conftest import write_image
from tools.runtime.own_data import read_own_data

FORMATS = ("voc", "coco", "yolo")


@pytest.fixture
def parts(random_records) -> dict[str, Records]:
    """Two parts with whole and broken coordinates, sparse category ids, an empty image, and no flags."""
    records = random_records([(60, 80), (70, 50), (90, 90), (40, 64)])
    whole = np.arange(len(records.labels)) % 2 == 0
    boxes = np.where(whole[:, None], np.round(records.boxes), records.boxes)
    records = replace(
        records,
        boxes=boxes,
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        iscrowd=np.zeros(len(boxes), bool),
        difficult=np.zeros(len(boxes), bool),
        class_names=["ant & bee", "cat", "dog"],
        category_ids=np.array([3, 7, 40]),
    )
    return {"train": records.subset([0, 1, 3]), "val": records.subset([2])}


def content(parts: dict[str, Records]) -> dict[str, dict[str, list]]:
    """Of each part: each image's objects by its name, with boxes to a millionth of a pixel."""
    found: dict[str, dict[str, list]] = {}
    for part, records in parts.items():
        found[part] = {}
        for i, path in enumerate(records.image_paths.tolist()):
            objects = records.objects(i)
            names = [records.class_names[label - 1] for label in records.labels[objects]]
            boxes = records.boxes[objects].round(6).tolist()
            rows = zip(names, boxes, records.difficult[objects], records.truncated[objects], strict=True)
            found[part][Path(path).stem] = [list(row) for row in rows]
    return found


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_there_and_back(parts, tmp_path, first, second):
    convert(parts, tmp_path / "one", first)
    one = read_own_data(tmp_path / "one")
    assert content(one.records) == content(parts)
    convert(one.records, tmp_path / "two", second)
    two = read_own_data(tmp_path / "two")
    assert content(two.records) == content(parts)
    assert two.class_names == ["ant & bee", "cat", "dog"]
    images = {path.name: path.read_bytes() for path in (tmp_path / "two").rglob("*.png")}
    assert images == {Path(path).name: Path(path).read_bytes() for r in parts.values() for path in r.image_paths}


def test_whole_pixels_stay_whole_through_fractions(tmp_path):
    """Fractions make 314.99999999999994 of 315, which is 314, or an error, to whoever reads integers."""
    path = str(write_image(tmp_path / "a.png", (480, 640)))
    boxes = [(x, y, x + w, y + h) for x in range(0, 600, 7) for y, w, h in ((x % 311, 31, 97), (314, 3, 166))]
    records = make_records(
        images=[(path, "a", (480, 640))], boxes=boxes, labels=[1] * len(boxes), counts=[len(boxes)],
        class_names=["a"], source="", annotation_file="{}",
    )  # fmt: skip
    convert({"train": records}, tmp_path / "yolo", "yolo")
    there = {"train": read_own_data(tmp_path / "yolo").records["all"]}
    convert(there, tmp_path / "voc", "voc")
    convert(there, tmp_path / "coco", "coco")
    text = (tmp_path / "voc/Annotations/a.xml").read_text()
    found = np.array(re.findall(r"<[xy]m\w+>(.*?)<", text), int).reshape(-1, 4)
    assert (found - [1, 1, 0, 0]).tolist() == [list(box) for box in boxes]
    text = (tmp_path / "coco/annotations/instances_train.json").read_text()
    corners = [(x, y, x + w, y + h) for x, y, w, h in (item["bbox"] for item in json.loads(text)["annotations"])]
    assert corners == boxes
    assert "." not in text.replace(".png", "")


def test_coco_keeps_ids_areas_and_crowds(parts, tmp_path):
    train = parts["train"]
    train = replace(train, area=train.area / 2, iscrowd=np.arange(len(train.labels)) == 1)
    convert({"train": train, "val": parts["val"]}, tmp_path / "out", "coco")
    text = (tmp_path / "out/annotations/instances_train.json").read_text()
    assert [category["id"] for category in json.loads(text)["categories"]] == [3, 7, 40]
    back = read_own_data(tmp_path / "out").records["train"]
    assert back.area == pytest.approx(train.area)
    assert back.iscrowd.tolist() == train.iscrowd.tolist()
    assert back.category_ids.tolist() == [3, 7, 40]


def test_categories_have_one_id_in_all_parts(tmp_path):
    """A class that one part's file lacks got others in that part; ids that are texts were a traceback."""
    train = replace(one_image(tmp_path, ["ant", "bee", "cat"]), category_ids=np.array([3, 7, 40]))
    val = replace(train, category_ids=np.array([3, -1, 40]))
    texts = {"all": replace(train, category_ids=np.array(["a3", "a7", "b"]))}
    unsorted = {"all": replace(train, category_ids=np.array([7, 3, 40]))}
    for number, (parts, expected) in enumerate(
        (({"train": train, "val": val}, [3, 7, 40]), (texts, ["a3", "a7", "b"]), (unsorted, [1, 2, 3]))
    ):
        convert(parts, tmp_path / str(number), "coco")
        for part in parts:
            content = json.loads((tmp_path / str(number) / f"annotations/instances_{part}.json").read_text())
            assert [item["id"] for item in content["categories"]] == expected
            assert [item["category_id"] for item in content["annotations"]] == expected


def test_voc_keeps_difficult_and_truncated(parts, tmp_path):
    train = parts["train"]
    flags = np.arange(len(train.labels)) % 3 == 0
    train = replace(train, difficult=flags, truncated=~flags)
    convert({"train": train, "val": parts["val"]}, tmp_path / "out", "voc")
    back = read_own_data(tmp_path / "out").records["train"]
    assert back.difficult.tolist() == flags.tolist()
    assert back.truncated.tolist() == (~flags).tolist()


def test_what_is_lost_is_named(parts):
    assert losses(parts, "coco") == []
    flags = np.arange(len(parts["val"].labels)) < 2
    marked = {"val": replace(parts["val"], difficult=flags, iscrowd=flags, area=parts["val"].area * 0.5)}
    assert losses(marked, "coco") == ["2 objects marked difficult: coco has no such mark: ordinary objects there"]
    text = " | ".join(losses(marked, "yolo"))
    assert "2 objects marked difficult" in text
    assert "2 objects marked a crowd" in text
    assert f"{len(flags)} objects with an outline's area" in text
    assert "the categories' ids" in text
    unsorted = {"val": replace(parts["val"], class_names=["z", "b", "a"])}
    assert "their order is lost" in " ".join(losses(unsorted, "voc"))


def test_names_that_collide():
    images = [(f"/{place}", f"{i}", (9, 9)) for i, place in enumerate(("a/1.jpg", "b/1.PNG", "b/x y.jpg", "c/b_1.jpg"))]
    records = make_records(
        images=images, boxes=[], labels=[], counts=[0] * 4, class_names=["a"], source="", annotation_file="{}"
    )  # fmt: skip
    names = list(new_names({"train": records}).values())
    assert names == ["a_1.jpg", "b_1.PNG", "x y.jpg", "b_1_2.jpg"]


def test_nothing_is_written_over(parts, tmp_path):
    (tmp_path / "out").mkdir()
    convert(parts, tmp_path / "out", "voc")  # an empty folder will do
    with pytest.raises(UserError, match="is there already"):
        convert(parts, tmp_path / "out", "coco")


def test_boxes_on_an_image_that_viewers_turn(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(write_image(tmp_path / "b.jpg", (20, 40))).save(tmp_path / "a.jpg", exif=exif)
    records = make_records(
        images=[(str(tmp_path / "a.jpg"), "a", (20, 40))], boxes=[(1, 2, 30, 9)], labels=[1], counts=[1],
        class_names=["a"], source="", annotation_file="{}",
    )  # fmt: skip
    with pytest.raises(UserError, match="drawn on the image as it is stored"):
        convert({"train": records}, tmp_path / "yolo", "yolo")
    with pytest.raises(UserError, match="drawn on the image as it is stored"):  # of a copy of another size
        convert({"train": replace(records, sizes=records.sizes * 2)}, tmp_path / "yolo", "yolo")
    assert not (tmp_path / "yolo").exists()
    convert({"train": records}, tmp_path / "voc", "voc")
    assert read_own_data(tmp_path / "voc").records["all"].boxes.tolist() == [[1, 2, 30, 9]]
    turned = replace(
        records, sizes=np.array([[40, 20]]), boxes=np.array([[1.0, 2, 9, 30]])
    )  # drawn as a viewer shows it
    convert({"train": turned}, tmp_path / "yolo", "yolo")
    assert read_own_data(tmp_path / "yolo").records["all"].boxes == pytest.approx(np.array([[1, 2, 9, 30]]))


@pytest.mark.parametrize("to", ["voc", "coco", "yolo"])
def test_names_that_files_cannot_hold_are_refused_before_anything_is_written(random_records, tmp_path, to) -> None:
    records = replace(random_records([(20, 30)]), class_names=["a", "b\x1b[31m"])
    with pytest.raises(UserError, match=r"the class 'b\\x1b\[31m' holds control characters"):
        convert({"train": records}, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def one_image(folder: Path, class_names: list[str]) -> Records:
    """A picture with an object of each class."""
    write_image(folder / "a.png", (20, 30))
    boxes = [(n, 1, n + 8, 9) for n in range(len(class_names))]
    labels = range(1, len(class_names) + 1)
    return make_records(
        images=[(str(folder / "a.png"), "a", (20, 30))], boxes=boxes, labels=list(labels), counts=[len(boxes)],
        class_names=class_names, source="x", annotation_file="{}",
    )  # fmt: skip


@pytest.mark.parametrize("to", FORMATS)
def test_an_image_that_is_listed_twice(tmp_path, to) -> None:
    """As a COCO file lists it under two ids: the second annotation file took the first one's place."""
    records = one_image(tmp_path, ["ant", "bee"])
    half = records.with_objects(np.array([True, False]))
    convert({"train": records, "val": records}, tmp_path / "same", to)
    for number, parts in enumerate(({"train": join([records, half])}, {"train": records, "val": half})):
        if to == "coco" or (to == "yolo" and number == 1):
            convert(parts, tmp_path / str(number), to)
            continue
        with pytest.raises(UserError, match="is listed twice, with different objects"):
            convert(parts, tmp_path / str(number), to)


def test_blanks_that_voc_does_not_keep(tmp_path) -> None:
    records = one_image(tmp_path, ["a", "b  c"])
    with pytest.raises(UserError, match="voc does not keep the blanks of the class 'b  c'"):
        convert({"train": records}, tmp_path / "out", "voc")
    convert({"train": records}, tmp_path / "yolo", "yolo")
    assert read_own_data(tmp_path / "yolo").class_names == ["a", "b  c"]
