"""From the two networks to one box for each class: proposals of all views, suppression, new scores, merging.

Shapes: B images, T classes asked for in each, M candidate boxes of an (image, class) pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detection.boxes import clip_boxes, decode_boxes, gather_boxes, large_enough, pairwise_iou
from detection.localisation.layers import Candidates, to_original, to_view
from detection.localisation.rcnn import PerClassRcnn
from detection.localisation.rpn import PerClassRpn
from detection.nms import nms

MIN_SIZE = 1e-2
"""Boxes that leave less than this of width or height in the image count as none, pixels."""
WARPED_CROPS = 256
"""Crops that go through the R-CNN at a time at test."""


def propose(
    members: Sequence[PerClassRpn],
    views: Sequence[tuple[Tensor, Tensor]],
    classes: Tensor,
    image_sizes: Tensor,
    count: int,
    *,
    mirror: bool,
) -> Candidates:
    """The best `count` boxes of each class over all views and members, in the original images and cut to them.

    Args:
        members: one RPN or several, whose boxes are joined.
        views: images (B, 3, H, W) uint8 and frames (B, 4) of each scale.
        classes: (B, T) int64.
        image_sizes: (B, 2) int64, (H, W) of the original images.
        count: M.
        mirror: take each view's mirror image too.
    """
    parts = [
        member.candidates(images, frames, classes, count, mirror=flip)
        for member in members
        for images, frames in views
        for flip in ((False, True) if mirror else (False,))
    ]
    boxes = torch.cat([part.boxes for part in parts], 2)
    scores, index = torch.cat([part.scores for part in parts], 2).flatten(0, 1).sort(dim=1, descending=True)
    boxes = gather_boxes(boxes.flatten(0, 1), index[:, :count]).unflatten(0, classes.shape)
    clipped = clip_boxes(boxes.flatten(1, 2), image_sizes).unflatten(1, boxes.shape[1:3])
    scores = scores[:, :count].unflatten(0, classes.shape)
    return Candidates(clipped, scores * large_enough(clipped, MIN_SIZE))


def suppress(candidates: Candidates, iou_threshold: float, count: int | None = None) -> Candidates:
    """The candidates without those that overlap a better one by more, best first.

    Args:
        candidates: M of each class.
        iou_threshold: more than this is too much.
        count: the best so many of what is left; None: M. Free places score 0.
    """
    boxes, scores = candidates.boxes.flatten(0, 1), candidates.scores.flatten(0, 1)
    count = min(count or scores.shape[1], scores.shape[1])
    kept = nms(boxes, scores, scores > 0, torch.zeros_like(scores, dtype=torch.int64), iou_threshold, count)
    there, kept = kept >= 0, kept.clamp(min=0)
    shape = candidates.scores.shape[:2]
    boxes = gather_boxes(boxes, kept) * there[..., None]
    return Candidates(boxes.unflatten(0, shape), (scores.gather(1, kept) * there).unflatten(0, shape))


def rescore(
    members: Sequence[PerClassRcnn],
    images: Tensor,
    frames: Tensor,
    classes: Tensor,
    image_sizes: Tensor,
    proposals: Candidates,
) -> Candidates:
    """New scores and boxes of the proposals: the means of all members' (He et al. 2016, App. B and C).

    Args:
        members: one R-CNN or several.
        images, frames: the view that crops are taken from, (B, 3, H, W) uint8 and (B, 4).
        classes: (B, T) int64.
        image_sizes: (B, 2), (H, W) of the original images.
        proposals: in pixels of the original images.
    """
    rois = to_view(proposals.boxes, frames)
    asked = classes[..., None].expand_as(proposals.scores).flatten(1)
    boxes, scores = torch.zeros_like(proposals.boxes), torch.zeros_like(proposals.scores)
    step = max(1, WARPED_CROPS // len(images))
    for member in members:
        parts = [
            member.answers(images, part, of)
            for part, of in zip(rois.flatten(1, 2).split(step, 1), asked.split(step, 1), strict=True)
        ]
        logits, deltas = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        moved = decode_boxes(deltas.view_as(rois), rois, member.delta_weights)
        boxes += to_original(moved, frames) / len(members)
        scores += logits.sigmoid().view_as(scores) / len(members)
    clipped = clip_boxes(boxes.flatten(1, 2), image_sizes).unflatten(1, boxes.shape[1:3])
    return Candidates(clipped, scores * (proposals.scores > 0))


def merge(candidates: Candidates, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """One box for each class, (B, T, 4), and its score, (B, T): the candidates' agreement.

    Each candidate represents itself and those that overlap it by at least `iou_threshold`; the one with the highest sum
    of their scores wins, and the box is their score-weighted mean. Its score is the highest of theirs. At a threshold
    of 1 it is the candidate with the highest score.
    """
    boxes, scores = candidates.boxes.flatten(0, 1), candidates.scores.flatten(0, 1)
    if iou_threshold >= 1:
        agree = torch.eye(scores.shape[1], device=scores.device).expand(len(scores), -1, -1)
    else:
        agree = (pairwise_iou(boxes, boxes) >= iou_threshold).float()
    weights = agree * scores[:, None]
    winner = weights.sum(2).argmax(1)[:, None, None].expand(-1, 1, scores.shape[1])
    weights = weights.gather(1, winner)[:, 0]
    mean = (weights[..., None] * boxes).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    shape = candidates.scores.shape[:2]
    return mean.unflatten(0, shape), weights.amax(1).unflatten(0, shape)
