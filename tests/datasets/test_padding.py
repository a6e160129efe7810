"""Few padded sizes with few added pixels; what scale jitter costs in padding, on sets of VOC's and COCO's shapes."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from datasets.padding import common_size, few_sizes, fitting_size, padded_size
from datasets.resize import resized_size
from datasets.samplers import EpochOrders, TrainSampler, aspect_groups


def test_sides_are_rounded_up_to_multiples():
    assert padded_size((1, 64), 32) == (32, 64)
    assert padded_size((65, 33), 32) == (96, 64)
    assert common_size([(1, 64), (65, 33)], 32) == (96, 64)


def test_the_sizes_that_are_nearest_are_joined():
    counts = {(64, 64): 5, (64, 96): 1, (128, 64): 2}
    assert few_sizes(counts, 3).tolist() == [[64, 64], [64, 96], [128, 64]]
    # 64x64 and 64x96 as one add 5 x 2048 pixels, 64x64 and 128x64 5 x 4096, 64x96 and 128x64 6144 + 2 x 4096.
    assert few_sizes(counts, 2).tolist() == [[64, 96], [128, 64]]
    assert few_sizes(counts, 1).tolist() == [[128, 96]]
    # What many batches have stays as it is: now the other two as one add 6144 + 2 x 4096 only.
    assert few_sizes({**counts, (64, 64): 50}, 2).tolist() == [[64, 64], [128, 96]]
    # A size may hold another one from the start: nothing is added for its own batches.
    assert few_sizes({(64, 64): 1, (64, 96): 9, (500, 32): 9}, 2).tolist() == [[64, 96], [500, 32]]


def test_each_size_goes_into_the_smallest_that_holds_it():
    sizes = np.array([[64, 96], [128, 64], [128, 96]])
    assert fitting_size((64, 64), sizes) == (64, 96)
    assert fitting_size((96, 64), sizes) == (128, 64)
    assert fitting_size((96, 96), sizes) == (128, 96)
    assert fitting_size((160, 32), sizes) == (160, 32)


VOC = {(375, 500): 60, (500, 375): 15, (333, 500): 12, (500, 333): 4, (334, 500): 3, (400, 500): 2, (500, 500): 1}
COCO = {(480, 640): 42, (640, 480): 16, (427, 640): 12, (640, 427): 4, (426, 640): 3, (428, 640): 2, (640, 640): 2,
        (375, 500): 4, (500, 375): 2, (360, 640): 2}  # fmt: skip
DETECTRON2 = (640, 672, 704, 736, 768, 800)


def padding(shapes: dict, min_sizes: tuple[int, ...], max_size: int, per: str, most: int = 0) -> tuple[int, float]:
    """How many padded sizes 500 steps of 16 images have, and padding pixels for each one of an image."""
    rng = np.random.default_rng(0)
    shares = np.array(list(shapes.values()))
    sizes = np.array(list(shapes))[rng.choice(len(shapes), 5000, p=shares / shares.sum())]
    rare = np.flatnonzero(rng.random(len(sizes)) < 0.08)  # of any shape, as both sets have some
    sizes[rare] = np.stack((rng.integers(250, 641, len(rare)), np.full(len(rare), sizes.max())), axis=1)
    sizes[rare[::3]] = sizes[rare[::3], ::-1]
    draws = rng.integers(len(min_sizes), size=(2, len(sizes))).tolist()
    sides = [(height, width) for height, width in sizes.tolist()]

    @functools.cache
    def size_of(epoch: int, index: int, repeat: int, min_size: int | None = None) -> tuple[int, int]:
        return resized_size(sides[index], min_size or min_sizes[draws[epoch][index]], max_size)

    orders = EpochOrders(aspect_groups(sizes, 6), 16, seed=0)
    sampler = TrainSampler(orders, size_of, min_sizes=min_sizes if per == "step" else (), padded_sizes=most)
    used, true, padded = set(), 0, 0
    for keys in itertools.islice(sampler, 500):
        used.add(keys[0].padded_size)
        true += sum(math.prod(size_of(*key[:2], 0, *([key.min_size] if key.min_size else []))) for key in keys)
        padded += len(keys) * math.prod(keys[0].padded_size)
    return len(used), padded / true - 1


@pytest.mark.parametrize(
    ("shapes", "min_sizes", "max_size", "per", "most", "sizes", "added"),
    [
        (VOC, (600,), 1000, "image", 0, 19, 0.130),
        (VOC, (600,), 1000, "image", 8, 8, 0.153),
        (COCO, DETECTRON2, 1333, "image", 0, 36, 0.310),
        (COCO, DETECTRON2, 1333, "step", 0, 86, 0.111),
        (COCO, DETECTRON2, 1333, "step", 32, 32, 0.129),
        (COCO, DETECTRON2, 1333, "step", 16, 16, 0.172),
    ],
)
def test_what_is_padded(shapes, min_sizes, max_size, per, most, sizes, added):
    """The figures of docs/performance.md."""
    assert padding(shapes, min_sizes, max_size, per, most) == (sizes, pytest.approx(added, abs=0.0005))
