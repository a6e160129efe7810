"""Average recall of proposals, by hand and on random boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.evaluation.data import GroundTruth
from detection.evaluation.proposals import cover_one_to_one, pairwise_iou, proposal_recall


def truth_of(
    *boxes: tuple[float, ...], images: list[int] | None = None, difficult: list[bool] | None = None
) -> GroundTruth:
    """Objects in COCO's frame, all in image 0 unless told."""
    array = np.array(boxes, dtype=float).reshape(-1, 4)
    return GroundTruth(
        frame="coco",
        image_ids=[1, 2],
        class_names=["thing"],
        image_index=np.array(images or [0] * len(array), dtype=np.int64),
        labels=np.ones(len(array), dtype=np.int64),
        boxes=array,
        area=array[:, 2:].prod(axis=1),
        iscrowd=np.zeros(len(array), dtype=bool),
        difficult=np.array(difficult or [False] * len(array), dtype=bool),
    )


NOTHING = np.zeros((0, 4))


def test_average_recall_by_hand() -> None:
    # 10x10 object, proposal of 10x8 inside: overlap .8 reaches 7 of the 10 thresholds. The large object is not covered.
    truth = truth_of((0, 0, 10, 10), (200, 200, 100, 100))
    recall = proposal_recall(truth, [np.array([[0, 0, 10, 8]]), NOTHING])["AR@100"]
    assert recall == {"all": pytest.approx(0.35), "small": pytest.approx(0.7), "medium": None, "large": 0.0,
                      "recall50": 0.5, "objects": 2}  # fmt: skip


def test_an_object_at_the_limit_is_of_the_larger_size() -> None:
    found = [np.array([[0.0, 0, 32, 32]]), NOTHING]
    recall = proposal_recall(truth_of((0, 0, 32, 32), (200, 200, 96, 96)), found)["AR@100"]
    assert (recall["small"], recall["medium"], recall["large"]) == (None, 1.0, 0.0)


def test_an_overlap_of_a_half_is_recalled_and_nothing_is_by_nothing() -> None:
    half = [np.array([[0.0, 0, 10, 5]]), NOTHING]
    recall = proposal_recall(truth_of((0, 0, 10, 10), (0, 0, 10, 10), images=[0, 1]), half)["AR@100"]
    assert (recall["all"], recall["recall50"], recall["objects"]) == (pytest.approx(0.1 / 2), 0.5, 2)


def test_only_the_first_proposals_are_looked_at() -> None:
    regions = np.array([[50.0, 50, 60, 60]] * 120 + [[0, 0, 10, 10]])
    recall = proposal_recall(truth_of((0, 0, 10, 10)), [regions, NOTHING])
    assert (recall["AR@100"]["all"], recall["AR@300"]["all"]) == (0.0, 1.0)


def test_one_proposal_covers_one_object() -> None:
    truth = truth_of((0, 0, 10, 10), (0, 0, 10, 9))
    one, two = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 10]] * 2)
    assert proposal_recall(truth, [one, NOTHING])["AR@100"]["all"] == pytest.approx(0.5)
    assert proposal_recall(truth, [two, NOTHING])["AR@100"]["all"] == pytest.approx((1 + 0.9) / 2)


def test_difficult_objects_and_images_without_objects_do_not_count() -> None:
    truth = truth_of((0, 0, 10, 10), (0, 0, 5, 5), images=[1, 0], difficult=[False, True])
    recall = proposal_recall(truth, [NOTHING, np.array([[0.0, 0, 10, 10]])])["AR@1000"]
    assert (recall["all"], recall["objects"]) == (1.0, 1)
    assert proposal_recall(truth_of(), [NOTHING, NOTHING])["AR@100"]["all"] is None


def test_each_image_needs_its_proposals() -> None:
    with pytest.raises(ValueError, match="1 arrays of proposals for 2 images"):
        proposal_recall(truth_of(), [NOTHING])


def test_the_best_pair_is_given_first() -> None:
    overlaps = np.array([[0.6, 0.7], [0.0, 0.65]])
    # The pair of .7 takes proposal 0, so object 0 is left with proposal 1, which does not touch it.
    np.testing.assert_array_equal(cover_one_to_one(overlaps), [0.0, 0.7])


@given(st.integers(0, 2**32 - 1))
def test_overlaps_equal_those_of_pycocotools(seed: int) -> None:
    from pycocotools import mask

    rng = np.random.default_rng(seed)
    boxes = np.round(np.concatenate((rng.random((12, 2)) * 20, rng.random((12, 2)) * 20), axis=1), 1)
    boxes[:2, 2:] += 1
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    expected = mask.iou(boxes[:8], boxes[8:], [0] * 4)
    np.testing.assert_allclose(pairwise_iou(corners[:8], corners[8:]), expected, atol=1e-12)
