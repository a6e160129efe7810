"""VIA's and TensorFlow's tables: columns, shapes, empty images, and mistakes by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from datasets.annotation_tables import read_csv, read_via
from tests.datasets.conftest import write_image

HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "sub/b", "c")):
        write_image(tmp_path / f"{name}.jpg", (30, 40), number)
    return tmp_path


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def test_tensorflow(folder: Path) -> None:
    path = table(folder, HEADER + "b.jpg,40,30,dog,1,2,10,20\na.jpg,40,30,big cat,0,0,5.5,6\nb.jpg,40,30,dog,3,3,9,9\n")
    records = read_csv(path, folder)
    assert records.image_ids.tolist() == ["b", "a"]
    assert records.boxes.tolist() == [[1, 2, 10, 20], [3, 3, 9, 9], [0, 0, 5.5, 6]]
    assert records.class_names == ["big cat", "dog"]
    everything = read_csv(path, folder, unlabelled="empty")
    assert everything.image_ids.tolist() == ["b", "a", "c"]
    assert everything.offsets.tolist() == [0, 2, 3, 3]
    with pytest.raises(UserError, match=r"does not name 1 of 3 images, for example .*c\.jpg: .*unlabelled: empty"):
        read_csv(path, folder, unlabelled="error")


def test_other_columns_and_separators(folder: Path) -> None:
    text = "image_path;x1;y1;x2;y2;label\nD:\\x\\a.jpg;1;2;10;20;dog\nc.jpg;;;;;\n"
    records = read_csv(table(folder, text), folder)
    assert records.boxes.tolist() == [[1, 2, 10, 20]]
    assert records.offsets.tolist() == [0, 1, 1]
    assert records.sizes.tolist() == [[30, 40]] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("filename,xmin,ymin\na.jpg,1,2\n", "has no column class and no column xmax and no column ymax"),
        (HEADER, "has no line below its header"),
        (HEADER + "a.jpg,40,30,dog,1,2,10\n", "line 2: has 7 values, the header has 8"),
        (HEADER + "a.jpg,40,30,dog,1,2,x,20\n", "line 2: 1, 2, x, 20 are not four numbers"),
        (HEADER + "a.jpg,40,30,,1,2,10,20\n", "line 2: has a box without a class"),
        (HEADER + "z.jpg,40,30,dog,1,2,10,20\n", "has no image z.jpg"),
        (HEADER.replace("width", "xmin") + "a.jpg,4,30,dog,1,2,10,20\n", "line 1: names the column xmin twice"),
    ],
)
def test_broken_tables(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_csv(table(folder, text), folder)
    assert said in str(error.value)


RECT = {"name": "rect", "x": 1, "y": 2, "width": 9, "height": 18}
SHAPES = {
    "a.jpg": [RECT, {"name": "circle", "cx": 10, "cy": 10, "r": 4}, {"name": "point", "cx": 1, "cy": 1}],
    "b.jpg": [
        {"name": "polygon", "all_points_x": [5, 9, 7], "all_points_y": [1, 2, 8]},
        {"name": "ellipse", "cx": 20, "cy": 10, "rx": 4, "ry": 2},
    ],
    "c.jpg": [],
}
BOXES = [[1, 2, 10, 20], [6, 6, 14, 14], [5, 1, 9, 8], [16, 8, 24, 12]]


@pytest.mark.parametrize("version", [1, 2])
def test_via_csv(folder: Path, version: int) -> None:
    with (folder / "via.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        names = "filename file_size file_attributes region_count region_id region_shape_attributes region_attributes"
        writer.writerow(f"{'#' if version == 1 else ''}{names}".split(" "))
        for name, shapes in SHAPES.items():
            for number, shape in enumerate(shapes):
                writer.writerow([name, 1, "{}", len(shapes), number, json.dumps(shape), '{"kind of": "dog"}'])
            if not shapes:
                writer.writerow([name, 1, "{}", 0, 0, "{}", "{}"])
    records = read_via(folder / "via.csv", folder)
    assert records.boxes.tolist() == BOXES
    assert records.offsets.tolist() == [0, 2, 4, 4]
    assert records.class_names == ["dog"]


def via_json(attributes: dict) -> dict:
    return {
        f"{name}1": {
            "filename": name,
            "regions": [{"shape_attributes": shape, "region_attributes": attributes} for shape in shapes],
        }
        for name, shapes in SHAPES.items()
    }


@pytest.mark.parametrize("project", [False, True])
def test_via_json(folder: Path, project: bool) -> None:
    content = via_json({"type": {"dog": True, "cat": False}, "note": "x"})
    (folder / "via.json").write_text(json.dumps({"_via_img_metadata": content} if project else content))
    records = read_via(folder / "via.json", folder)
    assert records.boxes.tolist() == BOXES
    assert records.class_names == ["dog"]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        (
            {"colour": "red", "size": "1"},
            "cannot tell which region attribute is the class (colour, size): call it class",
        ),
        ({}, "there is none"),
        ({"class": ""}, "image a.jpg object 0: its attribute class names no class"),
        ({"class": {"dog": True, "cat": True}}, "names no class, or several"),
    ],
)
def test_via_without_a_class(folder: Path, attributes: dict, said: str) -> None:
    (folder / "via.json").write_text(json.dumps(via_json(attributes)))
    with pytest.raises(UserError) as error:
        read_via(folder / "via.json", folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        (5, "regions is 5, not a list"),
        ([None], "object 0: is null, not an object"),
        ([{"shape_attributes": []}], "object 0: shape_attributes is []: give an object {...}"),
        ([{"shape_attributes": {"name": "rect", "x": "1", "y": 2, "width": 3, "height": 4}}], "lacks a number"),
        ([{"shape_attributes": {"name": "circle", "cx": 1e400, "cy": 2, "r": 3}}], "lacks a number"),
    ],
)
def test_via_with_values_of_another_type(folder: Path, regions: Any, said: str) -> None:
    for region in regions if isinstance(regions, list) else ():
        if region:
            region["region_attributes"] = {"class": "cat"}
    (folder / "via.json").write_text(json.dumps({"a.jpg1": {"filename": "a.jpg", "regions": regions}}))
    with pytest.raises(UserError, match=r"via\.json image a\.jpg") as error:
        read_via(folder / "via.json", folder)
    assert said in str(error.value)
