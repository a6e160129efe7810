"""The COCO reader: sparse ids there and back, crowd, empty images, and what can be wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.coco import _numbered, find_image, looks_like_corners, read_coco
from detection.evaluation.data import GroundTruth
from detection.evaluation.ground_truth import read_coco_ground_truth
from tests.datasets.conftest import write_image

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


def test_negative_sides_are_told_as_such(write_coco, caplog) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][2]["bbox"] = [15, 15, -10, -10]
    records = read_coco(*write_coco(content))
    assert records.boxes[2].tolist() == [15, 15, 5, 5]
    assert "1 object with a negative width or height will not be trained on" in caplog.text
    assert "xmax" not in caplog.text


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
        (
            lambda c: c["annotations"][1].update(image_id=4),
            "1 (id 41): image_id 4 is not among the images",
        ),
        (
            lambda c: c["annotations"][1].update(category_id=2),
            "1 (id 41): category_id 2 is not among",
        ),
        (lambda c: c["annotations"][1].pop("bbox"), "annotation number 1 (id 41): has no bbox"),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, 3]),
            "1 (id 41): bbox is [1, 2, 3], not four numbers",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[1, 2, None, 3]),
            "1 (id 41): bbox is [1, 2, None, 3], not four numbers",
        ),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, float("nan"), 3]), "is not finite"),
        (lambda c: c.pop("images"), "no list of images"),
        (lambda c: c["images"].clear(), "lists no image"),
        (
            lambda c: c["images"].append({**c["images"][0], "file_name": "b.jpg"}),
            "id occurs more than once",
        ),
        (lambda c: c["images"][0].pop("file_name"), "image 7 has no file_name"),
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
    with pytest.raises(UserError, match=r"prepare_data\.py coco_test2015 --data-root"):
        read_coco(tmp_path / "coco" / "annotations" / "image_info_test-dev2015.json", folder)
    with pytest.raises(UserError, match=r"prepare_data\.py coco_test2017 --data-root"):
        read_coco(path, tmp_path / "coco" / "test2017")
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


TYPES = {
    "bbox null": (lambda c: c["annotations"][0].update(bbox=None), r"annotation number 0 \(id 50\): bbox is null"),
    "bbox text": (lambda c: c["annotations"][0].update(bbox="1 2 3 4"), "bbox is '1 2 3 4', not four numbers"),
    "bbox of text": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "not four numbers"),
    "bbox huge": (lambda c: c["annotations"][0].update(bbox=[1, 2, 1e300, 4]), "larger than any image"),
    "bbox beyond floats": (lambda c: c["annotations"][0].update(bbox=[10**400, 2, 3, 4]), "not finite"),
    "annotations object": (lambda c: c.update(annotations={"1": c["annotations"][0]}), "annotations is .*, not a list"),
    "annotations null": (lambda c: c.update(annotations=None), "annotations is null, not a list"),
    "annotation null": (lambda c: c["annotations"].append(None), "annotation number 3: is null, not an object"),
    "categories null": (lambda c: c.update(categories=None), "categories is null, not a list"),
    "categories object": (lambda c: c.update(categories={"1": "red"}), "categories is .*, not a list"),
    "category without id": (lambda c: c["categories"][1].pop("id"), "category number 1: has no id"),
    "category without name": (lambda c: c["categories"][1].pop("name"), r"category number 1 \(id 1\): has no name"),
    "category name null": (lambda c: c["categories"][1].update(name=None), "name is null: give the category a name"),
    "category ids mixed": (lambda c: c["categories"][0].update(id="90"), "partly numbers and partly text"),
    "category_id text": (
        lambda c: c["annotations"][0].update(category_id="90"),
        "category_id is the text '90', but the categories' ids are numbers",
    ),
    "image_id true": (lambda c: c["annotations"][0].update(image_id=True), "image_id is True, but the images' ids"),
    "image ids mixed": (lambda c: c["images"][1].update(id="x"), "partly numbers and partly text"),
    "image id null": (lambda c: c["images"][1].update(id=None), "image number 1: id is null"),
    "image id a list": (lambda c: c["images"][1].update(id=[1]), r"id is \[1\]: give a whole number or a text"),
    "image id huge": (lambda c: c["images"][1].update(id=2**70), "below 2"),
    "image text": (lambda c: c["images"].append("3.png"), "image number 3: is '3.png', not an object"),
    "width text": (lambda c: c["images"][0].update(width="40.0"), r"image number 0 \(id 7\): width is the text '40.0'"),
    "width negative": (lambda c: c["images"][0].update(width=-40), "width is -40: give a whole number of pixels"),
    "height NaN": (lambda c: c["images"][0].update(height=float("nan")), "height is nan"),
    "file_name null": (lambda c: c["images"][0].update(file_name=None), "file_name is null"),
    "file_name number": (lambda c: c["images"][0].update(file_name=7), "file_name is 7"),
    "area list": (lambda c: c["annotations"][0].update(area=[400]), r"area is \[400\], not a number"),
    "area NaN": (lambda c: c["annotations"][0].update(area=float("nan")), "area is nan"),
    "area text": (lambda c: c["annotations"][0].update(area="12"), "area is the text '12', not a number"),
    "area beyond images": (lambda c: c["annotations"][0].update(area=1e300), r"area is 1e\+300: larger than any image"),
    "iscrowd text": (lambda c: c["annotations"][0].update(iscrowd="0"), "iscrowd is the text '0': give 0 or 1"),
    "iscrowd two": (lambda c: c["annotations"][0].update(iscrowd=2), "iscrowd is 2: give 0 or 1"),
    "iscrowd list": (lambda c: c["annotations"][0].update(iscrowd=[0]), r"iscrowd is \[0\]"),
}


@pytest.mark.parametrize("name", TYPES)
def test_training_and_scoring_refuse_the_same_wrong_types(write_coco, name) -> None:
    change, said = TYPES[name]
    path, folder = write_coco(CONTENT)
    path.write_text(json.dumps(_broken(change)))
    for read in (lambda: read_coco(path, folder), lambda: read_coco_ground_truth(path)):
        with pytest.raises(UserError, match=said) as error:
            read()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [a.update(id=f"8f0c-{a['id']}") for a in c["annotations"]],
        lambda c: c["annotations"][0].update(id=None),
        lambda c: c["annotations"][0].update(id=[1]),
        lambda c: [i.update(id=float(i["id"])) for i in c["images"]],
        lambda c: [a.update(category_id=float(a["category_id"])) for a in c["annotations"]],
        lambda c: [a.update(iscrowd=bool(a.get("iscrowd"))) for a in c["annotations"]],
        lambda c: c["annotations"][2].update(area=None, iscrowd=None),
        lambda c: c["images"][0].update(width=40.0),
        lambda c: c["images"][0].update(width=None, height=None),
        lambda c: c["images"].append(dict(c["images"][0])),
        lambda c: c["images"][1].update(file_name="sub\\three.jpg"),
        lambda c: c["images"][0].update(file_name="C:\\data\\seven.jpg"),
    ],
)
def test_other_writings_of_the_same_content_mean_the_same(write_coco, change) -> None:
    path, folder = write_coco(CONTENT)
    expected = read_coco(path, folder), read_coco_ground_truth(path)
    path.write_text(json.dumps(_broken(change)))
    records, truth = read_coco(path, folder), read_coco_ground_truth(path)
    for found, wanted in ((records, expected[0]), (truth, expected[1])):
        for key in ("boxes", "labels", "area", "iscrowd"):
            assert np.array_equal(getattr(found, key), getattr(wanted, key)), key
    assert sorted(records.image_ids.tolist()) == truth.image_ids == [3, 7, 9]
    assert sorted(Path(file).name for file in records.image_paths) == ["nine.jpg", "seven.jpg", "three.jpg"]
    assert sorted(map(tuple, records.sizes.tolist())) == [(20, 50), (25, 25), (30, 40)]


def test_ids_of_text_lead_back(write_coco) -> None:
    content = copy.deepcopy(CONTENT)
    for item in content["categories"]:
        item["id"] = f"n{item['id']:02}"
    for item in content["annotations"]:
        item["category_id"] = f"n{item['category_id']:02}"
    path, folder = write_coco(content)
    records = read_coco(path, folder)
    assert records.class_names == ["person", "stop sign", "toothbrush"]
    assert records.category_ids.tolist() == ["n01", "n13", "n90"]
    again = records.with_classes(["toothbrush", "zebra"], known=["toothbrush", "zebra", "person", "stop sign"])
    assert again.category_ids.tolist() == ["n90", "-1"]
    assert GroundTruth.from_records(again).frame == "coco"


def test_categories_of_one_name_are_told_apart_by_both_tools(write_coco, caplog) -> None:
    path, folder = write_coco(_broken(lambda c: c["categories"][1].update(name="toothbrush")))
    names = ["toothbrush (id 1)", "stop sign", "toothbrush (id 90)"]
    assert read_coco(path, folder).class_names == read_coco_ground_truth(path).class_names == names
    assert caplog.text.count("told apart by id: toothbrush") == 2


def test_equal_annotation_ids_score_alike_in_both_tools(write_coco, caplog) -> None:
    path, folder = write_coco(_broken(lambda c: [a.update(id="x") for a in c["annotations"]]))
    records = read_coco(path, folder)
    assert records.labels.tolist() == [2, 3, 1]  # training takes all of them
    assert GroundTruth.from_records(records).boxes.tolist() == [[5, 5, 5, 10]] * 3  # pycocotools the last, each time
    assert read_coco_ground_truth(path).boxes.tolist() == [[5, 5, 5, 10]] * 3
    assert caplog.text.count("more than once") == 2


def test_what_is_likely_wrong_is_told(write_coco, caplog) -> None:
    content = _broken(lambda c: c["images"].append({**c["images"][0], "id": 8}))
    content["annotations"].append({**content["annotations"][0], "id": 51})
    read_coco(*write_coco(content))
    assert "1 image listed under two ids, the first: seven.jpg" in caplog.text
    assert "1 object annotated twice" in caplog.text


@pytest.mark.parametrize("with_area", [True, False])
def test_corners_in_place_of_sides_are_told(write_coco, caplog, with_area: bool) -> None:
    rng = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in range(1, 6)]
    annotations = []
    for number in range(20):
        x, y, w, h = (int(v) for v in rng.integers((15, 10, 3, 3), (25, 18, 10, 8)))
        box = [x, y, x + w, y + h]
        area = {"area": w * h} if with_area else {}
        annotations.append({"id": number + 1, "image_id": 1 + number % 5, "category_id": 1, "bbox": box, **area})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    path, _ = write_coco(content)
    read_coco_ground_truth(path)
    assert "seems to hold x1 y1 x2 y2" in caplog.text
    caplog.clear()
    for annotation in annotations:
        x1, y1, x2, y2 = annotation["bbox"]
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    path.write_text(json.dumps(content))
    read_coco_ground_truth(path)
    assert "seems to hold" not in caplog.text


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("e\u0301 1.png", "\u00e9 1.png"),  # macOS takes letters with marks apart
        ("1.png", "1.PNG"),
        ("a b.png", "a%20b.png"),
        ("a.png", "C:\\data\\A.png"),
        ("a.png", "data/local/a.png"),  # there is no folder data
        ("a.png", "images/0a1b2c3d-a.png"),  # Label Studio's prefix
    ],
)
def test_images_whose_names_are_written_otherwise(tmp_path: Path, file: str, named: str) -> None:
    write_image(tmp_path / file, (30, 40))
    assert find_image(tmp_path, named) == tmp_path / file
    write_image(tmp_path / f"x{file}", (30, 40))
    write_image(tmp_path / f"X{file}", (30, 40))
    assert find_image(tmp_path, f"x{file}".upper()) is None  # either could be meant


def test_two_names_that_mean_one_image(write_coco) -> None:
    path, folder = write_coco({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []})
    images = [{"id": n, "file_name": f"{prefix}a.png"} for n, prefix in enumerate(("0a1b2c3d-", "train/"))]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(UserError, match=r"0a1b2c3d-a\.png and train/a\.png both mean .*images/a\.png"):
        read_coco(path, folder)


def test_areas_below_zero_and_fractions_are_told(write_coco, caplog) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0.25, 0.25, 0.5, 0.5], "area": -1}
    image = {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    read_coco(*write_coco({"images": [image], "categories": [{"id": 1, "name": "c"}], "annotations": [annotation]}))
    assert "1 annotation with an area below 0" in caplog.text
    assert "the boxes seem to be in fractions of the image" in caplog.text


def test_blanks_around_names_and_areas_of_zero(write_coco, caplog) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"][0]["name"] = " toothbrush\n"
    content["annotations"][0]["area"] = 0
    assert read_coco(*write_coco(content)).class_names == ["person", "stop sign", "toothbrush"]
    assert "1 annotation with an area of 0, though not of the box: small objects" in caplog.text


def test_boxes_that_are_rather_corners() -> None:
    """Judged by the areas where they are the boxes', else by what leaves the image, here 100 x 50."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (9, 2))
    boxes = np.concatenate((corner, corner + rng.integers(5, 30, (9, 2))), axis=1).astype(float)
    limits = np.full((9, 2), (100.0, 50.0))
    of_corners, of_sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), boxes[:, 2:].prod(axis=1)
    assert looks_like_corners(boxes, of_corners, limits)
    assert not looks_like_corners(boxes, of_sides, limits)
    assert not looks_like_corners(boxes, np.full(9, 7.0), np.zeros((9, 2))), "areas of outlines say nothing"
    assert not looks_like_corners(boxes[:7], of_corners[:7], limits[:7]), "too few to judge"
    boxes[:, [0, 2]] += 60  # as sides they leave the image
    assert looks_like_corners(boxes, np.full(9, 7.0), limits)
    assert not looks_like_corners(boxes, np.full(9, 7.0), limits - 80), "as corners too"
    boxes[0, 2] = 3
    assert not looks_like_corners(boxes, np.full(9, 7.0), limits), "a second corner before the first"


def test_other_ids_are_numbered() -> None:
    assert _numbered(["a", None, "b", "a", None, [1], [1]]).tolist() == [1, 2, 3, 1, 4, 5, 5]


def test_one_id_for_two_categories_is_refused(write_coco) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"].append({**content["categories"][0], "name": "another"})
    with pytest.raises(UserError, match="the id occurs more than once, also for 'another'"):
        read_coco(*write_coco(content))


def test_rotated_boxes_are_told(write_coco, caplog, monkeypatch) -> None:
    monkeypatch.setattr("datasets.complaints._told", set())
    content = json.loads(json.dumps(CONTENT))
    path, folder = write_coco(content)
    content["annotations"][1]["attributes"] = {"occluded": False, "rotation": 30.0}
    path.write_text(json.dumps(content))
    read_coco(path, folder)
    assert f"(id {content['annotations'][1]['id']}): has a rotation, which is not read" in caplog.text
