"""Loaders of batches: workers make uint8 samples, `Collate` pads them, `prefetch` moves them to the device."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from configs.detection import DataConfig
from datasets.batch import Batch, ScaledImages
from datasets.detection import DetectionDataset
from datasets.samplers import EpochOrders, EvalSampler, TrainSampler, aspect_groups, padded_size, repeat_factors
from datasets.target import Sample

MIN_OBJECTS = 8
"""The least length of the padded ground truth; longer ones are powers of two, so that shapes are few."""


@dataclass(frozen=True)
class Collate:
    """Samples -> Batch; images are padded to the key's padded size, or to the batch's largest where keys have none."""

    size_divisor: int = 32
    train_difficult: bool = False

    def __call__(self, samples: list[Sample]) -> Batch:
        sizes = np.array([sample.image.shape[:2] for sample in samples])
        height, width = samples[0].padded_size or padded_size(tuple(sizes.max(axis=0)), self.size_divisor)
        slots = _num_slots(max(len(sample.target) for sample in samples))
        boxes = np.zeros((len(samples), slots, 4), np.float32)
        labels = np.zeros((len(samples), slots), np.int64)
        valid = np.zeros((len(samples), slots), bool)
        for b, sample in enumerate(samples):
            target, count = sample.target, len(sample.target)
            boxes[b, :count] = target.boxes
            labels[b, :count] = target.labels
            valid[b, :count] = ~target.iscrowd & (self.train_difficult | ~target.difficult)
        return Batch(
            images=_stack([sample.image for sample in samples], (height, width)),
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
        return ScaledImages(
            _stack(parts, padded_size(tuple(sizes.max(axis=0)), self.size_divisor)), torch.from_numpy(sizes)
        )


def _stack(images: list[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """(B, 3, H, W) uint8 of images (H_i, W_i, 3), padded with zeros to `size` (H, W)."""
    stacked = np.zeros((len(images), *size, 3), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def train_loader(
    dataset: DetectionDataset,
    data: DataConfig,
    *,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    start_iteration: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> DataLoader:
    """Training batches without end: `accumulate` for each iteration, beginning with `start_iteration`.

    What an iteration holds, and how it is padded, is a pure function of (seed, iteration): the same on 1, 2 or 4
    processes, with any number of workers, and after a resumption.

    Args:
        dataset: with augmentation.
        data: aspect_groups, repeat_threshold, train_difficult, size_divisor and num_workers.
        batch_size: images of an iteration over all processes.
        accumulate: batches that an iteration is cut into on each process.
        seed: of the order (the data set has its own for the augmentation).
        start_iteration: where to begin; skipping costs one epoch's shuffling.
        rank, world_size: this process and the number of processes.
        pin_memory: batches lie in page-locked memory (for CUDA).
        multiprocessing_context: fork, spawn or forkserver; default: the platform's.

    Raises:
        UserError: batch_size is not a multiple of accumulate x world_size.
    """
    factors = None
    if data.repeat_threshold:
        factors = repeat_factors(dataset.records, data.repeat_threshold, train_difficult=data.train_difficult)
    groups = aspect_groups(dataset.records.sizes, data.aspect_groups)
    sampler = TrainSampler(
        EpochOrders(groups, batch_size, seed, factors),
        dataset.output_size,
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        size_divisor=data.size_divisor,
        start_iteration=start_iteration,
    )
    return _loader(dataset, sampler, data, pin_memory, multiprocessing_context)


def eval_loader(
    dataset: DetectionDataset,
    data: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> DataLoader:
    """Each image once over all processes, padded by the fixed rule of its own true size.

    Only images of equal padded size (at each of the data set's `scales` too) share a batch, so that a result depends on
    nothing but its own image. Processes may get one batch more or less than others: a collective operation in each
    batch would hang.
    """
    sizes = [dataset.evaluation_size(i) for i in range(len(dataset))]
    sampler = EvalSampler(
        sizes,
        scaled_sizes=[dataset.scaled_evaluation_sizes(i) for i in range(len(dataset))] if dataset.scales else None,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        size_divisor=data.size_divisor,
    )
    return _loader(dataset, sampler, data, pin_memory, multiprocessing_context)


class prefetch:
    """The loader's batches on `device`, the next one being copied while the present one is worked on.

    On CUDA the copy runs on a stream of its own, from pinned memory; on the CPU batches pass through.

    Attributes:
        data_seconds: how long the last batch kept the caller waiting for the workers.
    """

    def __init__(self, loader: Iterable[Batch], device: torch.device | str) -> None:
        self.loader = loader
        self.device = torch.device(device)
        self.data_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self.loader)
        if self.device.type != "cuda":
            while (batch := self._next(iterator)) is not None:
                yield batch.to(self.device)
            return
        stream = torch.cuda.Stream(self.device)
        batch = self._copy(self._next(iterator), stream)
        while batch is not None:
            torch.cuda.current_stream(self.device).wait_stream(stream)
            for tensor in batch.tensors():  # else the allocator might reuse the memory while it is worked on
                tensor.record_stream(torch.cuda.current_stream(self.device))
            yield batch
            batch = self._copy(self._next(iterator), stream)

    def _next(self, iterator: Iterator[Batch]) -> Batch | None:
        start = time.perf_counter()
        batch = next(iterator, None)
        self.data_seconds = time.perf_counter() - start
        return batch

    def _copy(self, batch: Batch | None, stream: torch.cuda.Stream) -> Batch | None:
        if batch is None:
            return None
        with torch.cuda.stream(stream):
            return batch.to(self.device)


def _loader(
    dataset: DetectionDataset,
    sampler: TrainSampler | EvalSampler,
    data: DataConfig,
    pin_memory: bool,
    multiprocessing_context: str | None,
) -> DataLoader:
    workers = min(data.num_workers, _usable_cpus())  # what a batch holds does not depend on it
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(data.size_divisor, data.train_difficult),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        multiprocessing_context=multiprocessing_context if workers else None,
        generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from the global state
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Ctrl-C reaches the whole process group: the training loop decides, and still needs its batches for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _usable_cpus() -> int:
    """Processors that this process may use; containers often show more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_slots(objects: int) -> int:
    """The least power of two that is at least `objects` and `MIN_OBJECTS`."""
    return max(MIN_OBJECTS, 1 << (max(objects, 1) - 1).bit_length())
