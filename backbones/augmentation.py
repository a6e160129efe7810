"""Augmentation on the device, a whole batch at a time: crops of a set that lives there, lighting, erasing, mixing.

What is drawn for an iteration is a pure function of (seed, iteration), drawn on the host for the whole step, so that a
process takes its part of it and a resumed run draws the same; the device is never waited for. B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs.classification import ImageAugmentConfig

_CROPS, _LIGHTING, _ERASING, _MIXING = range(4)
"""Each purpose has its own random numbers, so that switching one on leaves the others as they were."""

EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Those of the covariance of ImageNet's RGB pixels in [0, 1]; vectors are columns, rows R, G, B (Krizhevsky et al.
2012, Sec. 4.1, as published with their code and used since)."""


def _generator(seed: int, purpose: int, iteration: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, iteration])


# ---------------------------------------------------------------------------------------------- sets on the device


class DeviceImages:
    """A set of small images on the device as uint8, padded, from which batches are cut in one gather.

    The mean is subtracted before the padding (He et al. 2016, Sec. 4.2), that is, a per-pixel mean travels with its
    pixel and the border is zero in the network's input.

    Args:
        images: (N, H, W, 3) uint8, channels in the network's order.
        labels: (N,) int64.
        mean: (3, 1, 1) or (3, H, W) float32, units of uint8, in that order.
        inverse_std: (3, 1, 1) float32: 1 / standard deviation, likewise.
        pad: pixels on each side.
        device: where everything stays.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: Tensor, inverse_std: Tensor, pad: int, device: torch.device | str
    ) -> None:
        count, height, width, _ = images.shape
        self.pad = pad
        self.labels = labels.to(device)
        padded = torch.zeros(count, height + 2 * pad, width + 2 * pad, 3, dtype=torch.uint8, device=device)
        inner = (slice(pad, pad + height), slice(pad, pad + width))
        padded[:, *inner] = images.to(device)
        padded_mean = torch.zeros(padded.shape[1:], device=device)
        padded_mean[inner] = mean.to(device).expand(3, height, width).permute(1, 2, 0)
        # Pixels as rows of three: one index picks one, wherever it lies.
        self._padded_width = padded.shape[2]
        self._area = padded.shape[1] * padded.shape[2]
        self._pixels, self._mean = padded.view(-1, 3), padded_mean.view(-1, 3)
        self._inverse_std = inverse_std.to(device).flatten()
        self._rows = torch.arange(height, device=device)[:, None] * self._padded_width
        self._columns = torch.arange(width, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def crops(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """A batch: (B, 3, H, W) float32, normalised, channels_last; and labels (B,) int64.

        Args:
            draws: (B, 4) int64 on the device: position in the set; y and x of the crop in the padded image,
                0..2*pad; 1 for the mirror image of the crop, else 0.
        """
        index, y, x, mirror = draws[:, :, None, None].unbind(1)
        columns = torch.where(mirror > 0, self._columns.flip(0), self._columns)
        places = (y * self._padded_width + x) + self._rows + columns
        pixels = self._pixels[places + index * self._area]
        normalized = (pixels - self._mean[places]) * self._inverse_std
        return normalized.permute(0, 3, 1, 2), self.labels[draws[:, 0]]


def draw_crops(seed: int, iteration: int, indices: np.ndarray, pad: int, hflip: float) -> np.ndarray:
    """Random crops of a step for `DeviceImages.crops`, (B, 4) int64; `indices` (B,) are the images."""
    rng = _generator(seed, _CROPS, iteration)
    offsets = rng.integers(0, 2 * pad + 1, (len(indices), 2))
    mirror = rng.random(len(indices)) < hflip
    return np.column_stack((indices, offsets, mirror)).astype(np.int64)


# ---------------------------------------------------------------------------------------------- single images


def draw_lighting(seed: int, iteration: int, batch_size: int, sigma: float) -> np.ndarray:
    """AlexNet's PCA lighting: what is added to all pixels of each image, (B, 3) float32 RGB in units of uint8.

    sum over i of a_i lambda_i p_i with a_i ~ N(0, sigma), p_i and lambda_i the eigenvectors and -values above, times
    255 (Krizhevsky et al. 2012, Sec. 4.1; sigma 0.1 there and in He et al. 2016, Sec. 3.4).
    """
    factors = _generator(seed, _LIGHTING, iteration).normal(0.0, sigma, (batch_size, 3))
    return (255.0 * (factors * EIGENVALUES) @ EIGENVECTORS.T).astype(np.float32)


def draw_erasing(seed: int, iteration: int, batch_size: int, image_size: tuple[int, int], p: float) -> np.ndarray:
    """Random erasing (Zhong et al. 2020, torchvision's ranges): (B, 4) int64 of top, left, bottom, right; or zeros.

    A rectangle has 2 % to 33 % of the area and a ratio of height and width in [0.3, 3.3]; it is drawn up to ten times
    until it fits.
    """
    rng = _generator(seed, _ERASING, iteration)
    height, width = image_size
    boxes = np.zeros((batch_size, 4), np.int64)
    for b in np.flatnonzero(rng.random(batch_size) < p):
        for _ in range(10):
            area = height * width * rng.uniform(0.02, 0.33)
            ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h < height and w < width:
                y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
                boxes[b] = y, x, y + h, x + w
                break
    return boxes


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """`images` (B, 3, H, W) with zeros inside `boxes` (B, 4) int64: top, left, bottom, right, ends excluded."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


# ---------------------------------------------------------------------------------------------- pairs of images


class Mix(NamedTuple):
    """How the images of a step are mixed, each with its neighbour: the one before it in the step."""

    share: float
    """The image's own share of its pixels and its label; the rest is its neighbour's."""
    box: tuple[int, int, int, int] | None
    """CutMix: top, left, bottom, right of what the neighbour covers; None: mixup."""


def draw_mix(seed: int, iteration: int, image_size: tuple[int, int], mixup: float, cutmix: float) -> Mix | None:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) with these alphas; one of the two where both are above 0.

    The share is drawn from Beta(alpha, alpha); CutMix's is then that of the pixels which the clipped box leaves.
    """
    if not mixup and not cutmix:
        return None
    rng = _generator(seed, _MIXING, iteration)
    cut = bool(cutmix) and (not mixup or rng.random() < 0.5)
    share = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    if not cut:
        return Mix(share, None)
    height, width = image_size
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = (int(0.5 * np.sqrt(1.0 - share) * side) for side in image_size)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


class MixedLabels(NamedTuple):
    """What mixed images show beside their own label."""

    share: float
    """That of each image's own label in its target; the rest is the other's."""
    others: Tensor
    """(B,) int64: the neighbours' labels."""


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """(B, 3, H, W): each of `images` (1 + B, 3, H, W) but the first, mixed with the one before it."""
    neighbours, own = images[:-1], images[1:]
    if mix.box is None:
        return torch.lerp(neighbours, own, mix.share)
    top, left, bottom, right = mix.box
    mixed = own.clone()
    mixed[:, :, top:bottom, left:right] = neighbours[:, :, top:bottom, left:right]
    return mixed


# ---------------------------------------------------------------------------------------------- all of them


class StepAugmentation:
    """Lighting, erasing and mixing of normalised training images, as a config wants them.

    Args:
        config: what is switched on.
        seed: of all that is drawn.
        batch_size: images of a step, over all processes.
        scale_lighting: (B, 3) RGB offsets in units of uint8 -> (B, 3, 1, 1) in those of the network's input.
    """

    def __init__(
        self, config: ImageAugmentConfig, seed: int, batch_size: int, scale_lighting: Callable[[Tensor], Tensor]
    ) -> None:
        self.config, self.seed, self.batch_size = config, seed, batch_size
        self.scale_lighting = scale_lighting

    def __call__(
        self, images: Tensor, labels: Tensor, iteration: int, part: slice | np.ndarray
    ) -> tuple[Tensor, Tensor, MixedLabels | None]:
        """Images of a step, augmented, their labels, and what they were mixed with.

        Args:
            images: (B, 3, H, W) float; (1 + B, 3, H, W) with mixup or CutMix, the first of them for its neighbour only.
            labels: (B,) or (1 + B,) int64.
            iteration: the step.
            part: the images' places within it.
        """
        config, size = self.config, (images.shape[2], images.shape[3])
        if config.lighting:
            offsets = draw_lighting(self.seed, iteration, self.batch_size, config.lighting)[part]
            images = images + self.scale_lighting(to_device(offsets, images.device))
        if config.erasing:
            boxes = draw_erasing(self.seed, iteration, self.batch_size, size, config.erasing)[part]
            images = erase(images, to_device(boxes, images.device))
        mix = draw_mix(self.seed, iteration, size, config.mixup, config.cutmix)
        if mix is None:
            return images, labels, None
        return mix_images(images, mix), labels[1:], MixedLabels(mix.share, labels[:-1])


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on `device`, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
