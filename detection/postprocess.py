"""From class logits and deltas to detections, for a whole batch, with outputs of fixed size and no host sync.

Shapes: B images, R RoIs an image, K classes, M candidates an image, D detections an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detection.boxes import decode_clipped, gather_boxes, large_enough, size_ratios
from detection.nms import nms

MAX_CANDIDATES = 8192
"""(RoI, class) pairs of an image that go into NMS and box voting, best first. A box survives or falls by better ones
alone, so this changes the result only where fewer than `detections_per_img` of the best 8192 survive."""
MIN_SIZE = 1e-2
"""Smaller detections are dropped, pixels of the resized image (torchvision's rule)."""


class BatchDetections(NamedTuple):
    """The final boxes of a batch, best first."""

    boxes: Tensor
    """(B, D, 4) float32 in pixels of the original images; zeros where not valid."""
    scores: Tensor
    """(B, D) float32 in [0, 1]."""
    labels: Tensor
    """(B, D) int64 in 1..K."""
    valid: Tensor
    """(B, D) bool."""


def select_candidates(
    logits: Tensor,
    deltas: Tensor,
    rois: Tensor,
    roi_valid: Tensor,
    image_sizes: Tensor,
    delta_weights: Tensor,
    score_thresh: float,
) -> BatchDetections:
    """The best-scored (RoI, class) pairs above the threshold, decoded and cut to the image; no NMS yet.

    Args:
        logits: (B, R, K + 1).
        deltas: (B, R, K + 1 or 1, 4).
        rois, roi_valid: (B, R, 4), (B, R).
        image_sizes: (B, 2), (H, W).
        delta_weights: (4,).
        score_thresh: scores must be above it.
    """
    best, roi_index, labels = _best_pairs(logits.softmax(-1)[..., 1:], roi_valid, score_thresh)
    rows = roi_index * deltas.shape[2] + (labels if deltas.shape[2] > 1 else 0)
    boxes, large = decode_clipped(deltas.flatten(1, 2), rows, rois, roi_index, delta_weights, image_sizes, MIN_SIZE)
    return BatchDetections(boxes, best, labels, (best >= 0) & large)


def collect_candidates(scores: Tensor, boxes: Tensor, roi_valid: Tensor, score_thresh: float) -> BatchDetections:
    """The same from scores (B, R, K) and boxes (B, R, K or 1, 4) that are decoded and cut to the image already."""
    best, roi_index, labels = _best_pairs(scores, roi_valid, score_thresh)
    rows = roi_index * boxes.shape[2] + (labels - 1 if boxes.shape[2] > 1 else 0)
    boxes = gather_boxes(boxes.flatten(1, 2), rows)
    return BatchDetections(boxes, best, labels, (best >= 0) & large_enough(boxes, MIN_SIZE))


def _best_pairs(scores: Tensor, roi_valid: Tensor, score_thresh: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, RoIs and labels, (B, M) each, of the best pairs among scores (B, R, K); the score of a bad one is -1."""
    num_classes = scores.shape[-1]
    eligible = (scores > score_thresh) & roi_valid[..., None]
    flat = torch.where(eligible, scores, -1.0).flatten(1)
    if flat.shape[1] <= MAX_CANDIDATES and flat.device.type != "cpu":
        best, index = flat, torch.arange(flat.shape[1], device=flat.device)  # all of them; NMS sorts them anyway
    else:
        best, index = flat.topk(min(MAX_CANDIDATES, flat.shape[1]), dim=1)
    roi_index, labels = index // num_classes, index % num_classes + 1
    return best, roi_index.expand_as(best), labels.expand_as(best)


def suppress(candidates: BatchDetections, nms_thresh: float, detections_per_img: int) -> BatchDetections:
    """NMS class by class, and the best `detections_per_img` of what survives."""
    boxes, scores, labels, valid = candidates
    kept = nms(boxes, scores, valid, labels, nms_thresh, min(detections_per_img, scores.shape[1]))
    survives = kept >= 0
    kept = kept.clamp(min=0)
    return BatchDetections(
        gather_boxes(boxes, kept) * survives[..., None],
        scores.gather(1, kept) * survives,
        labels.gather(1, kept) * survives,
        survives,
    )


def only_classes(detections: BatchDetections, num_classes: int) -> BatchDetections:
    """The detections whose label is one of 1..num_classes; the others are no longer valid, and zero."""
    kept = detections.valid & (detections.labels <= num_classes)
    return BatchDetections(detections.boxes * kept[..., None], detections.scores * kept, detections.labels * kept, kept)


def to_original(detections: BatchDetections, image_sizes: Tensor, original_sizes: Tensor) -> BatchDetections:
    """Boxes of the resized images in pixels of the decoded files; both sizes (B, 2), (H, W)."""
    return detections._replace(boxes=detections.boxes * size_ratios(image_sizes, original_sizes))
