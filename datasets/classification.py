"""Classification sets and their loaders: uint8 images and labels, in an order that follows from (seed, iteration).

The order is that of `samplers.TrainStream`. Sets of small images stay in memory (`ImageArrays`) and need no loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.classification import ImageAugmentConfig, ImageDataConfig, ImageSourceConfig
from configs.errors import UserError
from datasets.batch import TensorBatch, stack_images
from datasets.cifar import ImageArrays, read_cifar10, read_into_memory
from datasets.classification_transforms import LazyImage, TrainTransform, crop_for_test, resize_shorter
from datasets.folders import ImageFiles, read_folders, read_imagenet_val, read_tiny_imagenet, read_unlabelled
from datasets.images import image_file_size
from datasets.loader import Loader, make_loader
from datasets.samplers import TrainKeys, batches_of_equal, local_parts, with_neighbours
from datasets.shards import read_shards

ImageSet = ImageFiles | ImageArrays

_HOLD_OUT_SEED = 45_000
"""The held-out images are the same in every run, whatever its seed."""


@dataclass(frozen=True)
class LabelledBatch(TensorBatch):
    """Images of one size and their labels, on one device."""

    images: Tensor
    """(B, 3, H, W), channels_last in memory: uint8 RGB, or float32 once they are the net's input."""
    labels: Tensor
    """(B,) int64, 0..K-1."""
    index: Tensor
    """(B,) int64: position of each image in its set."""


# ---------------------------------------------------------------------------------------------- sets


def read_set(source: ImageSourceConfig, data_root: Path, class_names: list[str] | None = None) -> ImageSet:
    """The set of a config's block.

    Args:
        source: format and place.
        data_root: where relative paths start.
        class_names: the classes in the order of their labels; None: the set's own.

    Raises:
        UserError: see `datasets.folders` and `datasets.cifar`.
    """
    root = data_root / source.root
    if source.format == "webdataset":
        return read_shards(source.root if "://" in source.root else str(root), class_names)
    if source.format == "folders":
        return read_folders(root, class_names)
    if source.format == "imagenet_test":
        return read_unlabelled(root, class_names or [])
    if source.format == "imagenet_val":
        assert source.ground_truth is not None, "the config's own check"
        return read_imagenet_val(root, data_root / source.ground_truth, class_names)
    assert source.split is not None, "the config's own check"
    read = read_cifar10 if source.format == "cifar10" else read_tiny_imagenet
    return read(root, source.split, class_names)


@dataclass(frozen=True)
class Splits:
    """The sets of a config; val and test may be missing."""

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None


def build_splits(data: ImageDataConfig, data_root: Path) -> Splits:
    """The training set, and the others with its classes; in memory if the config says so.

    Raises:
        UserError: a set cannot be read, or there is nothing left to train on.
    """
    if data.test is not None and data.test.format == "imagenet_test":
        raise UserError(
            "data.test: has no labels, so a training cannot end with its errors: set data.test=null, and give the set "
            "to tools/test_cls.py"
        )
    train = read_set(data.train, data_root)
    names = train.class_names
    val = read_set(data.val, data_root, names) if data.val else None
    test = read_set(data.test, data_root, names) if data.test else None
    if data.hold_out:
        if data.hold_out >= len(train):
            raise UserError(f"data.hold_out: {data.hold_out} of {len(train)} training images leaves none to train on")
        order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(train))
        val, train = train.take(np.sort(order[: data.hold_out])), train.take(np.sort(order[data.hold_out :]))
    return Splits(
        train=_placed(train, data),
        val=None if val is None else _placed(val, data),
        test=None if test is None else _placed(test, data),
    )


def _placed(images: ImageSet, data: ImageDataConfig) -> ImageSet:
    """The set in memory, if the config wants it there, its images of the size that the net is built for."""
    if not data.in_memory:
        if isinstance(images, ImageArrays):
            raise UserError("data.augment.crop: a cifar10 set is augmented in memory: set it to pad")
        return images
    images = read_into_memory(images) if isinstance(images, ImageFiles) else images
    size = images.images.shape[1:3]
    if size != (data.crop_size, data.crop_size):
        raise UserError(f"data.crop_size: {data.crop_size}, but the images are {size[0]}x{size[1]} (H x W)")
    return images


def spread(images: ImageSet, count: int | None) -> ImageSet:
    """`count` images spread evenly over the set (all classes, where it is sorted by class); None: all."""
    if count is None or count >= len(images):
        return images
    return images.take(np.arange(count) * len(images) // count)


# ---------------------------------------------------------------------------------------------- loaders


Item = tuple[list[np.ndarray], int, int]
"""Views (H, W, 3) uint8 RGB of an image, its label, its position in the set."""


@dataclass(frozen=True)
class TrainImages:
    """Random crops: an item is a pure function of (seed, epoch, index)."""

    files: ImageFiles
    transform: TrainTransform
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        return [self.transform(self.files.path(index), rng)], int(self.files.labels[index]), index


class ViewImages:
    """The test's images: the centre crop, or the whole image at several scales (shorter sides; None: as it is)."""

    def __init__(self, images: ImageSet, data: ImageDataConfig, scales: Sequence[int | None] | None) -> None:
        self.images, self.scales = images, scales
        self.reduced = data.reduced_decode and scales is None
        self.resize, self.side = data.test_resize, data.test_crop

    def __getitem__(self, index: int) -> Item:
        if isinstance(self.images, ImageArrays):
            source = LazyImage(f"image {index}", image=self.images.images[index])
        else:
            source = LazyImage(self.images.path(index), reduced=self.reduced)
        if self.scales is None:
            views = [crop_for_test(source, self.resize, self.side)]
        else:
            views = [resize_shorter(source, side) for side in self.scales]
        return views, int(self.images.labels[index]), index


def collate_scales(items: list[Item]) -> list[LabelledBatch]:
    """One batch for each view of the images; at each scale the images have one size."""
    views, labels, index = zip(*items, strict=True)
    of_all = torch.tensor(labels), torch.tensor(index)
    return [LabelledBatch(stack_images(images), *of_all) for images in zip(*views, strict=True)]


def collate_single(items: list[Item]) -> LabelledBatch:
    """The batch of images with one view each."""
    (batch,) = collate_scales(items)
    return batch


def step_parts(
    augment: ImageAugmentConfig, batch_size: int, accumulate: int, rank: int, world_size: int
) -> Sequence[slice | np.ndarray]:
    """The places within a step of this process's `accumulate` batches, each after its neighbour's where images mix.

    Raises:
        UserError: batch_size is not a multiple of accumulate x world_size.
    """
    parts = local_parts(batch_size, accumulate, rank, world_size)
    return with_neighbours(parts, batch_size) if augment.mixes else parts


def train_batches(
    files: ImageFiles,
    data: ImageDataConfig,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader[LabelledBatch]:
    """Training batches without end: `accumulate` for each iteration, beginning with `start_iteration`.

    The same on any number of processes and workers, and after a resumption. With mixup or CutMix, each batch begins
    with one more image, see `with_neighbours`.

    Raises:
        UserError: batch_size is not a multiple of accumulate x world_size.
    """
    parts = step_parts(data.augment, batch_size, accumulate, rank, world_size)
    keys = TrainKeys(len(files), batch_size, seed, parts, start_iteration)
    images = TrainImages(files, TrainTransform(data), seed)
    return make_loader(
        images, keys, collate_single, num_workers=data.num_workers, on_error=data.on_error, images=len(files),
        pin_memory=pin_memory,
    )  # fmt: skip


def centre_batches(
    images: ImageSet,
    data: ImageDataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    may_replace: bool = False,
) -> Iterable[LabelledBatch]:
    """The centre crop of each image, once over all processes; images in memory are taken as they are.

    All processes get equally many batches, and these are of equal size but for one image; only where there are fewer
    images than processes, or batches of a single image, some processes get one batch less.

    `may_replace`: `data.on_error=skip` holds, which figures over a set do not allow.
    """
    count = -(-len(images) // (world_size * batch_size))
    parts = np.array_split(np.arange(rank, len(images), world_size), max(count, 1))
    keys = [part.tolist() for part in parts if len(part)]
    if isinstance(images, ImageArrays):
        return _ArrayBatches(images, keys)
    views = ViewImages(images, data, None)
    return make_loader(
        views, keys, collate_single, num_workers=data.num_workers, on_error=data.on_error, pin_memory=pin_memory,
        images=len(images) if may_replace else None,
    )  # fmt: skip


@dataclass(frozen=True)
class _ArrayBatches:
    """Batches of images that are in memory, which need no workers."""

    images: ImageArrays
    keys: list[list[int]]

    def __iter__(self) -> Iterator[LabelledBatch]:
        for key in self.keys:
            part, index = self.images.take(np.array(key)), torch.tensor(key)
            pixels = torch.from_numpy(part.images).permute(0, 3, 1, 2)
            yield LabelledBatch(pixels, torch.from_numpy(part.labels), index)


def scaled_batches(
    images: ImageSet,
    data: ImageDataConfig,
    scales: Sequence[int | None],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader[list[LabelledBatch]]:
    """Whole images at several scales (shorter sides, pixels; None: as they are), once over all processes.

    An item is a list of one batch for each scale. Images of one size in the file share a batch, so that they do at
    every scale; processes may get one batch more or less than others.
    """
    if isinstance(images, ImageArrays):
        sizes = [images.images.shape[1:3]] * len(images)
    else:
        sizes = [image_file_size(images.path(index)) for index in range(len(images))]
    keys = batches_of_equal(sizes, batch_size)[rank::world_size]
    views = ViewImages(images, data, scales)
    return make_loader(
        views, keys, collate_scales, num_workers=data.num_workers, on_error=data.on_error, pin_memory=pin_memory
    )
