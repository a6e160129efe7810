"""The one rule by which images are resized: in training, evaluation and prediction alike. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np


def resized_size(image_size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """The size of an image whose shorter side becomes `min_size`, unless its longer side would pass `max_size`.

    Args:
        image_size: (H, W) in pixels.
        min_size: the shorter side's length, pixels.
        max_size: cap on the longer side, pixels.

    Returns:
        (H, W), each at least 1, rounded half up (Faster R-CNN, Sec. 3.3: 600 and 1000).
    """
    height, width = image_size
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def scaled_sizes(
    image_size: tuple[int, int], min_size: int, max_size: int, scales: Sequence[int]
) -> list[tuple[int, int]]:
    """The sizes (H, W) of an image at further lengths of its shorter side; the cap changes in proportion.

    Args:
        image_size, min_size, max_size: as of `resized_size`.
        scales: lengths of the shorter side, pixels.
    """
    caps = (max(1, round(max_size * scale / min_size)) for scale in scales)
    return [resized_size(image_size, scale, cap) for scale, cap in zip(scales, caps, strict=True)]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at `size` (H, W), bilinear without antialiasing.

    Args:
        image: (H, W, 3) uint8.
        size: (H, W) of the result, pixels.

    Returns:
        (H', W', 3) uint8; `image` itself where it has that size already.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Boxes of an image of size `old` in pixels of the same image at size `new`, clipped to it.

    Each axis has its own factor, for both sizes are whole pixels.

    Args:
        boxes: (N, 4) float, x1 y1 x2 y2.
        old: (H, W) before.
        new: (H, W) after.

    Returns:
        (N, 4) float32.
    """
    factors = np.array([new[1] / old[1], new[0] / old[0]] * 2)
    return clip_boxes(boxes * factors, new).astype(np.float32)


def clip_boxes(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes' parts inside an image of size (H, W); same shape and dtype."""
    height, width = image_size
    return np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
