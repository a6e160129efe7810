"""The COCO reader: sparse ids there and back, crowd, empty images, and what can be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.coco import read_coco

CONTENT = {
    "images": [
        {"id": 7, "file_name": "seven.jpg", "height": 30, "width": 40},
        {"id": 3, "file_name": "sub/three.jpg", "height": 20, "width": 50},
        {"id": 9, "file_name": "nine.jpg", "height": 25, "width": 25},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    "annotations": [
        {"id": 50, "image_id": 9, "category_id": 90, "bbox": [1, 2, 10.5, 3.25], "area": 12.5, "iscrowd": 0},
        {"id": 41, "image_id": 7, "category_id": 13, "bbox": [0, 0, 40, 30], "area": 700, "iscrowd": 1},
        {"id": 40, "image_id": 9, "category_id": 1, "bbox": [5, 5, 5, 10]},
    ],
}


def test_content_by_hand(write_coco) -> None:
    path, folder = write_coco(CONTENT)
    records = read_coco(path, folder)
    assert records.class_names == ["person", "stop sign", "toothbrush"]
    assert records.category_ids.tolist() == [1, 13, 90]
    assert records.image_ids.tolist() == [7, 3, 9]
    assert records.sizes.tolist() == [[30, 40], [20, 50], [25, 25]]
    assert records.offsets.tolist() == [0, 1, 1, 3]  # image 3 has no annotation
    assert records.boxes.tolist() == [[0, 0, 40, 30], [1, 2, 11.5, 5.25], [5, 5, 10, 15]]
    assert records.labels.tolist() == [2, 3, 1]
    assert records.category_ids[records.labels - 1].tolist() == [13, 90, 1]
    assert records.area.tolist() == [700, 12.5, 50]
    assert records.iscrowd.tolist() == [True, False, False]
    assert records.annotation_ids.tolist() == [41, 50, 40]
    assert records.target(1).boxes.shape == (0, 4)
    assert [Path(path).name for path in records.image_paths] == ["seven.jpg", "three.jpg", "nine.jpg"]


def test_classes_mapped_keep_the_way_back(write_coco) -> None:
    path, folder = write_coco(CONTENT)
    records = read_coco(path, folder).with_classes(
        ["toothbrush", "zebra", "sign"], known=["toothbrush", "sign", "person", "zebra"], rename={"stop sign": "sign"}
    )
    assert records.category_ids.tolist() == [90, -1, 13]
    assert records.labels.tolist() == [3, 1]
    assert records.annotation_ids.tolist() == [41, 50]
    assert records.offsets.tolist() == [0, 1, 1, 2]


def test_file_without_annotations_is_images_only(write_coco) -> None:
    content = {key: value for key, value in CONTENT.items() if key != "annotations"}
    records = read_coco(*write_coco(content))
    assert not records.annotated
    assert len(records) == 3
    assert len(records.boxes) == 0


def test_missing_size_is_read_from_the_image(write_coco) -> None:
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [], "annotations": []}
    assert read_coco(*write_coco(content)).sizes.tolist() == [[30, 40]]


def test_boxes_outside_are_reported(write_coco, caplog) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["bbox"] = [1, 2, 24.9, 3]  # 0.9 of a pixel: rounding
    content["annotations"][2]["bbox"] = [5, 5, 30, 10]
    read_coco(*write_coco(content))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 object " in message
    assert "image 9 object 1 (person)" in message


def _broken(change) -> dict:
    content = copy.deepcopy(CONTENT)
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["annotations"][1].update(image_id=4), "annotation 41: image_id 4 is not among the images"),
        (lambda c: c["annotations"][1].update(category_id=2), "annotation 41: category_id 2 is not among"),
        (lambda c: c["annotations"][1].pop("bbox"), "annotation 41: has no bbox"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "annotation 41: bbox has 3 numbers"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, None, 3]), "annotation 41: bbox"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, float("nan"), 3]), "not a finite number"),
        (lambda c: c.pop("images"), "no list of images"),
        (lambda c: c["images"].clear(), "lists no image"),
        (lambda c: c["images"].append(c["images"][0]), "image id 7 occurs more than once"),
        (lambda c: c["images"][0].pop("file_name"), "image 7: has no file_name"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, write_coco, change, said: str) -> None:
    path, folder = write_coco(CONTENT)
    path.write_text(json.dumps(_broken(change)))
    with pytest.raises(UserError) as error:
        read_coco(path, folder)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path: Path, write_coco) -> None:
    path, folder = write_coco(CONTENT)
    with pytest.raises(UserError, match=rf"prepare_data\.py coco2017 --data-root {tmp_path}$"):
        read_coco(tmp_path / "coco" / "annotations" / "instances_val2017.json", folder)
    with pytest.raises(UserError, match=r"coco/train2014: there is no such folder.*prepare_data\.py coco2014"):
        read_coco(path, tmp_path / "coco" / "train2014")
    (folder / "sub" / "three.jpg").unlink()
    with pytest.raises(UserError, match=r"three\.jpg: there is no such image"):
        read_coco(path, folder)
    path.write_text("{")
    with pytest.raises(UserError, match=r"instances\.json: not valid JSON"):
        read_coco(path, folder)


def test_xywh_and_back_is_exact_for_whole_and_quarter_pixels(write_coco) -> None:
    path, folder = write_coco(CONTENT)
    boxes = read_coco(path, folder).boxes
    assert np.array_equal(boxes[1], np.array([1, 2, 1 + 10.5, 2 + 3.25]))
