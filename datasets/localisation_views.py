"""Views of localisation sets: random crops that carry boxes along, whole images at several scales, and their loaders.

A training view is a pure function of (seed, epoch, index). Pixels stay uint8. Images are (H, W, 3) uint8
RGB; sizes are (H, W) in pixels; G objects of an image, B views of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.localisation import LocalisationDataConfig
from datasets.batch import TensorBatch, padded_count, stack_images
from datasets.classification_transforms import NO_CAP, Box, random_resized_box, resize
from datasets.images import read_image
from datasets.loader import Loader, make_loader
from datasets.localisation import image_labels
from datasets.records import Records, has_extent
from datasets.resize import clip_boxes, resized_size
from datasets.samplers import TrainKeys, batches_of_equal, local_parts

_TRIES = 10
"""How often a random crop is drawn, at most, until it holds an object."""


def draw_crop(
    image_size: tuple[int, int], boxes: np.ndarray, data: LocalisationDataConfig, rng: np.random.Generator
) -> Box:
    """A window (y, x, height, width) for the training crop, in pixels of the image.

    Drawn up to ten times until it holds `min_visible` of some object's area; then the last one is moved, as far as the
    image goes, onto the centre of the largest object.

    Args:
        image_size: (H, W).
        boxes: (G, 4) objects with an extent.
        data: kind and size of the crop.
        rng: drawn from.
    """
    augment = data.augment
    if augment.crop == "centre":
        return _square(image_size, data.test_resize, data.crop_size, None)
    tries = 0
    while True:
        window = _random_window(image_size, data, rng)
        tries += 1
        if not len(boxes) or (visible_share(boxes, window) >= augment.min_visible).any():
            return window
        if tries == _TRIES:
            return _moved_onto(boxes[np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(1))], window, image_size)


def _random_window(image_size: tuple[int, int], data: LocalisationDataConfig, rng: np.random.Generator) -> Box:
    augment = data.augment
    if augment.crop == "random_resized":
        return random_resized_box(image_size, rng, augment.area, augment.ratio)
    shorter = int(rng.integers(augment.scale[0], augment.scale[1] + 1))
    return _square(image_size, shorter, data.crop_size, rng)


def _moved_onto(box: np.ndarray, window: Box, image_size: tuple[int, int]) -> Box:
    """The window with its centre on that of a box (4,), as far as the image goes."""
    x1, y1, x2, y2 = box
    _, _, height, width = window
    y = min(max(round((y1 + y2 - height) / 2), 0), image_size[0] - height)
    x = min(max(round((x1 + x2 - width) / 2), 0), image_size[1] - width)
    return y, x, height, width


def _square(image_size: tuple[int, int], shorter: int, crop_size: int, rng: np.random.Generator | None) -> Box:
    """What a crop of `crop_size` covers of an image whose shorter side would become `shorter`; central without rng."""
    side = max(1, min(round(crop_size * min(image_size) / shorter), *image_size))
    room = [length - side for length in image_size]
    y, x = (rest // 2 if rng is None else int(rng.integers(rest + 1)) for rest in room)
    return y, x, side, side


def visible_share(boxes: np.ndarray, window: Box) -> np.ndarray:
    """(G,) shares of the areas of boxes (G, 4) that lie inside a window (y, x, height, width)."""
    y, x, height, width = window
    inside = np.clip(boxes, (x, y, x, y), (x + width, y + height, x + width, y + height))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (inside[:, 2:] - inside[:, :2]).prod(1) / np.maximum(area, 1e-12)


def boxes_in_view(boxes: np.ndarray, window: Box, size: tuple[int, int], *, mirror: bool = False) -> np.ndarray:
    """Boxes (G, 4) of an image in pixels of its window, resized to `size` (H, W) and perhaps mirrored; float64.

    Neither clipped nor left out.
    """
    y, x, height, width = window
    factors = np.array([size[1] / width, size[0] / height] * 2)
    seen = (boxes - (x, y, x, y)) * factors
    if mirror:
        seen = np.stack((size[1] - seen[:, 2], seen[:, 1], size[1] - seen[:, 0], seen[:, 3]), axis=1)
    return seen


@dataclass(frozen=True)
class View:
    """One image, or a part of it, as the loader's workers hand it over."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    boxes: np.ndarray
    """(G, 4) float32 in pixels of `image`: objects that train."""
    frame: tuple[float, float, float, float]
    """x, y of its corner in the original image; original pixels per pixel of its own along x and y."""
    index: int
    label: int
    original_size: tuple[int, int]


def make_view(
    image: np.ndarray, boxes: np.ndarray, window: Box, size: tuple[int, int], index: int, label: int,
    *, mirror: bool = False, min_visible: float = 0.0,
) -> View:  # fmt: skip
    """The window of an image at `size` (H, W), with what it shows of the objects.

    Objects that keep less than `min_visible` of their area are left out, unless none keeps more.
    """
    y, x, height, width = window
    part = resize(image[y : y + height, x : x + width], size, fast=True)
    kept = visible_share(boxes, window) >= min_visible
    seen = clip_boxes(boxes_in_view(boxes[kept] if kept.any() else boxes, window, size, mirror=mirror), size)
    frame = (float(x), float(y), width / size[1], height / size[0])
    seen = seen[has_extent(seen)].astype(np.float32)
    original_size = (image.shape[0], image.shape[1])
    return View(part[:, ::-1] if mirror else part, seen, frame, index, label, original_size)


# ---------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class LocalisationBatch(TensorBatch):
    """Views of one size, on one device."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, channels_last in memory."""
    labels: Tensor
    """(B,) int64, 0..K-1: the class of each image."""
    boxes: Tensor
    """(B, G, 4) float32 in pixels of `images`: objects of the image's class; padding is zeros."""
    valid: Tensor
    """(B, G) bool: not padding."""
    frames: Tensor
    """(B, 4) float32: x, y of the view's corner in the original image; original pixels per pixel of its own."""
    original_sizes: Tensor
    """(B, 2) int64: (H, W) of the original images."""
    index: Tensor
    """(B,) int64: position of each image in its set."""


def collate(views: list[View]) -> LocalisationBatch:
    """Views of one size -> a batch; the number of objects is padded to a power of two."""
    boxes = np.zeros((len(views), padded_count(max(len(view.boxes) for view in views)), 4), np.float32)
    valid = np.zeros(boxes.shape[:2], bool)
    for b, view in enumerate(views):
        boxes[b, : len(view.boxes)], valid[b, : len(view.boxes)] = view.boxes, True
    return LocalisationBatch(
        images=stack_images([view.image for view in views]),
        labels=torch.tensor([view.label for view in views]),
        boxes=torch.from_numpy(boxes),
        valid=torch.from_numpy(valid),
        frames=torch.tensor([view.frame for view in views], dtype=torch.float32),
        original_sizes=torch.tensor([view.original_size for view in views]),
        index=torch.tensor([view.index for view in views]),
    )


class LocalisationImages:
    """Views of a set's images.

    Args:
        records: of `read_localisation`.
        data: sizes and augmentation.
        seed: of the augmentation.
        scales: None: training crops; else the test's views: shorter sides of the whole image, or () for the centre
            crop.
    """

    def __init__(
        self, records: Records, data: LocalisationDataConfig, *, seed: int = 0, scales: tuple[int, ...] | None = None
    ) -> None:
        self.records, self.data, self.seed, self.scales = records, data, seed, scales
        self.labels = image_labels(records)

    def __getitem__(self, key: tuple[int, int]) -> list[View]:
        epoch, index = key
        declared = self.records.image_size(index)
        image = read_image(self.records.image_paths[index], declared)
        height, width = image.shape[:2]
        label = int(self.labels[index])
        target = self.records.target(index, (height, width))
        boxes = target.boxes[target.labels == label + 1].astype(np.float64)
        crop = (self.data.crop_size, self.data.crop_size)
        if self.scales is None:
            rng, augment = np.random.default_rng([self.seed, epoch, index]), self.data.augment
            window = draw_crop((height, width), boxes, self.data, rng)
            mirror = bool(rng.random() < augment.hflip)
            return [make_view(image, boxes, window, crop, index, label, mirror=mirror, min_visible=augment.min_visible)]
        if not self.scales:
            window = _square((height, width), self.data.test_resize, self.data.crop_size, None)
            return [make_view(image, boxes, window, crop, index, label)]
        # By the declared size, by which images share a batch; the decoded one may be another.
        sizes = [resized_size(declared, shorter, NO_CAP) for shorter in self.scales]
        return [make_view(image, boxes, (0, 0, height, width), size, index, label) for size in sizes]


def collate_views(items: list[list[View]]) -> list[LocalisationBatch]:
    """One batch for each view of the images."""
    return [collate(list(views)) for views in zip(*items, strict=True)]


def collate_crops(items: list[list[View]]) -> LocalisationBatch:
    """The batch of images with one view each."""
    return collate([view for (view,) in items])


def train_views(
    records: Records,
    data: LocalisationDataConfig,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader[LocalisationBatch]:
    """Training batches without end: `accumulate` for each iteration, beginning with `start_iteration`.

    The same on any number of processes and workers, and after a resumption.

    Raises:
        UserError: batch_size is not a multiple of accumulate x world_size.
    """
    parts = local_parts(batch_size, accumulate, rank, world_size)
    keys = TrainKeys(len(records), batch_size, seed, parts, start_iteration)
    images = LocalisationImages(records, data, seed=seed)
    return make_loader(
        images, keys, collate_crops, num_workers=data.num_workers, on_error=data.on_error, images=len(records),
        pin_memory=pin_memory,
    )  # fmt: skip


def evaluation_views(
    records: Records,
    data: LocalisationDataConfig,
    scales: Iterable[int],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader[list[LocalisationBatch]]:
    """Each image once over all processes: a list of one batch for each scale; without scales of the centre crops.

    Whole images of one size in the file share a batch.
    """
    scales = tuple(scales)
    if scales:
        sizes = [records.image_size(index) for index in range(len(records))]
    else:
        sizes = [(0, 0)] * len(records)
    batches = sorted(batches_of_equal(sizes, batch_size), key=lambda batch: sizes[batch[0]])
    keys = [[(0, index) for index in batch] for batch in batches[rank::world_size]]
    images = LocalisationImages(records, data, scales=scales)
    return make_loader(
        images, keys, collate_views, num_workers=data.num_workers, on_error=data.on_error, pin_memory=pin_memory
    )
