"""Detections of a batch as numpy arrays, one image at a time, with one copy from the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from detection.postprocess import BatchDetections


@dataclass(frozen=True)
class ImageDetections:
    """The detections of one image, best first."""

    boxes: np.ndarray
    """(D, 4) float32 x1 y1 x2 y2 in pixels of the original image."""
    scores: np.ndarray
    """(D,) float32."""
    labels: np.ndarray
    """(D,) int64 in 1..K."""


def to_numpy(detections: BatchDetections) -> list[ImageDetections]:
    """The detections of each image of a batch; the one wait for the device."""
    boxes, scores, labels, valid = detections
    # float32 holds labels exactly up to 2^24.
    packed = torch.cat((boxes, scores[..., None], labels[..., None].float(), valid[..., None].float()), dim=-1)
    images = []
    for rows in packed.cpu().numpy():
        rows = rows[rows[:, 6] > 0]
        images.append(ImageDetections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)))
    return images
