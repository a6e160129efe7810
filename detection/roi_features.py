"""RoI features: the part of a feature map under each RoI, as a small map of fixed size.

One level (C4, VGG): RoIPool (Fast R-CNN, Sec. 2.1) or RoIAlign (He et al. 2017). A pyramid (FPN, Lin et al. 2017):
RoIAlign on one canvas that holds all levels, so that no RoI has to be sorted by level on the host.

Shapes: B images, R RoIs an image, C channels, S bins a side.
"""

from __future__ import annotations

import functools
from typing import cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from configs.detection import BoxConfig
from detection.roi_align import roi_align

CANONICAL_SIZE = 224
"""An RoI of this size, in pixels, belongs to level P4 (Lin et al. 2017, eq. 1)."""
CANONICAL_LEVEL = 4
FIRST_LEVEL, LAST_LEVEL = 2, 5


class RoiFeatures:
    """Pools RoIs from the feature maps of a batch."""

    def __init__(self, config: BoxConfig, strides: list[int]) -> None:
        self.config = config
        self.strides = strides

    def __call__(self, features: list[Tensor], rois: Tensor, step: int = 1) -> Tensor:
        """(B * R, C, T, T) in the features' dtype, T = ceil(S / step).

        Args:
            features: one map (B, C, H, W), or P2..P5.
            rois: (B, R, 4) float32 in pixels of the images.
            step: every `step`-th row and column of the bins is computed: all that a 1x1 convolution of this stride
                reads. RoIAlign only.
        """
        if len(features) == 1:
            return self._pool(features[0], rois, 1.0 / self.strides[0], step)
        canvas, origins = pack_pyramid(features)
        return self._pool(canvas, place_on_canvas(rois, self.strides, origins), 1.0, step)

    def _pool(self, feature: Tensor, rois: Tensor, scale: float, step: int) -> Tensor:
        config = self.config
        if config.pool == "roi_align":
            return roi_align(feature, rois, scale, config.pool_size, step, config.sampling_ratio, config.aligned)
        # torchvision's operator has no bf16 on every device, and coordinates need float32.
        image = torch.arange(len(rois), device=rois.device, dtype=rois.dtype)[:, None, None]
        flat = torch.cat((image.expand(-1, rois.shape[1], 1), rois), dim=-1).flatten(0, 1)
        if config.pool_inclusive:
            flat[:, 3:] -= 1.0
        return torchvision.ops.roi_pool(feature.float(), flat, config.pool_size, scale).to(feature.dtype)


def pack_pyramid(features: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """All levels on one canvas, each with a border of repeated pixels: what RoIAlign reads beyond an edge.

    The finest level lies on top, the others side by side below it. One pixel of border does for every sample inside
    the image. The second, right and below, is for RoIs at the edge that are narrower than one feature pixel, which
    RoIAlign without `aligned` widens to one: the edge goes on there (on a map of its own RoIAlign reads zeros).

    Returns:
        canvas: (B, C, H, W).
        origins: (x, y) of each level's first pixel on it.
    """
    bordered = [F.pad(feature, (1, 2, 1, 2), mode="replicate") for feature in features]
    top, below = bordered[0], bordered[1:]
    # `sym_max` because an exported graph's sizes are symbols; of numbers it is `max`.
    height = cast(int, functools.reduce(torch.sym_max, [level.shape[2] for level in below]))
    width = cast(int, torch.sym_max(top.shape[3], sum(level.shape[3] for level in below)))
    row = torch.cat([F.pad(level, (0, 0, 0, height - level.shape[2])) for level in below], dim=3)
    canvas = torch.cat([F.pad(part, (0, width - part.shape[3])) for part in (top, row)], dim=2)
    origins, x = [(1, 1)], 1
    for level in below:
        origins.append((x, top.shape[2] + 1))
        x += level.shape[3]
    return canvas, origins


def roi_levels(rois: Tensor) -> Tensor:
    """(...,) int64 in 0..3: the level P2..P5 of RoIs (..., 4) (Lin et al. 2017, eq. 1)."""
    area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    # 1e-6 as in torchvision: an RoI of exactly 224 x 224 must not fall a level by rounding.
    level = torch.floor(CANONICAL_LEVEL + torch.log2(area.sqrt() / CANONICAL_SIZE) + 1e-6)
    return level.clamp(FIRST_LEVEL, LAST_LEVEL).long() - FIRST_LEVEL


def place_on_canvas(rois: Tensor, strides: list[int], origins: list[tuple[int, int]]) -> Tensor:
    """RoIs (..., 4) in pixels of the image -> in pixels of the canvas, each on its level."""
    levels = roi_levels(rois)
    scale, offset = torch.zeros_like(rois[..., :1]), torch.zeros_like(rois)
    for level, (stride, (x, y)) in enumerate(zip(strides, origins, strict=True)):
        here = (levels == level)[..., None]
        scale = torch.where(here, 1.0 / stride, scale)
        # x and y alternate along the last axis; built from Python numbers, so nothing is copied to the device. No
        # float(x): in a trace x is a symbol, and would become the number that it has there.
        offset[..., 0::2] = torch.where(here, x, offset[..., 0::2])
        offset[..., 1::2] = torch.where(here, y, offset[..., 1::2])
    return rois * scale + offset
