"""From an image file to a uint8 crop of fixed size, for training and for test. No floats are made here.

What is left to the device (`backbones.augmentation`, `backbones.classification`): lighting, erasing, mixing, the mean.
Images are (H, W, 3) uint8 RGB; sizes are (H, W) in pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

from configs.classification import ImageAugmentConfig, ImageDataConfig
from configs.errors import UserError
from datasets.images import ImageFile, divisor_for, image_file_size, read_image
from datasets.resize import resized_size

Box = tuple[int, int, int, int]
"""(y, x, height, width)."""

NO_CAP = 1 << 30
"""A longer side, pixels, that no image has."""


class LazyImage:
    """An image file whose size is known before it is decoded, so that it can be decoded smaller.

    Args:
        path: the file, or a name for messages.
        reduced: whether `shrunk` may decode a JPEG at 1/2, 1/4, 1/8 (libjpeg does that in the frequency domain, at a
            fraction of the time).
        image: (H, W, 3) uint8, where it is there already.
    """

    def __init__(self, path: ImageFile, *, reduced: bool = False, image: np.ndarray | None = None) -> None:
        self.path = path
        self.image = read_image(path) if image is None and not reduced else image
        self.size: tuple[int, int] = image_file_size(path) if self.image is None else self.image.shape[:2]

    def shrunk(self, factor: float) -> np.ndarray:
        """The image, at 1/f of its size (rounded up) for the greatest allowed f <= `factor`."""
        if self.image is not None:
            return self.image
        return read_image(self.path, divisor=divisor_for(factor))


def resize(image: np.ndarray, size: tuple[int, int], *, fast: bool = False) -> np.ndarray:
    """The image at `size` (H, W): averaging where it shrinks, bilinear where it grows.

    `fast`, for training: averaging only where it shrinks to less than half, up to where bilinear interpolation uses
    every pixel; a fifth of the time.
    """
    if image.shape[:2] == tuple(size):
        return image
    limit = 2 if fast else 1
    shrinks = limit * size[0] < image.shape[0] or limit * size[1] < image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_shorter(source: LazyImage, shorter: int | None, *, fast: bool = False) -> np.ndarray:
    """The image with a shorter side of `shorter` pixels and its aspect ratio kept; None: as it is."""
    if shorter is None:
        return source.shrunk(1)
    image = source.shrunk(min(source.size) / shorter)
    return resize(image, resized_size(source.size, shorter, NO_CAP), fast=fast)


def centre_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The middle `side` x `side` pixels; of an odd rest, rounded half to even as torchvision does."""
    y, x = (round((length - side) / 2.0) for length in image.shape[:2])
    return image[y : y + side, x : x + side]


def random_resized_box(
    size: tuple[int, int], rng: np.random.Generator, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box of a random share of the image's area and a random aspect ratio, as torchvision's RandomResizedCrop.

    Args:
        size: (H, W) of the image.
        rng: drawn from.
        area: range of the share, uniform.
        ratio: range of width / height, uniform in its logarithm.

    Returns:
        Inside the image; after ten boxes that did not fit, the largest central one of a ratio in the range.
    """
    height, width = size
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, min(height, round(width / aspect))) if width / height <= aspect else (round(height * aspect), height)
    return (height - h) // 2, (width - w) // 2, h, w


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random operation of a random strength (Mueller & Hutter 2021), torchvision's; same shape."""
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.manual_seed(int(rng.integers(1 << 62)))
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return _TRIVIAL(tensor).permute(1, 2, 0).numpy()


_TRIVIAL = v2.TrivialAugmentWide()


class TrainTransform:
    """A random training crop of a file: a pure function of the file and the generator's state."""

    def __init__(self, data: ImageDataConfig) -> None:
        self.data = data

    def __call__(self, path: ImageFile, rng: np.random.Generator) -> np.ndarray:
        """(S, S, 3) uint8 with S = crop_size.

        Raises:
            UserError: the file is no readable image.
        """
        augment = self.data.augment
        source = LazyImage(path, reduced=self.data.reduced_decode)
        if augment.crop == "random_resized":
            image = self._random_resized(source, rng, augment)
        elif augment.crop == "scale_jitter":
            image = self._jittered(source, rng, augment)
        else:
            image = crop_for_test(source, self.data.test_resize, self.data.crop_size)
        if rng.random() < augment.hflip:
            image = image[:, ::-1]
        return trivial_augment(image, rng) if augment.trivial_augment else image

    def _jittered(self, source: LazyImage, rng: np.random.Generator, augment: ImageAugmentConfig) -> np.ndarray:
        """Shorter side drawn, then a random crop (He et al. 2016, Sec. 3.4)."""
        side = self.data.crop_size
        image = resize_shorter(source, int(rng.integers(augment.scale[0], augment.scale[1] + 1)), fast=True)
        y, x = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        return image[y : y + side, x : x + side]

    def _random_resized(self, source: LazyImage, rng: np.random.Generator, augment: ImageAugmentConfig) -> np.ndarray:
        side = self.data.crop_size
        y, x, h, w = random_resized_box(source.size, rng, augment.area, augment.ratio)
        image = source.shrunk(min(h, w) / side)
        # In pixels of what was decoded, which may be smaller than the file says.
        down = image.shape[0] / source.size[0], image.shape[1] / source.size[1]
        top, left = math.floor(y * down[0]), math.floor(x * down[1])
        bottom, right = max(round((y + h) * down[0]), top + 1), max(round((x + w) * down[1]), left + 1)
        return resize(image[top:bottom, left:right], (side, side), fast=True)


def crop_for_test(source: LazyImage, shorter: int | None, side: int) -> np.ndarray:
    """The centre crop of a test, (side, side, 3) uint8; the shorter side becomes `shorter` pixels before (None: not).

    Raises:
        UserError: the file is no readable image, or smaller than the crop.
    """
    image = resize_shorter(source, shorter)
    if min(image.shape[:2]) < side:
        size = f"{image.shape[0]}x{image.shape[1]}"
        raise UserError(f"{source.path}: {size} (H x W) is smaller than the crop of {side}: set data.test_resize")
    return centre_crop(image, side)
