"""ImageNet DET's rule (Russakovsky et al. 2015, Sec. 4.3; the development kit's eval_detection), in VOC's pixels.

It differs from VOC's rule (`voc.py`) in three things:

- The threshold of an object of w x h pixels is min(0.5, w h / ((w + 10) (h + 10))): a box that is off by five pixels on
  each side of a small object still counts.
- A detection goes to the object that it overlaps most *of those that no detection before it has found* and whose own
  threshold it reaches: where VOC calls a second detection of an object a duplicate, it may find a neighbour of it.
- No object is difficult: all count.

The average precision is the area under the monotone precision, as in VOC2010 and later. The development kit's blacklist
(pairs of image and class that it passes over) is not read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from detection.evaluation import voc
from detection.evaluation.data import Aligned
from detection.evaluation.pairs import pairs_in_group

THRESHOLD = 0.5
TOLERANCE = 10.0
"""Pixels, both sides together."""


def thresholds(boxes: np.ndarray) -> np.ndarray:
    """(M,) float64 overlaps at which objects (M, 4), VOC's frame, count as found."""
    width, height = boxes[:, 2] - boxes[:, 0] + 1.0, boxes[:, 3] - boxes[:, 1] + 1.0
    return np.minimum(THRESHOLD, width * height / ((width + TOLERANCE) * (height + TOLERANCE)))


def outcomes(data: Aligned, order: np.ndarray) -> np.ndarray:
    """(D,) int8, in the order of the file: TRUE or FALSE.

    Args:
        data: ground truth and detections.
        order: (D,) int64, by class and descending score (`voc.class_order`).
    """
    truth = data.ground_truth
    images = max(len(truth.image_ids), 1)
    boxes, object_boxes = data.detections.voc_boxes, truth.voc_boxes
    limits = thresholds(object_boxes)
    candidates: dict[int, list[tuple[float, int]]] = {}
    groups = data.detection_labels * images + data.detection_images
    for detection, item in pairs_in_group(groups, truth.labels * images + truth.image_index):
        overlap = voc.voc_overlap(boxes[detection], object_boxes[item])
        enough = overlap >= limits[item]
        rows = zip(detection[enough].tolist(), overlap[enough].tolist(), item[enough].tolist(), strict=True)
        for which, value, target in rows:
            candidates.setdefault(which, []).append((value, target))

    outcome = np.full(len(order), voc.FALSE, dtype=np.int8)
    found: set[int] = set()
    for which in order[np.isin(order, np.fromiter(candidates, np.int64, len(candidates)))].tolist():
        free = [(value, -target) for value, target in candidates[which] if target not in found]
        if free:
            found.add(-max(free)[1])  # of equal overlaps the first in the file
            outcome[which] = voc.TRUE
    return outcome


def average_precisions(data: Aligned) -> np.ndarray:
    """(K,) float64 AP of each class; NaN for a class without objects."""
    matches = voc.match(data)
    labels = data.ground_truth.labels
    positives = np.bincount(labels, minlength=len(data.class_names) + 1)[1:]
    return voc.class_aps(replace(matches, positives=positives), outcomes(data, matches.order))
