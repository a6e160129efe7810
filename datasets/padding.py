"""Padded sizes: a batch's own, and few for all, for each new one is tuned, compiled and found memory for.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """(H, W) rounded up to multiples of `divisor`."""
    return -(-int(size[0]) // divisor) * divisor, -(-int(size[1]) // divisor) * divisor


def common_size(sizes: Sequence[tuple[int, int]] | np.ndarray, divisor: int) -> tuple[int, int]:
    """The padded size (H, W) of images of sizes (B, 2) that share a batch."""
    height, width = np.max(sizes, axis=0).tolist()
    return padded_size((height, width), divisor)


def few_sizes(counts: Mapping[tuple[int, int], int], most: int) -> np.ndarray:
    """(N, 2) int64, N <= `most`: sizes (H, W) of which one holds each of the given, with few pixels added.

    Two sizes at a time are replaced by the smallest that holds both, those first for which that adds the fewest pixels
    over all batches.

    Args:
        counts: (H, W) -> batches of this size.
        most: at least 1.
    """
    sizes = np.array(sorted(counts), np.int64)
    batches = np.array([counts[height, width] for height, width in sizes.tolist()])
    while len(sizes) > most:
        both = np.maximum(sizes[:, None], sizes)
        added = (both.prod(-1) - sizes.prod(-1)[:, None]) * batches[:, None]
        cost = (added + added.T).astype(float)
        np.fill_diagonal(cost, np.inf)
        i, j = np.unravel_index(cost.argmin(), cost.shape)
        sizes[[i, j]] = both[i, j]
        sizes, place = np.unique(sizes, axis=0, return_inverse=True)
        batches = np.bincount(place.ravel(), batches).astype(np.int64)
    return sizes


def fitting_size(size: tuple[int, int], sizes: np.ndarray) -> tuple[int, int]:
    """The one of `sizes` (N, 2) with the fewest pixels that holds `size`; `size` itself where none does."""
    holding = sizes[(sizes >= size).all(axis=1)]
    if not len(holding):
        return size
    height, width = holding[holding.prod(axis=1).argmin()].tolist()
    return height, width
