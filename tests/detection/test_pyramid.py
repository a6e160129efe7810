"""The pyramid against torchvision's, whose parameters it has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detection.pyramid import EverySecondPixel, Pyramid

SIZES = ((13, 18), (7, 9), (4, 5), (2, 3))
"""Not every one twice the next."""
WIDTHS = [3, 5, 6, 8]


def maps_of(sizes=SIZES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"conv{k + 2}": torch.randn(2, width, *size, generator=generator, requires_grad=True)
        for k, (width, size) in enumerate(zip(WIDTHS, sizes, strict=True))
    }


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_equals_torchvisions(norm):
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(WIDTHS, 4, extra_blocks=LastLevelMaxPool(), norm_layer=norm)
    ours = Pyramid(WIDTHS, 4, extra_blocks=EverySecondPixel(), norm_layer=norm)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    losses = []
    for net, maps in ((theirs, maps_of()), (ours, maps_of())):
        found = net(maps)
        losses.append((found, torch.autograd.grad(sum(p.square().sum() for p in found.values()), list(maps.values()))))
    (expected, gradients), (found, own) = losses
    assert list(found) == list(expected) == [*maps_of(), "pool"]
    for name, level in expected.items():
        assert torch.equal(found[name], level), name
    for a, b in zip(own, gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_keeps_16_bits():
    """torchvision's sums are float32 there, for autocast upsamples in it."""
    net = Pyramid(WIDTHS, 4, extra_blocks=EverySecondPixel())
    maps = {name: level.detach().to(memory_format=torch.channels_last) for name, level in maps_of().items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = net(maps)
    assert {level.dtype for level in found.values()} == {torch.bfloat16}
    expected = net(maps)
    for name, level in found.items():
        torch.testing.assert_close(level.float(), expected[name], rtol=0.05, atol=0.05)


def test_p6_is_every_second_pixel_of_p5():
    net = Pyramid(WIDTHS, 4, extra_blocks=EverySecondPixel())
    found = net(maps_of())
    assert torch.equal(found["pool"], found["conv5"][:, :, ::2, ::2])
