"""Classification sets and their loaders: uint8 images and labels, in an order that follows from (seed, iteration).

The training stream is the concatenation of the epochs' shuffled orders, cut into steps: an epoch's last images share
their step with the next one's first. Sets of small images stay in memory (`ImageArrays`) and need no loader.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.classification import ImageDataConfig, ImageSourceConfig
from configs.errors import UserError
from datasets.cifar import ImageArrays, read_cifar10, read_into_memory
from datasets.classification_transforms import LazyImage, TrainTransform, crop_for_test, resize_shorter
from datasets.folders import ImageFiles, read_folders, read_imagenet_val, read_tiny_imagenet
from datasets.images import image_file_size

ImageSet = ImageFiles | ImageArrays

_HOLD_OUT_SEED = 45_000
"""The held-out images are the same in every run, whatever its seed."""


@dataclass(frozen=True)
class LabelledBatch:
    """Images of one size and their labels, on one device."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, channels_last in memory."""
    labels: Tensor
    """(B,) int64, 0..K-1."""
    index: Tensor
    """(B,) int64: position of each image in its set."""

    def to(self, device: torch.device | str) -> LabelledBatch:
        """The batch on `device`; copies from pinned memory do not wait."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _FIELDS})

    def pin_memory(self) -> LabelledBatch:
        """The batch in page-locked memory (called by DataLoader)."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _FIELDS})


_FIELDS = ("images", "labels", "index")


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
    if source.format == "cifar10":
        return read_cifar10(root, source.split, class_names)
    if source.format == "tiny_imagenet":
        return read_tiny_imagenet(root, source.split, class_names)
    if source.format == "imagenet_val":
        return read_imagenet_val(root, data_root / source.ground_truth, class_names)
    return read_folders(root, class_names)


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
    train = read_set(data.train, data_root)
    names = train.class_names
    val = read_set(data.val, data_root, names) if data.val else None
    test = read_set(data.test, data_root, names) if data.test else None
    if data.hold_out:
        if data.hold_out >= len(train):
            raise UserError(f"data.hold_out: {data.hold_out} of {len(train)} training images leaves none to train on")
        order = np.random.default_rng(_HOLD_OUT_SEED).permutation(len(train))
        val, train = train.take(np.sort(order[: data.hold_out])), train.take(np.sort(order[data.hold_out :]))
    return Splits(*(_placed(images, data) for images in (train, val, test)))


def _placed(images: ImageSet | None, data: ImageDataConfig) -> ImageSet | None:
    """The set in memory, if the config wants it there, its images of the size that the net is built for."""
    if images is None or not data.in_memory:
        return images if not isinstance(images, ImageArrays) else _refuse(images)
    images = read_into_memory(images) if isinstance(images, ImageFiles) else images
    size = images.images.shape[1:3]
    if size != (data.crop_size, data.crop_size):
        raise UserError(f"data.crop_size: {data.crop_size}, but the images are {size[0]}x{size[1]} (H x W)")
    return images


def _refuse(images: ImageArrays) -> ImageArrays:
    raise UserError("data.augment.crop: a cifar10 set is augmented in memory: set it to pad")


def spread(images: ImageSet, count: int | None) -> ImageSet:
    """`count` images spread evenly over the set (all classes, where it is sorted by class); None: all."""
    if count is None or count >= len(images):
        return images
    return images.take(np.arange(count) * len(images) // count)


# ---------------------------------------------------------------------------------------------- order


class TrainStream:
    """Which images an iteration takes: a pure function of (seed, iteration).

    Args:
        count: images of the set.
        batch_size: images of a step, over all processes.
        seed: of the shuffling.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def step(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and position in the set of each image of a step, (B,) int64 each."""
        places = np.arange(iteration * self.batch_size, (iteration + 1) * self.batch_size)
        epochs, offsets = places // self.count, places % self.count
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self._order(int(epoch))[offsets[chosen]]
        return epochs, indices


def local_parts(batch_size: int, accumulate: int, rank: int, world_size: int) -> list[slice]:
    """The places within a step of this process's `accumulate` parts.

    Raises:
        UserError: the step cannot be divided so.
    """
    parts = accumulate * world_size
    if batch_size % parts:
        raise UserError(
            f"train.batch_size: {batch_size} is not a multiple of "
            f"train.accumulate {accumulate} x {world_size} processes"
        )
    part = batch_size // parts
    return [slice(start, start + part) for a in range(accumulate) for start in [(a * world_size + rank) * part]]


@dataclass(frozen=True)
class TrainKeys:
    """Batches of (epoch, index) without end, beginning with `start_iteration`."""

    count: int
    batch_size: int
    seed: int
    parts: list[slice]
    start_iteration: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = TrainStream(self.count, self.batch_size, self.seed)
        iteration = self.start_iteration
        while True:
            keys = list(zip(*(values.tolist() for values in stream.step(iteration)), strict=True))
            yield from (keys[part] for part in self.parts)
            iteration += 1


# ---------------------------------------------------------------------------------------------- loaders


class TrainImages(Dataset):
    """Random crops: an item is a pure function of (seed, epoch, index)."""

    def __init__(self, files: ImageFiles, data: ImageDataConfig, seed: int) -> None:
        self.files, self.seed = files, seed
        self.transform = TrainTransform(data)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            return [self.transform(self.files.path(index), rng)], int(self.files.labels[index]), index
        except UserError as error:  # raised in a worker it would come out with a traceback around it
            return error


class ViewImages(Dataset):
    """The test's images: the centre crop, or the whole image at several scales (shorter sides; None: as it is)."""

    def __init__(self, images: ImageSet, data: ImageDataConfig, scales: list[int | None] | None) -> None:
        self.images, self.scales = images, scales
        self.reduced = data.reduced_decode and scales is None
        self.resize, self.side = data.test_resize, data.test_crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        try:
            if isinstance(self.images, ImageArrays):
                source = LazyImage(f"image {index}", image=self.images.images[index])
            else:
                source = LazyImage(self.images.path(index), reduced=self.reduced)
            if self.scales is None:
                views = [crop_for_test(source, self.resize, self.side)]
            else:
                views = [resize_shorter(source, side) for side in self.scales]
            return views, int(self.images.labels[index]), index
        except UserError as error:
            return error


_Item = tuple[list[np.ndarray], int, int] | UserError


def _collate(items: list[_Item]) -> list[LabelledBatch] | UserError:
    """One batch for each scale."""
    for item in items:
        if isinstance(item, UserError):
            return item
    scales, labels, index = zip(*items, strict=True)
    labels, index = torch.tensor(labels), torch.tensor(index)
    return [
        LabelledBatch(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), labels, index)
        for images in zip(*scales, strict=True)
    ]


class Batches:
    """A loader's batches; what was wrong with an image is raised here, in one line."""

    def __init__(self, loader: Iterable[list[LabelledBatch] | UserError]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[LabelledBatch]]:
        for batches in self.loader:
            if isinstance(batches, UserError):
                raise batches
            yield batches


class OneScale(Batches):
    """As `Batches`, each a single batch."""

    def __iter__(self) -> Iterator[LabelledBatch]:
        for (batch,) in super().__iter__():
            yield batch


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
) -> OneScale:
    """Training batches without end: `accumulate` for each iteration, beginning with `start_iteration`.

    The same on any number of processes and workers, and after a resumption.
    """
    parts = local_parts(batch_size, accumulate, rank, world_size)
    keys = TrainKeys(len(files), batch_size, seed, parts, start_iteration)
    return OneScale(_loader(TrainImages(files, data, seed), keys, data, pin_memory))


def centre_batches(
    images: ImageSet,
    data: ImageDataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> OneScale:
    """The centre crop of each image, once over all processes; images in memory are taken as they are.

    All processes get equally many batches, and these are of equal size but for one image.
    """
    count = -(-len(images) // (world_size * batch_size))
    parts = np.array_split(np.arange(rank, len(images), world_size), max(count, 1))
    keys = [part.tolist() for part in parts if len(part)]
    if isinstance(images, ImageArrays):
        return OneScale(_ArrayBatches(images, keys))
    return OneScale(_loader(ViewImages(images, data, None), keys, data, pin_memory))


@dataclass(frozen=True)
class _ArrayBatches:
    """Batches of images that are in memory."""

    images: ImageArrays
    keys: list[list[int]]

    def __iter__(self) -> Iterator[list[LabelledBatch]]:
        for key in self.keys:
            index = np.array(key)
            pixels = torch.from_numpy(self.images.images[index]).permute(0, 3, 1, 2)
            yield [LabelledBatch(pixels, torch.from_numpy(self.images.labels[index]), torch.from_numpy(index))]


def scaled_batches(
    images: ImageSet,
    data: ImageDataConfig,
    scales: list[int | None],
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Batches:
    """Whole images at several scales (shorter sides, pixels; None: as they are), once over all processes.

    An item is a list of one batch for each scale. Images of one size in the file share a batch, so that they do at
    every scale; processes may get one batch more or less than others.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index in range(len(images)):
        size = (0, 0) if isinstance(images, ImageArrays) else image_file_size(images.path(index))
        groups.setdefault(size, []).append(index)
    keys = [
        members[start : start + batch_size]
        for members in groups.values()
        for start in range(0, len(members), batch_size)
    ]
    return Batches(_loader(ViewImages(images, data, scales), keys[rank::world_size], data, pin_memory))


def _loader(dataset: Dataset, keys: Iterable, data: ImageDataConfig, pin_memory: bool) -> DataLoader:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=min(data.num_workers, cpus),  # what a batch holds does not depend on it
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from the global state
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
