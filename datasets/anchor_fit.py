"""How well anchors fit the objects of a set, and which would fit better. Imports no torch.

An anchor reaches an object if they overlap by half (intersection over union) when the anchor's centre lies a quarter of
the stride off the object's along x and y, as it does on average for the nearest anchor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TAILS = (0.02, 0.05, 0.1, 0.2, 0.3)
"""Shares of the objects at each end over which anchors are not spread; that which reaches most is taken."""


def anchor_shapes(
    sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float], strides: Sequence[int]
) -> np.ndarray:
    """(A, 3) float64: width, height and stride of each anchor.

    Args:
        sizes: square roots of the areas, pixels, for each map.
        aspect_ratios: height / width.
        strides: of the maps, pixels.
    """
    return np.array(
        [
            (size / ratio**0.5, size * ratio**0.5, stride)
            for level, stride in zip(sizes, strides, strict=True)
            for size in level
            for ratio in aspect_ratios
        ]
    )


def reached(extents: np.ndarray, shapes: np.ndarray) -> float:
    """The share of objects that some anchor reaches; 1 where there is none.

    Args:
        extents: (M, 2) width and height of the objects in the resized images, pixels.
        shapes: (A, 3), see `anchor_shapes`.
    """
    best = np.zeros(len(extents))
    for width, height, stride in shapes.tolist():
        sides = np.array((width, height))
        common = np.clip((extents + sides) / 2 - stride / 4, 0, np.minimum(extents, sides)).prod(axis=1)
        best = np.maximum(best, common / (extents.prod(axis=1) + width * height - common))
    return float((best >= 0.5).mean()) if len(extents) else 1.0


def better_anchors(
    extents: np.ndarray, sizes: Sequence[Sequence[float]], ratios: int, strides: Sequence[int]
) -> tuple[list[list[int]], list[float]]:
    """As many anchors, spread over the objects so that they reach many: the sizes of each map, and the aspect ratios.

    Args:
        extents: (M, 2), M > 0, as of `reached`.
        sizes: the present ones; only their number counts.
        ratios: how many aspect ratios.
        strides: of the maps, pixels; no anchor is smaller than half.
    """
    roots, shapes = np.sqrt(extents.prod(axis=1)), extents[:, 1] / extents[:, 0]
    candidates = [
        (_levels(_spread(roots, sum(map(len, sizes)), of_sizes), sizes, strides), _spread(shapes, ratios, of_ratios))
        for of_sizes in _TAILS
        for of_ratios in _TAILS
    ]
    rounded = [(found, sorted({float(f"{ratio:.2g}") for ratio in chosen})) for found, chosen in candidates]
    return max(rounded, key=lambda candidate: reached(extents, anchor_shapes(*candidate, strides)))


def _spread(values: np.ndarray, count: int, tail: float) -> list[float]:
    """So many numbers, each in the same ratio to the one before, over the values without their tails."""
    if count == 1:
        return [float(np.median(values))]
    low, high = np.quantile(values, (tail, 1 - tail)).tolist()
    return np.geomspace(low, max(high, low * 1.01), count).tolist()


def _levels(spread: Sequence[float], sizes: Sequence[Sequence[float]], strides: Sequence[int]) -> list[list[int]]:
    """Growing sizes as whole pixels, on each map equally many, as now or fewer; none below half the map's stride."""
    found, used = [], 0
    for level, stride in zip(sizes, strides, strict=True):
        found.append(sorted({max(stride // 2, round(size)) for size in spread[used : used + len(level)]}))
        used += len(level)
    least = min(map(len, found))  # equal sizes were joined; the RPN's head is one for all maps
    return [level[:least] for level in found]
