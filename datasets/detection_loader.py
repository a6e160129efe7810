"""Detection's loaders: training batches without end, and each image of an evaluation once."""

from __future__ import annotations

from configs.detection import DataConfig
from datasets.batch import MIN_OBJECTS, Batch, Collate
from datasets.detection import DetectionDataset
from datasets.loader import Loader, make_loader
from datasets.samplers import EpochOrders, EvalSampler, TrainSampler, aspect_groups, repeat_factors


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
    min_objects: int = MIN_OBJECTS,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> Loader[Batch]:
    """Training batches without end: `accumulate` for each iteration, beginning with `start_iteration`.

    What an iteration holds, and how it is padded, is a pure function of (seed, iteration): the same on 1, 2 or 4
    processes, with any number of workers, and after a resumption.

    Args:
        dataset: with augmentation.
        data: aspect_groups, repeat_threshold, train_difficult, scale_per, padded_sizes, size_divisor and num_workers.
        batch_size: images of an iteration over all processes.
        accumulate: batches that an iteration is cut into on each process.
        seed: of the order (the data set has its own for the augmentation).
        start_iteration: where to begin. Nothing before it is read; only the orders of the epochs are drawn that its
            images belong to, one or two.
        rank, world_size: this process and the number of processes.
        min_objects: see `Collate`.
        pin_memory, multiprocessing_context: see `make_loader`.

    Raises:
        UserError: batch_size is not a multiple of accumulate x world_size.
    """
    sampler = TrainSampler(
        epoch_orders(dataset, data, batch_size=batch_size, seed=seed),
        dataset.output_size,
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        size_divisor=data.size_divisor,
        min_sizes=dataset.min_sizes if data.scale_per == "step" else (),
        padded_sizes=data.padded_sizes,
        start_iteration=start_iteration,
    )
    return make_loader(
        dataset, sampler, Collate(data.size_divisor, data.train_difficult, min_objects), num_workers=data.num_workers,
        on_error=data.on_error, images=len(dataset), pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context,
    )  # fmt: skip


def epoch_orders(dataset: DetectionDataset, data: DataConfig, *, batch_size: int, seed: int = 0) -> EpochOrders:
    """The order of the training images; its `epoch_length` is the number of images that make up an epoch."""
    factors = None
    if data.repeat_threshold:
        factors = repeat_factors(dataset.records, data.repeat_threshold, train_difficult=data.train_difficult)
    return EpochOrders(aspect_groups(dataset.records.sizes, data.aspect_groups), batch_size, seed, factors)


def eval_loader(
    dataset: DetectionDataset,
    data: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> Loader[Batch]:
    """Each image once over all processes, padded by the fixed rule for its own true size.

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
    return make_loader(
        dataset, sampler, Collate(data.size_divisor, data.train_difficult), num_workers=data.num_workers,
        on_error=data.on_error, pin_memory=pin_memory, multiprocessing_context=multiprocessing_context,
    )  # fmt: skip
