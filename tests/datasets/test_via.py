"""The VGG Image Annotator's exports: shapes, empty images, and mistakes by line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from datasets.via import read_via
from tests.datasets.conftest import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "sub/b", "c")):
        write_image(tmp_path / f"{name}.jpg", (30, 40), number)
    return tmp_path


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


def test_via_3(folder: Path) -> None:
    shapes = {
        "1": [[2, 1, 2, 9, 18], [3, 10, 10, 4], [1, 1, 1]],
        "2": [[7, 5, 1, 9, 2, 7, 8], [4, 20, 10, 4, 2]],
        "3": [],
    }
    content = {
        "attribute": {"1": {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "options": {"0": "cat", "1": "dog"}}},
        "file": {str(i): {"fid": str(i), "fname": name, "type": 2} for i, name in enumerate(SHAPES, 1)},
        "view": {str(i): {"fid_list": [str(i)]} for i in range(1, 4)},
        "metadata": {
            f"{view}_{number}": {"vid": view, "flg": 0, "z": [], "xy": xy, "av": {"1": "1"}}
            for view, some in shapes.items()
            for number, xy in enumerate(some)
        },
    }
    (folder / "project.json").write_text(json.dumps(content))
    records = read_via(folder / "project.json", folder)
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
