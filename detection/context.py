"""Global context: the whole image as one more RoI, its feature beside every RoI's (He et al. 2016, App. B).

The image's box goes through the same pooling and the same head as the RoIs, and the result is joined to each RoI's
before the two sibling layers. It is trained end to end and costs one RoI an image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def image_boxes(image_sizes: Tensor) -> Tensor:
    """(B, 1, 4) float32: the boxes (0, 0, W, H) of images of sizes (B, 2), (H, W), without their padding."""
    size = image_sizes.flip(-1).float()
    return torch.cat((torch.zeros_like(size), size), dim=-1)[:, None]


def join_context(hidden: Tensor, context: Tensor) -> Tensor:
    """(B, R, 2 * D): the RoIs' features (B, R, D), each followed by its image's (B, 1, D)."""
    return torch.cat((hidden, context.expand_as(hidden)), dim=-1)
