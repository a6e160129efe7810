"""Kinds of errors, what fixing gives, breakdowns and confusions, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.report.analysis import Analysis, analyse
from detection.evaluation.report.breakdown import match_any_class
from detection.evaluation.report.errors import ERRORS, NO_ERROR
from tools.benchmarks.synthetic import make_set

BOX, HALF = (1.0, 1.0, 100.0, 100.0), (1.0, 1.0, 100.0, 30.0)
FAR = (301.0, 301.0, 400.0, 400.0)


def make(
    objects: list[tuple], found: list[tuple], difficult: list[bool] | None = None
) -> tuple[GroundTruth, Detections]:
    """Objects (image, class, box) and detections (image, class, box, score); 3 images, 3 classes, VOC's frame."""
    boxes = np.array([item[2] for item in objects], dtype=float).reshape(-1, 4)
    truth = GroundTruth(
        frame="voc",
        image_ids=["a", "b", "c"],
        class_names=["cat", "dog", "cow"],
        image_index=np.array([item[0] for item in objects], dtype=np.int64),
        labels=np.array([item[1] for item in objects], dtype=np.int64),
        boxes=boxes,
        area=(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array(difficult or [False] * len(objects), dtype=bool),
    )
    return truth, Detections(
        frame="voc",
        image_ids=truth.image_ids,
        class_names=truth.class_names,
        image_index=np.array([item[0] for item in found], dtype=np.int64),
        labels=np.array([item[1] for item in found], dtype=np.int64),
        boxes=np.array([item[2] for item in found], dtype=float).reshape(-1, 4),
        scores=np.array([item[3] for item in found], dtype=float),
    )


def analysis_of(objects: list[tuple], found: list[tuple], difficult: list[bool] | None = None) -> Analysis:
    return analyse(align(*make(objects, found, difficult)))


def kinds(analysis: Analysis) -> list[str]:
    return ["-" if kind == NO_ERROR else ERRORS[kind] for kind in analysis.errors.kind]


# ---------------------------------------------------------------------------------------------- kinds


def test_each_kind_of_error() -> None:
    found = [
        (0, 1, BOX, 0.9),  # hits the cat
        (0, 1, BOX, 0.8),  # the cat again
        (0, 1, HALF, 0.7),  # 30 % of the cat
        (1, 1, BOX, 0.6),  # the dog, called a cat
        (1, 1, HALF, 0.5),  # 30 % of the dog, called a cat
        (2, 1, BOX, 0.4),  # nothing there
    ]
    analysis = analysis_of([(0, 1, BOX), (1, 2, BOX), (2, 2, FAR)], found)
    assert kinds(analysis) == ["-", "duplicate", "localisation", "classification", "both", "background"]
    assert analysis.errors.missed.tolist() == [False, False, True]  # the first dog is explained by the wrong name


def test_detections_on_difficult_objects_are_no_errors() -> None:
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9)], difficult=[True, False])
    assert kinds(analysis) == ["-"]
    assert analysis.errors.missed.tolist() == [False, True]


# ---------------------------------------------------------------------------------------------- gains


def test_fixing_names_by_hand() -> None:
    # One cat and one dog; the dog is called a cat. AP: cat 1/1 then a false one = 1, dog 0. Renamed: both 1.
    analysis = analysis_of([(0, 1, BOX), (1, 2, BOX)], [(0, 1, BOX, 0.9), (1, 1, BOX, 0.8)])
    assert analysis.gains == {**dict.fromkeys((*ERRORS, "missed"), 0.0), "classification": pytest.approx(0.5)}


def test_fixing_places_by_hand() -> None:
    # Badly placed at the top: precision 0, 1/2 -> AP (of two cats) 1/2 * 1/2. Placed well: AP 1.
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, HALF, 0.9), (1, 1, BOX, 0.8)])
    assert analysis.gains["localisation"] == pytest.approx(0.75)
    assert analysis.gains["missed"] == 0  # the badly placed one explains it


def test_removing_clutter_and_duplicates_by_hand() -> None:
    # Ranks: false, true -> AP 1/2; without the false one 1.
    clutter = analysis_of([(0, 1, BOX)], [(1, 1, BOX, 0.9), (0, 1, BOX, 0.8)])
    assert clutter.gains["background"] == pytest.approx(0.5)
    # Ranks: true, duplicate, true -> AP 1/2 + 1/2 * 2/3; without the duplicate 1.
    twice = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9), (0, 1, BOX, 0.8), (1, 1, BOX, 0.7)])
    assert twice.gains["duplicate"] == pytest.approx(1 / 6)


def test_finding_missed_objects_by_hand() -> None:
    half_found = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9)])
    assert half_found.gains["missed"] == pytest.approx(0.5)
    nothing_found = analysis_of([(0, 1, BOX), (0, 2, FAR)], [(0, 1, BOX, 0.9)])
    assert nothing_found.gains["missed"] == pytest.approx(0.5)


def test_an_object_is_given_to_one_mended_detection_only() -> None:
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], [(0, 1, HALF, 0.9), (0, 1, HALF, 0.8), (1, 1, BOX, 0.7)])
    # The second badly placed one goes: true, true -> 1. Before: 0, 0, 1/3 -> 1/2 * 1/3.
    assert analysis.gains["localisation"] == pytest.approx(1 - 1 / 6)


@given(st.integers(0, 2**32 - 1))
def test_the_base_is_voc12_and_fixing_never_harms(seed: int) -> None:
    truth, found = make_set("voc", images=12, classes=3, objects=40, detections=150, seed=seed)
    analysis = analyse(align(truth, found))
    mean = evaluate(truth, found, ["voc12"])["voc12"]["mAP"]
    for name, gain in analysis.gains.items():
        assert -1e-12 <= gain <= 1 - mean + 1e-12, name
    wrong = (analysis.outcome == 0).sum()
    assert (analysis.errors.kind != NO_ERROR).sum() == wrong


# ---------------------------------------------------------------------------------------------- threshold, parts


def test_working_threshold_has_the_best_f1() -> None:
    # F1 after 1, 2, 3, 4 detections with 2 objects: 2/3, 1, 4/5, 4/6: the second score.
    found = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.6), (2, 1, BOX, 0.5), (2, 1, FAR, 0.4)]
    analysis = analysis_of([(0, 1, BOX), (1, 1, BOX)], found)
    assert analysis.threshold == 0.6
    assert not analysis.overlooked.any()
    assert analysis.counts["background"] == 0  # both lie below the threshold
    assert analysis_of([(0, 1, BOX)], []).threshold == 0.5


def test_sizes_by_hand() -> None:
    small = (1.0, 1.0, 20.0, 20.0)
    objects = [(0, 1, small), (1, 1, BOX), (2, 1, BOX)]
    found = [(0, 1, small, 0.9), (1, 1, BOX, 0.8), (2, 1, small, 0.95)]
    groups = {group.name.split(",")[0]: group for group in analysis_of(objects, found).sizes}
    # The false detection is small, so it counts among the small: ranks false, true -> 1/2.
    assert (groups["small"].objects, groups["small"].ap, groups["small"].recall) == (1, pytest.approx(0.5), 1.0)
    assert (groups["large"].objects, groups["large"].ap, groups["large"].recall) == (2, pytest.approx(0.5), 0.5)
    assert groups["medium"].objects == 0
    assert np.isnan(groups["medium"].ap)


def test_crowding_and_neighbours_by_hand() -> None:
    beside = (61.0, 1.0, 160.0, 100.0)  # 40 of 160 columns: overlap 1/4
    objects = [(0, 1, BOX), (1, 1, BOX), (1, 1, beside)]
    analysis = analysis_of(objects, [(0, 1, BOX, 0.9), (1, 1, BOX, 0.8)])
    crowding = [(group.name, group.objects, group.recall) for group in analysis.crowding[:2]]
    assert crowding == [("1", 1, 1.0), ("2 to 3", 2, 0.5)]
    assert [group.objects for group in analysis.neighbours] == [1, 0, 2, 0]
    assert analysis.neighbours[2].recall == 0.5


def test_confusion_by_hand() -> None:
    objects = [(0, 1, BOX), (1, 2, BOX), (2, 2, BOX)]
    found = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.9), (0, 3, FAR, 0.9)]
    matrix = analysis_of(objects, found).confusion
    expected = np.zeros((4, 4), dtype=int)
    expected[0, 0] = 1  # a cat found
    expected[1, 0] = 1  # a dog called a cat
    expected[1, 3] = 1  # a dog overlooked
    expected[3, 2] = 1  # a cow where nothing is
    np.testing.assert_array_equal(matrix, expected)


@given(st.integers(0, 2**32 - 1))
def test_pairs_are_those_of_a_walk_from_the_best_down(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.integers(1, 8, (40, 2)).astype(float)
    boxes = np.concatenate((corner, corner + rng.random((40, 2)) * 6), axis=1)
    objects = [(0, 1, tuple(box)) for box in boxes[:15]]
    found = [(0, 1, tuple(box), float(score)) for box, score in zip(boxes[15:], rng.random(25), strict=True)]
    data = align(*make(objects, found))
    pairs = set(zip(*(part.tolist() for part in match_any_class(data, np.arange(25))), strict=True))

    overlaps = []
    for d, (_, _, a, _) in enumerate(found):
        for g, (_, _, b) in enumerate(objects):
            width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            if width > 0 and height > 0:
                area = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
                overlaps.append((width * height / (area - width * height), d, g))
    walked: set[tuple[int, int]] = set()
    for overlap, d, g in sorted(overlaps, reverse=True):
        if overlap >= 0.5 and not any(d == one or g == other for one, other in walked):
            walked.add((d, g))
    assert pairs == walked
