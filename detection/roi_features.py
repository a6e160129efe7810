"""RoI features: the part of a feature map under each RoI, as a small map of fixed size.

One level (C4, VGG): RoIPool (Fast R-CNN, Sec. 2.1) or RoIAlign (He et al. 2017). A pyramid (FPN, Lin et al. 2017):
RoIAlign on one canvas that holds all levels, so that no RoI has to be sorted by level on the host.

Shapes: B images, R RoIs an image, C channels, S bins a side.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from backbones.kernels import constant, kernels_for
from configs.detection import BoxConfig
from detection.roi_align import align

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
            return align(feature, rois, scale, config.pool_size, step, config.sampling_ratio, config.aligned)
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
    sides = [(feature.shape[2] + BORDER, feature.shape[3] + BORDER) for feature in features]
    # `sym_max` because an exported graph's sizes are symbols; of numbers it is `max`.
    height = cast(int, functools.reduce(torch.sym_max, [side[0] for side in sides[1:]]))
    width = cast(int, torch.sym_max(sides[0][1], sum(side[1] for side in sides[1:])))
    origins, x = [(1, 1)], 1
    for side in sides[1:]:
        origins.append((x, sides[0][0] + 1))
        x += side[1]
    if features[0].is_cuda:
        return _Canvas.apply((sides[0][0] + height, width), origins, *features), origins
    bordered = [F.pad(feature, (1, 2, 1, 2), mode="replicate") for feature in features]
    row = torch.cat([F.pad(level, (0, 0, 0, height - level.shape[2])) for level in bordered[1:]], dim=3)
    return torch.cat([F.pad(part, (0, width - part.shape[3])) for part in (bordered[0], row)], dim=2), origins


BORDER = 3
"""Pixels that a border adds to a side: one before, two behind."""


class _Canvas(torch.autograd.Function):
    """The same on CUDA, where padding by repetition leaves channels_last and drags all gradients along: a copy of each
    level with its border, and sums backward."""

    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], origins: list[tuple[int, int]], *features: Tensor) -> Tensor:
        first = features[0]
        ctx.places = [(*origin, *level.shape[2:]) for origin, level in zip(origins, features, strict=True)]
        shape = (*first.shape[:2], *size)
        canvas = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last).zero_()
        kernels = kernels_for(first, "detection.triton_canvas")
        for (x, y, height, width), level in zip(ctx.places, features, strict=True):
            if kernels is not None:
                kernels.fill(canvas, level, x, y)
                continue
            part = canvas[:, :, y - 1 : y + height + 2, x - 1 : x + width + 2]
            part[:, :, 1:-2, 1:-2] = level
            part[:, :, 1:-2, :1] = part[:, :, 1:-2, 1:2]
            part[:, :, 1:-2, -2:] = part[:, :, 1:-2, -3:-2]
            part[:, :, :1] = part[:, :, 1:2]
            part[:, :, -2:] = part[:, :, -3:-2]
        return canvas

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if kernels := kernels_for(gradient, "detection.triton_canvas"):
            found = [kernels.gather(gradient, (height, width), x, y) for x, y, height, width in ctx.places]
        else:
            found = [_without_border(gradient, *place) for place in ctx.places]
        return None, None, *found


def _without_border(gradient: Tensor, x: int, y: int, height: int, width: int) -> Tensor:
    """The gradient (B, C, height, width) of a level at (x, y) of the canvas, from the canvas's."""
    part = gradient[:, :, y - 1 : y + height + 2, x - 1 : x + width + 2]
    rows = part[:, :, 1:-2].clone(memory_format=torch.channels_last)
    rows[:, :, :1] += part[:, :, :1]
    rows[:, :, -1:] += part[:, :, -2:].sum(2, keepdim=True)
    inner = rows[:, :, :, 1:-2].clone(memory_format=torch.channels_last)
    inner[..., :1] += rows[..., :1]
    inner[..., -1:] += rows[..., -2:].sum(3, keepdim=True)
    return inner


def roi_levels(rois: Tensor) -> Tensor:
    """(...,) int64 in 0..3: the level P2..P5 of RoIs (..., 4) (Lin et al. 2017, eq. 1)."""
    area = (rois[..., 2] - rois[..., 0]) * (rois[..., 3] - rois[..., 1])
    # 1e-6 as in torchvision: an RoI of exactly 224 x 224 must not fall a level by rounding.
    level = torch.floor(CANONICAL_LEVEL + torch.log2(area.sqrt() / CANONICAL_SIZE) + 1e-6)
    return level.clamp(FIRST_LEVEL, LAST_LEVEL).long() - FIRST_LEVEL


def place_on_canvas(
    rois: Tensor, strides: list[int], origins: list[tuple[int, int]], levels: Tensor | None = None
) -> Tensor:
    """RoIs (..., 4) in pixels of the image -> in pixels of the canvas, each on its level, (...,) or `roi_levels`'s."""
    levels = roi_levels(rois) if levels is None else levels
    if rois.is_cuda and not torch.compiler.is_compiling():
        rows = tuple((1.0 / stride, x, y, x, y) for stride, (x, y) in zip(strides, origins, strict=True))
        table = constant(rows, rois.dtype, rois.device)[levels]
        return rois * table[..., :1] + table[..., 1:]
    scale, offset = torch.zeros_like(rois[..., :1]), torch.zeros_like(rois)
    for level, (stride, (x, y)) in enumerate(zip(strides, origins, strict=True)):
        here = (levels == level)[..., None]
        scale = torch.where(here, 1.0 / stride, scale)
        # x and y alternate along the last axis; built from Python numbers, so nothing is copied to the device. No
        # float(x): in a trace x is a symbol, and would become the number that it has there.
        offset[..., 0::2] = torch.where(here, x, offset[..., 0::2])
        offset[..., 1::2] = torch.where(here, y, offset[..., 1::2])
    return rois * scale + offset
