"""Batches: a base that moves its tensors between devices, detection's batch, and how samples become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from datasets.padding import common_size
from datasets.target import Sample

MIN_OBJECTS = 8
"""The least length of detection's padded ground truth."""

T = TypeVar("T")


@dataclass(frozen=True)
class TensorBatch:
    """The base of every batch: a frozen dataclass whose fields are tensors, or hold tensors.

    Fields may also be batches themselves, or tuples and lists of tensors and batches. Whatever else a field holds
    (None, numbers, names) goes along unchanged.
    """

    replaced: int = field(default=0, kw_only=True)
    """Images that could not be read, whose places others took (`data.on_error` is skip)."""

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch, in the order of its fields."""
        return tensors_of(self)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Self:
        """The batch on `device`; with non_blocking, copies from pinned memory to a GPU do not wait; copies to
        the CPU always do."""
        return to_device(self, device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory (DataLoader calls this)."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True)
class ScaledImages(TensorBatch):
    """The images of a batch at another size."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, zeros at the right and the bottom; channels_last in memory."""
    image_sizes: Tensor
    """(B, 2) int64: (H, W) of each image without its padding."""


@dataclass(frozen=True)
class Batch(TensorBatch):
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
    """The same images at other sizes, in the order in which the data set names them, in evaluation only; None where
    that size is the one of `images`."""

    def at_scale(self, k: int) -> Batch:
        """The batch with the images of `scaled[k]` in place of its own, for detection: `boxes` are not resized."""
        part = self.scaled[k]
        return self if part is None else replace(self, images=part.images, image_sizes=part.image_sizes, scaled=())


# ---------------------------------------------------------------------------------------------- walking the tensors


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a batch, or of (nested) tuples and lists of batches and tensors, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, TensorBatch):
        for part in fields(value):
            yield from tensors_of(getattr(value, part.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)


def map_tensors(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """The value with each tensor that `tensors_of` finds changed; its other parts are the same objects."""
    return _mapped(value, change)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, TensorBatch):
        return replace(value, **{part.name: _mapped(getattr(value, part.name), change) for part in fields(value)})
    if isinstance(value, tuple | list):
        return type(value)([_mapped(item, change) for item in value])
    return value


def to_device(value: T, device: torch.device | str, *, non_blocking: bool = True) -> T:
    """A batch, or tuples and lists of batches and tensors, on `device`; see `TensorBatch.to`."""
    # Nothing tells when a copy to the CPU that is not waited for has arrived.
    non_blocking = non_blocking and torch.device(device).type != "cpu"
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def prefetch(batches: Iterable[T], device: torch.device | str) -> Iterator[T]:
    """Batches on `device`; on CUDA each is copied while the device still works on the one before.

    Args:
        batches: of any stage: `TensorBatch`, or tuples and lists of them; in pinned memory, for CUDA's copies to
            overlap.
        device: where they are needed.
    """
    device = torch.device(device)
    return _copied_aside(batches, device) if device.type == "cuda" else (to_device(one, device) for one in batches)


def _copied_aside(batches: Iterable[T], device: torch.device) -> Iterator[T]:
    """Batches on a CUDA device, copied on a stream of their own."""
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            batch = to_device(batch, device)
        user = torch.cuda.current_stream(device)
        user.wait_stream(stream)
        for tensor in tensors_of(batch):  # else the allocator might reuse the memory while it is worked on
            tensor.record_stream(user)
        yield batch


# ---------------------------------------------------------------------------------------------- from samples


def stack_images(images: Sequence[np.ndarray], size: tuple[int, int] | None = None) -> Tensor:
    """(B, 3, H, W) uint8, channels_last in memory, of images (H_i, W_i, 3).

    Args:
        images: uint8, RGB.
        size: (H, W); smaller images get zeros at the right and the bottom. None: all images have one size.
    """
    if size is None:
        stacked = np.stack(images)
    else:
        stacked = np.zeros((len(images), *size, 3), np.uint8)
        for place, image in zip(stacked, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def padded_count(objects: int, least: int = 1) -> int:
    """The smallest power of two that is at least `objects` and `least`, itself a power of two; so shapes are few."""
    return max(least, 1 << (max(objects, 1) - 1).bit_length())


@dataclass(frozen=True)
class Collate:
    """Samples -> Batch; images are padded to the key's padded size, or to the batch's largest where keys have none."""

    size_divisor: int = 32
    train_difficult: bool = False
    min_objects: int = MIN_OBJECTS
    """The least length of the padded ground truth, a power of two."""

    def __call__(self, samples: list[Sample]) -> Batch:
        sizes = np.array([sample.image.shape[:2] for sample in samples])
        padded = samples[0].padded_size or common_size(sizes, self.size_divisor)
        slots = padded_count(max(len(sample.target) for sample in samples), self.min_objects)
        boxes = np.zeros((len(samples), slots, 4), np.float32)
        labels = np.zeros((len(samples), slots), np.int64)
        valid = np.zeros((len(samples), slots), bool)
        for b, sample in enumerate(samples):
            target, count = sample.target, len(sample.target)
            boxes[b, :count] = target.boxes
            labels[b, :count] = target.labels
            valid[b, :count] = ~target.iscrowd & (self.train_difficult | ~target.difficult)
        return Batch(
            images=stack_images([sample.image for sample in samples], padded),
            image_sizes=torch.from_numpy(sizes),
            original_sizes=torch.tensor([sample.original_size for sample in samples]),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            valid=torch.from_numpy(valid),
            index=torch.tensor([sample.index for sample in samples]),
            scaled=tuple(self._scaled(samples, k) for k in range(len(samples[0].scaled))),
        )

    def _scaled(self, samples: list[Sample], k: int) -> ScaledImages | None:
        """The samples' `scaled[k]`; None where these are the samples' own images."""
        parts = [sample.scaled[k] for sample in samples]
        if all(part is sample.image for part, sample in zip(parts, samples, strict=True)):
            return None
        sizes = np.array([part.shape[:2] for part in parts])
        return ScaledImages(stack_images(parts, common_size(sizes, self.size_divisor)), torch.from_numpy(sizes))
