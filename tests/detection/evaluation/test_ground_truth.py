"""Annotation files, read with the official tools' meaning; what is wrong is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from detection.evaluation import coco
from detection.evaluation.coco import plain_pycocotools
from detection.evaluation.data import align
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.results import read_detections

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


def write_voc(root: Path, images: dict[str, list[tuple]], image_set: str = "test") -> Path:
    """A VOC folder without images; an object is (name, box, difficult)."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in images))
    for name, objects in images.items():
        inside = "".join(OBJECT.format(name=item[0], box=item[1], difficult=int(item[2])) for item in objects)
        size = "<size><width>60</width><height>50</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{inside}</annotation>")
    return root


# ---------------------------------------------------------------------------------------------- VOC


def test_voc_boxes_are_the_files_own_doubles(tmp_path: Path) -> None:
    box = ("45.70000076293945", 1, "60.3", 2)
    truth = read_voc_ground_truth(
        write_voc(tmp_path / "voc", {"b": [("dog", box, 1), ("cat", (1, 2, 3, 4), 0)], "a": []})
    )
    np.testing.assert_array_equal(truth.boxes, [[45.70000076293945, 1, 60.3, 2], [1, 2, 3, 4]])
    assert truth.image_ids == ["b", "a"]  # the list's order, images without objects included
    assert truth.class_names == ["cat", "dog"]
    assert truth.labels.tolist() == [2, 1]
    assert truth.difficult.tolist() == [True, False]
    assert truth.image_sizes is not None
    assert truth.image_sizes.tolist() == [[50, 60], [50, 60]]


def test_the_name_of_another_file_in_a_voc_annotation(tmp_path: Path) -> None:
    """A copied annotation keeps the name of the image that it was copied from: its scores went to the copy."""
    root = write_voc(tmp_path / "voc", {"a": [], "b": [], "c": [], "d": []})
    for name, said in {"a": "a.png", "b": "C:\\x\\z.jpg", "c": "other.png", "d": ""}.items():
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<size>", f"<filename>{said}</filename><size>"))
    (root / "JPEGImages").mkdir()
    for name in ("a.png", "b.jpg", "z.jpg", "other.png"):
        (root / "JPEGImages" / name).touch()
    assert read_voc_ground_truth(root).image_files == ["a.png", "b.jpg", "other.png", "d.jpg"]


def test_voc_files_that_count_from_zero(tmp_path: Path) -> None:
    truth = read_voc_ground_truth(write_voc(tmp_path / "voc", {"a": [("dog", (0, 0, 10, 20), 0)]}), zero_based=True)
    np.testing.assert_array_equal(truth.continuous_boxes, [[0, 0, 10, 20]])
    assert truth.area.tolist() == [200]


@pytest.mark.parametrize(("corner", "zero_based", "told"), [(0, False, "set"), (1, True, "leave out")])
def test_a_wrong_first_pixel_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, corner: int, zero_based: bool, told: str
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [("dog", (corner, 9, 10, 20), 0)]})
    read_voc_ground_truth(root, zero_based=zero_based)
    assert f"begin at {corner}" in caplog.text
    assert f"{told} zero_based (--zero-based)" in caplog.text
    caplog.clear()
    read_voc_ground_truth(root, zero_based=not zero_based)
    assert not caplog.text


def test_per_class_lists_and_lists_that_repeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_voc(tmp_path / "voc", {"a": [], "b": []})
    (root / "ImageSets" / "Main" / "dog_test.txt").write_text("b -1\na  1\n\nb -1\n")
    assert read_voc_ground_truth(root, "dog_test").image_ids == ["b", "a"]
    assert "more than once" in caplog.text


def test_wrong_image_set_is_named_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tset\.txt.*did you mean test"):
        read_voc_ground_truth(write_voc(tmp_path / "voc", {"a": []}), "tset")


def test_missing_parts_of_a_voc_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Annotations: there is no such folder"):
        read_voc_ground_truth(tmp_path)
    root = write_voc(tmp_path / "voc", {"a": []})
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(UserError, match=r"a\.xml"):
        read_voc_ground_truth(root)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no image"):
        read_voc_ground_truth(root)


def test_a_coordinate_that_is_no_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xml.*finite"):
        read_voc_ground_truth(write_voc(tmp_path / "voc", {"a": [("dog", (1, "nan", 3, 4), 0)]}))


# ---------------------------------------------------------------------------------------------- COCO


def annotation(number: int, image: object, category: object, box: list, **more: object) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": 9.0, "iscrowd": 0, **more}


def dataset() -> dict:
    return {
        "images": [{"id": 30, "height": 50, "width": 60, "file_name": "x.jpg"}, {"id": 7}],
        "categories": [{"id": 44, "name": "dog"}, {"id": 18, "name": "cat"}],
        "annotations": [annotation(5, 30, 44, [0, 0, 20, 20]), annotation(9, 7, 18, [1.5, 2, 3, 4], iscrowd=1)],
    }


def read(tmp_path: Path, content: object):
    path = tmp_path / "gt.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco_ground_truth(path)


def test_coco_ids_are_sorted_and_lead_back(tmp_path: Path) -> None:
    truth = read(tmp_path, dataset())
    assert (truth.image_ids, truth.category_ids, truth.class_names) == ([7, 30], [18, 44], ["cat", "dog"])
    assert (truth.image_index.tolist(), truth.labels.tolist()) == ([1, 0], [2, 1])
    assert truth.iscrowd.tolist() == [False, True]
    assert truth.image_files == ["", "x.jpg"]
    assert truth.image_sizes is not None
    assert truth.image_sizes.tolist() == [[0, 0], [50, 60]]


def _without(key: str) -> dict:
    content = dataset()
    del content["annotations"][1][key]
    return content


def _with(**values: object) -> dict:
    content = dataset()
    content["annotations"][1].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "line 1"),
        ([], "not a COCO annotation file"),
        ({"images": [], "categories": []}, "no list of annotations"),
        (_without("bbox"), r"annotation number 1 \(id 9\): has no bbox"),
        (_without("image_id"), r"annotation number 1 \(id 9\): has no image_id"),
        (_with(bbox=[1, 2, 3]), r"annotation number 1 \(id 9\): bbox is .1, 2, 3., not four numbers"),
        (_with(bbox=[1, 2, 3, "4"]), r"annotation number 1 \(id 9\): bbox"),
        (_with(bbox=[1, 2, 3, float("nan")]), r"annotation number 1 \(id 9\): bbox .* not finite"),
        (_with(area="big"), r"annotation number 1 \(id 9\): area is the text 'big'"),
        (_with(image_id=[7]), r"annotation number 1 \(id 9\): image_id"),
        ({**dataset(), "images": [{"id": 1}, {"id": "1"}]}, "partly numbers and partly text"),
        ({**dataset(), "images": [{}]}, "image number 0: has no id"),
    ],
)
def test_broken_annotation_files_are_told_with_the_place(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert "gt.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "instances_val.json").touch()
    with pytest.raises(UserError, match=r"no such annotation file: the folder has instances_val\.json"):
        read_coco_ground_truth(tmp_path / "instances_vla.json")


def _repeated_ids() -> dict:
    content = dataset()
    boxes = [[0, 0, 20, 20], [30, 0, 20, 20], [50, 50, 10, 10]]
    content["annotations"] = [annotation(5 + number % 2, 30, 44, box) for number, box in enumerate(boxes)]
    return content


def _outsiders() -> dict:
    content = dataset()
    content["annotations"] += [annotation(10, 999, 44, [0, 0, 5, 5]), annotation(11, 30, 999, [0, 0, 5, 5])]
    return content


def _twice_the_same_image() -> dict:
    content = dataset()
    content["images"].append({"id": 7, "height": 1})
    return content


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (_repeated_ids(), "id occurs more than once"),
        (_outsiders(), "passes over"),
        (_twice_the_same_image(), "last one"),
    ],
)
def test_what_pycocotools_accepts_is_scored_as_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: dict, warning: str
) -> None:
    found = [
        {"image_id": 30, "category_id": 44, "bbox": box, "score": value}
        for box, value in (([0, 0, 20, 20], 0.9), ([50, 50, 10, 10], 0.8), ([30, 0, 20, 19], 0.7))
    ] + [{"image_id": 30, "category_id": 999, "bbox": [0, 0, 5, 5], "score": 0.9}]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    truth = read(tmp_path, content)
    assert warning in caplog.text
    result = coco.evaluate_coco(align(truth, read_detections(tmp_path / "dt.json", truth)))
    precision, recall = plain_pycocotools(tmp_path / "gt.json", tmp_path / "dt.json")
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


def test_likely_mistakes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    content = dataset()
    content["annotations"][0]["id"] = 0
    del content["annotations"][1]["area"]
    content["categories"].append({"id": 50, "name": "dog"})
    truth = read(tmp_path, content)
    assert "annotation id 0" in caplog.text
    assert truth.area.tolist() == [9.0, 12.0]
    assert "without an area" in caplog.text
    assert truth.class_names == ["cat", "dog (id 44)", "dog (id 50)"]


def test_text_ids_are_scored_as_pycocotools_does(tmp_path: Path) -> None:
    content = dataset()
    for item in (*content["images"], *content["annotations"]):
        key = "image_id" if "image_id" in item else "id"
        item[key] = f"name{item[key]}"
    found = [{"image_id": "name30", "category_id": 44, "bbox": [0, 0, 20, 15], "score": 0.5}]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    truth = read(tmp_path, content)
    result = coco.evaluate_coco(align(truth, read_detections(tmp_path / "dt.json", truth)))
    np.testing.assert_array_equal(result.precision, plain_pycocotools(tmp_path / "gt.json", tmp_path / "dt.json")[0])
