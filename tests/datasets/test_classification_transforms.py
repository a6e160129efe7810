"""Crops of image files: sizes with H != W, ranges, and the smaller decoding."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from configs.classification import ImageDataConfig
from configs.errors import UserError
from datasets.classification_transforms import (
    LazyImage,
    TrainTransform,
    centre_crop,
    crop_for_test,
    random_resized_box,
    resize,
    resize_shorter,
    trivial_augment,
)

TRAIN = {"format": "folders", "root": "x"}


def gradient(height, width):
    """Red grows downwards, green to the right, blue is constant: a pixel tells where it comes from."""
    rows = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    columns = np.linspace(0, 255, width)[None].repeat(height, 0)
    return np.stack((rows, columns, np.full((height, width), 50.0)), 2).round().astype(np.uint8)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), gradient(300, 500)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    return path


def data(**values):
    augment = values.pop("augment", {})
    return ImageDataConfig(train=TRAIN, augment={"crop": "scale_jitter", "hflip": 0.0, **augment}, **values)


def test_the_shorter_side_becomes_what_is_asked_for(photo):
    assert resize_shorter(LazyImage(photo), 120).shape == (120, 200, 3)
    assert resize_shorter(LazyImage(photo), 601).shape == (601, 1002, 3)
    assert resize_shorter(LazyImage(photo), None).shape == (300, 500, 3)
    turned = np.ascontiguousarray(gradient(500, 300))
    assert resize_shorter(LazyImage("turned", image=turned), 90).shape == (150, 90, 3)


def test_shrinking_averages():
    checks = np.zeros((8, 12, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    assert (resize(checks, (4, 6)) == 100).all(), "bilinear without averaging would give 0 or 200 somewhere"
    stripes = np.zeros((9, 12, 3), np.uint8)
    stripes[::3] = 240
    assert (resize(stripes, (3, 12), fast=True) == 80).all(), "to less than half: averaged in training too"


def test_the_centre_crop_is_torchvisions():
    for height, width, side in ((7, 10, 4), (8, 11, 3), (5, 6, 5)):
        image = gradient(height, width)
        expected = v2.functional.center_crop(torch.from_numpy(image).permute(2, 0, 1), [side, side])
        np.testing.assert_array_equal(centre_crop(image, side), expected.permute(1, 2, 0))


def test_the_test_crop_is_the_middle(photo):
    crop = crop_for_test(LazyImage(photo), 150, 100)
    assert crop.shape == (100, 100, 3)
    # 150 x 250 after resizing: rows 25..125, columns 75..175, that is the middle of both gradients.
    assert abs(int(crop[:, :, 0].mean()) - 127) <= 2
    assert abs(int(crop[0, :, 0].mean()) - 255 * 25 / 150) <= 3
    assert abs(int(crop[:, 0, 1].mean()) - 255 * 75 / 250) <= 3


def test_an_image_smaller_than_the_crop_is_named(photo):
    with pytest.raises(UserError, match=r"photo\.jpg: 300x500 \(H x W\) is smaller than the crop of 320"):
        crop_for_test(LazyImage(photo), None, 320)


def test_scale_jitter_draws_scales_and_places_over_their_whole_range(photo):
    """The share of the height that a crop spans tells the scale: side / s."""
    transform = TrainTransform(data(crop_size=64, test_resize=80, augment={"scale": (80, 160)}))
    scales, tops = [], []
    for seed in range(300):
        crop = transform(photo, np.random.default_rng(seed))
        assert crop.shape == (64, 64, 3)
        rows = crop[:, 32, 0].astype(float)
        scales.append(64 / ((rows[-1] - rows[0]) / 255 * 64 / 63))
        tops.append(rows[0])
    assert 78 < min(scales) < 85
    assert 150 < max(scales) < 170
    assert 110 < np.median(scales) < 130, "uniform in the shorter side"
    assert min(tops) < 5
    assert max(tops) > 130


def test_mirror_images_and_the_same_crop_from_the_same_numbers(photo):
    plain = TrainTransform(data(crop_size=32, test_resize=40, augment={"scale": (40, 80)}))
    mirrored = TrainTransform(data(crop_size=32, test_resize=40, augment={"scale": (40, 80), "hflip": 1.0}))
    crop = plain(photo, np.random.default_rng(3))
    np.testing.assert_array_equal(crop, plain(photo, np.random.default_rng(3)))
    np.testing.assert_array_equal(crop[:, ::-1], mirrored(photo, np.random.default_rng(3)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_random_boxes_lie_inside(height, width, seed):
    y, x, h, w = random_resized_box((height, width), np.random.default_rng(seed), (0.08, 1.0), (3 / 4, 4 / 3))
    assert 0 <= y <= y + h <= height
    assert 0 <= x <= x + w <= width
    assert h >= 1
    assert w >= 1


def test_random_boxes_have_the_asked_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box((200, 320), rng, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(3000)])
    areas, ratios = boxes[:, 2] * boxes[:, 3] / (200 * 320), boxes[:, 3] / boxes[:, 2]
    assert 0.075 < areas.min() < 0.09
    assert areas.max() > 0.8
    assert 0.73 < ratios.min() < 0.76
    assert 1.31 < ratios.max() < 1.36
    small = areas < 0.3  # of the large ones those fit that are as wide as the image
    assert abs(np.log(ratios[small]).mean()) < 0.025, "as often wide as high"


def test_a_box_that_cannot_fit_becomes_the_largest_central_one():
    rng = np.random.default_rng(0)
    assert random_resized_box((10, 100), rng, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, 43, 10, 13)
    assert random_resized_box((100, 10), rng, (1.0, 1.0), (3 / 4, 4 / 3)) == (43, 0, 13, 10)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "random_resized", "area": (0.3, 1.0)},
        {"crop": "scale_jitter", "scale": (66, 100)},
        {"crop": "centre"},
    ],
)
def test_decoding_smaller_changes_pixels_little(photo, augment):
    """The same places of the image; the gradient moves by less than a source pixel's worth."""
    options = {"crop_size": 64, "test_resize": 72, "augment": augment}
    full, reduced = (TrainTransform(data(**options, reduced_decode=flag)) for flag in (False, True))
    for seed in range(10):
        a, b = (each(photo, np.random.default_rng(seed)).astype(int) for each in (full, reduced))
        assert a.shape == b.shape == (64, 64, 3)
        assert abs(a - b).mean() < 2.0
    assert reduced.data.reduced_decode
    assert LazyImage(photo, reduced=True).shrunk(4.7).shape == (75, 125, 3)
    assert LazyImage(photo, reduced=True).shrunk(1.9).shape == (300, 500, 3)


def test_exif_rotation_holds_for_both_ways_of_decoding(tmp_path):
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(gradient(120, 200)).save(path, exif=exif, quality=95)
    for reduced in (False, True):
        source = LazyImage(path, reduced=reduced)
        assert source.size == (200, 120)
        assert resize_shorter(source, 30).shape == (50, 30, 3)


def test_trivial_augment_follows_the_generator_and_leaves_torchs_alone():
    image = gradient(20, 30)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    results = [trivial_augment(image, np.random.default_rng(seed)) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    again = [trivial_augment(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert sum(not np.array_equal(result, image) for result in results) > 10


def test_one_scale_is_a_range_too(photo):
    transform = TrainTransform(data(crop_size=64, test_resize=80, augment={"scale": (80, 80)}))
    assert transform(photo, np.random.default_rng(0)).shape == (64, 64, 3)


def test_growing_along_one_axis_interpolates():
    image = gradient(4, 6)
    np.testing.assert_array_equal(resize(image, (4, 12)), cv2.resize(image, (12, 4), interpolation=cv2.INTER_LINEAR))


def test_the_shorter_side_decides_how_small_to_decode(photo, monkeypatch):
    asked = []
    monkeypatch.setattr(LazyImage, "shrunk", lambda self, factor: asked.append(factor) or gradient(300, 500))
    assert resize_shorter(LazyImage(photo), 120).shape == (120, 200, 3)
    assert asked == [300 / 120]
