"""Pairs of detections and objects against two plain loops, in portions of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.evaluation import pairs
from detection.evaluation.pairs import best_objects, pairs_in_group

groups = st.lists(st.integers(0, 4), max_size=12).map(lambda values: np.array(values, dtype=np.int64))


@given(groups, groups, st.integers(1, 20))
def test_pairs_are_those_of_two_loops(detections: np.ndarray, objects: np.ndarray, at_once: int) -> None:
    expected = [(d, m) for d in range(len(detections)) for m in range(len(objects)) if detections[d] == objects[m]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
        portions = [list(zip(d.tolist(), m.tolist(), strict=True)) for d, m in pairs_in_group(detections, objects)]
    assert [pair for portion in portions for pair in portion] == expected
    owners = [{detection for detection, _ in portion} for portion in portions]
    assert all(a.isdisjoint(b) for number, a in enumerate(owners) for b in owners[:number])
    assert all(len(portion) <= at_once or len(owner) == 1 for portion, owner in zip(portions, owners, strict=True))


def closeness(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Minus the distance of the first coordinates; -inf from 10 on."""
    distance = np.abs(boxes[:, 0] - others[:, 0])
    return np.where(distance < 10, -distance, -np.inf)


def at(*places: float) -> np.ndarray:
    return np.array(places)[:, None] * np.ones(4)


def test_best_objects_by_hand() -> None:
    """Of equals the first in the file; another group's nearest is not looked at; too far is none."""
    boxes, own = at(5, 5, 50, 7), np.array([1, 2, 1, 3])
    objects, theirs = at(7, 3, 5, 58, 59), np.array([1, 1, 2, 1, 1])
    best, which = best_objects(boxes, own, objects, theirs, closeness)
    assert which.tolist() == [0, 2, 3, -1]
    assert best.tolist() == [-2, 0, -8, -np.inf]


def test_pairs_that_do_not_count() -> None:
    boxes, group = at(5, 6), np.array([0, 0])
    best, which = best_objects(boxes, group, boxes, group, closeness, allowed=lambda one, other: one != other)
    assert which.tolist() == [1, 0]
    assert best.tolist() == [-1, -1]
    _, which = best_objects(boxes, group, boxes, group, closeness, allowed=lambda one, other: other > 5)
    assert which.tolist() == [-1, -1]


@given(groups, groups, st.integers(0, 1000), st.integers(1, 9))
def test_best_objects_are_those_of_a_loop(own: np.ndarray, theirs: np.ndarray, seed: int, at_once: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, objects = (at(*rng.integers(0, 25, len(values)).astype(float)) for values in (own, theirs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
        best, which = best_objects(boxes.reshape(-1, 4), own, objects.reshape(-1, 4), theirs, closeness)
    for detection in range(len(own)):
        expected = (-np.inf, -1)
        for item in range(len(theirs)):
            distance = abs(boxes[detection, 0] - objects[item, 0])
            if own[detection] == theirs[item] and distance < 10 and -distance > expected[0]:
                expected = (-distance, item)
        assert (best[detection], which[detection]) == expected
