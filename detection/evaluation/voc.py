"""PASCAL VOC's rule, in VOC's own pixels and double precision (Everingham et al. 2010; the development kit).

- A box's width is xmax - xmin + 1. Overlap is the intersection over the union; boxes without a
  common pixel do not overlap.
- Detections of a class go by descending score; equal scores keep the order of the file.
- Each detection looks at the object of its class and image that it overlaps most (of equals the first in the file),
  whether or not that is taken. If the overlap is at least the threshold: a difficult object makes the detection not
  count at all; an object that no detection before has hit makes it true; one that has been hit makes it false (a
  duplicate). Otherwise it is false.
- Recall is relative to the objects that are not difficult. A precision of 0/0 is 0.
- voc07: the mean, over the 11 recalls `np.arange(0, 1.1, 0.1)`, of the highest precision at that recall or above.
- voc12 (VOC2010 and later): the area under the precision made monotone.
- A class without objects, or with difficult ones only, has no AP (NaN here, null in files) and no part in the mean.

Since a detection looks at one object only, an object's first detection in score order is the true one and all others
are duplicates: nothing needs a loop over detections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detection.evaluation.data import Aligned
from detection.evaluation.pairs import best_objects

RECALLS_07 = np.arange(0, 1.1, 0.1)
"""The thresholds as floating point has them: 0.30000000000000004 is not reached by 3 of 10 objects."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The IoU thresholds that the mean is over."""

TRUE, FALSE, NOT_COUNTED = 1, 0, -1


def voc_overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Overlaps of paired boxes with inclusive pixels, the operations in the development kit's order.

    Args:
        boxes: (P, 4) float64, VOC's frame.
        others: (P, 4) float64.

    Returns:
        (P,) float64 in (0, 1]; -inf for boxes that share no pixel.
    """
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0]) + 1.0
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1]) + 1.0
    area = (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)
    other_area = (others[:, 2] - others[:, 0] + 1.0) * (others[:, 3] - others[:, 1] + 1.0)
    shared = width * height
    overlap = np.full(len(boxes), -np.inf)
    touching = (width > 0) & (height > 0)
    np.divide(shared, area + other_area - shared, out=overlap, where=touching)
    return overlap


@dataclass(frozen=True)
class VocMatches:
    """Which object each detection looks at, and the order in which detections come."""

    class_names: list[str]
    labels: np.ndarray
    """(D,) int64 in 1..K."""
    scores: np.ndarray
    overlap: np.ndarray
    """(D,) float64; -inf: none."""
    best_object: np.ndarray
    """(D,) int64: position among the objects; -1: none."""
    order: np.ndarray
    """(D,) int64: by class, then by descending score, then as in the file."""
    starts: np.ndarray
    """(K + 1,) int64: where each class begins in `order`."""
    difficult: np.ndarray
    """(M,) bool: objects that need not be found."""
    positives: np.ndarray
    """(K,) int64: objects of each class that are to be found."""


def match(data: Aligned) -> VocMatches:
    """Find for each detection the object that it looks at. COCO's crowd regions count as difficult."""
    truth = data.ground_truth
    classes = len(data.class_names)
    images = max(len(truth.image_ids), 1)
    overlap, best = best_objects(
        data.detections.voc_boxes,
        data.detection_labels * images + data.detection_images,
        truth.voc_boxes,
        truth.labels * images + truth.image_index,
        voc_overlap,
    )
    order, starts = class_order(data.detection_labels, data.detections.scores, classes)
    difficult = truth.difficult | truth.iscrowd
    return VocMatches(
        class_names=data.class_names,
        labels=data.detection_labels,
        scores=data.detections.scores,
        overlap=overlap,
        best_object=best,
        order=order,
        starts=starts,
        difficult=difficult,
        positives=np.bincount(truth.labels[~difficult], minlength=classes + 1)[1:],
    )


def class_order(labels: np.ndarray, scores: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Detections by class, then by descending score, then as in the file.

    Returns:
        (D,) int64 order, and (classes + 1,) int64 where each class begins in it.
    """
    by_score = np.argsort(-scores, kind="stable")
    order = by_score[np.argsort(labels[by_score], kind="stable")]
    return order, np.searchsorted(labels[order], np.arange(1, classes + 2))


def outcomes(matches: VocMatches, threshold: float = 0.5) -> np.ndarray:
    """(D,) int8, in the order of the file: TRUE, FALSE, or NOT_COUNTED (on a difficult object)."""
    outcome = np.full(len(matches.order), FALSE, dtype=np.int8)
    hits = matches.order[matches.overlap[matches.order] >= threshold]
    on_difficult = matches.difficult[matches.best_object[hits]]
    outcome[hits[on_difficult]] = NOT_COUNTED
    counted = hits[~on_difficult]
    _, first = np.unique(matches.best_object[counted], return_index=True)
    outcome[counted[first]] = TRUE
    return outcome


def recall_precision(outcome: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection of one class.

    Args:
        outcome: (n,) TRUE, FALSE or NOT_COUNTED, by descending score.
        positives: number of objects to be found, > 0.

    Returns:
        (n,) float64 recall, never falling, and (n,) float64 precision.
    """
    true = np.cumsum(outcome == TRUE)
    counted = np.cumsum(outcome != NOT_COUNTED)
    return true / positives, true / np.maximum(counted, 1)


def average_precision_07(recall: np.ndarray, precision: np.ndarray) -> float:
    """The 11-point average precision of VOC2007."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    reached = envelope[np.searchsorted(recall, RECALLS_07, side="left")]
    return math.fsum(reached.tolist()) / 11.0  # exact sums: perfect detections score 1.0, not 1.0000000000000002


def average_precision_12(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the monotone precision, VOC2010 and later."""
    edges = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(edges[1:] != edges[:-1]) + 1
    return math.fsum(((edges[steps] - edges[steps - 1]) * envelope[steps]).tolist())


def class_curves(matches: VocMatches, outcome: np.ndarray) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Recall and precision of each class (see `recall_precision`); None for a class with nothing to be found."""
    curves: list[tuple[np.ndarray, np.ndarray] | None] = []
    for index, positives in enumerate(matches.positives):
        mine = matches.order[matches.starts[index] : matches.starts[index + 1]]
        curves.append(recall_precision(outcome[mine], int(positives)) if positives else None)
    return curves


def counts_over_scores(matches: VocMatches, outcome: np.ndarray, thresholds: np.ndarray) -> dict[str, np.ndarray]:
    """True detections, false detections and missed objects of each class at each of some score thresholds.

    Args:
        matches: of a whole set.
        outcome: (D,) of `outcomes`.
        thresholds: (T,) scores; a detection counts from its own score on down.

    Returns:
        Name -> (3, T) int64, without the classes that have nothing to be found.
    """
    counts = {}
    for index, positives in enumerate(matches.positives):
        mine = matches.order[matches.starts[index] : matches.starts[index + 1]]
        shown = np.searchsorted(-matches.scores[mine], -thresholds, side="right")
        true, false = (np.append(0, np.cumsum(outcome[mine] == kind))[shown] for kind in (TRUE, FALSE))
        if positives:
            counts[matches.class_names[index]] = np.stack([true, false, positives - true])
    return counts


def class_aps(matches: VocMatches, outcome: np.ndarray) -> np.ndarray:
    """(K,) float64 voc12 AP; NaN for a class with nothing to be found."""
    curves = class_curves(matches, outcome)
    return np.array([np.nan if curve is None else average_precision_12(*curve) for curve in curves], dtype=np.float64)


def average_precisions(matches: VocMatches, threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(K,) float64 AP of each class by the 11 points and by the area; NaN for a class with nothing to be found."""
    outcome = outcomes(matches, threshold)
    curves = class_curves(matches, outcome)
    by_points = [np.nan if curve is None else average_precision_07(*curve) for curve in curves]
    return np.array(by_points, dtype=np.float64), class_aps(matches, outcome)


def mean_of_classes(values: np.ndarray) -> float:
    """Mean over the classes that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else float("nan")
