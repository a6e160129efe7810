"""Which images make up an optimiser step: pure functions of (seed, iteration). Imports no torch.

The training stream is the concatenation of the epochs' orders, cut into steps of `batch_size`: the last images of an
epoch share their step with the first ones of the next, so that no image is lost, repeated or seen more often than
another. Within an epoch the images of one aspect group fill whole steps; only the leftovers of the groups, those beside
the seams between epochs among them, are mixed.

Nothing here depends on the number of processes or workers: a step is planned as a whole, every process takes its part
(`local_parts`), and all pad to the whole step's common size. Images of one size need neither groups nor padding: their
stream (`TrainStream`, `TrainKeys`) is the epochs' plain shuffled orders.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import UserError
from datasets.padding import common_size, few_sizes, fitting_size, padded_size
from datasets.records import Records
from datasets.target import SampleKey

PLANNED_STEPS = 500
"""Steps whose padded sizes decide which few there are."""
_SCALE = 1
"""The draw of a step's scale has its own random numbers."""


def aspect_groups(sizes: np.ndarray, count: int) -> np.ndarray:
    """Group of each image: `count` quantiles of width / height; images of equal shape share a group.

    Args:
        sizes: (N, 2) (H, W).
        count: 0 or 1: one group.

    Returns:
        (N,) int64.
    """
    if count <= 1:
        return np.zeros(len(sizes), np.int64)
    ratio = sizes[:, 1] / sizes[:, 0]
    edges = np.unique(np.quantile(ratio, np.arange(1, count) / count))
    return np.searchsorted(edges, ratio, side="left").astype(np.int64)


def repeat_factors(records: Records, threshold: float, *, train_difficult: bool = True) -> np.ndarray:
    """How often an image is seen in an epoch, on average (LVIS, Gupta et al. 2019, App. B).

    f(c) is the share of images with class c, r(c) = max(1, sqrt(threshold / f(c))), and an image's factor is the
    largest r(c) of its classes.

    Returns:
        (N,) float64, at least 1.
    """
    usable = records.trainable(train_difficult=train_difficult)
    pairs = records.classes_of_images(usable)
    share = np.bincount(pairs[:, 1], minlength=len(records.class_names) + 1) / max(1, len(records))
    with np.errstate(divide="ignore"):
        of_class = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(len(records))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


class EpochOrders:
    """The order of the images in each epoch, as described in the module's docstring.

    Args:
        groups: (N,) int, the aspect group of each image.
        batch_size: images of a step.
        seed: of the shuffling.
        factors: (N,) float >= 1, repeats; default: each image once. They are scaled by less than 1 / N so that their
            sum, the epoch's length, is whole.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int, factors: np.ndarray | None = None) -> None:
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.factors = None if factors is None or (factors == 1).all() else factors
        self.epoch_length = len(groups) if self.factors is None else round(float(self.factors.sum()))

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The images of an epoch and which showing of the image within the epoch it is (0, 1, ...); (L,) int64 each."""
        rng = np.random.default_rng([self.seed, epoch])
        images, repeats = self._shuffled(rng)
        head = min(self.epoch_length, -epoch * self.epoch_length % self.batch_size)
        tail = (self.epoch_length - head) % self.batch_size
        batches, leftovers = self._batches(self.groups[images])
        while len(leftovers) < head + tail:  # a whole batch is broken up for the seams between epochs
            broken = int(rng.integers(len(batches)))
            leftovers = np.concatenate([leftovers, batches[broken]])
            batches = np.delete(batches, broken, axis=0)
        middle = leftovers[head : len(leftovers) - tail]
        batches = np.concatenate([batches, middle.reshape(-1, self.batch_size)])
        batches = batches[rng.permutation(len(batches))]
        positions = np.concatenate([leftovers[:head], batches.ravel(), leftovers[len(leftovers) - tail :]])
        return images[positions], repeats[positions]

    def _shuffled(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        images = rng.permutation(len(self.groups))
        if self.factors is None:
            return images, np.zeros(len(images), np.int64)
        # Systematic sampling: an image is seen floor(f) or ceil(f) times, f on average, and the total never changes.
        ends = np.cumsum(self.factors[images]) * (self.epoch_length / self.factors.sum())
        ends[-1] = self.epoch_length
        marks = np.floor(ends + rng.random()).astype(np.int64)
        counts = np.diff(marks, prepend=0)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        repeats = np.arange(self.epoch_length) - starts
        images = np.repeat(images, counts)
        again = rng.permutation(self.epoch_length)  # one image must not be shown twice in a row
        return images[again], repeats[again]

    def _batches(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions cut into batches of one group each, (n, batch_size); the leftovers in the order of their groups."""
        batches, leftovers = [np.zeros((0, self.batch_size), np.int64)], [np.zeros(0, np.int64)]
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            whole = len(members) // self.batch_size * self.batch_size
            batches.append(members[:whole].reshape(-1, self.batch_size))
            leftovers.append(members[whole:])
        return np.concatenate(batches), np.concatenate(leftovers)


class TrainSampler:
    """Batches of keys without end for one process: `accumulate` batches for each iteration.

    Args:
        orders: the epochs' orders.
        output_size: (epoch, index, repeat, min_size) -> (H, W) of the sample.
        accumulate, rank, world_size: how a step is divided.
        size_divisor: padded sizes are multiples of this, pixels.
        min_sizes: lengths of the shorter side, pixels, of which one is drawn for each step; (): each sample draws its
            own, and `output_size` gets no min_size.
        padded_sizes: about so many padded sizes there are; 0: each step has its own. They are planned over the first
            `PLANNED_STEPS` steps, whichever comes first here.
        start_iteration: the first step. Nothing before it is planned; only the orders of the epochs are drawn that its
            images belong to, one or two (see `EpochOrders.order`).
    """

    def __init__(
        self,
        orders: EpochOrders,
        output_size: Callable[..., tuple[int, int]],
        *,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        size_divisor: int = 32,
        min_sizes: Sequence[int] = (),
        padded_sizes: int = 0,
        start_iteration: int = 0,
    ) -> None:
        self.parts = local_parts(orders.batch_size, accumulate, rank, world_size)
        self.orders = orders
        self.output_size = output_size
        self.size_divisor = size_divisor
        self.min_sizes = tuple(min_sizes)
        self.padded_sizes = padded_sizes
        self.start_iteration = start_iteration
        self._order = functools.lru_cache(maxsize=2)(orders.order)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        iteration = self.start_iteration
        while True:
            yield from self.local_step(iteration)
            iteration += 1

    def step(self, iteration: int) -> list[SampleKey]:
        """The keys of a whole step over all processes, with their common padded size."""
        keys = self._keys(iteration)
        padded = self._own_size(keys)
        if self.padded_sizes:
            padded = fitting_size(padded, self._planned_sizes)
        return [key._replace(padded_size=padded) for key in keys]

    def _keys(self, iteration: int) -> list[SampleKey]:
        """The same without it."""
        size, length = self.orders.batch_size, self.orders.epoch_length
        min_size = None
        if self.min_sizes:
            min_size = int(np.random.default_rng([self.orders.seed, iteration, _SCALE]).choice(self.min_sizes))
        keys = []
        for position in range(iteration * size, (iteration + 1) * size):
            epoch, offset = divmod(position, length)
            images, repeats = self._order(epoch)
            keys.append(SampleKey(epoch, int(images[offset]), repeat=int(repeats[offset]), min_size=min_size))
        return keys

    def _own_size(self, keys: list[SampleKey]) -> tuple[int, int]:
        """The padded size of a step by itself."""
        drawn = [() if key.min_size is None else (key.min_size,) for key in keys]
        sizes = [self.output_size(key.epoch, key.index, key.repeat, *own) for key, own in zip(keys, drawn, strict=True)]
        return common_size(sizes, self.size_divisor)

    @functools.cached_property
    def _planned_sizes(self) -> np.ndarray:
        steps = range(PLANNED_STEPS)
        return few_sizes(Counter(self._own_size(self._keys(iteration)) for iteration in steps), self.padded_sizes)

    def local_step(self, iteration: int) -> list[list[SampleKey]]:
        """This process's `accumulate` batches of a step."""
        keys = self.step(iteration)
        return [keys[part] for part in self.parts]


class TrainStream:
    """Which images an iteration takes where all have one size: a pure function of (seed, iteration).

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
        for epoch in range(epochs[0], epochs[-1] + 1):
            chosen = epochs == epoch
            indices[chosen] = self._order(epoch)[offsets[chosen]]
        return epochs, indices


@dataclass(frozen=True)
class TrainKeys:
    """Batches of (epoch, index) of a `TrainStream` without end for one process, beginning with `start_iteration`."""

    count: int
    batch_size: int
    seed: int
    parts: Sequence[slice | np.ndarray]
    """The places within a step that make up each batch of this process, see `local_parts` and `with_neighbours`."""
    start_iteration: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = TrainStream(self.count, self.batch_size, self.seed)
        iteration = self.start_iteration
        while True:
            keys = np.column_stack(stream.step(iteration))
            yield from ([(epoch, index) for epoch, index in keys[part].tolist()] for part in self.parts)
            iteration += 1


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
    starts = [(a * world_size + rank) * part for a in range(accumulate)]
    return [slice(start, start + part) for start in starts]


def with_neighbours(parts: Sequence[slice], batch_size: int) -> list[np.ndarray]:
    """The places of each part after one more: the place before its first, for images that are mixed with another.

    Each image of a step is mixed with the one before it, the step's first with its last, whichever process holds it.
    """
    return [np.arange(part.start - 1, part.stop) % batch_size for part in parts]


class EvalSampler:
    """Each image once over all processes, in batches of images with equal padded sizes.

    Args:
        sizes: (H, W) of each resized image.
        scaled_sizes: for each image (H, W) at further sizes; they must be padded equally too.
        batch_size: images of a batch, at most.
        rank, world_size: process r takes every world_size-th batch; processes may get one batch more or less.
        size_divisor: padded sizes are multiples of this, pixels.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        scaled_sizes: Sequence[Sequence[tuple[int, int]]] | None = None,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        size_divisor: int = 32,
    ) -> None:
        padded = [padded_size(size, size_divisor) for size in sizes]
        every: Sequence[Hashable] = padded
        if scaled_sizes is not None:
            further = [[padded_size(one, size_divisor) for one in scaled] for scaled in scaled_sizes]
            every = [(own, *others) for own, others in zip(padded, further, strict=True)]
        batches = batches_of_equal(every, batch_size)
        # The largest first: if memory does not suffice, it is known at once.
        batches.sort(key=lambda batch: -padded[batch[0]][0] * padded[batch[0]][1] * len(batch))
        batches = [[SampleKey(0, index, padded[index]) for index in batch] for batch in batches]
        self.batches = batches[rank::world_size]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def batches_of_equal(values: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Positions of equal values in batches of at most `batch_size`; the values in the order in which they appear."""
    groups: dict[Hashable, list[int]] = {}
    for position, value in enumerate(values):
        groups.setdefault(value, []).append(position)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
