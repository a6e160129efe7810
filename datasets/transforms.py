"""Augmentation of images with their boxes. The only module that imports albumentations, and only when it is used.

A sample's geometry is drawn before its image is read, from the sample's own generator, so that the sampler knows the
size of the result (`Geometry.size`) without decoding anything.

    decoded image -> flips -> expand -> crop -> resize -> photometric

Flips and the resize are exact array operations; crop, expand and colours are albumentations'. Its own seeding is by
transform and not by numpy's or random's global state, hence `set_random_seed` with a number drawn for the sample.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from configs.detection import AugmentConfig, PhotometricConfig
from datasets.resize import clip_boxes, resize_boxes, resize_image, resized_size

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean RGB: the canvas of `expand`."""

MAX_EXPANSION = 2.0
"""`expand` zooms out by at most this factor."""


@dataclass(frozen=True)
class Geometry:
    """What happens to one sample, all of it drawn."""

    hflip: bool
    vflip: bool
    expand: tuple[int, int, int, int]
    """Pixels added at the top, bottom, left and right."""
    crop: tuple[int, int, int, int]
    """x1 y1 x2 y2 in pixels of the expanded image."""
    size: tuple[int, int]
    """(H, W) of the result."""
    photometric_seed: int | None
    """None: colours stay."""


def draw_geometry(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    *,
    min_sizes: tuple[int, ...],
    max_size: int,
    augment: AugmentConfig | None,
) -> Geometry:
    """Draw one sample's augmentation.

    Every choice has its own number of the generator, drawn whether it is used or not: switching one augmentation on
    does not change the others.

    Args:
        rng: the sample's generator.
        image_size: (H, W) of the image before.
        boxes: (N, 4) float, the objects that a crop must keep, pixels of the image before.
        min_sizes: lengths of the shorter side to choose from, pixels.
        max_size: cap on the longer side, pixels.
        augment: None: resize only.
    """
    choice, hflip, vflip, expand, factor, top, left, crop, jitter = rng.random(9)
    seeds = rng.integers(2**32, size=2)
    min_size = min_sizes[int(choice * len(min_sizes))]
    height, width = image_size
    border, window = (0, 0, 0, 0), (0, 0, width, height)
    if augment is None:
        return Geometry(False, False, border, window, resized_size(image_size, min_size, max_size), None)
    flips = (bool(hflip < augment.hflip), bool(vflip < augment.vflip))
    if expand < augment.expand:
        border = _draw_expansion(image_size, 1 + factor * (MAX_EXPANSION - 1), top, left)
        height, width = height + border[0] + border[1], width + border[2] + border[3]
        window = (0, 0, width, height)
    if crop < augment.crop:
        moved = flip_boxes(boxes, image_size, *flips) + np.array([border[2], border[0]] * 2)
        window = _draw_crop((height, width), moved, int(seeds[0]))
    size = resized_size((window[3] - window[1], window[2] - window[0]), min_size, max_size)
    return Geometry(*flips, border, window, size, int(seeds[1]) if jitter < augment.photometric.p else None)


def apply_to_image(image: np.ndarray, geometry: Geometry, photometric: PhotometricConfig | None) -> np.ndarray:
    """The augmented image, (H, W, 3) uint8 of `geometry.size`."""
    if geometry.hflip or geometry.vflip:
        image = cv2.flip(image, 1 if not geometry.vflip else -1 if geometry.hflip else 0)
    if any(geometry.expand):
        top, bottom, left, right = geometry.expand
        image = _expand().apply(image, pad_top=top, pad_bottom=bottom, pad_left=left, pad_right=right)
    if geometry.crop != (0, 0, image.shape[1], image.shape[0]):
        image = _crop().apply(image, crop_coords=geometry.crop)
    image = resize_image(image, geometry.size)
    if geometry.photometric_seed is not None and photometric is not None:
        jitter = _photometric(photometric)  # pyright: ignore[reportArgumentType]  # frozen, so hashable
        jitter.set_random_seed(geometry.photometric_seed)
        image = jitter(image=image)["image"]
    return image


def apply_to_boxes(boxes: np.ndarray, geometry: Geometry, image_size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) of an image of size (H, W) in pixels of the augmented image, clipped to it; float32."""
    top, _, left, _ = geometry.expand
    x1, y1, x2, y2 = geometry.crop
    moved = flip_boxes(boxes.astype(np.float64), image_size, geometry.hflip, geometry.vflip)
    moved = moved + np.array([left - x1, top - y1] * 2)
    window = (y2 - y1, x2 - x1)
    return resize_boxes(clip_boxes(moved, window), window, geometry.size)


def flip_boxes(boxes: np.ndarray, image_size: tuple[int, int], hflip: bool, vflip: bool) -> np.ndarray:
    """Boxes (N, 4) of the mirrored (`hflip`) and upside-down (`vflip`) image of size (H, W)."""
    height, width = image_size
    x1, y1, x2, y2 = boxes.T
    if hflip:
        x1, x2 = width - x2, width - x1
    if vflip:
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def _draw_expansion(image_size: tuple[int, int], factor: float, top: float, left: float) -> tuple[int, int, int, int]:
    """Borders that make the image `factor` times as large, the image at a random place."""
    height, width = image_size
    more_h, more_w = round(height * (factor - 1)), round(width * (factor - 1))
    above, before = round(more_h * top), round(more_w * left)
    return above, more_h - above, before, more_w - before


def _draw_crop(image_size: tuple[int, int], boxes: np.ndarray, seed: int) -> tuple[int, int, int, int]:
    """A window that holds all boxes whole; without boxes, the whole image."""
    height, width = image_size
    if not len(boxes):
        return 0, 0, width, height
    crop = _crop()
    crop.set_random_seed(seed)
    fractions = boxes / np.array([width, height, width, height])
    params = {"shape": (height, width, 3)}
    x1, y1, x2, y2 = crop.get_params_dependent_on_data(params, {"bboxes": fractions})["crop_coords"]
    # albumentations truncates to whole pixels, which may cut the outermost boxes: widen to hold them
    low, high = np.floor(boxes[:, :2].min(axis=0)), np.ceil(boxes[:, 2:].max(axis=0))
    return (
        max(0, min(int(x1), int(low[0]))),
        max(0, min(int(y1), int(low[1]))),
        min(width, max(int(x2), int(high[0]))),
        min(height, max(int(y2), int(high[1]))),
    )


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import asks the network for a newer version
    import albumentations

    return albumentations


@functools.cache
def _expand() -> Any:
    return _albumentations().Pad(fill=MEAN_COLOUR, border_mode=cv2.BORDER_CONSTANT)


@functools.cache
def _crop() -> Any:
    return _albumentations().BBoxSafeRandomCrop(erosion_rate=0.0)


@functools.cache
def _photometric(config: PhotometricConfig) -> Any:
    def around_one(width: float) -> tuple[float, float]:
        return max(0.0, 1 - width), 1 + width

    return _albumentations().ColorJitter(
        brightness=around_one(config.brightness),
        contrast=around_one(config.contrast),
        saturation=around_one(config.saturation),
        hue=(-config.hue, config.hue),
        p=1.0,
    )
