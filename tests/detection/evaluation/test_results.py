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
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.results import file_names_of, read_detections, read_detections_together
from detection.evaluation.write import write_comp4, write_detections_json


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


def test_comp4_files_are_read_class_by_class_in_file_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(
        tmp_path,
        comp4_det_test_traffic_light="000002\t1 1 1 2 2\r\n\n000001 .5 1 1 2 2",
        comp4_det_test_cat=GOOD,
        comp4_det_val_cat="not of this set",
        notes="nor this",
    )
    found = read_detections(path, truth_of())
    assert "several files" not in caplog.text
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


def test_an_image_may_be_named_by_its_file(tmp_path: Path) -> None:
    """As predict.py does; a name that two images share names neither."""
    assert read(tmp_path, "voc", [voc_item(image_id="000002.jpg")]).image_index.tolist() == [1]
    truth = replace(truth_of(), image_files=["/s/a/x.jpg", "/s/b/x.jpg", "b/y.png"])
    path = tmp_path / "dt.json"

    def index_of(name: str) -> list[int]:
        path.write_text(json.dumps([voc_item(image_id=name)]))
        return read_detections(path, truth).image_index.tolist()

    assert [index_of(name) for name in ("b/x.jpg", "s/a/x.jpg", "/s/a/x", "y", "y.jpg", "000001")] == [
        [1], [0], [0], [2], [2], [0],
    ]  # fmt: skip
    for name in ("x", "x.jpg", "c/x.jpg", "other/b/x.jpg", "c/y.png"):
        with pytest.raises(UserError, match=f"image_id '{name}' is not in the set"):
            index_of(name)


def test_dots_in_the_names_of_images(tmp_path: Path) -> None:
    """What follows a dot is a suffix only if it is an image's: frame.002 of another set is not the image `frame`."""
    truth = replace(truth_of(), image_ids=["frame", "frame.001", "other"])
    path = tmp_path / "dt.json"
    for name, index in {"frame": 0, "frame.jpg": 0, "frame.001": 1, "frame.001.JPG": 1, "frame.002": None}.items():
        path.write_text(json.dumps([voc_item(image_id=name)]))
        (tmp_path / name).mkdir()
        lists = folder(tmp_path / name, comp4_det_test_cat=f"{name} .5 1 1 2 2\n")
        for given in (path, lists):
            if index is not None:
                assert read_detections(given, truth).image_index.tolist() == [index]
                continue
            with pytest.raises(UserError, match=r"'frame\.002' is not in"):
                read_detections(given, truth)


def together(tmp_path: Path, *contents: list) -> list[Detections]:
    paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    return read_detections_together(paths)


def test_files_read_together_name_their_images_and_classes(tmp_path: Path) -> None:
    one, other = together(tmp_path, [voc_item(image_id="b"), voc_item(image_id=7)], [voc_item(category="dog")])
    assert one.image_ids == other.image_ids == ["b", "7", "000001"]
    assert one.class_names == other.class_names == ["cat", "dog"]
    assert (one.frame, one.image_index.tolist(), one.labels.tolist()) == ("voc", [0, 1], [1, 1])
    assert (other.image_index.tolist(), other.labels.tolist()) == ([2], [2])
    contents = [coco_item(image_id=9, category_id=10.0)], [coco_item(), coco_item(category_id=11)]
    one, other = together(tmp_path, *contents)
    assert (one.frame, one.image_ids, one.class_names) == ("coco", [9, 1], ["10", "3", "11"])
    assert (other.image_index.tolist(), other.labels.tolist()) == ([1, 1], [2, 3])
    np.testing.assert_array_equal(other.coco_boxes, [[1, 2, 3.5, 4]] * 2)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (([coco_item()], [voc_item()]), r"0\.json holds COCO results, .*1\.json VOC's list"),
        (
            ([coco_item()], [coco_item(), coco_item(image_id=True)]),
            r"1\.json: detection 1 .*image_id is True: give",
        ),
        (([voc_item(category=1.5)],), r"category is 1\.5: give a whole number or text"),
        (
            ([voc_item(image_id="a")], [voc_item(image_id="a.jpg")]),
            r"0\.json and .*name an image both 'a\.jpg' and 'a'",
        ),
        (([coco_item()], [coco_item(image_id="1")]), r"0\.json and .*1\.json: image_id is partly a number, .*\('1'\)"),
    ],
)
def test_files_that_do_not_go_together_are_told(tmp_path: Path, contents: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        together(tmp_path, *contents)


def test_files_with_nothing_in_common_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    together(tmp_path, [coco_item()], [coco_item(image_id=1.0)])
    together(tmp_path, [voc_item(image_id=1)], [voc_item(image_id="1")], [])
    assert not caplog.text
    together(tmp_path, [voc_item(category="cat")], [voc_item(category="Cat")])
    assert "0.json and" in caplog.text
    assert "have no class in common: nothing is fused" in caplog.text
    together(tmp_path, [voc_item(image_id="a/x.jpg")], [voc_item(image_id="x.jpg")])
    assert "have no image in common: nothing is fused" in caplog.text


def test_names_of_classes_as_parts_of_different_file_names() -> None:
    assert file_names_of(["cat", "a/b", "a_b", "a:b", "Cat"]) == ["cat", "a_b_2", "a_b", "a_b_4", "Cat_5"]
    assert file_names_of(["", "..", "é" * 60]) == ["_", "__", "é" * 50]


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
        ("voc", voc_item(image_id=""), "image_id '' is not in the set"),
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
        ([voc_item()], "nothing detected of 1 class, .*traffic_light"),
        (
            [voc_item(), voc_item(bbox=[30, 1, 20, 5])],
            r"1 reversed boxes.*image 000001, \[30.0, 1.0, 20.0, 5.0\]",
        ),
        ([voc_item(bbox=[30, 1, 29, 5])], "1 boxes without an area"),
        ([voc_item(bbox=[30, 1, 62, 5])], "1 boxes that leave the image"),
        ([voc_item(bbox=[0.1, 0.1, 0.5, 1])], "in fractions of the image, not pixels"),
        ([voc_item(), voc_item(score=0.75), voc_item()], "1 detection comes with the image, class, box and score of"),
    ],
)
def test_likely_mistakes_are_scored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, items: list, warning: str
) -> None:
    caplog.set_level(logging.WARNING)
    found = read(tmp_path, "voc", items)
    assert len(found) == len(items)
    assert re.search(warning, caplog.text)


def test_objects_that_count_nowhere_are_not_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for crowds, warning in (([False, True], None), ([True, True], "all objects are crowds or difficult")):
        caplog.clear()
        path = tmp_path / "one.json"
        path.write_text(json.dumps([voc_item(category=" cat ")]))
        read_detections(path, replace(truth_of(), iscrowd=np.array(crowds)))
        assert [
            record.getMessage() for record in caplog.records if warning is None or warning not in record.message
        ] == []


def test_unknown_categories_are_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "coco", [coco_item(category_id=99), coco_item()]).labels.tolist() == [1]
    assert "category_id 99" in caplog.text


def test_good_detections_make_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "voc", [voc_item(bbox=[1, 1, 61, 50.5]), voc_item(category="traffic_light")])
    assert not caplog.records


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
