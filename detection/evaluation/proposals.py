"""How well the region proposals cover the objects: average recall (Hosang et al. 2016), which bounds the detector's.

An object is recalled at an overlap threshold if a proposal of its own overlaps it at least so much; proposals are
given to objects one to one, the best overlap first. Average recall is the mean over the thresholds .5, .55, ..., .95.
Crowd regions and difficult objects do not count. Overlaps are of continuous boxes, as COCO's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detection.evaluation.coco import IOU_THRESHOLDS
from detection.evaluation.data import GroundTruth

COUNTS = (100, 300, 1000)
"""Proposals of each image, best first, that are looked at."""
SIZES = {
    "all": (0.0, np.inf),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}
"""Ranges of the objects' area, square pixels, from the first to below the second."""

Recall = dict[str, float | int | None]


def proposal_recall(
    truth: GroundTruth, proposals: Sequence[np.ndarray], counts: Sequence[int] = COUNTS
) -> dict[str, Recall]:
    """Average recall of class-agnostic proposals.

    Args:
        truth: the objects.
        proposals: for each image of `truth.image_ids` (P, 4) boxes x1 y1 x2 y2 in continuous pixels of the original
            image, best first.
        counts: how many proposals of each image are looked at.

    Returns:
        `{"AR@100": {"all": x, "small": x, "medium": x, "large": x, "recall50": x, "objects": n}, ...}`; fractions,
        None where there is no object of the size. `recall50` is the share recalled at an overlap of .5.

    Raises:
        ValueError: there are not as many arrays as images.
    """
    if len(proposals) != len(truth.image_ids):
        raise ValueError(f"{len(proposals)} arrays of proposals for {len(truth.image_ids)} images")
    counted = np.flatnonzero(~(truth.iscrowd | truth.difficult))
    counted = counted[np.argsort(truth.image_index[counted], kind="stable")]
    boxes, images = truth.continuous_boxes[counted], truth.image_index[counted]
    ends = np.searchsorted(images, np.arange(len(proposals) + 1))
    covered = {count: np.zeros(len(counted)) for count in counts}
    for index, regions in enumerate(proposals):
        part = slice(ends[index], ends[index + 1])
        if ends[index] == ends[index + 1] or len(regions) == 0:
            continue
        overlaps = pairwise_iou(np.asarray(regions, dtype=np.float64)[: max(counts)], boxes[part])
        for count in counts:
            covered[count][part] = cover_one_to_one(overlaps[:count])
    area = truth.area[counted]
    return {f"AR@{count}": _summary(covered[count], area) for count in counts}


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P, G) float64 intersection over union of (P, 4) and (G, 4) continuous boxes; 0 for boxes without area."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner, 0.0, None)
    shared = sides[..., 0] * sides[..., 1]
    union = _area(boxes)[:, None] + _area(others)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=1)


def cover_one_to_one(overlaps: np.ndarray) -> np.ndarray:
    """The overlap of each object with the proposal that it is given, 0 for none.

    Args:
        overlaps: (P, G) of proposals with objects.

    Returns:
        (G,) float64: the best pair of all is given first, then the best of the rest.
    """
    left = overlaps.copy()
    covered = np.zeros(overlaps.shape[1])
    for _ in range(min(overlaps.shape)):
        proposal, item = np.unravel_index(np.argmax(left), left.shape)
        if left[proposal, item] <= 0:
            break
        covered[item] = left[proposal, item]
        left[proposal, :] = -1.0
        left[:, item] = -1.0
    return covered


def _summary(covered: np.ndarray, area: np.ndarray) -> Recall:
    recalled = covered[:, None] >= IOU_THRESHOLDS[None]
    summary: Recall = {}
    for name, (low, high) in SIZES.items():
        chosen = (area >= low) & (area < high)
        summary[name] = float(recalled[chosen].mean()) if chosen.any() else None
    summary["recall50"] = float(recalled[:, 0].mean()) if len(covered) else None
    summary["objects"] = len(covered)
    return summary
