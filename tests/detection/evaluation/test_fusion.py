"""Weighted box fusion and its like, by hand."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from configs.errors import UserError
from detection.evaluation.data import Detections
from detection.evaluation.fusion import METHODS, fuse

# The library compiles its NMS for seconds; on five boxes plain Python does.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
pytest.importorskip("ensemble_boxes", reason="the extra `fusion` is not installed")


def detections(*rows: tuple[int, int, list[float], float]) -> Detections:
    """Image, label, COCO box and score each; two images, three classes."""
    return Detections(
        frame="coco", image_ids=[7, 9], class_names=["cat", "dog", "cow"],
        image_index=np.array([row[0] for row in rows], dtype=np.int64),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        boxes=np.array([row[2] for row in rows], dtype=float).reshape(-1, 4),
        scores=np.array([row[3] for row in rows]), source="x.json",
    )  # fmt: skip


def rows_of(found: Detections) -> list[tuple]:
    """Image id, label, box and a score of four digits, in the result's order."""
    return [
        (found.image_ids[image], label, box, round(score, 4))
        for image, label, box, score in zip(
            found.image_index.tolist(), found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True
        )
    ]


A = detections(
    (1, 1, [0, 0, 10, 10], 0.5),
    (0, 2, [10, 10, 20, 20], 0.8),  # with the first of B: overlap 18 * 20 / 440 = 0.82
    (0, 2, [200, 100, 50, 30], 0.9),  # nobody else sees it
)
B = detections((0, 2, [12, 10, 20, 20], 0.4), (0, 3, [10, 10, 20, 20], 0.6))


def test_boxes_and_scores_by_hand() -> None:
    """x = (0.8 * 10 + 0.4 * 12) / 1.2 = 10.667 with score 0.6; what one of two has seen counts half."""
    assert rows_of(fuse([A, B])) == [
        (7, 2, [10.667, 10, 20, 20], 0.6),
        (7, 2, [200, 100, 50, 30], 0.45),
        (7, 3, [10, 10, 20, 20], 0.3),
        (9, 1, [0, 0, 10, 10], 0.25),
    ]


def test_weights_by_hand() -> None:
    """Weights 2, 1: x = (1.6 * 10 + 0.4 * 12) / 2 = 10.4, score (2 * 0.8 + 0.4) / 3."""
    found = {(*row[:2], round(row[2][0])): row[2:] for row in rows_of(fuse([A, B], weights=[2, 1]))}
    assert found[7, 2, 10] == ([10.4, 10, 20, 20], 0.6667)
    assert found[7, 2, 200][1] == 0.6


def test_the_overlap_decides() -> None:
    """At 0.9 the two boxes, which overlap by 0.82, stay two."""
    found = rows_of(fuse([A, B], iou=0.9))
    assert (7, 2, [10, 10, 20, 20], 0.4) in found
    assert (7, 2, [12, 10, 20, 20], 0.2) in found


def test_nms_keeps_the_best() -> None:
    assert sorted(rows_of(fuse([A, B], method="nms", iou=0.5))) == [
        (7, 2, [10, 10, 20, 20], 0.8),
        (7, 2, [200, 100, 50, 30], 0.9),
        (7, 3, [10, 10, 20, 20], 0.6),
        (9, 1, [0, 0, 10, 10], 0.5),
    ]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_boxes_that_nothing_overlaps_keep_their_places(method) -> None:
    found = [row[:3] for row in rows_of(fuse([A, B], method=method))]
    assert (7, 2, [200, 100, 50, 30]) in found
    assert (9, 1, [0, 0, 10, 10]) in found


def test_the_frame_stays() -> None:
    """VOC's inclusive pixels come back as they were; an image without detections is passed over."""
    voc = replace(detections((1, 3, [3, 4, 50.5, 60], 0.75)), frame="voc")
    found = fuse([voc, voc])
    assert found.frame == "voc"
    assert rows_of(found) == [(9, 3, [3, 4, 50.5, 60], 0.75)]
    assert rows_of(fuse([detections(), detections()])) == []


def test_scores_must_be_probabilities() -> None:
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"x\.json: detection 1: score .* is not in \[0, 1\]"):
            fuse([A, detections((0, 1, [0, 0, 1, 1], 1.0), (0, 1, [0, 0, 1, 1], bad))])


def test_without_the_library_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    with pytest.raises(UserError, match=r"pip install -e \.\[fusion\]"):
        fuse([A, B])
