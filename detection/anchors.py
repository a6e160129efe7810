"""Anchors: the reference boxes of the RPN at each position of each feature map (Faster R-CNN, Sec. 3.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.detection import AnchorConfig


def base_anchors(sizes: list[int], aspect_ratios: list[float], *, rounded: bool = False) -> Tensor:
    """Anchors (A, 4) float32 centred on 0, pixels; ratio by ratio, of each ratio size by size.

    An anchor of size s and ratio r = height / width has the area s * s.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32).sqrt()
    scales = torch.tensor(sizes, dtype=torch.float32)
    heights = (ratios[:, None] * scales).flatten()
    widths = ((1.0 / ratios)[:, None] * scales).flatten()
    anchors = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
    return anchors.round() if rounded else anchors


class AnchorGenerator:
    """Makes the anchors of a list of feature maps, and remembers them for each list of map sizes and device.

    The order is level by level, row by row, column by column, anchor by anchor, so that logits of the shape
    (B, H, W, A) flatten to it.
    """

    MAX_REMEMBERED = 64
    """Sets of map sizes that are kept: aspect groups and scale jitter make dozens of them, not thousands."""

    def __init__(self, config: AnchorConfig, strides: list[int]) -> None:
        per_level = config.sizes if isinstance(config.sizes[0], list) else [config.sizes]
        if len(per_level) != len(strides):
            raise ValueError(f"{len(per_level)} lists of anchor sizes for {len(strides)} feature maps")
        self.strides = strides
        self.offset = config.offset
        self.fitted_strides = config.fitted_strides
        self.base = [base_anchors(sizes, config.aspect_ratios, rounded=config.rounded) for sizes in per_level]
        self.per_position = len(self.base[0])
        self._remembered: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, map_sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """The anchors of feature maps of the given (H, W).

        Returns:
            anchors: (N, 4) float32 pixels, always float32: bf16 would move them by pixels.
            codes: (N,) int64, a number for each anchor that does not depend on the size of the maps, so that
                an anchor's random key is the same however far its image is padded.
        """
        key = (tuple(map_sizes), device)
        # Within a trace (export, compilation) sizes may be symbols, which no dict can hold.
        tracing = torch.compiler.is_compiling()
        if not tracing and key in self._remembered:
            return self._remembered[key]
        padded = tuple(length * self.strides[0] for length in map_sizes[0])
        levels = [self._level(level, size, padded) for level, size in enumerate(map_sizes)]
        anchors, codes = (torch.cat(part).to(device) for part in zip(*levels, strict=True))
        # Nor may a tensor without values (a fake or functional one) outlive the mode that made it.
        if not tracing and type(anchors) is Tensor:
            if len(self._remembered) >= self.MAX_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = anchors, codes
        return anchors, codes

    def _level(self, level: int, map_size: tuple[int, int], padded: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Anchors and codes of one level's map (H, W) of a padded image (H, W)."""
        height, width = map_size
        rows, columns = torch.arange(height), torch.arange(width)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        positions = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        y_stride, x_stride = (self.strides[level],) * 2
        if self.fitted_strides:
            y_stride, x_stride = padded[0] // height, padded[1] // width
        step = torch.tensor([x_stride, y_stride] * 2, dtype=torch.float32)
        anchors = (positions.float() + self.offset) * step + self.base[level]
        per_position = len(self.base[level])
        codes = ((level << 12 | y) << 12 | x).reshape(-1, 1) * 64 + torch.arange(per_position)
        return anchors.reshape(-1, 4), codes.reshape(-1)
