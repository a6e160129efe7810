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


def sizes_of_levels(config: AnchorConfig) -> list[list[int]]:
    """The sizes on each level of feature maps; one list where there is one map."""
    nested = [list(sizes) for sizes in config.sizes if isinstance(sizes, list)]
    return nested or [[size for size in config.sizes if not isinstance(size, list)]]


class AnchorGenerator:
    """Makes the anchors of a list of feature maps, and remembers them for each list of map sizes and device.

    The order is level by level, row by row, column by column, anchor by anchor, so that logits of the shape
    (B, H, W, A) flatten to it.
    """

    MAX_REMEMBERED = 64
    """Sets of map sizes that are kept, the last used ones. What is not among them is cut out of a larger grid that is
    kept too: a copy on the device, which the host does not wait for."""

    def __init__(self, config: AnchorConfig, strides: list[int]) -> None:
        per_level = sizes_of_levels(config)
        if len(per_level) != len(strides):
            raise ValueError(f"{len(per_level)} lists of anchor sizes for {len(strides)} feature maps")
        self.strides = strides
        self.offset = config.offset
        self.fitted_strides = config.fitted_strides
        self.base = [base_anchors(sizes, config.aspect_ratios, rounded=config.rounded) for sizes in per_level]
        self.per_position = len(self.base[0])
        self._base_on: dict[torch.device, list[Tensor]] = {}
        self._grids: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._remembered: dict[tuple, tuple[Tensor, Tensor]] = {}

    def __call__(self, map_sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """The anchors of feature maps of the given (H, W).

        Returns:
            anchors: (N, 4) float32 pixels, always float32: bf16 would move them by pixels.
            codes: (N,) int64, a number for each anchor that does not depend on the size of the maps, so that
                an anchor's random key is the same however far its image is padded.
        """
        if torch.compiler.is_compiling():  # a trace (export, compilation): sizes may be symbols, which no dict can hold
            return _joined(self._levels(map_sizes, device, kept=False))
        # Tensors made in inference mode could not take part in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                # Part of the graph: what is kept here may be given up while the graph is still replayed.
                return _joined(self._levels(map_sizes, device, kept=False))
            key = (tuple(map_sizes), device)
            found = self._remembered.pop(key, None)
            if found is None:
                # A tensor without values (a fake or functional one) may not outlive the mode that makes it.
                real = type(torch.empty(0)) is Tensor
                found = _joined(self._levels(map_sizes, device, kept=real))
                if not real:
                    return found
            self._remembered[key] = found  # the last used one comes last
            if len(self._remembered) > self.MAX_REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            return found

    def _levels(
        self, map_sizes: list[tuple[int, int]], device: torch.device, *, kept: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Each level's anchors (H, W, A, 4) and codes (H, W, A), cut out of the kept grids or made anew."""
        if self.fitted_strides:  # which differ by the size of the image
            padded = [length * self.strides[0] for length in map_sizes[0]]
            steps = [(padded[0] // height, padded[1] // width) for height, width in map_sizes]
            return [
                self._grid(k, size, device, step) for k, (size, step) in enumerate(zip(map_sizes, steps, strict=True))
            ]
        make = self._cut if kept else self._grid
        return [make(level, size, device) for level, size in enumerate(map_sizes)]

    def _cut(self, level: int, map_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """One level's, as a part of a grid that grows to the largest map."""
        height, width = map_size
        kept = self._grids.get((level, device))
        if kept is None or kept[1].shape[0] < height or kept[1].shape[1] < width:
            known = kept[1].shape if kept is not None else (0, 0)
            kept = self._grid(level, (max(height, known[0]), max(width, known[1])), device)
            self._grids[level, device] = kept
        return kept[0][:height, :width], kept[1][:height, :width]

    def _grid(
        self, level: int, map_size: tuple[int, int], device: torch.device, strides: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, made anew on the device; `strides` (y, x) other than the level's."""
        y_stride, x_stride = strides or (self.strides[level],) * 2
        rows, columns = (torch.arange(length, device=device) for length in map_size)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        columns, rows = (x.float() + self.offset) * x_stride, (y.float() + self.offset) * y_stride
        base = self._base(device)[level]
        anchors = torch.stack((columns, rows, columns, rows), dim=-1)[:, :, None] + base
        codes = ((level << 12 | y) << 12 | x)[..., None] * 64 + torch.arange(len(base), device=device)
        return anchors, codes

    def _base(self, device: torch.device) -> list[Tensor]:
        """`base` on a device; from pinned memory, so that the host does not wait for the copy."""
        if device.type == "cpu":
            return self.base
        if device not in self._base_on:
            pinned = [base.pin_memory() if device.type == "cuda" else base for base in self.base]
            self._base_on[device] = [base.to(device, non_blocking=True) for base in pinned]
        return self._base_on[device]


def _joined(levels: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Anchors (N, 4) and codes (N,) of all levels, level by level."""
    anchors, codes = zip(*levels, strict=True)
    return torch.cat([part.reshape(-1, 4) for part in anchors]), torch.cat([part.reshape(-1) for part in codes])
