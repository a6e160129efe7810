"""Which two sizes an RoI is pooled at, and the maximum of its features there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from backbones.weights import IMAGENET
from configs.detection import ModelConfig
from datasets.batch import Batch, ScaledImages
from detection.boxes import box_area
from detection.model import build_detector
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


def test_areas_are_those_of_the_scaled_rois():
    """At 300, 600 and 1800 of 600 pixels both pairs meet at the fourth root of 0.5 * 1 * 1 * 3, 1.107 sides."""
    heads = Heads()
    detector = SimpleNamespace(
        roi_heads=heads, roi_maps=lambda features: features, features=lambda batch: [batch.images], class_names=["a"]
    )
    batch = scaled_batch(largest=3)
    scorer = MultiScaleScorer(detector, detector.features(batch), batch, 224)
    side = torch.tensor([201.0, 204.0])  # 224 / 1.107 = 202.4
    rois = torch.stack((0 * side, 0 * side, side, side), dim=-1)[None].repeat(2, 1, 1)
    hidden = scorer.hidden(rois, torch.ones(2, 2, dtype=torch.bool))
    assert hidden[0].tolist() == [[7, -5, 603], [5, -3, 204]]


class Heads:
    """An RoI's features: the value of its image's map, its negative, and the RoI's width there."""

    config = SimpleNamespace(global_context=False)

    def __init__(self) -> None:
        self.rois = 0

    def hidden(self, maps: list[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        self.rois += rois.shape[0] * rois.shape[1]
        value = maps[0][:, :1].expand(-1, rois.shape[1])
        return torch.stack((value, -value, rois[..., 2] - rois[..., 0]), dim=-1)


def scaled_batch(largest: int = 2) -> Batch:
    """Two images of 600 x 600 and 600 x 300 (H, W) at 300, 600 and `largest` times 600.

    The maps are one value an image and size.
    """
    sizes = torch.tensor([[600, 600], [600, 300]])

    def part(values: list[float], factor: float) -> ScaledImages:
        return ScaledImages(torch.tensor([[v] for v in values]), (sizes * factor).long())

    return Batch(
        images=torch.tensor([[5.0], [6.0]]), image_sizes=sizes, original_sizes=sizes, boxes=torch.zeros(2, 0, 4),
        labels=torch.zeros(2, 0), valid=torch.zeros(2, 0, dtype=torch.bool), index=torch.arange(2),
        scaled=(part([3, 9], 0.5), None, part([7, 2], largest)),
    )  # fmt: skip


def test_the_maximum_over_the_two_sizes():
    """Sides 400 and up take the sizes 300 and 600, smaller ones 600 and 1200 (the tie is at 224)."""
    heads = Heads()
    detector = SimpleNamespace(
        roi_heads=heads, roi_maps=lambda features: features, features=lambda batch: [batch.images], class_names=["a"]
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


@pytest.mark.parametrize("neck", ["none", "fpn"])
def test_one_canvas_gives_the_same_as_size_by_size(neck):
    """What CUDA does without a wait, against what the CPU does; RoIs at the borders and of all sizes among them."""
    torch.manual_seed(0)
    box = {"pool_size": 7, "smooth_l1_beta": 1.0}
    pyramid = {"fpn_channels": 8, "anchors": {"sizes": [[32], [64], [128], [256], [512]]}} if neck == "fpn" else {}
    config = {
        "backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0, "neck": neck,
        "rpn": {"hidden_channels": 8}, "box": {**box, "fc_width": 16}, **pyramid,
    }  # fmt: skip
    detector = build_detector(ModelConfig.model_validate(config), ["a"], preprocessing=IMAGENET).eval()
    sizes = [(64, 96), (96, 144), (128, 192)]
    pixels = [torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8) for size in sizes]
    parts = [ScaledImages(images, torch.tensor([size] * 2)) for images, size in zip(pixels, sizes, strict=True)]
    own = parts[1]
    batch = Batch(
        images=own.images, image_sizes=own.image_sizes, original_sizes=own.image_sizes, boxes=torch.zeros(2, 0, 4),
        labels=torch.zeros(2, 0), valid=torch.zeros(2, 0, dtype=torch.bool), index=torch.arange(2),
        scaled=(parts[0], None, parts[2]),
    )  # fmt: skip
    corner = torch.rand(2, 12, 2) * torch.tensor([100.0, 60.0])
    rois = torch.cat((corner, (corner + 4 + torch.rand(2, 12, 2) * 120).minimum(torch.tensor([144.0, 96.0]))), -1)
    rois[:, 0] = torch.tensor([0.0, 0, 144, 96])
    valid = torch.rand(2, 12) < 0.8
    with torch.no_grad():
        scorer = MultiScaleScorer(detector, detector.features(batch), batch, 60)
        pairs = choose_pairs(torch.stack([box_area(rois * scale.ratio) for scale in scorer.scales], -1), 60)
        assert set(pairs.unique().tolist()) == {0, 1}
        expected, found = (way(rois, valid, pairs) for way in (scorer._size_by_size, scorer._on_one_canvas))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
