"""A convolution with what follows it is the three operators, packed for inference or not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from backbones import convolution
from backbones.batch_norm import fold_batch_norm
from backbones.convolution import FastConv2d, convolve, pack, train_by_winograd
from backbones.zoo import build_backbone


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(8, 16, 3, padding=2, dilation=2), nn.Conv2d(8, 16, 3, padding=1, groups=4),
        nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 16, 3, padding="same"),
        nn.Conv2d(128, 160, 1),
    ],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_packed_or_not(conv: nn.Conv2d, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = copy.deepcopy(conv).to(dtype)
    x = last(torch.randn(2, conv.in_channels, 33, 40, dtype=dtype))
    plain = nn.Conv2d.forward(conv, x)
    residual = torch.randn_like(plain)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}

    def check() -> None:
        parts = (conv, x, conv.weight, conv.bias)
        kept, given = residual.clone(), x.clone()
        torch.testing.assert_close(convolve(*parts), plain, **tolerance)
        torch.testing.assert_close(conv(x), plain, **tolerance)
        torch.testing.assert_close(convolve(*parts, relu=True), plain.relu(), **tolerance)
        torch.testing.assert_close(convolve(*parts, kept), plain + residual, **tolerance)
        torch.testing.assert_close(convolve(*parts, kept, relu=True), (plain + residual).relu(), **tolerance)
        assert torch.equal(kept, residual)
        assert torch.equal(given, x)
        over = convolve(*parts, kept, relu=True, overwrite=True)
        torch.testing.assert_close(over, (plain + residual).relu(), **tolerance)

    check()
    pack(conv)
    assert isinstance(conv, FastConv2d)
    assert conv.packed is not None
    check()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    check()


def test_a_packed_net_is_the_net() -> None:
    torch.manual_seed(0)
    net = build_backbone("resnet50", norm="frozen")
    x = last(torch.randn(1, 3, 128, 160))
    with torch.no_grad():
        expected = net.forward_stages(x, ["conv2", "conv4", "conv5"])
        fold_batch_norm(net)
        pack(net)
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            stage.own_inputs()
        found = net.forward_stages(x, ["conv2", "conv4", "conv5"])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4 * float(value.abs().max()), rtol=1e-4)


def test_training_is_torchs_bit_for_bit_unless_winograd_is_asked_for() -> None:
    torch.manual_seed(0)
    conv, x = nn.Conv2d(128, 128, 3, padding=1), last(torch.randn(2, 128, 33, 40))
    plain = nn.Conv2d.forward(conv, x)
    assert torch.equal(convolve(conv, x, conv.weight, conv.bias), plain)
    train_by_winograd(conv)
    found = conv(x)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert set(conv.state_dict()) == {"weight", "bias"}
    found.sum().backward()
    assert conv.weight.grad is not None


def test_one_thread_changes_no_gradient() -> None:
    conv, x = nn.Conv2d(128, 160, 1, stride=2), last(torch.randn(1, 128, 9, 10))
    assert convolution._dilation(conv, x) == ((2, 2) if torch.get_num_threads() == 1 else (1, 1))
    exact = torch.autograd.grad(conv(x).square().sum(), list(conv.parameters()))
    train_by_winograd(conv)
    found = torch.autograd.grad(convolve(conv, x, conv.weight, conv.bias).square().sum(), list(conv.parameters()))
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
