"""All pairs of a detection and an object of the same group (class and image), without a loop over either."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

PAIRS_AT_ONCE = 2_000_000
"""Bounds the memory: about 150 bytes a pair are in use at a time."""

Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Overlaps of (P, 4) boxes of detections with (P, 4) boxes of objects."""
Allowed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(P,) bool for (P,) detections and (P,) objects."""


def pairs_in_group(groups: np.ndarray, object_groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of equal group, in portions.

    Args:
        groups: (D,) int64, the group of each detection.
        object_groups: (M,) int64, the group of each object.

    Yields:
        (P,) detections, ascending, and (P,) objects; the objects of one detection follow each other in ascending order,
        and are never split over two portions.
    """
    by_group = np.argsort(object_groups, kind="stable")
    sorted_groups = object_groups[by_group]
    first = np.searchsorted(sorted_groups, groups, side="left")
    count = np.searchsorted(sorted_groups, groups, side="right") - first
    paired = np.flatnonzero(count)
    ends = np.cumsum(count[paired])
    begin = 0
    while begin < len(paired):
        done = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        some = paired[begin:end]
        detection = np.repeat(some, count[some])
        step = np.arange(len(detection)) - np.repeat(ends[begin:end] - count[some] - done, count[some])
        yield detection, by_group[np.repeat(first[some], count[some]) + step]
        begin = end


def best_objects(
    boxes: np.ndarray,
    groups: np.ndarray,
    object_boxes: np.ndarray,
    object_groups: np.ndarray,
    overlap: Overlap,
    allowed: Allowed | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its group that it overlaps most; of equals the first.

    Args:
        boxes: (D, 4) float64.
        groups: (D,) int64.
        object_boxes: (M, 4) float64.
        object_groups: (M,) int64.
        overlap: of paired boxes.
        allowed: the pairs that count, of positions of detections and of objects; default: all.

    Returns:
        (D,) float64 overlaps, -inf where there is no object that is overlapped, and (D,) int64 objects, -1 there.
    """
    best = np.full(len(boxes), -np.inf)
    which = np.full(len(boxes), -1, dtype=np.int64)
    for detection, item in pairs_in_group(groups, object_groups):
        value = overlap(boxes[detection], object_boxes[item])
        if allowed is not None:
            value[~allowed(detection, item)] = -np.inf
        starts = np.flatnonzero(np.r_[True, detection[1:] != detection[:-1]])
        top = np.maximum.reduceat(value, starts)
        lengths = np.diff(np.r_[starts, len(detection)])
        is_top = value == np.repeat(top, lengths)
        place = np.minimum.reduceat(np.where(is_top, np.arange(len(value)), len(value)), starts)
        found = top > -np.inf
        owners = detection[starts]
        best[owners[found]] = top[found]
        which[owners[found]] = item[place[found]]
    return best, which
