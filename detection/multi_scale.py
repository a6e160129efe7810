"""Multi-scale testing of the detector: each RoI is pooled at two sizes of the image (He et al. 2016, App. B).

The proposals come from one size. Of the adjacent pairs of sizes, an RoI takes the one at which its own size is nearest
to a canonical one (224 x 224 pixels, for which the head was pretrained); its two features behind the head are merged by
an element-wise maximum (He et al. 2015, Sec. 4.2, "maxout").

On the CPU, and with RoIPool, the RoIs are sorted by size on the host (one wait for each size). On CUDA the maps of all
sizes lie on one canvas, where each RoI finds its two places without a wait.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.batch import Batch
from detection.boxes import box_area, gather_boxes, size_ratios
from detection.model import Detector
from detection.roi_features import RoiFeatures, pack_pyramid, place_on_canvas, roi_levels
from detection.scoring import Scorer

ROUNDING = 1e-4
"""In units of log area: a tie must not be decided by rounding."""


def choose_pairs(areas: Tensor, canonical_size: int) -> Tensor:
    """(...,) int64 k: sizes k and k + 1 are the pair at which the geometric mean of the RoI's two areas is nearest to
    canonical_size^2, as a ratio; of two equally near ones the larger.

    Args:
        areas: (..., S) of RoIs at the S >= 2 sizes of the image, ascending, pixels^2.
        canonical_size: side in pixels.
    """
    logs = areas.clamp(min=1e-6).log()
    means = 0.5 * (logs[..., :-1] + logs[..., 1:])
    # The means ascend: k + 1 is as near as k, or nearer, where the middle between the two does not pass the target.
    middles = 0.5 * (means[..., :-1] + means[..., 1:])
    return (middles <= 2 * math.log(canonical_size) + ROUNDING).sum(-1)


class Scale(NamedTuple):
    """The batch at one of the sizes."""

    maps: list[Tensor]
    """That RoIs are pooled from."""
    ratio: Tensor
    """(B, 1, 4): pixels here for a pixel of the batch's own images, of x1 y1 x2 y2."""


class MultiScaleScorer(Scorer):
    """Scores and boxes of RoIs, which are given in pixels of the batch's own images.

    Args:
        detector: in eval mode.
        features: its maps of the batch at its own size.
        batch: with `scaled`, ascending.
        canonical_size: side in pixels that RoIs should have.
    """

    def __init__(self, detector: Detector, features: list[Tensor], batch: Batch, canonical_size: int) -> None:
        super().__init__(detector, features, batch.image_sizes)
        self.canonical_size = canonical_size
        self.scales = []
        for k in range(len(batch.scaled)):
            view = batch.at_scale(k)
            own = view is batch
            ratio = size_ratios(batch.image_sizes, view.image_sizes)
            self.scales.append(Scale(self.maps if own else detector.roi_maps(detector.features(view)), ratio))

    def hidden(self, rois: Tensor, valid: Tensor) -> Tensor:
        """(B, R, D): the maximum of each RoI's features at its two sizes; zeros where not valid."""
        areas = torch.stack([box_area(rois * scale.ratio) for scale in self.scales], dim=-1)
        pairs = choose_pairs(areas, self.canonical_size)
        if rois.device.type == "cpu" or self.roi_heads.config.pool != "roi_align":
            return self._size_by_size(rois, valid, pairs)
        return self._on_one_canvas(rois, valid, pairs)

    def _on_one_canvas(self, rois: Tensor, valid: Tensor, pairs: Tensor) -> Tensor:
        """`hidden`, with RoIAlign. `pairs` (B, R): the smaller of each RoI's two sizes."""
        strides = self.roi_heads.features.strides
        # The largest size comes first: the canvas has its finest map on top.
        largest_first = list(reversed(self.scales))
        canvas, origins = pack_pyramid([level for scale in largest_first for level in scale.maps])
        ratios = torch.stack([scale.ratio.squeeze(1) for scale in largest_first], dim=1)
        places = len(self.scales) - 1 - torch.cat((pairs, pairs + 1), dim=1)
        scaled = rois.repeat(1, 2, 1) * gather_boxes(ratios, places)
        levels = places * len(strides) + (roi_levels(scaled) if len(strides) > 1 else 0)
        placed = place_on_canvas(scaled, strides * len(self.scales), origins, levels)
        hidden = self.roi_heads.hidden([canvas], placed, RoiFeatures(self.roi_heads.config, [1]))
        smaller, larger = hidden.chunk(2, dim=1)
        return torch.maximum(smaller, larger).masked_fill(~valid[..., None], 0.0)

    def _size_by_size(self, rois: Tensor, valid: Tensor, pairs: Tensor) -> Tensor:
        """`hidden`, computing each size for its own RoIs alone."""
        merged: Tensor | None = None
        for k, scale in enumerate(self.scales):
            here = valid & ((pairs == k) | (pairs == k - 1))
            most = int(here.sum(1).max())
            if most == 0:
                continue
            index = here.byte().sort(dim=1, descending=True, stable=True).indices[:, :most]
            hidden = self.roi_heads.hidden(scale.maps, gather_boxes(rois * scale.ratio, index))
            if merged is None:
                merged = hidden.new_full((*rois.shape[:2], hidden.shape[-1]), -torch.inf)
            image, slot = here.gather(1, index).nonzero(as_tuple=True)
            place = (image, index[image, slot])
            merged[place] = torch.maximum(merged[place], hidden[image, slot])
        if merged is None:
            return self.maps[0].new_zeros((*rois.shape[:2], self.roi_heads.box_head.out_channels))
        return merged.masked_fill(~valid[..., None], 0.0)
