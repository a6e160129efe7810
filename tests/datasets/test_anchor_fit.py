"""Which share of objects anchors reach: by hand, and by overlaps counted pixel by pixel; better ones are better."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import anchor_fit as module
from datasets.anchor_fit import _spread, anchor_shapes, better_anchors, reached


def test_shapes_by_hand() -> None:
    shapes = anchor_shapes([[16], [32, 64]], [1.0, 4.0], [4, 8])
    assert shapes.tolist() == [[16, 16, 4], [8, 32, 4], [32, 32, 8], [16, 64, 8], [64, 64, 8], [32, 128, 8]]


def test_the_overlap_is_that_of_boxes_a_quarter_stride_apart() -> None:
    rng = np.random.default_rng(0)
    for width, height, stride, w, h in rng.integers((8, 8, 4, 8, 8), (40, 40, 33, 40, 40), (200, 5)).tolist():
        x, y = (width - w) / 2 + stride / 4, (height - h) / 2 + stride / 4  # the anchor's corner; the object's is 0, 0
        common = max(0, min(width, x + w) - max(0, x)) * max(0, min(height, y + h) - max(0, y))
        overlap = common / (width * height + w * h - common)
        if abs(overlap - 0.5) > 1e-9:
            assert reached(np.array([[width, height]], float), np.array([[w, h, stride]], float)) == (overlap > 0.5)


def test_no_object_is_missed_where_there_is_none() -> None:
    assert reached(np.zeros((0, 2)), anchor_shapes([[16]], [1.0], [16])) == 1.0


@pytest.mark.parametrize(
    ("sizes", "strides"), [([[128, 256, 512]], [16]), ([[64], [128], [192], [256], [512]], [4, 8, 16, 32, 64])]
)
def test_better_anchors_reach_more_and_are_as_many(sizes, strides) -> None:
    rng = np.random.default_rng(0)
    extents = np.exp(rng.normal(np.log(40), 0.4, (500, 1))) * np.exp(rng.normal(0, 0.3, (500, 2)))
    before = reached(extents, anchor_shapes(sizes, [0.5, 1.0, 2.0], strides))
    better, ratios = better_anchors(extents, sizes, 3, strides)
    assert [len(level) for level in better] == [len(level) for level in sizes]
    assert len(ratios) == 3
    assert reached(extents, anchor_shapes(better, ratios, strides)) > before + 0.05


def test_every_map_gets_equally_many() -> None:
    """Objects of nearly one size: half the stride of the coarse maps joins two sizes there, and nowhere else."""
    extents = np.random.default_rng(0).uniform(8, 30, (200, 2))
    better, _ = better_anchors(extents, [[8, 16], [32, 64], [128, 256]], 1, [4, 8, 64])
    assert len({len(level) for level in better}) == 1
    assert better[-1] == [32]


def test_numbers_spread_in_equal_ratios() -> None:
    assert _spread(np.array([1.0, 7.0, 100.0]), 3, 0.0) == pytest.approx([1, 10, 100])
    assert _spread(np.array([5.0, 9.0, 7.0]), 1, 0.1) == [7]
    assert _spread(np.array([5.0, 5.0]), 2, 0.1) == pytest.approx([5, 5.05])
    assert _spread(np.arange(101.0), 2, 0.1) == pytest.approx([10, 90])


def test_of_several_spreads_the_one_that_reaches_most(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    extents = np.exp(rng.normal(np.log(60), 0.9, (300, 1))) * np.exp(rng.normal(0, 0.5, (300, 2)))

    def share() -> float:
        return reached(extents, anchor_shapes(*better_anchors(extents, [[32, 64]], 2, [16]), [16]))

    best, shares = share(), []
    for tail in module._TAILS:
        monkeypatch.setattr(module, "_TAILS", (tail,))
        shares.append(share())
    assert best >= max(shares) > min(shares)
    ratios = better_anchors(extents, [[32, 64]], 3, [16])[1]
    assert ratios == sorted(ratios)
