"""The data contract: what a sample is, and the checks that every data set must pass. Imports no torch.

| name | shape | dtype | meaning |
|---|---|---|---|
| image | (3, H, W) | uint8 | RGB |
| boxes | (N, 4) | float32 | x1 y1 x2 y2, continuous pixels of the image they travel with, 0 <= x1 < x2 <= W, 0 <= y1 < y2 <= H |
| labels | (N,) | int64 | 1..K; 0 is background and never stands in a target |
| area | (N,) | float32 | square pixels of the original image; COCO's own segment area where the set has one |
| iscrowd, difficult | (N,) | bool | never train; the evaluators treat them by their protocol |
| image_size | (2,) | | (H, W), always in this order |

An image without objects is legal: boxes have the shape (0, 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class SampleKey(NamedTuple):
    """What a sampler hands to a data set: all that decides a training sample.

    A sample is a pure function of (seed, key): no worker's or process's history enters.
    """

    epoch: int
    index: int
    """Position in the data set."""
    padded_size: tuple[int, int] | None = None
    """(H, W) that the whole step's images are padded to; the same on every process."""


@dataclass(frozen=True)
class Target:
    """Ground truth of one image, as numpy arrays (see the table above)."""

    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Sample:
    """One image as the loader's workers hand it over."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB, resized, not padded."""
    target: Target
    """Boxes in pixels of `image`."""
    index: int
    """Position in the data set."""
    original_size: tuple[int, int]
    """(H, W) of the decoded file."""
    padded_size: tuple[int, int] | None = None
