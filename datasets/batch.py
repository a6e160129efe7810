"""The batch: images and ground truth of several samples, padded to common shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScaledImages:
    """The images of a batch at another size."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, zeros at the right and the bottom; channels_last in memory."""
    image_sizes: Tensor
    """(B, 2) int64: (H, W) of each image without its padding."""


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
    scaled: tuple[ScaledImages | None, ...] = ()
    """The same images at other sizes, in the order in which the data set names them, in evaluation only; None stands
    for `images`, where a size is theirs."""

    def at_scale(self, k: int) -> Batch:
        """The batch with the images of `scaled[k]` in the place of its own, for detection: `boxes` are not resized."""
        part = self.scaled[k]
        return self if part is None else replace(self, images=part.images, image_sizes=part.image_sizes, scaled=())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch."""
        for field in fields(self):
            if field.name != "scaled":
                yield getattr(self, field.name)
        for part in self.scaled:
            if part is not None:
                yield from (part.images, part.image_sizes)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each tensor changed."""
        changed = map(change, self.tensors())
        own = {field.name: next(changed) for field in fields(self) if field.name != "scaled"}
        scaled = tuple(part and ScaledImages(next(changed), next(changed)) for part in self.scaled)
        return Batch(**own, scaled=scaled)
