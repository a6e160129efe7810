"""Results on parts of a set, by the objects' size and crowding, and which classes are taken for which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from detection.evaluation.data import Aligned
from detection.evaluation.pairs import best_objects, pairs_in_group
from detection.evaluation.report.errors import FOREGROUND
from detection.evaluation.voc import NOT_COUNTED, VocMatches, class_aps, mean_of_classes, voc_overlap

SIZES, SIZE_EDGES = ("small, below 32²", "medium, 32² to 96²", "large, from 96²"), (32.0**2, 96.0**2)
"""By area in square pixels."""
CROWDING, CROWDING_EDGES = ("1", "2 to 3", "4 to 7", "8 and more"), (2, 4, 8)
"""By the number of objects in the image."""
NEIGHBOURS, NEIGHBOUR_EDGES = ("none", "below .1", ".1 to .3", ".3 and more"), (np.nextafter(0, 1), 0.1, 0.3)
"""By the overlap with the nearest other object."""


@dataclass(frozen=True)
class Group:
    """The result on a part of the objects."""

    name: str
    objects: int
    """That are to be found."""
    ap: float
    """voc12 mAP on them; NaN where there are none or where it has no meaning."""
    recall: float
    """Share of them that is hit at the working threshold; NaN where there are none."""


def by_size(data: Aligned, matches: VocMatches, outcome: np.ndarray, found: np.ndarray) -> list[Group]:
    """The result on objects of each size. A false detection on no object counts by its own size, as in COCO's rule.

    Args:
        data: objects and detections.
        matches: which object each detection looks at.
        outcome: (D,) of each detection.
        found: (M,) bool, objects that are hit at the working threshold.
    """
    boxes = data.detections.coco_boxes
    own = np.digitize(boxes[:, 2] * boxes[:, 3], SIZE_EDGES)
    of_object = np.digitize(data.ground_truth.area, SIZE_EDGES)
    return [
        _group(name, data, matches, outcome, found, of_object == index, own == index)
        for index, name in enumerate(SIZES)
    ]


def by_crowding(data: Aligned, matches: VocMatches, outcome: np.ndarray, found: np.ndarray) -> list[Group]:
    """The result on images with so many objects. Arguments as of `by_size`."""
    truth = data.ground_truth
    level = np.digitize(np.bincount(truth.image_index, minlength=len(truth.image_ids)), CROWDING_EDGES)
    of_object, of_detection = level[truth.image_index], level[data.detection_images]
    return [
        _group(name, data, matches, outcome, found, of_object == index, of_detection == index)
        for index, name in enumerate(CROWDING)
    ]


def by_neighbour(data: Aligned, matches: VocMatches, outcome: np.ndarray, found: np.ndarray) -> list[Group]:
    """The recall of objects with such a neighbour (a false detection has none). Arguments as of `by_size`."""
    truth = data.ground_truth
    boxes, images = truth.voc_boxes, truth.image_index
    overlap, _ = best_objects(boxes, images, boxes, images, voc_overlap, allowed=lambda one, other: one != other)
    level = np.digitize(overlap, NEIGHBOUR_EDGES)
    return [_group(name, data, matches, outcome, found, level == index, None) for index, name in enumerate(NEIGHBOURS)]


def _group(
    name: str,
    data: Aligned,
    matches: VocMatches,
    outcome: np.ndarray,
    found: np.ndarray,
    objects: np.ndarray,
    clutter: np.ndarray | None,
) -> Group:
    """The result on the objects (M,) bool, with the clutter (D,) bool, detections that are on no object."""
    wanted = objects & ~matches.difficult
    count = int(wanted.sum())
    if not count:
        return Group(name, 0, float("nan"), float("nan"))
    recall = float((wanted & found).sum() / count)
    if clutter is None:
        return Group(name, count, float("nan"), recall)
    on_object = matches.overlap >= FOREGROUND
    mine = np.where(on_object, np.append(objects, False)[matches.best_object], clutter)
    labels = data.ground_truth.labels[wanted]
    part = replace(matches, positives=np.bincount(labels, minlength=len(matches.class_names) + 1)[1:])
    return Group(name, count, mean_of_classes(class_aps(part, np.where(mine, outcome, NOT_COUNTED))), recall)


# ---------------------------------------------------------------------------------------------- confusion


def confusion(data: Aligned, sure: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """Which classes are taken for which.

    Args:
        data: objects and detections.
        sure: (D,) bool, the detections that count.
        difficult: (M,) bool, objects that do not count; neither do detections on them.

    Returns:
        (K + 1, K + 1) int64 [true class, predicted class]. The last row holds detections on no object, the last
        column objects without a detection.
    """
    truth, classes = data.ground_truth, len(data.class_names)
    detection, item = match_any_class(data, np.flatnonzero(sure))
    counted = ~difficult[item]
    free = ~difficult
    free[item] = False
    clutter = sure.copy()
    clutter[detection] = False
    true = np.concatenate(
        (truth.labels[item[counted]] - 1, truth.labels[free] - 1, np.full(np.count_nonzero(clutter), classes))
    )
    predicted = np.concatenate(
        (
            data.detection_labels[detection[counted]] - 1,
            np.full(np.count_nonzero(free), classes),
            data.detection_labels[clutter] - 1,
        )
    )
    matrix = np.bincount(true * (classes + 1) + predicted, minlength=(classes + 1) ** 2)
    return matrix.reshape(classes + 1, classes + 1)


def match_any_class(data: Aligned, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a detection and an object that overlap by at least .5, each in one pair, the best overlap first.

    Args:
        data: objects and detections.
        chosen: positions of the detections that take part.

    Returns:
        (P,) int64 detections and (P,) int64 objects.
    """
    truth = data.ground_truth
    boxes, objects = data.detections.voc_boxes, truth.voc_boxes
    nothing = np.zeros(0, dtype=np.int64)
    parts = [(np.zeros(0), nothing, nothing)]
    for place, item in pairs_in_group(data.detection_images[chosen], truth.image_index):
        overlap = voc_overlap(boxes[chosen[place]], objects[item])
        near = overlap >= FOREGROUND
        parts.append((overlap[near], chosen[place[near]], item[near]))
    overlap, detection, item = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-data.detections.scores[detection], -overlap))
    detection, item = detection[order], item[order]
    taken_detections, taken_items = [nothing], [nothing]
    while len(detection):
        # A walk from the best pair down takes, among others, all pairs that are the first of both their parts.
        taken = _is_first(detection) & _is_first(item)
        taken_detections.append(detection[taken])
        taken_items.append(item[taken])
        left = ~np.isin(detection, detection[taken]) & ~np.isin(item, item[taken])
        detection, item = detection[left], item[left]
    return np.concatenate(taken_detections), np.concatenate(taken_items)


def _is_first(values: np.ndarray) -> np.ndarray:
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first
