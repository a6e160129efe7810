"""Box arithmetic on batches: sizes, clipping, overlaps, and the encoding of boxes as deltas.

Shapes: B images, N boxes, G ground-truth boxes. Boxes are (..., 4) float32 x1 y1 x2 y2 in continuous pixels;
sizes of images are (H, W). All functions are free of host syncs and of loops over images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from backbones.kernels import kernels_for

MAX_LOG_RATIO = math.log(1000.0 / 16)
"""Bound on dw and dh before the exponential, as in every published Faster R-CNN: a box grows 62.5 times at most."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (B, N, 4) cut to their images; `image_sizes` (B, 2) holds (H, W)."""
    limits = image_sizes.to(boxes.dtype).flip(-1)[:, None, None, :]
    corners = boxes.unflatten(-1, (2, 2))
    return corners.clamp(min=0).minimum(limits).flatten(-2)


def size_ratios(sizes: Tensor, others: Tensor) -> Tensor:
    """(B, 1, 4) float32: pixels along x y x y in images of sizes `others` for each in `sizes`, both (B, 2), (H, W)."""
    return (others / sizes).flip(-1).repeat(1, 2)[:, None]


def large_enough(boxes: Tensor, min_size: float) -> Tensor:
    """(...,) bool: width and height are at least `min_size` pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(-1)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union (B, G, N) of boxes1 (B, G, 4) with boxes2 (B, N, 4) or (1, N, 4).

    Padding boxes of zero area have an overlap of 0 with everything that has an area.
    """
    a, b = boxes1.unsqueeze(-2), boxes2.unsqueeze(-3)
    # One coordinate at a time: contiguous (B, G, N) operands are faster than strided (B, G, N, 2) ones.
    width = torch.minimum(a[..., 2], b[..., 2]).sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3]).sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0)
    intersection = width.mul_(height)
    union = (box_area(a) + box_area(b)).sub_(intersection)
    return intersection.div_(union.clamp_(min=1e-12))


def encode_boxes(boxes: Tensor, references: Tensor, weights: Tensor | None = None) -> Tensor:
    """Deltas (..., 4) that turn `references` (..., 4) into `boxes` (..., 4) (Faster R-CNN, Sec. 3.1.2, eq. 2).

    Args:
        boxes: (..., 4), of positive width and height.
        references: (..., 4), anchors or RoIs of positive width and height.
        weights: (4,) multiplies the deltas; None for ones.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size
    reference_size = references[..., 2:] - references[..., :2]
    reference_center = references[..., :2] + 0.5 * reference_size
    deltas = torch.cat(((center - reference_center) / reference_size, torch.log(size / reference_size)), dim=-1)
    return deltas if weights is None else deltas * weights


def decode_boxes(deltas: Tensor, references: Tensor, weights: Tensor | None = None) -> Tensor:
    """Boxes (..., 4): `references` (..., 4) moved and scaled by `deltas` (..., 4); the inverse of `encode_boxes`."""
    if weights is not None:
        deltas = deltas / weights
    reference_size = references[..., 2:] - references[..., :2]
    reference_center = references[..., :2] + 0.5 * reference_size
    center = deltas[..., :2] * reference_size + reference_center
    half_size = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_RATIO)) * reference_size)
    return torch.cat((center - half_size, center + half_size), dim=-1)


def gather_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes (B, S, 4): of each image's (B, N, 4) those at `index` (B, S)."""
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))


def decode_clipped(
    deltas: Tensor, rows: Tensor, references: Tensor, places: Tensor, weights: Tensor | None, image_sizes: Tensor,
    min_size: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Boxes (B, M, 4) cut to their images, and whether they are large enough (B, M); no gradient.

    Args:
        deltas: (B, N, 4) float32.
        rows: (B, M) int64, which of them.
        references: (B, R, 4), or (1, R, 4) if they are the same for all images.
        places: (B, M) int64, which reference each moves.
        weights: as for `decode_boxes`.
        image_sizes: (B, 2), (H, W).
        min_size: see `large_enough`.
    """
    if kernels := kernels_for(deltas, "detection.triton_assignment"):
        return kernels.decode_clipped(deltas, rows, references, places, weights, image_sizes, min_size)
    chosen = references[0][places] if len(references) == 1 else gather_boxes(references, places)
    boxes = clip_boxes(decode_boxes(gather_boxes(deltas, rows), chosen, weights), image_sizes)
    return boxes, large_enough(boxes, min_size)
