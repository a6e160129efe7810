"""Box refinement and box voting (He et al. 2016, App. B; Gidaris & Komodakis 2015).

A round of refinement asks the detector again, about the boxes that it gave last: what it says of old and new RoIs
together goes through NMS. Voting then moves each kept box to the mean of its neighbours.

Shapes: B images, R RoIs an image, K classes, D detections, M candidates before NMS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detection.boxes import large_enough, pairwise_iou
from detection.postprocess import MIN_SIZE, BatchDetections
from detection.scoring import Scored


def next_rois(scored: Scored) -> tuple[Tensor, Tensor]:
    """The RoIs of the next round (B, R, 4) and which are valid (B, R): each RoI's box of its best foreground class."""
    boxes = scored.boxes
    if boxes.shape[2] > 1:
        best = scored.scores.argmax(-1)[..., None, None]
        boxes = boxes.gather(2, best.expand(-1, -1, 1, 4))
    rois = boxes.squeeze(2)
    return rois, scored.valid & large_enough(rois, MIN_SIZE)


def join_rounds(rounds: Sequence[Scored]) -> Scored:
    """What was said of the RoIs of all rounds, one round behind the other."""
    return Scored(*(torch.cat(parts, dim=1) for parts in zip(*rounds, strict=True)))


def vote(kept: BatchDetections, candidates: BatchDetections, iou: float) -> BatchDetections:
    """The kept detections, each at the score-weighted mean of the candidates of its class that overlap it.

    box' = sum_j s_j box_j / sum_j s_j over the candidates j of the same image and label with IoU(box, box_j) >= iou.
    Scores and labels stay.

    Args:
        kept: after NMS, D an image.
        candidates: all above the score threshold, before NMS, M an image; `kept` is among them.
        iou: least overlap of a voter, in (0, 1].
    """
    votes = candidates.scores[:, None] * (
        (pairwise_iou(kept.boxes, candidates.boxes) >= iou)
        & (kept.labels[..., None] == candidates.labels[:, None])
        & candidates.valid[:, None]
    )
    total = votes.sum(-1)
    # Not a matrix product, which autocast and TF32 would compute with 8 or 10 bits: pixels need more.
    sums = [(votes * candidates.boxes[..., k][:, None]).sum(-1) for k in range(4)]
    boxes = torch.stack(sums, dim=-1) / total.clamp(min=1e-12)[..., None]
    voted = kept.valid & (total > 0)
    return kept._replace(boxes=torch.where(voted[..., None], boxes, kept.boxes))
