"""Boxes follow their pixels: a rectangle is painted, transformed, and found again in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.detection import AugmentConfig, PhotometricConfig
from datasets.transforms import (
    MAX_EXPANSION,
    Geometry,
    apply_to_boxes,
    apply_to_image,
    draw_geometry,
    flip_boxes,
)

BACKGROUND = (124, 116, 104)  # that of expand, so that only the rectangle shows


def _painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.full((*size, 3), BACKGROUND, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = (255, 0, 255)
    return image


def _found(image: np.ndarray) -> np.ndarray:
    """The box of the pixels that are nearer to the rectangle's colour than to the background's."""
    mask = image[..., 1] < BACKGROUND[1] / 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@st.composite
def pictures(draw) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """(H, W) and a box of whole pixels inside, at least 8 wide and high."""
    height, width = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    return (height, width), (x1, y1, x2, y2)


@given(pictures(), st.integers(0, 10**6), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_boxes_follow_their_pixels(picture, seed, hflip, vflip, crop, expand) -> None:
    size, box = picture
    augment = AugmentConfig(hflip=hflip, vflip=vflip, crop=crop, expand=expand)
    boxes = np.array([box], np.float32)
    rng = np.random.default_rng(seed)
    geometry = draw_geometry(rng, size, boxes, min_sizes=(40, 70), max_size=120, augment=augment)
    image = apply_to_image(_painted(size, box), geometry, None)
    new = apply_to_boxes(boxes, geometry, size)
    assert image.shape == (*geometry.size, 3)
    assert image.dtype == np.uint8
    assert new.dtype == np.float32
    # half the pixel that interpolation blends, in source pixels, is the limit of what can be seen
    scale = max(geometry.size[0] / (geometry.crop[3] - geometry.crop[1]), 1)
    assert np.abs(new[0] - _found(image)).max() <= 0.75 * scale + 0.5
    assert (geometry.hflip, geometry.vflip) == (hflip, vflip)


@given(pictures(), st.integers(0, 10**6))
def test_a_crop_keeps_every_box_whole(picture, seed) -> None:
    (height, width), box = picture
    boxes = np.array([box, (width / 2 - 2.3, height / 2 - 1.7, width / 2 + 2.9, height / 2 + 3.1)])
    rng = np.random.default_rng(seed)
    augment = AugmentConfig(hflip=0.5, vflip=0.5, crop=1.0, expand=0.5)
    geometry = draw_geometry(rng, (height, width), boxes, min_sizes=(50,), max_size=100, augment=augment)
    top, bottom, left, right = geometry.expand
    x1, y1, x2, y2 = geometry.crop
    assert 0 <= x1 < x2 <= width + left + right
    assert 0 <= y1 < y2 <= height + top + bottom
    assert height + top + bottom <= MAX_EXPANSION * height + 1
    moved = flip_boxes(boxes, (height, width), geometry.hflip, geometry.vflip) + np.array([left, top, left, top])
    assert (moved[:, :2] >= (x1, y1)).all()
    assert (moved[:, 2:] <= (x2, y2)).all()
    factors = np.array([geometry.size[1] / (x2 - x1), geometry.size[0] / (y2 - y1)] * 2)
    expected = (moved - (x1, y1, x1, y1)) * factors
    assert apply_to_boxes(boxes, geometry, (height, width)) == pytest.approx(expected, abs=1e-3)


def test_crops_differ_and_cut_something() -> None:
    boxes = np.array([[40.0, 40.0, 60.0, 60.0]])
    augment = AugmentConfig(crop=1.0)
    crops = [
        draw_geometry(np.random.default_rng(i), (100, 100), boxes, min_sizes=(50,), max_size=99, augment=augment).crop
        for i in range(50)
    ]
    assert len(set(crops)) > 40
    assert np.mean([(c[2] - c[0]) * (c[3] - c[1]) for c in crops]) < 0.7 * 100 * 100


@given(pictures(), st.booleans(), st.booleans())
def test_flipping_twice_is_nothing(picture, hflip, vflip) -> None:
    size, box = picture
    boxes = np.array([box], np.float64)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, size, hflip, vflip), size, hflip, vflip), boxes)


def test_flip_by_hand() -> None:
    boxes = np.array([[1.0, 2.0, 5.0, 9.0]])  # in an image 20 high and 30 wide
    assert flip_boxes(boxes, (20, 30), True, False).tolist() == [[25, 2, 29, 9]]
    assert flip_boxes(boxes, (20, 30), False, True).tolist() == [[1, 11, 5, 18]]
    assert flip_boxes(np.zeros((0, 4)), (20, 30), True, True).shape == (0, 4)


@pytest.mark.parametrize(("hflip", "vflip"), [(False, False), (True, False), (False, True), (True, True)])
def test_flips_are_exact(hflip: bool, vflip: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    geometry = Geometry(hflip, vflip, (0, 0, 0, 0), (0, 0, 30, 20), (20, 30), None)
    expected = image[:: -1 if vflip else 1, :: -1 if hflip else 1]
    assert np.array_equal(apply_to_image(image, geometry, None), expected)


def test_expand_places_the_image_on_the_mean_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expanded = apply_to_image(image, Geometry(False, False, (3, 5, 7, 11), (0, 0, 48, 28), (28, 48), None), None)
    assert expanded.shape == (28, 48, 3)
    assert np.array_equal(expanded[3:23, 7:37], image)
    expanded[3:23, 7:37] = BACKGROUND
    assert (expanded == BACKGROUND).all()


def test_frequencies_are_those_of_the_config() -> None:
    augment = AugmentConfig(hflip=0.5, vflip=0.25, crop=0.3, expand=0.6, photometric=PhotometricConfig(p=0.8))
    drawn = [
        draw_geometry(
            np.random.default_rng([7, i]),
            (100, 100),
            np.array([[40.0, 40.0, 60.0, 60.0]]),
            min_sizes=(50, 60, 70),
            max_size=99,
            augment=augment,
        )
        for i in range(2000)
    ]
    for share, events in [
        (0.5, [g.hflip for g in drawn]),
        (0.25, [g.vflip for g in drawn]),
        (0.6, [any(g.expand) for g in drawn]),
        (0.8, [g.photometric_seed is not None for g in drawn]),
        *((1 / 3, [min(g.size) == size for g in drawn]) for size in (50, 60)),
    ]:
        assert np.mean(events) == pytest.approx(share, abs=0.04)  # 3.6 standard deviations


def test_one_option_does_not_change_the_draws_of_another() -> None:
    def draw(**options) -> Geometry:
        rng = np.random.default_rng(3)
        augment = AugmentConfig(**options)
        return draw_geometry(rng, (80, 90), np.zeros((0, 4)), min_sizes=(50, 60, 70), max_size=200, augment=augment)

    plain, more = draw(hflip=0.5), draw(hflip=0.5, vflip=1.0, photometric=PhotometricConfig(p=1.0))
    assert (plain.hflip, plain.size) == (more.hflip, more.size)


def test_photometric_is_a_function_of_its_seed_and_leaves_nothing_behind() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    config = PhotometricConfig(p=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)

    def jitter(seed: int | None) -> np.ndarray:
        return apply_to_image(image, Geometry(False, False, (0, 0, 0, 0), (0, 0, 30, 20), (20, 30), seed), config)

    first, other, again = jitter(5), jitter(6), jitter(5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, image)
    assert first.dtype == np.uint8
    assert np.array_equal(jitter(None), image)
    nothing = PhotometricConfig(p=1.0, brightness=0, contrast=0, saturation=0, hue=0)
    same = apply_to_image(image, Geometry(False, False, (0, 0, 0, 0), (0, 0, 30, 20), (20, 30), 5), nothing)
    assert np.array_equal(same, image)


def test_each_photometric_option_changes_what_it_names() -> None:
    """One grey: only brightness; a ramp of greys: contrast too; one colour: saturation and hue."""
    grey = np.full((4, 5, 3), 100, np.uint8)
    ramp = np.repeat(np.arange(20, 220, 10, np.uint8).reshape(4, 5, 1), 3, axis=2)
    colour = np.full((4, 5, 3), (180, 90, 40), np.uint8)

    def moves(option: str, image: np.ndarray) -> bool:
        config = PhotometricConfig(**{"p": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, option: 0.3})
        geometry = Geometry(False, False, (0, 0, 0, 0), (0, 0, 5, 4), (4, 5), 5)
        return bool((np.abs(apply_to_image(image, geometry, config).astype(int) - image) > 2).any())

    found = {
        option: [moves(option, image) for image in (grey, ramp, colour)]
        for option in ("brightness", "contrast", "saturation", "hue")
    }
    assert found == {
        "brightness": [True, True, True],
        "contrast": [False, True, True],
        "saturation": [False, False, True],
        "hue": [False, False, True],
    }
