"""Lists of CVAT, CreateML, Label Studio, Datumaro and VoTT: the same boxes from each, one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from datasets.annotation_lists import read_list
from datasets.records import Records
from tests.datasets.conftest import write_image

HEIGHT, WIDTH = 30, 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.jpg", (HEIGHT, WIDTH), number)
    return tmp_path


def read(folder: Path, file_format: Any, content: Any, **options: Any) -> Records:
    path = folder / ("a.xml" if isinstance(content, str) else "list.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_list(path, folder, file_format, **options)


def objects(records: Records) -> dict[str, list]:
    """Of each image the classes and boxes."""
    found = {}
    for index, name in enumerate(records.image_ids.tolist()):
        part = records.objects(index)
        labels = [records.class_names[label - 1] for label in records.labels[part]]
        found[name] = [[label, *box] for label, box in zip(labels, records.boxes[part].tolist(), strict=True)]
    return found


def cvat(inside: str, attributes: str = "") -> str:
    return (
        "<?xml version='1.0' encoding='utf-8'?><annotations><version>1.1</version><meta><job><labels><label><name>dog"
        "</name></label><label><name>cat</name></label></labels></job></meta>"
        f'<image id="0" name="a.jpg" width="40" height="30"{attributes}>{inside}</image>'
        '<image id="1" name="b.jpg" width="40" height="30" subset="val"/></annotations>'
    )


BOX = '<box label="cat" xtl="4" ytl="5" xbr="20" ybr="15.5" z_order="0"{}><attribute name="x">1</attribute></box>'


def test_cvat(folder: Path, caplog) -> None:
    shapes = [
        BOX.format(""),
        BOX.format(' rotation="90"'),  # about its middle 12, 10.25
        '<polygon label="dog" points="1.0,2.0;9.0,3.0;5.0,8.0"/>',
        '<ellipse label="dog" cx="10" cy="12" rx="3" ry="4"/>',
        '<mask label="cat" rle="1, 2" left="3" top="4" width="5" height="6"/>',
        '<points label="cat" points="1,2"/><tag label="cat"/>',
    ]
    records = read(folder, "cvat", cvat("".join(shapes)))
    assert records.class_names == ["dog", "cat"]
    assert objects(records) == {
        "a": [
            ["cat", 4, 5, 20, 15.5],
            pytest.approx(["cat", 6.75, 2.25, 17.25, 18.25]),
            ["dog", 1, 2, 9, 8],
            ["dog", 7, 8, 13, 16],
            ["cat", 3, 4, 8, 10],
        ],
        "b": [],
    }
    assert "1 shape without a box" in caplog.text
    only = read(folder, "cvat", cvat(BOX.format(""), ' subset="train"'), subset="train")
    assert objects(only) == {"a": [["cat", 4, 5, 20, 15.5]]}


def task(result: list, **more: Any) -> dict:
    given = {"id": 1, "result": result, "was_cancelled": False, "ground_truth": False}
    return {"id": 1, "annotations": [given], "data": {"text": "x", "image": "/data/upload/1/0a1b2c3d-a.jpg"}, **more}


PERCENT = {"x": 10, "y": 20, "width": 40, "height": 50}
DECLARED = {"original_width": WIDTH, "original_height": HEIGHT}


def test_label_studio(folder: Path, caplog) -> None:
    result = [
        {"type": "rectanglelabels", **DECLARED, "value": {**PERCENT, "rotation": 0, "rectanglelabels": ["cat"]}},
        # 16 x 15 pixels, turned about the corner 4, 6 by a quarter: to the left of it
        {
            "type": "rectanglelabels",
            **DECLARED,
            "value": {**PERCENT, "x": 50, "rotation": 90, "rectanglelabels": ["cat"]},
        },
        {"type": "polygonlabels", "value": {"points": [[10, 10], [50, 20], [30, 90]], "polygonlabels": ["dog"]}},
        {"type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}},
        {"type": "rectangle", "id": "r", "value": PERCENT},
        {"type": "labels", "id": "r", "value": {**PERCENT, "labels": ["dog"]}},
        {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 1], "brushlabels": ["cat"]}},
        {"type": "choices", "value": {"choices": ["sunny"]}},
    ]
    empty = task([], data={"image": "/data/local-files/?d=my%20photos/b.jpg"})
    later = task([], data={"image": "c.jpg"}, annotations=[{"result": [], "was_cancelled": True}])  # not annotated yet
    write_image(folder / "c.jpg", (HEIGHT, WIDTH))
    found = objects(read(folder, "label_studio", [task(result), empty, later]))
    assert list(found) == ["a", "b"]
    assert found["b"] == []
    assert found["a"] == [
        pytest.approx(["cat", 4, 6, 20, 21]),
        pytest.approx(["cat", 20 - 15, 6, 20, 6 + 16]),
        pytest.approx(["dog", 4, 3, 20, 27]),
        pytest.approx(["dog", 16, 9, 24, 21]),
        pytest.approx(["dog", 4, 6, 20, 21]),
    ]
    assert "1 shape without a box" in caplog.text


def test_label_studio_short(folder: Path) -> None:
    """JSON-MIN: the regions beside the image's address; a task without regions has no key for them."""
    tasks = [
        {"image": "https://x.org/a.jpg?token=1", "annotation_id": 1, "annotator": 1,
         "label": [{**PERCENT, **DECLARED, "rotation": 0, "rectanglelabels": ["cat"]}]},
        {"image": "/data/upload/1/0a1b2c3d-b.jpg", "annotation_id": 2, "annotator": 1},
    ]  # fmt: skip
    assert objects(read(folder, "label_studio", tasks)) == {"a": [pytest.approx(["cat", 4, 6, 20, 21])], "b": []}


def test_of_several_annotations_of_a_task_one_is_taken(folder: Path) -> None:
    values = [{**PERCENT, "x": x, "rectanglelabels": ["cat"]} for x in (0, 10, 20)]
    given = [
        {"result": [{"type": "rectanglelabels", "value": value}], "was_cancelled": value["x"] == 20} for value in values
    ]
    found = objects(read(folder, "label_studio", [task([], annotations=given)]))
    assert found == {"a": [pytest.approx(["cat", 4, 6, 20, 21])]}


def createml(name: str) -> dict:
    coordinates = {"x": 12, "y": 10.25, "width": 16, "height": 10.5}
    return {"image": name, "verified": False, "annotations": [{"label": "cat", "coordinates": coordinates}]}


def test_createml(folder: Path) -> None:
    expected = [["cat", 4, 5, 20, 15.5]]
    assert objects(read(folder, "createml", [createml("a.jpg"), {"image": "b.jpg", "annotations": []}])) == {
        "a": expected,
        "b": [],
    }
    (folder / "list.json").unlink()
    for name in "ab":  # labelImg: a file for each image
        (folder / f"{name}.json").write_text(json.dumps([createml(f"{name}.jpg")]))
    assert objects(read_list(folder, folder, "createml")) == {"a": expected, "b": expected}


def test_datumaro(folder: Path) -> None:
    things = [
        {"type": "bbox", "label_id": 1, "bbox": [4, 5, 16, 10.5], "attributes": {"rotation": 0.0}},
        {"type": "bbox", "label_id": 1, "bbox": [4, 5, 16, 10.5], "attributes": {"rotation": 90}},
        {"type": "polygon", "label_id": 0, "points": [1, 2, 9, 3, 5, 8]},
        {"type": "label", "label_id": 0},
    ]
    content = {
        "categories": {"label": {"labels": [{"name": "dog"}, {"name": "cat"}]}},
        "items": [
            {"id": "a", "annotations": things, "image": {"path": "a.jpg", "size": [30, 40]}},
            {"id": "b", "annotations": []},
        ],
    }
    records = read(folder, "datumaro", content)
    assert records.class_names == ["dog", "cat"]
    turned = pytest.approx(["cat", 6.75, 2.25, 17.25, 18.25])
    assert objects(records) == {"a": [["cat", 4, 5, 20, 15.5], turned, ["dog", 1, 2, 9, 8]], "b": []}


def test_vott(folder: Path) -> None:
    region = {"type": "RECTANGLE", "tags": ["cat"], "boundingBox": {"left": 4, "top": 5, "width": 16, "height": 10.5}}
    assets = {
        str(number): {"asset": {"name": name, "size": {"width": 40, "height": 30}}, "regions": regions}
        for number, (name, regions) in enumerate({"a.jpg": [region], "b.jpg": []}.items())
    }
    assets["2"] = {"asset": {"name": "c.jpg", "state": 0}, "regions": []}  # not opened yet
    content = {"tags": [{"name": "dog"}, {"name": "cat"}], "assets": assets}
    records = read(folder, "vott", content)
    assert records.class_names == ["dog", "cat"]
    assert objects(records) == {"a": [["cat", 4, 5, 20, 15.5]], "b": []}


@pytest.mark.parametrize(
    ("file_format", "content", "message"),
    [
        ("cvat", "<annotations><track id='0'/></annotations>", "holds tracks .* export the task again"),
        ("cvat", cvat('<box label="cat" xtl="1" ytl="x" xbr="2" ybr="3"/>'), "a.jpg object 0: 1, x, 2, 3: not all"),
        ("cvat", cvat('<box label="cat" xtl="1"/>'), "object 0: has no ytl"),
        ("cvat", "<a/>", "begins with <a>, not <annotations>"),
        ("label_studio", [task([], data={"image": "x"})], "task 0: its data name no image file"),
        ("label_studio", [task([{"value": {"x": 1, "y": 2, "width": 3, "height": None, "rectanglelabels": ["c"]}}])],
         r"task 0 .* object 0: the region .* lacks a number"),
        ("createml", [{"image": "a.jpg", "annotations": [{"label": "c", "coordinates": {"x": 1}}]}], "are not numbers"),
        ("createml", [createml("c.jpg")], "has no image c.jpg"),
        ("datumaro", {"categories": {}, "items": [{"id": "a.jpg", "annotations": [{"type": "bbox", "label_id": 0}]}]},
         "label_id 0 is not one of"),
        ("datumaro", {"categories": {"label": {"labels": [{"name": "c"}]}}, "items": [{"id": "a.jpg", "annotations": [
            {"type": "bbox", "label_id": 0, "bbox": [1, 2, 3, 4], "attributes": {"rotation": float("inf")}}
        ]}]}, "object 0: .*inf.* are not numbers of pixels"),
        ("vott", {"tags": [], "assets": {"1": {"asset": {"name": "a.jpg"}, "regions": [{"tags": []}]}}},
         "boundingBox is missing"),
    ],
)  # fmt: skip
def test_one_line_for_what_is_wrong(folder: Path, file_format: str, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(folder, file_format, content)


def test_a_subset_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match="no image of the subset test; there are: , val"):
        read(folder, "cvat", cvat(""), subset="test")
