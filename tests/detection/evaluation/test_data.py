"""Detections as written, merged over processes, joined to the ground truth; frames."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from datasets.make_records import make_records
from detection.evaluation import boxes as frames
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import evaluate


def image(boxes: list, scores: list, labels: list) -> SimpleNamespace:
    return SimpleNamespace(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )


def detected(frame: frames.Frame = "voc") -> Detections:
    found = [
        image([[0, 0, 10, 20]], [0.9], [1]),
        image([], [], []),
        image([[1.23456, 2, 3, 4]] * 2, [0.1, 1e-7], [2, 1]),
    ]
    return Detections.from_images(["a", "b", "c"], found, ["cat", "dog"], frame=frame)


# ---------------------------------------------------------------------------------------------- as written


def test_detections_have_the_digits_of_the_file() -> None:
    found = detected()
    np.testing.assert_array_equal(found.boxes[1], [2.235, 3.0, 3.0, 4.0])
    assert found.scores.tolist() == [0.899999976, 0.100000001, 1.00000001e-07]
    assert found.image_index.tolist() == [0, 2, 2]
    np.testing.assert_array_equal(detected("coco").boxes[1], [1.235, 2.0, 1.765, 2.0])


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_writing_keeps_the_order_of_scores(values: list[float]) -> None:
    found = Detections.from_images(
        [0], [image([[0, 0, 1, 1]] * len(values), values, [1] * len(values))], ["cat"], frame="coco"
    )
    np.testing.assert_array_equal(np.argsort(found.scores, kind="stable"), np.argsort(values, kind="stable"))
    np.testing.assert_array_equal(found.scores.astype(np.float32), np.array(values, np.float32))


def test_no_image_may_stand_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        Detections.from_images(["a", "a"], [image([], [], [])] * 2, ["cat"], frame="voc")


def test_background_is_no_class() -> None:
    with pytest.raises(ValueError, match="labels 0"):
        Detections.from_images(["a"], [image([[0, 0, 1, 1]], [0.5], [0])], ["cat"], frame="voc")


def test_a_model_that_has_diverged_is_told() -> None:
    with pytest.raises(UserError, match="NaN"):
        Detections.from_images(["a"], [image([[0, 0, 1, 1]], [np.nan], [1])], ["cat"], frame="voc")


# ---------------------------------------------------------------------------------------------- processes


def test_merging_does_not_depend_on_the_processes_and_counts_each_image_once() -> None:
    ids = [f"im{number}" for number in range(7)]
    rng = np.random.default_rng(0)
    found = [image(rng.random((n, 4)) * 9, [0.5] * n, rng.integers(1, 3, n)) for n in (2, 0, 3, 1, 0, 4, 2)]
    whole = Detections.from_images(ids, found, ["cat", "dog"], frame="voc")
    for processes in (1, 2, 3):
        parts = []
        for rank in range(processes):
            share = list(range(rank, 7, processes))
            if len(share) < -(-7 // processes):
                share.append(0)  # the sampler fills up the last step with an image that another process has
            parts.append(
                Detections.from_images([ids[i] for i in share], [found[i] for i in share], ["cat", "dog"], frame="voc")
            )
        merged = Detections.merge(parts, ids)
        for name in ("image_ids", "image_index", "labels", "boxes", "scores"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))


def test_merging_misses_no_image() -> None:
    with pytest.raises(ValueError, match="'d'"):
        Detections.merge([detected()], ["a", "b", "c", "d"])


# ---------------------------------------------------------------------------------------------- joining


def records(identities: list, **more: object):
    return make_records(
        images=[(f"{name}.jpg", name, (50, 60)) for name in identities],
        boxes=[[0, 0, 10, 20], [5, 5, 9, 9]],
        labels=[1, 2],
        counts=[1, 0, 1],
        class_names=["cat", "dog"],
        source="test",
        annotation_file="{}",
        **more,
    )


def test_ground_truth_from_records() -> None:
    truth = GroundTruth.from_records(records(["a", "b", "c"], difficult=[False, True]))
    assert truth.frame == "voc"
    np.testing.assert_array_equal(truth.boxes, [[1, 1, 10, 20], [6, 6, 9, 9]])
    assert truth.image_index.tolist() == [0, 2]
    assert truth.difficult.tolist() == [False, True]
    metrics = evaluate(truth, detected())
    assert metrics["voc12"]["per_class"] == {"cat": 1.0, "dog": None}


def test_numbered_images_are_coco() -> None:
    truth = GroundTruth.from_records(records([7, 3, 5], category_ids=[18, 44], area=[123.0, 4.0]))
    assert (truth.frame, truth.image_ids, truth.category_ids) == ("coco", [7, 3, 5], [18, 44])
    assert all(type(identity) is int for identity in (*truth.image_ids, *truth.category_ids))
    np.testing.assert_array_equal(truth.boxes, [[0, 0, 10, 20], [5, 5, 4, 4]])
    assert truth.area.tolist() == [123.0, 4.0]


def test_joining_is_by_image_id_and_class_name() -> None:
    truth = GroundTruth.from_records(records(["c", "b", "a"]))
    found = detected()
    other_names = Detections(**{**found.__dict__, "class_names": ["dog", "bird"]})
    data = align(truth, other_names)
    assert data.class_names == ["cat", "dog", "bird"]
    assert data.detection_images.tolist() == [2, 0, 0]
    assert data.detection_labels.tolist() == [2, 3, 2]


def test_unknown_image_is_named() -> None:
    truth = GroundTruth.from_records(records(["a", "b", "x"]))
    with pytest.raises(UserError, match="'c'"):
        align(truth, detected())


def test_modules_know_no_torch(root: Path) -> None:
    import subprocess
    import sys

    names = sorted(path.stem for path in (root / "detection" / "evaluation").glob("[!_]*.py"))
    assert "voc" in names
    lines = [f"import detection.evaluation.{name}" for name in names]
    code = "; ".join(["import sys", f"sys.path.insert(0, {str(root)!r})", *lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_boxes_in_the_frame_that_is_wanted() -> None:
    """The pixels 1..10 across and 2..20 down, counted from 1."""
    voc, coco, continuous = [[1, 2, 10, 20]], [[0, 1, 10, 19]], [[0, 1, 10, 20]]
    for frame in ("voc", "coco"):
        found = Detections.from_images(["a"], [image(continuous, [0.5], [1])], ["cat"], frame=frame)
        assert found.boxes.tolist() == (voc if frame == "voc" else coco)
        assert found.voc_boxes.tolist() == voc
        assert found.coco_boxes.tolist() == coco
        assert found.continuous_boxes.tolist() == continuous
