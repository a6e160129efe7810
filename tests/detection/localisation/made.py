"""Small networks, images and plain references that the tests of localisation share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backbones.weights import IMAGENET
from backbones.zoo import build_backbone
from configs.localisation import PerClassRcnnConfig, PerClassRpnConfig
from detection.localisation.layers import PerClassLayers
from detection.localisation.rcnn import PerClassRcnn
from detection.localisation.rpn import PerClassRpn

NET = {
    "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": False},
    "stages": [{"units": 1, "width": 8, "stride": 1}, {"units": 1, "width": 16, "stride": 2}],
    "unit": "basic",
}
"""Stride 4."""


def make_rpn(seed: int = 0, **changes: object) -> PerClassRpn:
    torch.manual_seed(seed)
    values = {"anchors": {"sizes": [8, 16], "aspect_ratios": [0.5, 2.0], "offset": 0.5}, **changes}
    rpn = PerClassRpn(build_backbone(NET, num_classes=5), PerClassRpnConfig(**values), 5, IMAGENET)
    for parameter in rpn.siblings.parameters():  # large enough that every score and delta differs
        torch.nn.init.normal_(parameter, std=0.1)
    return rpn


def make_rcnn(seed: int = 1, context: int = 0, **changes: object) -> PerClassRcnn:
    torch.manual_seed(seed)
    config = PerClassRcnnConfig(warp_size=12, context=context, **changes)
    return PerClassRcnn(build_backbone(NET, num_classes=5), config, 5, IMAGENET)


def make_images(count: int = 2, size: tuple[int, int] = (24, 40), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def whole_outputs(layers: PerClassLayers, features: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Of all classes, as plain convolutions: (B, K, A, H, W) and (B, K, A, 4, H, W)."""
    own, shared = layers.cls_logits(features), layers.shared_logits(features)
    logits = own.unflatten(1, (-1, anchors)) + shared[:, None]
    own, shared = layers.bbox_pred(features), layers.shared_pred(features)
    return logits, own.unflatten(1, (-1, anchors, 4)) + shared.unflatten(1, (anchors, 4))[:, None]


def frame_of(count: int, *values: float) -> Tensor:
    return torch.tensor([values or (0.0, 0.0, 1.0, 1.0)]).repeat(count, 1)


OBJECTS = torch.tensor(
    [[[4.1, 2.3, 20.2, 10.6], [21.8, 4.3, 30.1, 21.9]], [[1.3, 0.4, 37.1, 22.8], [0.0, 0.0, 0.0, 0.0]]]
)
VALID = torch.tensor([[True, True], [True, False]])
LABELS, INDEX = torch.tensor([3, 1]), torch.tensor([10, 4])


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def plain_losses(logits, deltas, references, objects, taken, weights, beta) -> tuple[float, float, int]:
    """Sums over one image's sample: (reference, its object or None) pairs, one by one."""
    classification = box = 0.0
    for index, item in taken:
        z, (x1, y1, x2, y2) = float(logits[index]), references[index]
        classification += math.log1p(math.exp(-z)) if item is not None else math.log1p(math.exp(z))
        if item is None:
            continue
        a1, b1, a2, b2 = objects[item]
        width, height = x2 - x1, y2 - y1
        target = (
            ((a1 + a2) / 2 - (x1 + x2) / 2) / width, ((b1 + b2) / 2 - (y1 + y2) / 2) / height,
            math.log((a2 - a1) / width), math.log((b2 - b1) / height),
        )  # fmt: skip
        for t, w, d in zip(target, weights, deltas[index].tolist(), strict=True):
            difference = abs(d - t * w)
            box += 0.5 * difference**2 / beta if difference < beta else difference - 0.5 * beta
    return classification, box, len(taken)
