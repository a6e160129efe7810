"""Augmentation on the device against a plain loop over images, and against published definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backbones.augmentation import (
    EIGENVALUES,
    EIGENVECTORS,
    DeviceImages,
    Mix,
    StepAugmentation,
    draw_crops,
    draw_erasing,
    draw_lighting,
    draw_mix,
    erase,
    mix_images,
)
from configs.classification import ImageAugmentConfig

HEIGHT, WIDTH, PAD = 5, 7, 2


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)


def crop_by_hand(image, mean, std, y, x, mirror):
    """Subtract, divide, pad with zeros, crop, mirror: one image, in the order of the paper."""
    normalized = (image.astype(np.float64) - mean) / std
    padded = np.pad(normalized, ((PAD, PAD), (PAD, PAD), (0, 0)))
    crop = padded[y : y + HEIGHT, x : x + WIDTH]
    return (crop[:, ::-1] if mirror else crop).transpose(2, 0, 1)


@pytest.mark.parametrize("per_pixel", [True, False])
def test_batched_crops_equal_a_loop_over_images(images, per_pixel):
    rng = np.random.default_rng(1)
    mean = rng.uniform(80, 160, (HEIGHT, WIDTH, 3) if per_pixel else (1, 1, 3))
    std = rng.uniform(30, 70, 3)
    labels = torch.arange(6) * 10
    resident = DeviceImages(
        torch.from_numpy(images),
        labels,
        torch.from_numpy(mean).float().permute(2, 0, 1),
        (1 / torch.from_numpy(std)).float()[:, None, None],
        PAD,
        "cpu",
    )
    draws = [(0, 0, 0, 0), (3, 4, 4, 1), (5, 2, 2, 0), (3, 0, 4, 1), (1, 1, 3, 0)]
    batch, chosen = resident.crops(torch.tensor(draws))
    assert batch.shape == (5, 3, HEIGHT, WIDTH)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert chosen.tolist() == [0, 30, 50, 30, 10]
    for got, (index, y, x, mirror) in zip(batch, draws, strict=True):
        expected = crop_by_hand(images[index], mean, std, y, x, mirror)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_crops_are_drawn_over_the_whole_range_and_only_by_seed_and_iteration():
    indices = np.arange(4000)
    draws = draw_crops(3, 11, indices, pad=4, hflip=0.5)
    assert draws.dtype == np.int64
    assert (draws[:, 0] == indices).all()
    for column in (1, 2):
        values, counts = np.unique(draws[:, column], return_counts=True)
        assert values.tolist() == list(range(9))
        assert counts.min() > 4000 / 9 * 0.8
    assert 0.45 < draws[:, 3].mean() < 0.55
    assert np.array_equal(draws, draw_crops(3, 11, indices, pad=4, hflip=0.5))
    assert not np.array_equal(draws, draw_crops(3, 12, indices, pad=4, hflip=0.5))
    assert not np.array_equal(draws, draw_crops(4, 11, indices, pad=4, hflip=0.5))


def test_the_principal_components_are_orthonormal_and_mostly_grey():
    np.testing.assert_allclose(EIGENVECTORS.T @ EIGENVECTORS, np.eye(3), atol=2e-4)
    grey = np.ones(3) / np.sqrt(3)
    assert abs(grey @ EIGENVECTORS[:, 0]) > 0.999
    assert EIGENVALUES.tolist() == sorted(EIGENVALUES, reverse=True)


def test_lighting_is_the_sum_of_scaled_components():
    """R, G and B of [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T times 255 (Krizhevsky et al. 2012, Sec. 4.1), a by hand."""
    offsets = draw_lighting(seed=5, iteration=9, batch_size=4, sigma=0.1)
    alphas = np.linalg.solve(EIGENVECTORS * EIGENVALUES * 255.0, offsets.astype(np.float64).T).T
    for offset, (a1, a2, a3) in zip(offsets, alphas, strict=True):
        red = 255 * (-0.5675 * a1 * 0.2175 + 0.7192 * a2 * 0.0188 + 0.4009 * a3 * 0.0045)
        green = 255 * (-0.5808 * a1 * 0.2175 - 0.0045 * a2 * 0.0188 - 0.8140 * a3 * 0.0045)
        blue = 255 * (-0.5836 * a1 * 0.2175 - 0.6948 * a2 * 0.0188 + 0.4203 * a3 * 0.0045)
        np.testing.assert_allclose(offset, (red, green, blue), rtol=1e-4, atol=1e-4)
    assert offsets.dtype == np.float32
    many = draw_lighting(seed=5, iteration=10, batch_size=20000, sigma=0.1).astype(np.float64)
    alphas = np.linalg.solve(EIGENVECTORS * EIGENVALUES * 255.0, many.T).T
    np.testing.assert_allclose(alphas.std(0), 0.1, rtol=0.03)
    np.testing.assert_allclose(alphas.mean(0), 0.0, atol=0.004)


def test_erase_zeroes_the_boxes_alone():
    images = torch.arange(1, 1 + 2 * 3 * 4 * 5).view(2, 3, 4, 5).float()
    boxes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    erased = erase(images, boxes)
    assert erased[0, :, 1:3, 2:4].eq(0).all()
    assert erased.eq(0).sum() == 3 * 2 * 2
    assert torch.equal(erased[1], images[1])


def test_erased_areas_and_ratios_are_those_of_the_paper():
    boxes = draw_erasing(0, 0, 2000, (60, 90), p=0.25)
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    hit = height > 0
    assert 0.2 < hit.mean() < 0.3
    assert (boxes >= 0).all()
    assert boxes[:, 2].max() <= 60
    assert boxes[:, 3].max() <= 90
    share = (height * width / (60 * 90))[hit]
    assert share.min() > 0.018
    assert share.max() < 0.34
    ratio = (height / np.maximum(width, 1))[hit]
    assert ratio.min() > 0.27
    assert ratio.max() < 3.7


def test_mixup_by_hand():
    images = torch.tensor([[40.0], [10.0], [20.0], [40.0]]).view(4, 1, 1, 1).expand(4, 3, 2, 4)
    mixed = mix_images(images, Mix(0.75, None))
    assert mixed[:, 0, 0, 0].tolist() == [0.75 * 10 + 0.25 * 40, 0.75 * 20 + 0.25 * 10, 0.75 * 40 + 0.25 * 20]


def test_cutmix_by_hand():
    images = torch.stack([torch.full((3, 4, 6), float(value)) for value in (3, 1, 2, 3)])
    mixed = mix_images(images, Mix(0.75, (1, 2, 3, 5)))
    expected = torch.full((4, 6), 1.0)
    expected[1:3, 2:5] = 3.0
    assert torch.equal(mixed[0, 1], expected)
    assert mixed[2].sum() == 3 * (3 * (24 - 6) + 2 * 6)
    assert images[1].eq(1).all(), "the batch itself stays"


def test_the_share_of_a_cut_is_that_of_the_pixels_left():
    kinds = set()
    for iteration in range(200):
        mix = draw_mix(0, iteration, (30, 50), mixup=0.2, cutmix=1.0)
        kinds.add(mix.box is None)
        assert 0.0 <= mix.share <= 1.0
        if mix.box is not None:
            top, left, bottom, right = mix.box
            assert 0 <= top <= bottom <= 30
            assert 0 <= left <= right <= 50
            assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 1500)
    assert kinds == {True, False}
    assert draw_mix(0, 1, (30, 50), 0.0, 0.0) is None
    assert draw_mix(0, 1, (30, 50), 0.2, 0.0).box is None
    assert draw_mix(0, 1, (30, 50), 0.0, 1.0).box is not None


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_process_takes_its_part_of_the_step(mixing):
    """Two processes with half the batch each get, together, what one process gets."""
    config = ImageAugmentConfig(lighting=0.1, erasing=0.5, **mixing)
    augment = StepAugmentation(config, 0, 8, lambda offsets: offsets[:, :, None, None])
    images, labels = torch.rand(8, 3, 16, 20), torch.arange(8)

    def part(*places):
        if mixing:
            places = (places[0] - 1) % 8, *places
        return augment(images[list(places)], labels[list(places)], 7, np.array(places))

    whole, own, mixed = part(*range(8))
    (first, first_own, first_mixed), (second, second_own, second_mixed) = part(0, 1, 2, 3), part(4, 5, 6, 7)
    assert torch.equal(torch.cat((first, second)), whole)
    assert own.tolist() == [*first_own.tolist(), *second_own.tolist()] == list(range(8))
    if mixing:
        assert torch.equal(mixed.others, labels.roll(1)), "the first one's neighbour is the last"
        assert mixed.others.tolist() == [*first_mixed.others.tolist(), *second_mixed.others.tolist()]
        assert 0.0 < mixed.share == first_mixed.share == second_mixed.share < 1.0
        alone, *_ = StepAugmentation(ImageAugmentConfig(lighting=0.1, erasing=0.5), 0, 8, augment.scale_lighting)(
            images, labels, 7, slice(0, 8)
        )
        assert torch.equal(
            mix_images(alone[[7, *range(8)]], draw_mix(0, 7, (16, 20), config.mixup, config.cutmix)), whole
        )
    else:
        assert mixed is first_mixed is second_mixed is None
    assert not torch.equal(whole, images)
