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


# ---------------------------------------------------------------------------------------------- on CUDA

GEOMETRIES = [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2)]
"""Stride, padding, dilation, groups."""


def of_geometry(stride: int, padding: int, dilation: int, groups: int) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3, stride, padding, dilation, groups)
    return conv, last(torch.randn(2, 16, 11, 14)).requires_grad_()


def geometry_of(conv: nn.Conv2d) -> convolution.Geometry:
    return conv.stride, conv.padding, conv.dilation, conv.groups  # pyright: ignore[reportReturnType]  # no text here


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_operator_of_cuda_with_its_gradient(geometry: tuple[int, ...], relu: bool) -> None:
    """On the CPU: all of it but cuDNN."""
    conv, x = of_geometry(*geometry)
    assert conv.bias is not None
    found = convolution._OnCuda.apply(x, conv.weight, conv.bias, torch.float32, relu, geometry_of(conv))
    expected = conv(x).relu() if relu else conv(x)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    inputs = [x, conv.weight, conv.bias]
    theirs = torch.autograd.grad(expected, inputs, gradient)
    for a, b in zip(torch.autograd.grad(found, inputs, gradient), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("own_kernels", [False, True], ids=["cudnn", "own"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_on_cuda_it_is_the_same(geometry, relu, own_kernels, monkeypatch) -> None:
    """Under autocast, beside float32 on the CPU; cuDNN joins convolution and ReLU, without a warning."""
    refused = {torch.bfloat16: "asked for"} if own_kernels else {}
    monkeypatch.setattr(convolution, "_refused", refused)
    conv, x = of_geometry(*geometry)
    expected = conv(x)
    gradient = torch.randn_like(expected)
    moved = copy.deepcopy(conv).cuda().to(memory_format=torch.channels_last)
    assert moved.bias is not None
    y = x.detach().cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        found = convolve(moved, y, moved.weight, moved.bias, relu=relu)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert len(refused) == own_kernels
    ours = torch.autograd.grad(found, [y, moved.weight, moved.bias], gradient.cuda().bfloat16())
    passes = found.cpu() > 0 if relu else torch.ones_like(expected)  # rounding turns a ReLU near zero
    theirs = torch.autograd.grad(expected, [x, *conv.parameters()], gradient * passes)
    for a, b in zip((found, *ours), (expected.relu() if relu else expected, *theirs), strict=True):
        assert a.dtype == (torch.bfloat16 if a is found else torch.float32)
        torch.testing.assert_close(a.float().cpu(), b, rtol=0.05, atol=0.02 * b.abs().max().item())


@pytest.mark.gpu
@torch.no_grad()
def test_on_cuda_a_residual_is_added_and_nan_stays() -> None:
    conv, x = of_geometry(1, 1, 1, 1)
    residual = last(torch.randn(2, 24, 11, 14))
    expected = convolve(conv, x, conv.weight, conv.bias, residual, relu=True)
    moved = copy.deepcopy(conv).cuda().bfloat16()
    y, other = x.detach().cuda().bfloat16(), residual.cuda().bfloat16()
    found = convolve(moved, y, moved.weight, moved.bias, other, relu=True)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.05, atol=0.05)
    y[0, 0, 5, 5] = float("nan")
    assert convolve(moved, y, moved.weight, moved.bias, other, relu=True).isnan().any()
