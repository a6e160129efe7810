"""The batch: images and ground truth of several samples, padded to common shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images and ground truth padded to common shapes; everything that the training step needs, on one device."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, zeros at the right and the bottom; channels_last in memory."""
    image_sizes: Tensor
    """(B, 2) int64: (H, W) of each image without its padding."""
    original_sizes: Tensor
    """(B, 2) int64: (H, W) of each decoded file."""
    boxes: Tensor
    """(B, G, 4) float32 in pixels of `images`; padding is zeros. G is a power of two, at least 8."""
    labels: Tensor
    """(B, G) int64; padding is 0."""
    valid: Tensor
    """(B, G) bool: real objects that take part in training (not padding, crowd, or excluded difficult ones)."""
    index: Tensor
    """(B,) int64: position of each image in its data set."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; copies from pinned memory do not wait."""
        return replace(
            self, **{name: getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__}
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by DataLoader)."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in self.__dataclass_fields__})
