"""The parts of a set by size, crowding and neighbours, and confusions, by hand; pairs against a plain walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.evaluation.data import align
from detection.evaluation.report.breakdown import match_any_class
from tests.detection.evaluation.report.made import BOX, FAR, analysis_of, make


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


def test_edges_of_the_sizes() -> None:
    """32 x 32 is medium and 96 x 96 large; VOC's boxes have both end pixels."""
    sides = (31, 32, 95, 96)
    objects = [(0, 1, (1.0, 1.0, float(side), float(side))) for side in sides]
    assert [group.objects for group in analysis_of(objects, []).sizes] == [1, 2, 1]


def test_edges_of_the_crowding() -> None:
    objects = [(0, 1, BOX)] * 3 + [(1, 1, BOX)] * 4 + [(2, 1, BOX)] * 8
    assert [group.objects for group in analysis_of(objects, []).crowding] == [0, 3, 4, 8]


def test_difficult_objects_are_in_no_part() -> None:
    analysis = analysis_of([(0, 1, BOX), (1, 2, BOX)], [(1, 2, BOX, 0.9)], difficult=[False, True])
    assert sum(group.objects for group in analysis.sizes) == 1
    # The detection on it counts neither as found nor as false; the other object is missed.
    assert analysis.confusion.sum() == analysis.confusion[0, 3] == 1


def test_only_the_detections_that_are_sure_are_confused() -> None:
    objects = [(0, 1, BOX), (1, 1, BOX)]
    found = [(0, 1, BOX, 0.9), (1, 1, BOX, 0.8), (2, 3, FAR, 0.1)]
    analysis = analysis_of(objects, found)
    assert analysis.threshold == 0.8
    assert analysis.confusion.sum() == analysis.confusion[0, 0] == 2
