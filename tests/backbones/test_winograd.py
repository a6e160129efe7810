"""Winograd's convolution is torch's, and as exact: outputs and gradients, in pieces and at edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from backbones import winograd

SHAPES = [(1, 128, 160, 30, 41), (17, 128, 128, 7, 7), (2, 144, 128, 33, 20)]
"""(B, C, K, H, W): sides that are no multiples of a tile's, and some that are."""


def made(shape: tuple[int, ...]) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """A convolution, its bias, an input."""
    batch, inputs, outputs, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight)
    conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.randn(batch, inputs, height, width).contiguous(memory_format=torch.channels_last)
    assert conv.bias is not None
    return conv, conv.bias, x


def error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, in standard deviations."""
    return float((found.double() - exact).abs().max() / exact.std())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [winograd.PIECE, 36 * 160 * 20])
def test_outputs_are_as_exact_as_torchs(shape: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "PIECE", piece)
    conv, bias, x = made(shape)
    assert winograd.serves(conv, x, conv.weight)
    with torch.no_grad():
        exact = nn.functional.conv2d(x.double(), conv.weight.double(), bias.double(), padding=1)
        limit = 5 * error(conv(x), exact)
        packed = winograd.PackedWeights(conv.weight, bias)
        found = winograd.convolve(x, conv.weight, bias)
        assert error(found, exact) < limit
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert error(packed.convolve(x), exact) < limit
        assert error(packed.convolve(x, relu=True), exact.relu()) < limit
        # Another number of tiles, for which the weights are laid out anew.
        part = nn.functional.conv2d(x[:, :, 3:].double(), conv.weight.double(), bias.double(), padding=1)
        assert error(packed.convolve(x[:, :, 3:]), part) < limit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [winograd.PIECE, 36 * 160 * 20])
def test_gradients_are_torchs(shape: tuple[int, ...], piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "PIECE", piece)
    conv, bias, x = made(shape)
    x.requires_grad_()
    weight = conv.weight
    out = winograd.convolve(x, weight, bias)
    given = torch.randn_like(out)
    found = torch.autograd.grad(out.relu(), (x, weight, bias), given)
    doubles = [value.detach().double().requires_grad_() for value in (x, weight, bias)]
    wanted = nn.functional.conv2d(doubles[0], doubles[1], doubles[2], padding=1)
    exact = torch.autograd.grad(wanted.relu(), doubles, given.double())
    for mine, theirs in zip(found, exact, strict=True):
        assert mine.shape == theirs.shape
        assert error(mine, theirs) < 1e-4
    (only,) = torch.autograd.grad(winograd.convolve(x.detach(), weight, bias).relu(), weight, given)
    assert torch.equal(only, found[1])


def test_serves_what_it_can() -> None:
    conv, _, x = made((1, 128, 128, 32, 32))
    assert winograd.serves(conv, x, conv.weight)
    assert not winograd.serves(conv, x[..., :28, :28], conv.weight)  # 49 tiles
    assert not winograd.serves(conv, x.bfloat16(), conv.weight)
    assert not winograd.serves(nn.Conv2d(64, 128, 3, padding=1), x[:, :64], conv.weight)
    for options in ({"padding": 0}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}):
        other = nn.Conv2d(128, 128, 3, **{"padding": 1, **options})
        assert not winograd.serves(other, x, other.weight), options
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.serves(conv, x, conv.weight)
