"""From padded uint8 images to the network's input, on the device: the one implementation for training and test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.weights import Preprocessing


class Normalize(nn.Module):
    """(image - mean) / std in the channel order of the weights; padding becomes exactly 0."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.bgr = preprocessing.channel_order == "bgr"
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.dtype = torch.float32
        """Of the output."""
        self.register_buffer("inverse_std", 1.0 / torch.tensor(preprocessing.std).view(shape), persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> `dtype`, `image_sizes` (B, 2) being (H, W) without the padding."""
        if self.bgr:
            images = images.flip(1)
        normalized = (images - self.mean).mul_(self.inverse_std)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        padded = normalized.masked_fill_(~(rows[:, None, :, None] & columns[:, None, None, :]), 0.0)
        return padded.to(self.dtype)
