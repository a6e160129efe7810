"""Detection files of all forms: what is read, what is refused and where, what is only warned of; written = read."""

from __future__ import annotations

import json
import logging
import re
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
from detection.evaluation.write import category_ids_of, write_comp4, write_detections_json
from tools.benchmarks.synthetic import make_set, write_coco_annotations


def truth_of(frame: str = "voc") -> GroundTruth:
    ids = ["000001", "000002", "12"] if frame == "voc" else [1, 2, 12]
    return GroundTruth(
        frame=frame,  # type: ignore[arg-type]
        image_ids=ids,  # type: ignore[arg-type]
        class_names=["cat", "traffic_light"],
        image_index=np.array([0, 1]),
        labels=np.array([1, 2]),
        boxes=np.array([[1.0, 1, 10, 10], [5, 5, 20, 20]]),
        area=np.array([100.0, 256]),
        iscrowd=np.zeros(2, dtype=bool),
        difficult=np.zeros(2, dtype=bool),
        image_sizes=np.array([[50, 60]] * 3),
        category_ids=[3, 10],
        source="the set",
    )


GOOD = "000001 0.25 1 2 3.5 4e0\n"


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


# ---------------------------------------------------------------------------------------------- comp4


def test_comp4_files_are_read_class_by_class_in_file_order(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        comp4_det_test_traffic_light="000002\t1 1 1 2 2\r\n\n000001 .5 1 1 2 2",
        comp4_det_test_cat=GOOD,
        comp4_det_val_cat="not of this set",
        notes="nor this",
    )
    found = read_detections(path, truth_of())
    assert found.labels.tolist() == [1, 2, 2]
    assert found.image_index.tolist() == [0, 1, 0]
    assert found.scores.tolist() == [0.25, 1.0, 0.5]
    np.testing.assert_array_equal(found.boxes[0], [1, 2, 3.5, 4])


def test_comp4_numbers_are_read_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(50)
    lines = "".join(f"000001 {value!r} {value!r} 1 2 3\n" for value in values.tolist())
    found = read_detections(folder(tmp_path, comp4_det_test_cat=lines), truth_of())
    np.testing.assert_array_equal(found.scores, values)
    np.testing.assert_array_equal(found.boxes[:, 0], values)


def test_several_files_of_a_class_are_read_in_sorted_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, comp4_det_test_cat="12 .5 1 1 2 2", comp3_det_test_cat=GOOD)
    assert read_detections(path, truth_of()).image_index.tolist() == [0, 2]
    assert "several files" in caplog.text


def test_files_of_another_set_are_read_where_there_are_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(
        tmp_path, comp4_det_my_test_traffic_light="000001 .5 1 1 2 2", comp4_det_my_test_cow="000001 .5 1 1 2 2"
    )
    found = read_detections(path, truth_of(), "val")
    assert [found.class_names[label - 1] for label in found.labels] == ["test_cow", "traffic_light"]
    assert "val" in caplog.text
    one = read_detections(path / "comp4_det_my_test_traffic_light.txt", truth_of(), "val")
    assert one.labels.tolist() == [2]


def test_class_names_that_are_no_file_names_survive(tmp_path: Path) -> None:
    truth = replace(truth_of(), class_names=["cat/dog", "b"])
    found = Detections(
        "voc", truth.image_ids, truth.class_names, np.array([0]), np.array([1]), np.ones((1, 4)), np.ones(1)
    )
    paths = write_comp4(tmp_path / "out", found)
    assert [path.name for path in paths] == ["comp4_det_test_cat_dog.txt", "comp4_det_test_b.txt"]
    assert read_detections(tmp_path / "out", truth).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000001 0.5 1 2 3", "line 3: has 5 fields, not 6"),
        ("000001 0.5 1 2 3 4 5", "line 3: has 7 fields, not 6"),
        ("000001 high 1 2 3 4", "line 3: score is 'high', not a number"),
        ("000001 0.5 1 2 3 4px", "line 3: ymax is '4px', not a number"),
        ("000001 nan 1 2 3 4", "line 3: score is nan"),
        ("000001 0.5 1 inf 3 4", "line 3: ymin is inf"),
        ("00001 0.5 1 2 3 4", "line 3: image '00001' is not in the image set .did you mean 000001"),
    ],
)
def test_broken_lines_are_told_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = folder(tmp_path, comp4_det_test_cat=f"{GOOD}\n{line}\n{GOOD}")
    with pytest.raises(UserError, match=message) as caught:
        read_detections(path, truth_of())
    assert "comp4_det_test_cat.txt" in str(caught.value)


def test_lines_whose_lengths_make_up_for_each_other_are_not_taken_for_sound(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: has 5 fields"):
        read_detections(folder(tmp_path, comp4_det_test_cat="12 .5 1 1 2\n12 .5 1 1 2 2 3\n"), truth_of())


def test_folder_without_such_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="comp4_det_test_cat"):
        read_detections(folder(tmp_path, results="x"), truth_of())
    with pytest.raises(UserError, match="no such file of detections"):
        read_detections(tmp_path / "missing.json", truth_of())


def test_binary_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        read_detections(tmp_path, truth_of())


# ---------------------------------------------------------------------------------------------- JSON


def voc_item(**values: object) -> dict:
    return {"image_id": "000001", "category": "cat", "bbox": [1, 2, 3.5, 4], "score": 0.5, **values}


def coco_item(**values: object) -> dict:
    return {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3.5, 4], "score": 0.5, **values}


def read(tmp_path: Path, frame: str, content: object) -> Detections:
    path = tmp_path / "dt.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return read_detections(path, truth_of(frame))


def test_voc_list(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "voc",
        [voc_item(), voc_item(image_id=12, category="cow", score=1), voc_item(category="traffic_light")],
    )
    assert found.image_index.tolist() == [0, 2, 0]  # the number 12 is the image "12"
    assert [found.class_names[label - 1] for label in found.labels] == ["cat", "cow", "traffic_light"]
    np.testing.assert_array_equal(found.boxes[0], [1, 2, 3.5, 4])


def test_coco_results(tmp_path: Path) -> None:
    found = read(tmp_path, "coco", [coco_item(), coco_item(image_id=12.0, category_id=10, segmentation=[], score=-1)])
    assert found.image_index.tolist() == [0, 2]
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == [0.5, -1.0]


def test_infinite_scores_have_an_order_and_pass(tmp_path: Path) -> None:
    content = json.dumps([coco_item(score=float("inf")), coco_item(score=float("-inf"))])
    assert read(tmp_path, "coco", content).scores.tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    ("frame", "item", "message"),
    [
        ("voc", voc_item(image_id="000009"), r"detection 1 \(line \d+\): image_id '000009' is not in the set"),
        ("voc", voc_item(score=float("nan")), r"detection 1 \(line \d+\): score is nan"),
        ("voc", voc_item(score="0.5"), "score is the text '0.5', not a number"),
        ("voc", voc_item(score=None), "score is null, not a number"),
        ("voc", voc_item(score=True), "score is True, not a number"),
        ("voc", voc_item(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\], not four numbers \[xmin"),
        ("voc", voc_item(bbox=[1, 2, 3, "4"]), "not four numbers"),
        ("voc", voc_item(bbox=[1, 2, 3, float("inf")]), "not finite"),
        ("voc", voc_item(bbox={"x": 1}), "not four numbers"),
        ("voc", {"image_id": "000001", "category": "cat", "bbox": [1, 2, 3, 4]}, "has no score"),
        ("voc", 5, "not an object"),
        ("voc", voc_item(image_id=[1]), "image_id"),
        ("coco", coco_item(image_id=9), r"detection 1 \(line \d+\): image_id 9 is not in the set"),
        ("coco", coco_item(image_id="1"), "image_id is the text '1', but the ids of the set are numbers"),
        ("coco", coco_item(category_id=[3]), "category_id"),
        ("coco", coco_item(score=float("nan")), "score is nan"),
        ("coco", coco_item(bbox=[1, 2, 3, 4, 5]), r"not four numbers \[x, y, width, height\]"),
    ],
)
def test_broken_detections_are_told_with_their_line(tmp_path: Path, frame: str, item: object, message: str) -> None:
    first = voc_item() if frame == "voc" else coco_item()
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, frame, [first, item, first])
    assert "dt.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_is_the_right_one(tmp_path: Path) -> None:
    lines = [
        "[",
        json.dumps(coco_item()) + ",",
        "",
        json.dumps(coco_item()) + ",",
        json.dumps(coco_item(score=None)),
        "]",
    ]
    with pytest.raises(UserError, match=r"detection 2 \(line 5\)"):
        read(tmp_path, "coco", "\n".join(lines))


@pytest.mark.parametrize(
    ("frame", "content", "message"),
    [
        ("voc", '[{"image_id": ', r"not valid JSON.*line 1"),
        ("voc", "{}", "not a list"),
        ("voc", [coco_item()], "--format coco"),
        ("coco", [voc_item()], "image_id '000001' is not in the set"),
        ("coco", [{"image_id": 1, "category_id": 3, "segmentation": {}, "score": 1}], "mask results"),
        ("coco", {"images": [], "annotations": [], "categories": []}, "data-set dictionary"),
    ],
)
def test_files_of_another_form_are_told(tmp_path: Path, frame: str, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, frame, content)


def test_a_folder_is_no_coco_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read_detections(tmp_path, truth_of("coco"))


# ---------------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize(
    ("items", "warning"),
    [
        ([], "holds no detection"),
        ([voc_item(category="cta")], "no ground truth.*cta.*did you mean cat"),
        ([voc_item()], "nothing is detected of 1 classes.*traffic_light"),
        ([voc_item(bbox=[30, 1, 20, 5])], "1 reversed boxes"),
        ([voc_item(bbox=[30, 1, 29, 5])], "1 boxes without an area"),
        ([voc_item(bbox=[30, 1, 62, 5])], "1 boxes that leave the image"),
    ],
)
def test_likely_mistakes_are_scored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, items: list, warning: str
) -> None:
    caplog.set_level(logging.WARNING)
    found = read(tmp_path, "voc", items)
    assert len(found) == len(items)
    assert re.search(warning, caplog.text)


def test_unknown_categories_are_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "coco", [coco_item(category_id=99), coco_item()]).labels.tolist() == [1]
    assert "category_id 99" in caplog.text


def test_good_detections_make_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "voc", [voc_item(bbox=[1, 1, 61, 50.5]), voc_item(category="traffic_light")])
    assert not caplog.records


# ---------------------------------------------------------------------------------------------- written = read


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


def test_image_names_with_blanks_quotes_and_odd_bytes(tmp_path: Path) -> None:
    truth = replace(truth_of(), image_ids=["img (1)", 'a, b "c"', "plain"])
    lines = 'img (1) .5 1 1 2 2\n"plain.jpg" .6 1 1 2 2\na, b "c" .7 1 1 2 2\n'
    found = read_detections(folder(tmp_path, comp4_det_test_cat=lines), truth)
    assert found.image_index.tolist() == [0, 2, 1]
    write_comp4(tmp_path / "again", found)
    assert read_detections(tmp_path / "again", truth).image_index.tolist() == [0, 2, 1]
    odd = replace(found, image_ids=["Mu\udcf1oz.png", "b", "c"])
    write_detections_json(tmp_path / "dt.json", odd)
    assert json.loads((tmp_path / "dt.json").read_text(encoding="utf-8"))[0]["image_id"] == "Mu\\udcf1oz.png"
