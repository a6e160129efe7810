"""Detections as files: by hand, and what is written is what is read and scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.coco import read_coco
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import evaluate
from detection.evaluation.ground_truth import read_coco_ground_truth
from detection.evaluation.results import read_detections
from detection.evaluation.write import (
    category_ids_of,
    coco_records,
    voc_records,
    write_comp4,
    write_detections_json,
)
from tests.detection.evaluation.test_results import truth_of
from tools.benchmarks.synthetic import make_set, write_coco_annotations


def two(frame: str) -> Detections:
    """A traffic light in the third image and a cat in the first, in the frame's own numbers."""
    truth = truth_of(frame)
    return Detections(
        frame=truth.frame, image_ids=truth.image_ids, class_names=truth.class_names, image_index=np.array([2, 0]),
        labels=np.array([2, 1]), boxes=np.array([[5.0, 6, 14, 25], [1, 2.125, 3, 4]]), scores=np.array([0.1, 1 / 3]),
    )  # fmt: skip


def test_records_by_hand() -> None:
    assert voc_records(two("voc")) == [
        {"image_id": "12", "category": "traffic_light", "bbox": [5, 6, 14, 25], "score": 0.1},
        {"image_id": "000001", "category": "cat", "bbox": [1, 2.125, 3, 4], "score": 1 / 3},
    ]
    labels, ids = coco_records(two("coco")), coco_records(two("coco"), {"cat": 3, "traffic_light": 10})
    assert labels[0] == {"image_id": 12, "category_id": 2, "bbox": [5, 6, 14, 25], "score": 0.1}
    assert [record["category_id"] for record in labels] == [2, 1]
    assert [record["category_id"] for record in ids] == [10, 3]


def test_ids_of_the_annotation_file() -> None:
    assert category_ids_of(truth_of("coco")) == {"cat": 3, "traffic_light": 10}
    assert category_ids_of(replace(truth_of("coco"), category_ids=None)) is None


def test_comp4_by_hand(tmp_path: Path) -> None:
    """Image id, score, xmin, ymin, xmax, ymax in VOC's pixels, whatever the frame; a file for each class, in order."""
    light, cat = "12 0.1 5.0 6.0 14.0 25.0\n", "000001 0.3333333333333333 1.0 2.125 3.0 4.0\n"
    files = write_comp4(tmp_path, two("voc"), "val")
    assert [file.name for file in files] == ["comp4_det_val_cat.txt", "comp4_det_val_traffic_light.txt"]
    assert [file.read_text() for file in files] == [cat, light]
    from_coco = write_comp4(tmp_path, two("coco"))
    assert from_coco[1].read_text() == "12 0.1 6.0 7.0 19.0 31.0\n"  # 14 wide and 25 high from (5, 6) on


def test_voc_files_give_the_numbers_of_the_detections_in_memory(tmp_path: Path) -> None:
    truth, found = make_set("voc", images=40, classes=5, objects=150, detections=600, seed=1)
    in_memory = evaluate(truth, found)
    write_detections_json(tmp_path / "detections.json", found)
    write_comp4(tmp_path / "comp4", found)
    assert evaluate(truth, read_detections(tmp_path / "detections.json", truth)) == in_memory
    from_folder = evaluate(truth, read_detections(tmp_path / "comp4", truth))
    assert from_folder == in_memory
    assert in_memory["voc12"]["mAP"] > 0.05


def test_coco_files_give_the_numbers_of_the_detections_in_memory(tmp_path: Path) -> None:
    made, found = make_set("coco", images=40, classes=5, objects=150, detections=600, seed=1)
    write_coco_annotations(tmp_path / "gt.json", made)
    write_detections_json(tmp_path / "dt.json", found, category_ids_of(made))
    truth = read_coco_ground_truth(tmp_path / "gt.json")
    assert evaluate(truth, read_detections(tmp_path / "dt.json", truth)) == evaluate(made, found)
    first = json.loads((tmp_path / "dt.json").read_text())[0]
    assert list(first) == ["image_id", "category_id", "bbox", "score"]
    assert first["category_id"] == made.category_ids[found.labels[0] - 1]  # type: ignore[index]


def test_every_class_gets_its_file_and_no_half_file_stays(tmp_path: Path) -> None:
    truth = truth_of()
    nothing = np.zeros(0, dtype=np.int64)
    empty = Detections("voc", truth.image_ids, truth.class_names, nothing, nothing, np.zeros((0, 4)), np.zeros(0))
    write_comp4(tmp_path, empty, "val")
    write_detections_json(tmp_path / "detections.json", empty)
    names = ["comp4_det_val_cat.txt", "comp4_det_val_traffic_light.txt", "detections.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(read_detections(tmp_path, truth, "val")) == 0
    assert len(read_detections(tmp_path / "detections.json", truth)) == 0


CHANGES = {
    "plain": lambda c: None,
    "texts as ids": lambda c: [
        item.update({key: f"x{item[key]}" for key in keys})
        for items, keys in (("images", ["id"]), ("categories", ["id"]), ("annotations", ["image_id", "category_id"]))
        for item in c[items]
    ],
    "numbers as text": lambda c: [
        *(image.update(id=str(image["id"])) for image in c["images"]),
        *(annotation.update(image_id=str(annotation["image_id"])) for annotation in c["annotations"]),
    ],
    "floats as ids": lambda c: [image.update(id=float(image["id"])) for image in c["images"]],
    "two categories of one name": lambda c: c["categories"][1].update(name=c["categories"][0]["name"]),
    "equal annotation ids": lambda c: [a.update(id=a["id"] % 3 + 1) for a in c["annotations"]],
    "annotation ids as text": lambda c: [a.update(id=f"u{a['id']}") for a in c["annotations"]],
    "no areas": lambda c: [a.update(area=None) for a in c["annotations"]],
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_training_saves_scores_the_same_again(tmp_path: Path, name: str) -> None:
    """The way of train_det.py: records -> truth, detections in memory -> detections.json -> eval_det.py's reader."""
    made, found = make_set("coco", images=12, classes=3, objects=60, detections=200, seed=2)
    write_coco_annotations(tmp_path / "gt.json", made)
    content = json.loads((tmp_path / "gt.json").read_text())
    CHANGES[name](content)
    for image in content["images"]:
        image.update(file_name=f"{image['id']}.jpg", width=image.get("width", 99), height=image.get("height", 99))
        (tmp_path / image["file_name"]).touch()
    (tmp_path / "gt.json").write_text(json.dumps(content))
    truth = GroundTruth.from_records(read_coco(tmp_path / "gt.json", tmp_path))
    again = read_coco_ground_truth(tmp_path / "gt.json")
    assert truth.frame == "coco"
    in_memory = replace(found, image_ids=truth.image_ids, class_names=truth.class_names)
    write_detections_json(tmp_path / "dt.json", in_memory, category_ids_of(truth))
    assert evaluate(again, read_detections(tmp_path / "dt.json", again)) == evaluate(truth, in_memory)


def test_what_predict_writes_scores_the_same(tmp_path: Path) -> None:
    """predict.py's list has class names, 1-based pixels and the images' file names, whatever the set is."""
    made, found = make_set("coco", images=12, classes=3, objects=60, detections=200, seed=2)
    truth = replace(made, image_files=[f"photos\\{identity}.jpg" for identity in made.image_ids])
    names = [f"sub/{identity}.jpg" for identity in made.image_ids]
    predicted = replace(found, frame="voc", boxes=found.voc_boxes, image_ids=names)
    write_detections_json(tmp_path / "dt.json", predicted)
    with pytest.raises(UserError, match=r"image_id 'sub/.*\.jpg' is not in"):
        read_detections(tmp_path / "dt.json", truth)
    predicted = replace(predicted, image_ids=[name.removeprefix("sub/") for name in names])
    write_detections_json(tmp_path / "dt.json", predicted)
    expected, scored = evaluate(truth, found), evaluate(truth, read_detections(tmp_path / "dt.json", truth))
    assert scored["coco"]["AP"] == pytest.approx(expected["coco"]["AP"], abs=1e-12)
    assert scored["coco"]["AP"] > 0.01
    voc, found = make_set("voc", images=12, classes=3, objects=60, detections=200, seed=2)
    write_detections_json(tmp_path / "dt.json", replace(found, image_ids=[f"{name}.png" for name in found.image_ids]))
    assert evaluate(voc, read_detections(tmp_path / "dt.json", voc)) == evaluate(voc, found)


@pytest.mark.parametrize(
    "names", [["a/b", "a_b"], ["a_b", "a/b"], ["a/b", "a\\b", "a:b"], ["..", "../x", "/etc"], ["Cat", "cat"]]
)
def test_each_class_has_a_file_of_its_own_inside_the_folder(tmp_path: Path, names: list[str]) -> None:
    count = len(names)
    truth = replace(truth_of(), class_names=names, labels=np.array([1, 2]), category_ids=None)
    found = Detections(
        frame="voc", image_ids=truth.image_ids, class_names=names, image_index=np.zeros(count, np.int64),
        labels=np.arange(1, count + 1), boxes=np.ones((count, 4)) * 5, scores=np.linspace(0.5, 0.9, count),
    )  # fmt: skip
    files = write_comp4(tmp_path / "comp4", found)
    assert len({path.name.casefold() for path in files}) == count
    assert {path.parent for path in files} == {tmp_path / "comp4"}
    assert sorted(tmp_path.iterdir()) == [tmp_path / "comp4"]
    again = read_detections(tmp_path / "comp4", truth)
    assert dict(zip(again.labels, again.scores, strict=True)) == dict(zip(found.labels, found.scores, strict=True))


def test_long_class_names_have_a_file(tmp_path: Path) -> None:
    names = ["x" * 300, "x" * 301, "\u7ea2" * 200]
    nothing = np.zeros(0, np.int64)
    found = Detections("voc", ["a"], names, nothing, nothing, np.zeros((0, 4)), np.zeros(0))
    assert all(path.is_file() for path in write_comp4(tmp_path, found))
    assert len(list(tmp_path.iterdir())) == 3
