"""The data contract: what a sample is, and the checks that every data set must pass. Imports no torch.

| name | shape | dtype | meaning |
|---|---|---|---|
| image | (H, W, 3) | uint8 | RGB; a batch holds (B, 3, H, W) |
| boxes | (N, 4) | float32 | x1 y1 x2 y2, continuous pixels of the image they travel with, 0 <= x1 < x2 <= W, so too y |
| labels | (N,) | int64 | 1..K; 0 is background and never appears in a target |
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
    index: int  # type: ignore[assignment]  # hides tuple.index, which keys do not need
    """Position in the data set."""
    padded_size: tuple[int, int] | None = None
    """(H, W) that the whole step's images are padded to; the same on every process."""
    repeat: int = 0
    """Which showing of the image within the epoch, from 0, where repeat-factor sampling shows it more than once."""
    min_size: int | None = None
    """Length of the shorter side that was drawn for the whole step, pixels; None: the sample draws its own."""


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
    scaled: tuple[np.ndarray, ...] = ()
    """(H, W, 3) uint8 RGB each: the decoded image at other sizes, in evaluation only; `image` itself where that is its
    size."""


def check_sample(sample: Sample, num_classes: int | None = None) -> None:
    """Check a sample against the contract above; every data set must pass.

    Args:
        sample: an image and its target.
        num_classes: K, to check the labels' upper bound.

    Raises:
        ValueError: says what is wrong, with the image's index and the first object at fault.
    """
    where, image, target = f"sample {sample.index}", sample.image, sample.target

    def demand(condition: bool, fault: str) -> None:
        if not condition:
            raise ValueError(f"{where}: {fault}")

    demand(image.dtype == np.uint8, f"the image is {image.dtype}, not uint8")
    demand(image.ndim == 3 and image.shape[2] == 3, f"the image has the shape {image.shape}, not (H, W, 3)")
    demand(min(image.shape) > 0, "the image has no pixels")
    demand(len(sample.original_size) == 2 and min(sample.original_size) > 0, f"original_size is {sample.original_size}")
    count = len(target.labels)
    for name, shape, dtype in (
        ("boxes", (count, 4), np.float32),
        ("labels", (count,), np.int64),
        ("area", (count,), np.float32),
        ("iscrowd", (count,), np.bool_),
        ("difficult", (count,), np.bool_),
    ):
        array = getattr(target, name)
        demand(array.shape == shape, f"{name} has the shape {array.shape}, not {shape}")
        demand(array.dtype == dtype, f"{name} is {array.dtype}, not {np.dtype(dtype)}")
    height, width = image.shape[:2]
    for i, (x1, y1, x2, y2) in enumerate(target.boxes.tolist()):
        fine = 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        demand(
            fine, f"object {i}: box {(x1, y1, x2, y2)} is not inside the image of {width} x {height}, or has no area"
        )
    demand(bool((target.labels >= 1).all()), "a label is below 1: 0 is background")
    if num_classes is not None:
        demand(bool((target.labels <= num_classes).all()), f"a label is above the {num_classes} classes")
    if sample.padded_size is not None:
        demand(
            height <= sample.padded_size[0] and width <= sample.padded_size[1],
            "the image is larger than its padded size",
        )
