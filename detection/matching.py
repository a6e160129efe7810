"""Which ground-truth object each anchor or RoI answers to, for a whole batch at once.

Shapes: B images, G padded ground-truth boxes, N candidates (anchors or proposals).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from backbones.kernels import kernels_for
from detection.boxes import pairwise_iou

MAX_ELEMENTS = 1 << 25
"""Largest (B, g, N) block of overlaps that is held at a time; only shapes decide on the number of blocks."""


class Matches(NamedTuple):
    """The best object of each candidate."""

    iou: Tensor
    """(B, N) float32: overlap with the best object; -1 where the image has no object or the candidate is not valid."""
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple's method, which nobody needs
    """(B, N) int64: which of the G that is; 0 where there is none."""
    is_best_of_object: Tensor
    """(B, N) bool: no candidate has a larger overlap with some object (ties all count)."""


def match(boxes: Tensor, valid: Tensor, candidates: Tensor, candidate_valid: Tensor | None = None) -> Matches:
    """Matches of candidates with ground truth.

    The same rule as torchvision's `Matcher` with `allow_low_quality_matches`, but that an object which overlaps no
    candidate at all claims none (there every candidate with overlap 0 would become positive).

    Args:
        boxes: (B, G, 4) float32 ground truth.
        valid: (B, G) bool, false for padding and for objects that do not train.
        candidates: (B, N, 4), or (1, N, 4) if they are the same for all images.
        candidate_valid: (B, N) bool; others match nothing.
    """
    if kernels := kernels_for(boxes, "detection.triton_assignment"):
        return Matches(*kernels.match(boxes, valid, candidates, candidate_valid))
    batch_size, num_objects = valid.shape
    num_candidates = candidates.shape[1]
    block = max(1, MAX_ELEMENTS // max(1, batch_size * num_candidates))
    best_iou = boxes.new_full((batch_size, num_candidates), -1.0)
    best_index = torch.zeros((batch_size, num_candidates), dtype=torch.int64, device=boxes.device)
    is_best = torch.zeros((batch_size, num_candidates), dtype=torch.bool, device=boxes.device)
    for start in range(0, num_objects, block):
        objects = slice(start, start + block)
        usable = valid[:, objects, None]
        if candidate_valid is not None:
            usable = usable & candidate_valid[:, None]
        iou = pairwise_iou(boxes[:, objects], candidates).masked_fill_(~usable, -1.0)
        best_of_object = iou.amax(dim=2, keepdim=True)
        # -1 (an object that is not valid) and 0 (one that overlaps nothing) claim no candidate.
        best_of_object = best_of_object.masked_fill(best_of_object <= 0, 2.0)
        is_best |= (iou == best_of_object).any(dim=1)
        block_iou, block_index = iou.max(dim=1)
        better = block_iou > best_iou
        best_index = torch.where(better, block_index + start, best_index)
        best_iou = torch.maximum(block_iou, best_iou)
    return Matches(best_iou, best_index, is_best)


def inside_image(anchors: Tensor, image_sizes: Tensor) -> Tensor:
    """(B, N) bool: anchors (N, 4) that do not cross the border of an image of `image_sizes` (B, 2), (H, W)."""
    limits = image_sizes.to(anchors.dtype).flip(-1)[:, None, :]
    return (anchors[None, :, :2] >= 0).all(-1) & (anchors[None, :, 2:] <= limits).all(-1)
