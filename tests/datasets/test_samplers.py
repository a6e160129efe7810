"""Steps: every image once an epoch, no group mixed without need, the same for any number of processes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from datasets.make_records import make_records
from datasets.padding import padded_size
from datasets.resize import resized_size
from datasets.samplers import (
    EpochOrders,
    EvalSampler,
    TrainKeys,
    TrainSampler,
    TrainStream,
    aspect_groups,
    batches_of_equal,
    local_parts,
    repeat_factors,
    with_neighbours,
)


def _size_of(epoch: int, index: int, repeat: int) -> tuple[int, int]:
    return 40 + index % 37, 50 + (index * 7 + epoch) % 41


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 10**6))
def test_each_image_once_an_epoch(groups: list[int], batch_size: int, seed: int) -> None:
    orders = EpochOrders(np.array(groups), batch_size, seed)
    for epoch in range(4):
        images, repeats = orders.order(epoch)
        assert sorted(images.tolist()) == list(range(len(groups)))
        assert not repeats.any()
        assert np.array_equal(images, EpochOrders(np.array(groups), batch_size, seed).order(epoch)[0])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 100))
def test_only_leftovers_are_mixed(groups: list[int], batch_size: int, seed: int) -> None:
    sampler = TrainSampler(EpochOrders(np.array(groups), batch_size, seed), _size_of)
    count = len(groups)
    steps = [sampler.step(i) for i in range(3 * count // batch_size + 1)]
    whole = [keys for keys in steps if keys[0].epoch == keys[-1].epoch]
    mixed = Counter(keys[0].epoch for keys in whole if len({groups[key.index] for key in keys}) > 1)
    # the groups leave at most batch_size - 1 each, and one batch may be broken up for the seams
    leftovers = len(set(groups)) * (batch_size - 1) + batch_size
    assert all(number <= leftovers // batch_size for number in mixed.values())
    # the stream is the epochs' images, each once, one epoch after the other
    stream = [key for keys in steps for key in keys]
    assert [key.epoch for key in stream] == sorted(key.epoch for key in stream)
    for epoch in range(stream[-1].epoch):
        assert sorted(key.index for key in stream if key.epoch == epoch) == list(range(count))


def test_steps_are_shuffled() -> None:
    groups = np.repeat([0, 1], 200)
    orders = EpochOrders(groups, 4, seed=0)
    first, second = orders.order(0)[0], orders.order(1)[0]
    assert not np.array_equal(first, second)
    assert (np.diff(groups[first][::4]) != 0).sum() > 20  # the groups' batches alternate
    assert abs(np.corrcoef(first, np.arange(400))[0, 1]) < 0.2


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (1, 2)])
def test_processes_and_parts_make_up_the_same_step(world_size: int, accumulate: int) -> None:
    orders = EpochOrders(np.arange(50) % 3, 8, seed=1)
    whole = TrainSampler(orders, _size_of, size_divisor=16)
    ranks = [
        TrainSampler(orders, _size_of, size_divisor=16, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    for iteration in range(15):
        parts = [sampler.local_step(iteration) for sampler in ranks]
        assert all(len(part) == accumulate for part in parts)
        assert all(len(batch) == 8 // world_size // accumulate for part in parts for batch in part)
        keys = [key for part in parts for batch in part for key in batch]
        assert sorted(keys) == sorted(whole.step(iteration))  # with equal padded sizes on every process
        assert len({key.padded_size for key in keys}) == 1


def test_padded_size_is_the_steps_largest() -> None:
    sampler = TrainSampler(EpochOrders(np.zeros(20, int), 4, seed=1), _size_of, size_divisor=32)
    for iteration in range(12):
        keys = sampler.step(iteration)
        sizes = [_size_of(key.epoch, key.index, key.repeat) for key in keys]
        assert keys[0].padded_size == tuple(-(-max(s[axis] for s in sizes) // 32) * 32 for axis in (0, 1))


def test_a_scale_for_each_step_and_few_padded_sizes_are_the_same_on_every_process_and_after_a_resumption():
    """Whichever step comes first: the sizes are planned from the beginning."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(20, 60, (24, 2)).tolist()

    def size_of(epoch: int, index: int, repeat: int, min_size: int) -> tuple[int, int]:
        return resized_size(tuple(shapes[index]), min_size, 200)

    def sampler(**options: int) -> TrainSampler:
        orders = EpochOrders(np.arange(24) % 3, 4, seed=5)
        return TrainSampler(orders, size_of, size_divisor=8, min_sizes=(40, 64, 96), padded_sizes=6, **options)

    steps = [sampler().step(iteration) for iteration in range(60)]
    assert all(len({(key.min_size, key.padded_size) for key in keys}) == 1 for keys in steps)
    assert {keys[0].min_size for keys in steps} == {40, 64, 96}
    sizes = {keys[0].padded_size for keys in steps}
    assert 3 < len(sizes) <= 6
    for keys in steps:
        for key in keys:
            assert (np.array(size_of(key.epoch, key.index, 0, key.min_size)) <= key.padded_size).all()
    own = TrainSampler(EpochOrders(np.arange(24) % 3, 4, seed=5), size_of, size_divisor=8, min_sizes=(40, 64, 96))
    assert len({own.step(iteration)[0].padded_size for iteration in range(60)}) > 12
    parts = [list(itertools.islice(sampler(rank=rank, world_size=2, start_iteration=50), 10)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == steps[50:]


def test_resuming_skips_on_indices() -> None:
    calls = []

    def size_of(epoch: int, index: int, repeat: int) -> tuple[int, int]:
        calls.append(index)
        return 40, 50

    orders = EpochOrders(np.arange(1000) % 5, 8, seed=1)
    start = 10**6  # 8,000 epochs on
    resumed = TrainSampler(orders, size_of, start_iteration=start)
    batch = next(iter(resumed))
    assert len(calls) == 8
    assert batch == TrainSampler(orders, size_of).step(start)
    stream = list(itertools.islice(TrainSampler(orders, size_of, start_iteration=120), 20))
    fresh = list(itertools.islice(TrainSampler(orders, size_of), 140))
    assert stream == fresh[120:]


def test_batch_that_cannot_be_divided() -> None:
    with pytest.raises(UserError, match=r"batch_size: 6 is not a multiple of train.accumulate 2 x 2 processes"):
        TrainSampler(EpochOrders(np.zeros(9, int), 6, 0), _size_of, accumulate=2, world_size=2)


# ------------------------------------------------------------------------------------------------ images of one size


def test_the_stream_is_the_concatenation_of_shuffled_epochs() -> None:
    stream = TrainStream(10, 4, seed=1)
    epochs, indices = (np.concatenate(parts) for parts in zip(*(stream.step(i) for i in range(10)), strict=True))
    assert epochs.tolist() == [e for e in range(4) for _ in range(10)]
    for epoch in range(4):
        assert sorted(indices[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert indices[:10].tolist() != indices[10:20].tolist()
    # A pure function of (seed, iteration): asked alone, after anything else, or of another object.
    assert TrainStream(10, 4, seed=1).step(7)[1].tolist() == indices[28:32].tolist()
    assert TrainStream(10, 4, seed=2).step(0)[1].tolist() != indices[:4].tolist()


def test_a_step_larger_than_the_set() -> None:
    epochs, indices = TrainStream(3, 8, seed=0).step(1)
    assert epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted(indices[1:4]) == [0, 1, 2]


def test_processes_and_parts_divide_a_step() -> None:
    whole = list(range(12))
    taken = [[whole[part] for part in local_parts(12, 2, rank, 3)] for rank in range(3)]
    assert taken == [[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]
    with pytest.raises(UserError, match=r"12 is not a multiple of train\.accumulate 5 x 1"):
        local_parts(12, 5, 0, 1)


def test_a_parts_first_image_has_a_neighbour_whoever_holds_it() -> None:
    found = with_neighbours(local_parts(12, 2, 1, 3), 12)
    assert [part.tolist() for part in found] == [[1, 2, 3], [7, 8, 9]]
    (first, _) = with_neighbours(local_parts(12, 2, 0, 3), 12)
    assert first.tolist() == [11, 0, 1], "the step's first follows its last"
    assert with_neighbours(local_parts(1, 1, 0, 1), 1)[0].tolist() == [0, 0]


def test_keys_are_the_streams_own_parts() -> None:
    keys = TrainKeys(10, 12, seed=1, parts=local_parts(12, 2, 1, 3), start_iteration=4)
    taken = list(itertools.islice(keys, 6))
    for k, iteration in enumerate((4, 5, 6)):
        epochs, indices = TrainStream(10, 12, seed=1).step(iteration)
        step = list(zip(epochs.tolist(), indices.tolist(), strict=True))
        assert taken[2 * k : 2 * k + 2] == [step[2:4], step[8:10]]
    keys = TrainKeys(10, 12, seed=1, parts=with_neighbours(local_parts(12, 1, 0, 2), 12), start_iteration=6)
    assert next(iter(keys)) == [step[11], *step[:6]]


# ------------------------------------------------------------------------------------------------ repeat factors


def _records_with_classes(per_image: list[list[int]]):
    labels = [label for image in per_image for label in image]
    return make_records(
        images=[("x", i, (100, 100)) for i in range(len(per_image))],
        boxes=[(0, 0, 50, 50)] * len(labels),
        labels=labels,
        counts=[len(image) for image in per_image],
        class_names=["common", "rare", "absent"],
        source="s",
        annotation_file="{}",
    )


def test_repeat_factors_by_hand() -> None:
    # 16 images; common is in 15 of them, rare in one; the threshold is a quarter
    records = _records_with_classes([[1, 1]] * 14 + [[1, 2]] + [[]])
    factors = repeat_factors(records, 0.25)
    # f(rare) = 1/16: sqrt(0.25 * 16) = 2; f(common) = 15/16 > 0.25: 1; the empty image: 1
    assert factors.tolist() == [1.0] * 14 + [2.0, 1.0]
    assert repeat_factors(records, 0.01).tolist() == [1.0] * 16
    records.difficult[-1] = True  # the only rare object
    assert repeat_factors(records, 0.25).tolist() == factors.tolist()
    assert repeat_factors(records, 0.25, train_difficult=False).tolist() == [1.0] * 16


@given(st.lists(st.floats(1, 4), min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 1000))
def test_images_are_seen_as_often_as_their_factors_say(factors: list[float], batch_size: int, seed: int) -> None:
    orders = EpochOrders(np.zeros(len(factors), int), batch_size, seed, np.array(factors))
    length = orders.epoch_length
    assert abs(length - sum(factors)) <= 0.5
    scaled = np.array(factors) * length / sum(factors) if orders.factors is not None else np.ones(len(factors))
    for epoch in range(3):
        images, repeats = orders.order(epoch)
        assert len(images) == length
        counts = np.bincount(images, minlength=len(factors))
        assert (counts >= np.floor(scaled - 1e-9)).all()
        assert (counts <= np.ceil(scaled + 1e-9)).all()
        assert len(set(zip(images.tolist(), repeats.tolist(), strict=True))) == length  # every showing is its own
        assert repeats.max(initial=0) == counts.max() - 1


def test_average_over_epochs_is_the_factor() -> None:
    factors = np.array([1.0, 1.5, 2.25, 1.0, 1.25])  # sums to 7
    orders = EpochOrders(np.zeros(5, int), 2, 0, factors)
    counts = np.mean([np.bincount(orders.order(epoch)[0], minlength=5) for epoch in range(2000)], axis=0)
    assert counts == pytest.approx(factors, abs=0.05)


# ------------------------------------------------------------------------------------------------ groups, evaluation


def test_aspect_groups() -> None:
    sizes = np.array([(100, 50), (100, 60), (50, 100), (40, 100), (80, 80), (80, 81)])  # ratios .5 .6 2 2.5 1 1.01
    assert aspect_groups(sizes, 0).tolist() == aspect_groups(sizes, 1).tolist() == [0] * 6
    groups = aspect_groups(sizes, 3)
    assert groups.tolist() == [0, 0, 2, 2, 1, 1]
    same = np.array([(480, 640)] * 10)
    assert len(set(aspect_groups(same, 6).tolist())) == 1


@given(st.integers(0, 40), st.integers(1, 5), st.sampled_from([1, 2, 3]))
def test_evaluation_sees_each_image_once(count: int, batch_size: int, world_size: int) -> None:
    sizes = [(30 + 20 * (i % 3), 60) for i in range(count)]
    seen = []
    for rank in range(world_size):
        sampler = EvalSampler(sizes, batch_size=batch_size, rank=rank, world_size=world_size, size_divisor=32)
        assert len(list(sampler)) == len(sampler)
        for keys in sampler:
            assert len(keys) <= batch_size
            assert {key.padded_size for key in keys} == {padded_size(sizes[key.index], 32) for key in keys}
            assert len({key.padded_size for key in keys}) == 1
            seen += [key.index for key in keys]
    assert sorted(seen) == list(range(count))


def test_evaluation_at_several_sizes_batches_what_is_padded_alike_at_each() -> None:
    sizes, scaled = [(60, 60)] * 4, [[(30, 31)], [(30, 33)], [(29, 30)], [(60, 31)]]
    batches = list(EvalSampler(sizes, scaled_sizes=scaled, batch_size=4, size_divisor=32))
    assert sorted([key.index for key in keys] for keys in batches) == [[0, 2], [1], [3]]
    assert {key.padded_size for keys in batches for key in keys} == {(64, 64)}


def test_the_largest_batch_comes_first() -> None:
    sizes = [(20, 20)] * 5 + [(60, 30)] + [(30, 20)] * 2
    batches = [[key.index for key in keys] for keys in EvalSampler(sizes, batch_size=4, size_divisor=32)]
    # 32 x 32 x 4 = 4,096 pixels; 32 x 32 x 3 = 3,072, sides of 20 and 30 being padded alike; 64 x 32 = 2,048
    assert batches == [[0, 1, 2, 3], [4, 6, 7], [5]]
    shares = [
        [key.index for keys in EvalSampler(sizes, batch_size=4, rank=rank, world_size=2) for key in keys]
        for rank in (0, 1)
    ]
    assert shares == [[0, 1, 2, 3, 5], [4, 6, 7]]


def test_equal_values_share_batches() -> None:
    assert batches_of_equal("abacaab", 2) == [[0, 2], [4, 5], [1, 6], [3]]
    assert batches_of_equal([], 3) == []


def test_steps_across_the_seams_of_epochs_shift_no_others():
    """121 images in steps of 4: an epoch ends within a step, which the next one completes with 3, 2, 1 or 0 images. But
    for those at the seam and what is left over, each step is of one aspect group."""
    groups = np.arange(121) % 2
    orders = EpochOrders(groups, 4, seed=0)
    images = np.concatenate([orders.order(epoch)[0] for epoch in range(4)])
    mixed = [len(set(groups[step].tolist())) > 1 for step in images.reshape(-1, 4)]
    assert sum(mixed) <= 3 + 4 * 2
