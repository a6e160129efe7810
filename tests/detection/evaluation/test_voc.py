"""VOC's rule: each clause by hand, then against a plain transcription on random data with many ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.voc import (
    FALSE,
    NOT_COUNTED,
    RECALLS_07,
    TRUE,
    average_precision_07,
    average_precision_12,
    average_precisions,
    counts_over_scores,
    match,
    outcomes,
    voc_overlap,
)

# An object: image, class, box, difficult. A detection: image, class, box, score.
Object = tuple[int, int, tuple[float, ...], bool]
Found = tuple[int, int, tuple[float, ...], float]


def make(objects: list[Object], found: list[Found]) -> tuple[GroundTruth, Detections]:
    """Ground truth and detections of VOC's frame, 4 images and 3 classes, from short tuples."""
    ids, names = [f"im{index}" for index in range(4)], [f"class{label}" for label in (1, 2, 3)]
    boxes = np.array([item[2] for item in objects], dtype=float).reshape(-1, 4)
    truth = GroundTruth(
        frame="voc",
        image_ids=ids,
        class_names=names,
        image_index=np.array([item[0] for item in objects], dtype=np.int64),
        labels=np.array([item[1] for item in objects], dtype=np.int64),
        boxes=boxes,
        area=np.ones(len(objects)),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([item[3] for item in objects], dtype=bool),
    )
    detections = Detections(
        frame="voc",
        image_ids=ids,
        class_names=names,
        image_index=np.array([item[0] for item in found], dtype=np.int64),
        labels=np.array([item[1] for item in found], dtype=np.int64),
        boxes=np.array([item[2] for item in found], dtype=float).reshape(-1, 4),
        scores=np.array([item[3] for item in found], dtype=float),
    )
    return truth, detections


def outcome_of(objects: list[Object], found: list[Found], threshold: float = 0.5) -> list[int]:
    return outcomes(match(align(*make(objects, found))), threshold).tolist()


def ap_of(objects: list[Object], found: list[Found], label: int = 1) -> tuple[float, float]:
    by_points, by_area = average_precisions(match(align(*make(objects, found))))
    return by_points[label - 1], by_area[label - 1]


BOX = (1.0, 1.0, 10.0, 10.0)
FAR = (101.0, 101.0, 110.0, 110.0)

# ---------------------------------------------------------------------------------------------- overlap


def test_overlap_counts_both_end_pixels() -> None:
    # 10 x 10 pixels and 10 x 10 pixels share columns 6..10: 50 of 150 pixels.
    assert voc_overlap(np.array([BOX]), np.array([(6.0, 1.0, 15.0, 10.0)]))[0] == 50 / 150


def test_boxes_that_share_one_column_overlap_and_neighbours_do_not() -> None:
    shared, beside = voc_overlap(np.array([BOX, BOX]), np.array([(10.0, 1.0, 19.0, 10.0), (11.0, 1.0, 20.0, 10.0)]))
    assert shared == 10 / 190
    assert beside == -np.inf


def test_overlap_of_one_half_matches() -> None:
    half = (1.0, 1.0, 10.0, 5.0)  # 50 of 100 pixels
    assert voc_overlap(np.array([half]), np.array([BOX]))[0] == 0.5
    assert outcome_of([(0, 1, BOX, False)], [(0, 1, half, 0.9)]) == [TRUE]


# ---------------------------------------------------------------------------------------------- matching


def test_second_detection_of_an_object_is_false_in_score_order_not_file_order() -> None:
    found = [(0, 1, BOX, 0.5), (0, 1, BOX, 0.9), (0, 1, BOX, 0.7)]
    assert outcome_of([(0, 1, BOX, False)], found) == [FALSE, TRUE, FALSE]


def test_equal_scores_keep_the_order_of_the_file() -> None:
    assert outcome_of([(0, 1, BOX, False)], [(0, 1, BOX, 0.5)] * 3) == [TRUE, FALSE, FALSE]


def test_scores_that_differ_by_1e_12_are_told_apart() -> None:
    assert outcome_of([(0, 1, BOX, False)], [(0, 1, BOX, 0.5), (0, 1, BOX, 0.5 + 1e-12)]) == [FALSE, TRUE]


def test_detection_on_a_difficult_object_is_not_counted_however_often() -> None:
    assert outcome_of([(0, 1, BOX, True)], [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)]) == [NOT_COUNTED, NOT_COUNTED]


def test_a_detection_looks_at_its_best_object_only_even_if_another_is_free() -> None:
    # Both objects overlap the second detection by more than half; its best one is taken, so it is a duplicate.
    wide = (1.0, 1.0, 12.0, 10.0)
    objects = [(0, 1, BOX, False), (0, 1, wide, False)]
    assert outcome_of(objects, [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8)]) == [TRUE, FALSE]


def test_of_equally_overlapped_objects_the_first_in_the_file_counts() -> None:
    # Two annotations of the same box, the first difficult: the detection looks at the first and is not counted.
    assert outcome_of([(0, 1, BOX, True), (0, 1, BOX, False)], [(0, 1, BOX, 0.9)]) == [NOT_COUNTED]
    assert outcome_of([(0, 1, BOX, False), (0, 1, BOX, True)], [(0, 1, BOX, 0.9)]) == [TRUE]


def test_objects_of_other_images_and_classes_are_not_looked_at() -> None:
    objects = [(0, 1, BOX, False), (1, 2, BOX, False)]
    assert outcome_of(objects, [(1, 1, BOX, 0.9), (0, 2, BOX, 0.8)]) == [FALSE, FALSE]


def test_reversed_boxes_are_false() -> None:
    assert outcome_of([(0, 1, BOX, False)], [(0, 1, (10.0, 10.0, 1.0, 1.0), 0.9)]) == [FALSE]


def test_a_crowd_region_of_coco_counts_as_difficult() -> None:
    truth, found = make([(0, 1, BOX, False)], [(0, 1, BOX, 0.9)])
    truth.iscrowd[0] = True
    assert outcomes(match(align(truth, found))).tolist() == [NOT_COUNTED]


# ---------------------------------------------------------------------------------------------- average precision


def test_counts_over_scores_by_hand() -> None:
    """Two objects and a difficult one; hits at .9 and .5, a false one at .5, the difficult object's at .7."""
    objects = [(0, 1, BOX, False), (1, 1, BOX, False), (2, 1, BOX, True), (0, 2, BOX, True)]
    found = [(0, 1, BOX, 0.9), (2, 1, BOX, 0.7), (1, 1, BOX, 0.5), (0, 1, FAR, 0.5), (0, 2, BOX, 0.9)]
    matches = match(align(*make(objects, found)))
    counts = counts_over_scores(matches, outcomes(matches), np.array([0.0, 0.5, 0.6, 0.9, 1.0]))
    assert {name: value.tolist() for name, value in counts.items()} == {
        "class1": [[2, 2, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 2]]  # class2 has nothing that must be found
    }


def test_ap_by_hand() -> None:
    # Four objects; hits at ranks 1, 3 and 4: recall 1/4 1/4 2/4 3/4, precision 1 1/2 2/3 3/4.
    recall, precision = np.array([0.25, 0.25, 0.5, 0.75]), np.array([1.0, 0.5, 2 / 3, 0.75])
    # 0, .1, .2 -> 1; .3 .4 .5 .6 .7 -> .75; .8 .9 1 -> 0
    assert average_precision_07(recall, precision) == pytest.approx((3 * 1 + 5 * 0.75) / 11, abs=1e-15)
    assert average_precision_12(recall, precision) == pytest.approx(0.25 * 1 + 0.5 * 0.75, abs=1e-15)


def test_three_of_ten_objects_do_not_reach_the_fourth_threshold() -> None:
    # np.arange(0, 1.1, 0.1)[3] is 0.30000000000000004 > 3/10, so only 0, .1, .2 are reached: 3/11, not 4/11.
    assert RECALLS_07[3] > 3 / 10
    objects = [(0, 1, (100.0 * n + 1, 1.0, 100.0 * n + 10, 10.0), False) for n in range(10)]
    found = [(0, 1, objects[n][2], 0.9) for n in range(3)]
    assert ap_of(objects, found)[0] == pytest.approx(3 / 11, abs=1e-15)


def test_precision_of_zero_by_zero_is_zero() -> None:
    # The first detection is on a difficult object: nothing is counted yet. The second is true.
    objects = [(0, 1, BOX, True), (0, 1, FAR, False)]
    assert ap_of(objects, [(0, 1, BOX, 0.9)]) == (0.0, 0.0)
    assert ap_of(objects, [(0, 1, BOX, 0.9), (0, 1, FAR, 0.8)]) == (1.0, 1.0)


def test_class_without_objects_that_must_be_found_has_no_ap_and_no_part_in_the_mean() -> None:
    objects = [(0, 1, BOX, False), (0, 2, FAR, True)]
    metrics = evaluate(*make(objects, [(0, 1, BOX, 0.9), (0, 2, FAR, 0.8), (0, 3, BOX, 0.7)]), ["voc07", "voc12"])
    assert metrics["voc12"]["per_class"] == {"class1": 1.0, "class2": None, "class3": None}
    assert metrics["voc12"]["mAP"] == 1.0
    assert metrics["voc07"]["mAP"] == 1.0


@pytest.mark.parametrize("count", [1, 3, 7, 10, 11, 49, 1000])
def test_perfect_detections_score_one_exactly(count: int) -> None:
    """Whatever the number of objects: 1/11 added 11 times is 1.0000000000000002, and so are some sums of n n-ths."""
    recall, precision = np.arange(1, count + 1) / count, np.ones(count)
    assert average_precision_07(recall, precision) == 1.0
    assert average_precision_12(recall, precision) == 1.0


def test_class_without_detections_counts_as_zero() -> None:
    metrics = evaluate(*make([(0, 1, BOX, False), (0, 2, FAR, False)], [(0, 1, BOX, 0.9)]), ["voc12"])
    assert metrics["voc12"]["per_class"]["class2"] == 0.0
    assert metrics["voc12"]["mAP"] == 0.5


def test_without_any_object_there_is_no_mean() -> None:
    assert evaluate(*make([], [(0, 1, BOX, 0.9)]), ["voc07"])["voc07"]["mAP"] is None


# ---------------------------------------------------------------------------------------------- plain transcription


def plain_rule(objects: list[Object], found: list[Found], label: int, threshold: float) -> tuple[float, float] | None:
    """The rule of the development kit for one class, one detection after the other, in Python's own doubles."""
    mine = [item for item in objects if item[1] == label]
    positives = sum(not item[3] for item in mine)
    if positives == 0:
        return None
    taken = [False] * len(mine)
    true = counted = 0
    recalls, precisions = [], []
    for image, _, box, _ in sorted((item for item in found if item[1] == label), key=lambda item: -item[3]):
        best, which = -1.0, -1
        for number, (its_image, _, other, _) in enumerate(mine):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if its_image != image or width <= 0 or height <= 0:
                continue
            area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
            overlap = width * height / (area - width * height)
            if overlap > best:
                best, which = overlap, number
        if best < threshold:
            counted += 1
        elif not mine[which][3]:
            counted += 1
            true += not taken[which]
            taken[which] = True
        recalls.append(true / positives)
        precisions.append(true / counted if counted else 0.0)
    eleven = 0.0
    for limit in np.arange(0, 1.1, 0.1):
        eleven += max([p for p, r in zip(precisions, recalls, strict=True) if r >= limit], default=0.0) / 11
    heights, area, before = [*precisions, 0.0], 0.0, 0.0
    for rank, recall in enumerate(recalls):
        area += (recall - before) * max(heights[rank:])
        before = recall
    return eleven, area


whole = st.integers(-2, 8).map(float)
side = st.integers(0, 6).map(float)
fine = st.floats(0, 9, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, ...]:
    coordinate, extent = (whole, side) if draw(st.booleans()) else (fine, fine)
    x, y = draw(coordinate), draw(coordinate)
    return x, y, x + draw(extent), y + draw(extent)


scores = st.sampled_from((0.0, 0.25, 0.5, 0.5 + 1e-12, 0.75, 1.0)) | st.floats(0, 1)
objects_of = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), boxes(), st.booleans()), max_size=14)
found_of = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), boxes(), scores), max_size=30)


@settings(max_examples=300, deadline=None)
@given(objects_of, found_of, st.sampled_from((0.5, 0.55, 0.75, 1 / 3)))
def test_equals_the_plain_rule(objects: list[Object], found: list[Found], threshold: float) -> None:
    by_points, by_area = average_precisions(match(align(*make(objects, found))), threshold)
    for label in (1, 2, 3):
        expected = plain_rule(objects, found, label, threshold)
        if expected is None:
            assert np.isnan(by_points[label - 1])
            assert np.isnan(by_area[label - 1])
        else:
            assert by_points[label - 1] == pytest.approx(expected[0], abs=1e-12)
            assert by_area[label - 1] == pytest.approx(expected[1], abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_plain_rule_in_crowded_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 30, (400, 2))
    corners = np.concatenate((corner, corner + rng.integers(2, 12, (400, 2))), axis=1).astype(float).tolist()
    objects = [(int(rng.integers(4)), int(rng.integers(1, 4)), tuple(box), rng.random() < 0.2) for box in corners[:80]]
    values = rng.integers(0, 40, 320) / 40
    found = [
        (int(rng.integers(4)), int(rng.integers(1, 4)), tuple(box), float(score))
        for box, score in zip(corners[80:], values, strict=True)
    ]
    by_points, by_area = average_precisions(match(align(*make(objects, found))))
    for label in (1, 2, 3):
        values = by_points[label - 1], by_area[label - 1]
        assert values == pytest.approx(plain_rule(objects, found, label, 0.5), abs=1e-12)


# ---------------------------------------------------------------------------------------------- properties


def _aps(objects: list[Object], found: list[Found]) -> np.ndarray:
    return np.array(average_precisions(match(align(*make(objects, found)))))


distinct_scores = st.lists(st.integers(1, 10**6), unique=True, min_size=30, max_size=30)


@settings(max_examples=60, deadline=None)
@given(objects_of, found_of, distinct_scores, st.permutations(range(4)))
def test_permuting_images_changes_nothing(
    objects: list[Object], found: list[Found], values: list[int], order: list[int]
) -> None:
    found = [(*item[:3], float(value)) for item, value in zip(found, values, strict=False)]
    moved = [(order[item[0]], *item[1:]) for item in objects], [(order[item[0]], *item[1:]) for item in found]
    np.testing.assert_array_equal(_aps(*moved), _aps(objects, found))
    by_image = sorted(found, key=lambda item: order[item[0]])  # and their order in the file
    np.testing.assert_array_equal(_aps(objects, by_image), _aps(objects, found))


@settings(max_examples=60, deadline=None)
@given(objects_of, found_of)
def test_scaling_scores_changes_nothing(objects: list[Object], found: list[Found]) -> None:
    scaled = [(*item[:3], 4.0 * item[3] - 7.0) for item in found]  # monotone, but merges scores 1e-12 apart
    same = len({item[3] for item in scaled}) == len({item[3] for item in found})
    if same:
        np.testing.assert_array_equal(_aps(objects, scaled), _aps(objects, found))


@settings(max_examples=60, deadline=None)
@given(objects_of, found_of, st.integers(1, 3))
def test_false_positives_at_the_end_change_nothing(objects: list[Object], found: list[Found], label: int) -> None:
    worst = [(image, label, FAR, -1.0) for image in range(4)]
    np.testing.assert_array_equal(_aps(objects, found + worst), _aps(objects, found))


@settings(max_examples=60, deadline=None)
@given(objects_of, found_of, st.data())
def test_a_duplicate_never_helps(objects: list[Object], found: list[Found], data: st.DataObject) -> None:
    if not found:
        return
    again = data.draw(st.sampled_from(found))
    with_duplicate, without = _aps(objects, [*found, (*again[:3], again[3] - 0.1)]), _aps(objects, found)
    # The copy looks at the same object as its original, which comes before it.
    assert (np.nan_to_num(with_duplicate) <= np.nan_to_num(without) + 1e-12).all()


def test_perfect_detections_score_one() -> None:
    places = [(image, label) for image in range(4) for label in (1, 2, 3)]
    objects = [(image, label, (1.0 + image, 1.0, 9.0 + image, 30.0 * label), False) for image, label in places]
    metrics = evaluate(*make(objects, [(*item[:3], 1.0) for item in objects]), ["voc07", "voc12"])
    assert metrics["voc12"]["mAP"] == 1.0
    assert metrics["voc12"]["per_class"] == {"class1": 1.0, "class2": 1.0, "class3": 1.0}
    assert metrics["voc_by_iou"]["voc12_mean_iou50_95"] == 1.0
