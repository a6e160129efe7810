"""Normalisation by hand: channel order, per-pixel means, padding."""

from __future__ import annotations

import pytest
import torch

from backbones.preprocess import Normalize
from backbones.weights import IMAGENET, MSRA, Preprocessing


def test_normalize_by_hand():
    normalize = Normalize(Preprocessing((10.0, 20.0, 30.0), (2.0, 4.0, 5.0)))
    image = torch.tensor([14, 28, 40], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 3)
    assert normalize(image)[0, :, 1, 2].tolist() == [2.0, 2.0, 2.0]
    bgr = Normalize(Preprocessing((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), "bgr"))
    # Blue first: (40 - 10) / 2, (28 - 20) / 4, (14 - 30) / 5.
    assert bgr(image)[0, :, 0, 0].tolist() == pytest.approx([15.0, 2.0, -3.2])


def test_the_per_pixel_mean_serves_inputs_of_its_size_and_channel_means_all_others():
    mean_image = torch.arange(3 * 2 * 4).view(3, 2, 4).float()
    channels = tuple(mean_image.mean((1, 2)).tolist())
    normalize = Normalize(Preprocessing(channels, (1.0, 1.0, 1.0)), mean_image)
    images = torch.full((1, 3, 2, 4), 100, dtype=torch.uint8)
    assert torch.equal(normalize(images)[0], 100 - mean_image)
    dense = normalize(torch.full((1, 3, 4, 2), 100, dtype=torch.uint8))[0]
    for channel, mean in enumerate(channels):
        assert dense[channel].unique().tolist() == pytest.approx([100 - mean])


def test_lighting_is_divided_by_the_deviation_in_the_order_of_the_channels():
    offsets = torch.tensor([[2.0, 4.0, 10.0]])
    rgb = Normalize(Preprocessing((0.0, 0.0, 0.0), (2.0, 4.0, 5.0)))
    bgr = Normalize(Preprocessing((0.0, 0.0, 0.0), (2.0, 4.0, 5.0), "bgr"))
    assert rgb.scaled(offsets).flatten().tolist() == pytest.approx([1.0, 1.0, 2.0])
    assert bgr.scaled(offsets).flatten().tolist() == pytest.approx([5.0, 1.0, 0.4])


@pytest.mark.parametrize("preprocessing", [IMAGENET, MSRA])
def test_padding_is_exactly_zero_and_changes_nothing_else(preprocessing: Preprocessing):
    """image_sizes are (H, W): images of 3 x 7 and 5 x 2 pixels in a batch of 5 x 7."""
    images = torch.randint(1, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalize = Normalize(preprocessing)
    whole = normalize(images)
    padded = normalize(images, torch.tensor([[3, 7], [5, 2]]))
    assert torch.equal(padded[0, :, :3], whole[0, :, :3])
    assert torch.equal(padded[1, :, :, :2], whole[1, :, :, :2])
    assert not padded[0, :, 3:].any()
    assert not padded[1, :, :, 2:].any()
    assert whole.abs().min() > 0


def test_memory_format_and_type_of_the_output():
    normalize = Normalize(IMAGENET)
    images = torch.zeros((2, 3, 4, 5), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert normalize(images).is_contiguous(memory_format=torch.channels_last)
    assert normalize(images).dtype == torch.float32
    normalize.dtype = torch.bfloat16
    assert normalize(images).dtype == torch.bfloat16
    assert not normalize.state_dict(), "checkpoints hold no means"
