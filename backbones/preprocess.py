"""From uint8 images to a network's input, on the device: the one implementation, for all three stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backbones.weights import Preprocessing


class Normalize(nn.Module):
    """(pixel - mean) / std in the channel order of the weights.

    Args:
        preprocessing: the channels' means and deviations.
        mean_image: (3, H, W) float32 RGB in units of uint8: the per-pixel mean, for inputs of that size; inputs of any
            other size (dense tests) take the channels' means.
    """

    mean: Tensor
    inverse_std: Tensor
    mean_image: Tensor | None

    def __init__(self, preprocessing: Preprocessing, mean_image: Tensor | None = None) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.bgr = preprocessing.channel_order == "bgr"
        self.dtype = torch.float32
        """The output's; the arithmetic is float32."""
        if self.bgr and mean_image is not None:
            mean_image = mean_image.flip(0)
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("inverse_std", 1.0 / torch.tensor(preprocessing.std)[:, None, None], persistent=False)
        self.register_buffer("mean_image", mean_image, persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) uint8 RGB -> `dtype`, same shape and memory format.

        Args:
            images: padded at the right and the bottom, if at all.
            image_sizes: (B, 2), (H, W) without the padding, which becomes exactly 0; None: there is none.
        """
        if self.bgr:
            images = images.flip(1)
        normalized = (images - self.mean_for(images.shape[2:])).mul_(self.inverse_std)
        if image_sizes is not None:
            height, width = images.shape[-2:]
            rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
            columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
            normalized.masked_fill_(~(rows[:, None, :, None] & columns[:, None, None, :]), 0.0)
        return normalized.to(self.dtype)

    def mean_for(self, image_size: tuple[int, ...]) -> Tensor:
        """What is subtracted from inputs of a size (H, W): (3, H, W) or (3, 1, 1), in the network's channel order."""
        if self.mean_image is not None and self.mean_image.shape[1:] == tuple(image_size):
            return self.mean_image
        return self.mean

    def scaled(self, lighting: Tensor) -> Tensor:
        """(B, 3) RGB offsets in units of uint8 -> (B, 3, 1, 1) to be added to what `forward` returns."""
        return (lighting.flip(1) if self.bgr else lighting)[:, :, None, None] * self.inverse_std
