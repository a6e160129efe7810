"""Which two sizes an RoI is pooled at, and the maximum of its features there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from datasets.batch import Batch, ScaledImages
from detection.multi_scale import MultiScaleScorer, choose_pairs


@pytest.mark.parametrize(
    ("side", "pair"),
    # Means of the sides at {200, 400, 600, 800, 1000} of an RoI of side a at 600: 0.471 a, 0.816 a, 1.155 a, 1.491 a.
    [
        (64, 3),  # 30, 52, 74, 95
        (150, 3),  # 71, 122, 173, 224
        (224, 2),  # 106, 183, 259, 334: 259 / 224 = 1.15 is nearer than 224 / 183 = 1.22
        (300, 1),  # 141, 245
        (370, 0),  # 174, 302: 224 / 174 = 1.28 is nearer than 302 / 224 = 1.35
        (600, 0),  # 283
    ],
)
def test_the_pair_of_an_roi_of_this_side(side, pair):
    scales = torch.tensor([200.0, 400, 600, 800, 1000])
    assert choose_pairs((side * scales / 600) ** 2, 224).item() == pair


def test_equally_near_pairs_give_the_larger():
    """Sides 112, 224, 448: the means' squares, 112 * 224 and 224 * 448, lie at half and twice 224^2."""
    sides = torch.tensor([112.0, 224, 448])
    assert choose_pairs(sides**2, 224).item() == 1
    assert choose_pairs((0.99 * sides) ** 2, 224).item() == 1
    assert choose_pairs((1.01 * sides) ** 2, 224).item() == 0
    assert choose_pairs((2.02 * sides) ** 2, 448).item() == 0
    assert choose_pairs(torch.zeros(2, 5, 2), 224).tolist() == [[0] * 5] * 2  # two sizes are one pair


class Heads:
    """An RoI's features: the value of its image's map, its negative, and the RoI's width there."""

    config = SimpleNamespace(global_context=False)

    def __init__(self) -> None:
        self.rois = 0

    def hidden(self, maps: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        self.rois += rois.shape[0] * rois.shape[1]
        value = maps[0][:, :1].expand(-1, rois.shape[1])
        return torch.stack((value, -value, rois[..., 2] - rois[..., 0]), dim=-1)


def scaled_batch() -> Batch:
    """Two images of 600 x 600 and 600 x 300 (H, W) at 300, 600 and 1200; the maps are one value an image and size."""
    sizes = torch.tensor([[600, 600], [600, 300]])

    def part(values: list[float], factor: float) -> ScaledImages:
        return ScaledImages(torch.tensor([[v] for v in values]), (sizes * factor).long())

    return Batch(
        images=torch.tensor([[5.0], [6.0]]), image_sizes=sizes, original_sizes=sizes, boxes=torch.zeros(2, 0, 4),
        labels=torch.zeros(2, 0), valid=torch.zeros(2, 0, dtype=torch.bool), index=torch.arange(2),
        scaled=(part([3, 9], 0.5), None, part([7, 2], 2)),
    )  # fmt: skip


def test_the_maximum_over_the_two_sizes():
    """Sides 400 and up take the sizes 300 and 600, smaller ones 600 and 1200 (the tie is at 224)."""
    heads = Heads()
    detector = SimpleNamespace(
        roi_heads=heads, roi_maps=lambda features: features, features=lambda batch: [batch.images]
    )
    batch = scaled_batch()
    scorer = MultiScaleScorer(detector, detector.features(batch), batch, 224)
    rois = torch.tensor([[[0.0, 0, 400, 400], [0, 0, 100, 100], [0, 0, 50, 50]],
                         [[0, 0, 100, 100], [0, 0, 250, 590], [0, 0, 100, 100]]])  # fmt: skip
    valid = torch.tensor([[True, True, False], [True, True, True]])
    hidden = scorer.hidden(rois, valid)
    expected = [[[5, -3, 400], [7, -5, 200], [0, 0, 0]], [[6, -2, 200], [9, -6, 250], [6, -2, 200]]]
    assert hidden.tolist() == expected
    # Padded per size to the image with most: 1 of each at 300, 2 + 3 -> 3 of each at 600, 1 + 2 -> 2 of each at 1200.
    assert heads.rois == 2 + 6 + 4
