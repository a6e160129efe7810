"""The localisation error, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detection.evaluation.localisation import (
    centre_box,
    error,
    iou,
    localisation_errors,
    mean_boxes,
    right_predictions,
    scaled_to_images,
    trivial_errors,
)

OBJECTS = np.array([[0.0, 0, 10, 10], [20, 0, 30, 20], [5, 5, 15, 25], [3, 3, 3, 9]])
OBJECT_LABELS = np.array([1, 1, 0, 2])
OFFSETS = np.array([0, 2, 3, 4])
"""Image 0 has two objects of class 1, image 1 one of class 0, image 2 one without an extent."""
IMAGE_LABELS = np.array([1, 0, 2])


def test_overlap():
    assert iou(OBJECTS[0], [0, 0, 10, 5]) == 0.5
    assert iou(OBJECTS[0], [5, 5, 15, 15]) == pytest.approx(25 / 175)
    assert iou(OBJECTS[0], [10, 0, 20, 10]) == 0
    assert iou(OBJECTS[3], OBJECTS[3]) == 0, "a box without an extent is never found"


def test_a_prediction_needs_the_class_and_half_of_any_object():
    boxes = np.array(
        [
            [[20.0, 0, 30, 10], [0, 0, 10, 4.9]],  # just half of the second object; not quite half of the first
            [[5, 5, 15, 25], [5, 5, 15, 25]],
            [[3, 3, 3, 9], [0, 0, 9, 9]],
        ]
    )
    labels = np.array([[1, 1], [1, 0], [2, 2]])
    right = right_predictions(boxes, labels, OBJECTS, OBJECT_LABELS, OFFSETS)
    assert right.tolist() == [[True, False], [False, True], [False, False]]
    assert error(right, 1) == error(right) == pytest.approx(2 / 3)
    assert error(right, 5) == pytest.approx(1 / 3)


def test_the_figures_of_a_set():
    """Column 0 is the box of the true class; the rest are the predicted classes, best first."""
    good = {0: OBJECTS[2], 1: OBJECTS[0], 2: OBJECTS[3]}
    labels = np.array([[1, 0, 1], [0, 0, 2], [2, 1, 2]])
    boxes = np.array([[good[k] for k in row] for row in labels])
    values = localisation_errors(boxes, labels, IMAGE_LABELS, OBJECTS, OBJECT_LABELS, OFFSETS, predicted=True)
    assert values == {
        "true_class_error": pytest.approx(1 / 3),  # image 2's object cannot be found
        "top1_error": pytest.approx(2 / 3),
        "top5_error": pytest.approx(1 / 3),
        "top1_class_error": pytest.approx(2 / 3),
        "top5_class_error": 0.0,
        "images": 3,
    }
    alone = localisation_errors(
        boxes[:, :1], labels[:, :1], IMAGE_LABELS, OBJECTS, OBJECT_LABELS, OFFSETS, predicted=False
    )
    assert alone == {"true_class_error": pytest.approx(1 / 3), "images": 3}


def test_trivial_predictors():
    sizes = np.array([[20, 40], [40, 20], [10, 10]])
    of_objects = sizes[[0, 0, 1, 2]]
    means = mean_boxes(OBJECTS, OBJECT_LABELS, of_objects, 4)
    assert means[1].tolist() == [0.25, 0.0, 0.5, 0.75]  # of (0, 0, 1/4, 1/2) and (1/2, 0, 3/4, 1)
    assert means[0].tolist() == [0.25, 0.125, 0.75, 0.625]
    assert np.isnan(means[3]).all()
    assert scaled_to_images(means[1], sizes[:1]).tolist() == [[10, 0, 20, 15]]
    assert scaled_to_images(centre_box(), np.array([[64, 64], [40, 80]])).tolist() == [[8, 8, 56, 56], [10, 5, 70, 35]]
    values = trivial_errors(means, IMAGE_LABELS, sizes, OBJECTS, OBJECT_LABELS, OFFSETS)
    # The mean box of class 0 is its only object; that of class 1 lies between its two; class 2's cannot be found.
    assert values["mean_box_error"] == pytest.approx(2 / 3)
    # 15 x 30 around the middle of 20 x 40 (H x W): no object of image 0. Image 1: (2.5, 5, 17.5, 35) holds
    # the object's 10 x 20, 200 of 450.
    assert values["centre_box_error"] == 1.0
