"""COCO's rule: clauses by hand, and both backends against pycocotools' own reading of the files, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from detection.evaluation import coco
from detection.evaluation.coco import plain_pycocotools
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.ground_truth import read_coco_ground_truth
from detection.evaluation.results import read_detections
from detection.evaluation.write import category_ids_of, write_detections_json
from tools.benchmarks.synthetic import make_set, write_coco_annotations

BACKENDS = ("hotcoco", "pycocotools")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    return request.param


def score(truth: dict, found: list, tmp_path: Path, backend: str) -> dict:
    """The coco section for the contents of two files."""
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps(found))
    ground_truth = read_coco_ground_truth(tmp_path / "gt.json")
    return evaluate(ground_truth, read_detections(tmp_path / "dt.json", ground_truth), ["coco"], backend=backend)[
        "coco"
    ]


def annotation(number: int, box: list[float], image: int = 1, category: int = 1, **more: object) -> dict:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": 0, **more}


def detection(box: list[float], score: float, image: int = 1, category: int = 1) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def dataset(*annotations: dict, images: tuple = (1, 2), categories: tuple = (1, 2)) -> dict:
    return {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": f"c{number}"} for number in categories],
        "annotations": list(annotations),
    }


# ---------------------------------------------------------------------------------------------- by hand


def test_ap_of_one_object_is_the_share_of_thresholds_that_its_overlap_reaches(tmp_path: Path, backend: str) -> None:
    # 80 of 100 pixels: .8 reaches .5 .55 .6 .65 .7 .75 .8 = 7 of 10 thresholds.
    truth = dataset(annotation(1, [0, 0, 100, 100]))
    numbers = score(truth, [detection([0, 0, 100, 80], 0.9)], tmp_path, backend)
    assert numbers["AP"] == pytest.approx(0.7)
    assert (numbers["AP50"], numbers["AP75"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert numbers["per_class"] == {"c1": pytest.approx(0.7), "c2": None}
    assert (numbers["APs"], numbers["APm"]) == (None, None)
    ground_truth = read_coco_ground_truth(tmp_path / "gt.json")
    result = coco.evaluate_coco(align(ground_truth, read_detections(tmp_path / "dt.json", ground_truth)), backend)
    assert coco.per_class(result, 6) == {"c1": pytest.approx(1.0), "c2": None}  # at .8
    assert coco.per_class(result, 7) == {"c1": 0.0, "c2": None}


def test_annotation_id_zero_is_an_object_like_any_other(tmp_path: Path, backend: str) -> None:
    truth = dataset(annotation(0, [0, 0, 50, 50]))
    assert score(truth, [detection([0, 0, 50, 50], 0.9)], tmp_path, backend)["AP"] == pytest.approx(1.0)
    assert plain_pycocotools(tmp_path / "gt.json", tmp_path / "dt.json")[1].max() == 0.0  # the trap


def test_crowd_takes_any_number_of_detections_without_counting_them(tmp_path: Path, backend: str) -> None:
    truth = dataset(annotation(1, [0, 0, 50, 50]), annotation(2, [100, 0, 200, 200], iscrowd=1))
    inside = [detection([100 + 10 * n, 0, 50, 50], 0.9) for n in range(5)]
    assert score(truth, [*inside, detection([0, 0, 50, 50], 0.5)], tmp_path, backend)["AP"] == pytest.approx(1.0)


def test_ignore_key_has_no_effect(tmp_path: Path, backend: str) -> None:
    truth = dataset(annotation(1, [0, 0, 50, 50], ignore=1), annotation(2, [100, 0, 50, 50]))
    assert score(truth, [detection([100, 0, 50, 50], 0.5)], tmp_path, backend)["AR100"] == pytest.approx(0.5)


def test_ends_of_the_area_ranges_belong_to_both_sizes(tmp_path: Path, backend: str) -> None:
    # 32 x 32 is small and medium, 96 x 96 medium and large, 32 x 33 medium only.
    truth = dataset(annotation(1, [0, 0, 32, 32]), annotation(2, [100, 0, 96, 96]), annotation(3, [300, 0, 32, 33]))
    found = [detection(item["bbox"], 0.9) for item in truth["annotations"][:2]]
    numbers = score(truth, found, tmp_path, backend)
    assert (numbers["ARs"], numbers["ARl"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert numbers["ARm"] == pytest.approx(2 / 3)


def test_only_the_best_hundred_detections_of_an_image_and_class_count(tmp_path: Path, backend: str) -> None:
    truth = dataset(annotation(1, [0, 0, 50, 50]))
    clutter = [detection([200 + n, 200, 20, 20], 0.9) for n in range(100)]
    numbers = score(truth, [*clutter, detection([0, 0, 50, 50], 0.8)], tmp_path, backend)
    assert numbers["AR100"] == 0.0
    numbers = score(truth, [*clutter[1:], detection([0, 0, 50, 50], 0.8)], tmp_path, backend)
    assert (numbers["AR100"], numbers["AR10"], numbers["AR1"]) == (pytest.approx(1.0), 0.0, 0.0)


def test_no_detections_at_all_score_zero(tmp_path: Path, backend: str) -> None:
    numbers = score(dataset(annotation(1, [0, 0, 50, 50])), [], tmp_path, backend)
    assert (numbers["AP"], numbers["AR100"]) == (0.0, 0.0)
    assert numbers["per_class"] == {"c1": 0.0, "c2": None}


def test_no_objects_at_all_give_no_number(tmp_path: Path, backend: str) -> None:
    numbers = score(dataset(), [detection([0, 0, 50, 50], 0.5)], tmp_path, backend)
    assert all(value is None for key, value in numbers.items() if key != "per_class")


def test_difficult_objects_of_voc_count_like_others(backend: str) -> None:
    truth = GroundTruth(
        frame="voc",
        image_ids=["a"],
        class_names=["cat"],
        image_index=np.array([0]),
        labels=np.array([1]),
        boxes=np.array([[1.0, 1.0, 50.0, 50.0]]),
        area=np.array([2500.0]),
        iscrowd=np.array([False]),
        difficult=np.array([True]),
    )
    nothing = np.zeros(0, dtype=np.int64)
    found = Detections("voc", ["a"], ["cat"], nothing, nothing, np.zeros((0, 4)), np.zeros(0))
    assert evaluate(truth, found, ["coco"], backend=backend)["coco"]["AP"] == 0.0


@pytest.mark.parametrize(("asked", "other"), [("hotcoco", "pycocotools"), ("pycocotools", "hotcoco")])
def test_the_library_that_is_asked_for_computes(tmp_path: Path, monkeypatch, asked: str, other: str) -> None:
    """Both compute the same numbers: only who was called tells them apart."""
    arrays = np.full((10, 101, 2, 4, 3), 0.25), np.ones((10, 2, 4, 3))
    monkeypatch.setattr(coco, f"_run_{other}", None)
    monkeypatch.setattr(coco, f"_run_{asked}", lambda columns: arrays)
    monkeypatch.setattr(coco, "choose_backend", lambda name: name)
    monkeypatch.setattr(coco, "version", lambda name: "1")
    numbers = score(dataset(), [], tmp_path, asked)
    assert (numbers["AP"], numbers["AR100"]) == (0.25, 1)


def test_unknown_backend_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="pip install"):
        coco.choose_backend("no_such_library")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- parity


def hard_case(rng: np.random.Generator) -> tuple[dict, list]:
    """Annotations and results with ties, exact overlaps, crowd, areas at limits, sparse ids, over 100 detections."""
    images, categories = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    style = rng.integers(0, 5)

    def boxes(count: int) -> list[list[float]]:
        corner, extent = rng.integers(0, 4, (count, 2)), rng.integers(0, 5, (count, 2))
        if style == 0:
            values = np.concatenate((corner, extent), axis=1) * 4.0
        elif style == 1:
            values = np.concatenate((rng.random((count, 2)) * 20, rng.random((count, 2)) * 100), axis=1)
        elif style == 2:  # reversed and empty boxes
            values = np.concatenate((corner - 2, extent - 2), axis=1) * 32.0
        elif style == 3:  # areas at the limits
            values = np.concatenate((corner * 0.1, extent * 32 + rng.choice([0, 1e-12, -1e-12], (count, 2))), axis=1)
        else:
            values = np.concatenate((corner % 2, rng.choice([1, 2, 3, 32, 96], (count, 2))), axis=1).astype(float)
        return values.tolist()

    ids = (rng.permutation(5000)[:images] + 1).tolist()
    category_ids = (rng.permutation(90)[:categories] + 1).tolist()
    objects, found = int(rng.integers(1, 15)), int(rng.choice([1, 5, 30, 250]))
    truth = dataset(images=tuple(ids), categories=tuple(category_ids))
    own_area = rng.random() < 0.5
    for number, box in zip((rng.permutation(10**6)[:objects] + 1).tolist(), boxes(objects), strict=True):
        area = rng.choice([0, 1024, 9216, 1e10, 1024 - 1e-9, 500, 5000, 2e10]) if own_area else box[2] * box[3]
        place = {"image": rng.choice(ids).item(), "category": rng.choice(category_ids).item()}
        crowd = int(rng.random() < 0.2)
        truth["annotations"].append(annotation(number, box, **place, area=float(area), iscrowd=crowd, ignore=1 - crowd))
    tied = rng.random() < 0.7
    results = []
    for box in boxes(found):
        value = rng.choice([0.1, 0.2, 0.2 + 1e-12, 0.5, 0.0, -1.0]) if tied else rng.random()
        results.append(detection(box, float(value), rng.choice(ids).item(), rng.choice(category_ids).item()))
    return truth, results


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_equals_pycocotools_on_hard_cases(tmp_path: Path, backend: str, seed: int) -> None:
    truth, found = hard_case(np.random.default_rng(seed))
    gt, dt = tmp_path / "gt.json", tmp_path / "dt.json"
    gt.write_text(json.dumps(truth))
    dt.write_text(json.dumps(found))
    ground_truth = read_coco_ground_truth(gt)
    result = coco.evaluate_coco(align(ground_truth, read_detections(dt, ground_truth)), backend)  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        precision, recall = plain_pycocotools(gt, dt)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)
    assert_summary_is_pycocotools(result, precision, recall)


def assert_summary_is_pycocotools(result: coco.CocoResult, precision: np.ndarray, recall: np.ndarray) -> None:
    """The 12 numbers against pycocotools' own summary of the arrays."""
    from pycocotools.cocoeval import COCOeval

    evaluator = COCOeval(iouType="bbox")
    evaluator.eval = {"precision": precision, "recall": recall}
    evaluator.summarize()
    expected = [None if value == -1 else value for value in evaluator.stats.tolist()]
    assert list(coco.summary(result).values()) == expected


def test_equals_pycocotools_on_a_set_like_val2017(tmp_path: Path, backend: str) -> None:
    truth, found = make_set("coco", images=60, classes=8, objects=400, detections=3000, seed=3)
    write_coco_annotations(tmp_path / "gt.json", truth)
    write_detections_json(tmp_path / "dt.json", found, category_ids_of(truth))
    ground_truth = read_coco_ground_truth(tmp_path / "gt.json")
    read = read_detections(tmp_path / "dt.json", ground_truth)
    result = coco.evaluate_coco(align(ground_truth, read), backend)  # type: ignore[arg-type]
    precision, recall = plain_pycocotools(tmp_path / "gt.json", tmp_path / "dt.json")
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)
    assert 0.05 < coco.summary(result)["AP"] < 0.95  # type: ignore[operator]
