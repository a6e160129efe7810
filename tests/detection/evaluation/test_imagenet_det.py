"""ImageNet DET's rule by hand: thresholds of small objects, the nearest object that is free, all objects counted."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import evaluate
from detection.evaluation.imagenet_det import thresholds


def ground_truth(*objects: tuple, classes: tuple[str, ...] = ("ant",), difficult: bool = False) -> GroundTruth:
    """Objects (image, label, xmin, ymin, xmax, ymax) in VOC's pixels."""
    rows = np.array(objects, np.float64).reshape(-1, 6)
    boxes = rows[:, 2:]
    return GroundTruth(
        frame="voc", image_ids=["a", "b"], class_names=list(classes), image_index=rows[:, 0].astype(int),
        labels=rows[:, 1].astype(int), boxes=boxes, area=np.ones(len(rows)), iscrowd=np.zeros(len(rows), bool),
        difficult=np.full(len(rows), difficult),
    )  # fmt: skip


def detections(*found: tuple, classes: tuple[str, ...] = ("ant",)) -> Detections:
    """Detections (image, label, score, xmin, ymin, xmax, ymax)."""
    rows = np.array(found, np.float64).reshape(-1, 7)
    return Detections(
        frame="voc", image_ids=["a", "b"], class_names=list(classes), image_index=rows[:, 0].astype(int),
        labels=rows[:, 1].astype(int), boxes=rows[:, 3:], scores=rows[:, 2],
    )  # fmt: skip


def score(truth: GroundTruth, found: Detections) -> dict:
    return evaluate(truth, found, ["imagenet_det", "voc12"])


def test_thresholds_by_hand():
    """10 x 10: 100 / 400; 30 x 20: 600 / 1200 = 0.5; 1 x 1: 1 / 121; large: 0.5."""
    boxes = np.array([[1, 1, 10, 10], [1, 1, 30, 20], [5, 5, 5, 5], [1, 1, 500, 300]], float)
    assert thresholds(boxes).tolist() == [100 / 400, 0.5, 1 / 121, 0.5]


def test_a_small_object_needs_less_overlap():
    """10 x 10 in a box of 15 x 15: 100 / 225 = 0.44: enough for ImageNet (0.25), too little for VOC (0.5)."""
    truth = ground_truth((0, 1, 11, 11, 20, 20))
    result = score(truth, detections((0, 1, 0.9, 11, 11, 25, 25)))
    assert result["imagenet_det"]["mAP"] == 1.0
    assert result["voc12"]["mAP"] == 0.0
    # 100 / 441 = 0.227 is too little for either
    assert score(truth, detections((0, 1, 0.9, 11, 11, 31, 31)))["imagenet_det"]["mAP"] == 0.0


def test_a_second_detection_finds_the_neighbour():
    """Objects x 1..100 and 21..120. Both detections overlap the first most; the second takes the other: 90 / 120."""
    truth = ground_truth((0, 1, 1, 1, 100, 100), (0, 1, 21, 1, 120, 100))
    found = detections((0, 1, 0.9, 1, 1, 100, 100), (0, 1, 0.8, 1, 1, 110, 100))
    result = score(truth, found)
    assert result["imagenet_det"]["mAP"] == 1.0
    assert result["voc12"]["mAP"] == 0.5  # a duplicate there


def test_a_third_detection_is_false():
    """By score: false, true, true, false, and one object is not found: precision 2/3 up to recall 2/3."""
    truth = ground_truth((0, 1, 1, 1, 100, 100), (0, 1, 21, 1, 120, 100), (1, 1, 1, 1, 50, 50))
    found = detections(
        (0, 1, 0.9, 1, 1, 100, 100), (0, 1, 0.8, 1, 1, 110, 100), (0, 1, 0.7, 2, 1, 100, 100),
        (1, 1, 0.95, 200, 200, 250, 250),
    )  # fmt: skip
    assert score(truth, found)["imagenet_det"]["mAP"] == pytest.approx(2 / 3 * 2 / 3)


def test_classes_and_images_do_not_mix_and_difficult_objects_count():
    classes = ("ant", "bee", "cow")
    truth = ground_truth((0, 1, 1, 1, 50, 50), (1, 2, 1, 1, 50, 50), classes=classes, difficult=True)
    found = detections((1, 1, 0.9, 1, 1, 50, 50), (1, 2, 0.8, 1, 1, 50, 50), classes=classes)
    result = score(truth, found)
    assert result["imagenet_det"]["per_class"] == {"ant": 0.0, "bee": 1.0, "cow": None}
    assert result["imagenet_det"]["mAP"] == 0.5
    assert result["voc12"]["mAP"] is None


def test_nothing_found():
    assert score(ground_truth((0, 1, 1, 1, 50, 50)), detections())["imagenet_det"]["mAP"] == 0.0


def loop(truth: GroundTruth, found: Detections, label: int) -> list[int]:
    """The rule as loops: outcomes of a class's detections by score."""
    taken: set[int] = set()
    outcome = []
    mine = [i for i in range(len(found)) if found.labels[i] == label]
    for i in sorted(mine, key=lambda i: -found.scores[i]):
        best, which = -1.0, None
        for k in range(len(truth.labels)):
            if truth.labels[k] != label or truth.image_index[k] != found.image_index[i] or k in taken:
                continue
            a, b = found.boxes[i], truth.boxes[k]
            w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            if w <= 0 or h <= 0:
                continue
            areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
            overlap = w * h / (sum(areas) - w * h)
            gw, gh = b[2] - b[0] + 1, b[3] - b[1] + 1
            if overlap >= min(0.5, gw * gh / ((gw + 10) * (gh + 10))) and overlap > best:
                best, which = overlap, k
        outcome.append(int(which is not None))
        taken.add(which)
    return outcome


def test_equals_the_rule_as_loops():
    """Crowded random boxes of all sizes, with equal scores among them."""
    rng = np.random.default_rng(0)

    def boxes(count: int) -> np.ndarray:
        corner, side = rng.integers(1, 60, (count, 2)), rng.integers(0, 40, (count, 2))
        return np.hstack([corner, corner + side])

    for _ in range(20):
        objects = [(rng.integers(2), rng.integers(1, 3), *box) for box in boxes(30)]
        found = [(rng.integers(2), rng.integers(1, 3), rng.integers(1, 9) / 10, *box) for box in boxes(60)]
        truth, dets = ground_truth(*objects, classes=("ant", "bee")), detections(*found, classes=("ant", "bee"))
        result = evaluate(truth, dets, ["imagenet_det"])["imagenet_det"]["per_class"]
        for label, name in ((1, "ant"), (2, "bee")):
            hits = np.array(loop(truth, dets, label))
            recall = np.cumsum(hits) / (truth.labels == label).sum()
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            edges = np.maximum.accumulate(precision[::-1])[::-1]
            assert result[name] == pytest.approx(float(np.sum(np.diff(recall, prepend=0) * edges)))
