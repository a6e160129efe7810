"""What follows a convolution, in one pass over its output, in Triton: bias, residual and ReLU, and their gradient.

Imported only where Triton is installed (`backbones.kernels`). The oracle is `backbones.epilogue`'s composition of
torch's operators, with which the tests compare the kernels in Triton's interpreter.
"""

# Launches have options that a kernel's signature lacks, and Triton types its own functions as never returning.
# pyright: reportCallIssue=false
from __future__ import annotations

from typing import Any, Protocol

import triton
import triton.language as tl
from torch import Tensor

from backbones.kernels import launch

BLOCK = 2048
"""Elements of a program: 16 a thread, two loads of 16 bytes each in bf16."""


class Plan(Protocol):
    rows: Tensor
    scales: Tensor

    def owners(self, block: int) -> Tensor: ...


@triton.jit
def _bias_relu_kernel(
    x, bias, residual, output, total, inner, CHANNELS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """output = relu(x + bias [+ residual]), or no relu; the channel of element i is i // inner % CHANNELS, sums are
    float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    value = tl.load(x + at, mask=mask).to(tl.float32)
    value += tl.load(bias + at // inner % CHANNELS, mask=mask).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + at, mask=mask).to(tl.float32)
    if RELU:  # not `maximum`, which would turn NaN into 0 and hide it from the loss monitor
        value = tl.where(value < 0, 0.0, value)
    tl.store(output + at, value.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _sum_relu_backward_kernel(first, second, output, gradient, total, BLOCK: tl.constexpr):
    """gradient = first + second where output > 0, else 0."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    value = tl.load(first + at, mask=mask).to(tl.float32) + tl.load(second + at, mask=mask).to(tl.float32)
    passes = tl.load(output + at, mask=mask).to(tl.float32) <= 0
    tl.store(gradient + at, tl.where(passes, 0.0, value).to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def _spread_relu_backward_kernel(
    means, output, gradient, total, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr
):
    """gradient = means where output > 0, else 0; means (B, C) are the same for all PIXELS of a channels_last map."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    value = tl.load(means + at // (CHANNELS * PIXELS) * CHANNELS + at % CHANNELS, mask=mask)
    passes = tl.load(output + at, mask=mask).to(tl.float32) <= 0
    tl.store(gradient + at, tl.where(passes, 0.0, value).to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def _scale_kernel(sources, rows, owners, scales, output, like, BLOCK: tl.constexpr):
    """A run of a weight: output[offset + i] = source[i] * scales[first + i // inner]; `like` has the sources' dtype."""
    owner = tl.load(owners + tl.program_id(0) * 2).to(tl.int64)
    at = tl.load(owners + tl.program_id(0) * 2 + 1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.multiple_of(tl.load(sources + owner).to(like.dtype), 16)
    rows += owner * 4
    mask = at < tl.load(rows + 1).to(tl.int32)
    inner = tl.load(rows + 2).to(tl.int32)
    value = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
    value *= tl.load(scales + tl.load(rows + 3) + at // inner, mask=mask, other=0.0)
    tl.store(output + tl.load(rows) + at, value.to(output.dtype.element_ty), mask=mask)


def scale(sources: Tensor, like: Tensor, plan: Plan, output: Tensor) -> None:
    """Each source times its scales into its place of the memory that `output` begins (`backbones.scaling`).

    Args:
        sources: (T,) int64 addresses on the device, multiples of 16.
        like: one of them.
    """
    owners = plan.owners(BLOCK)
    _scale_kernel[(len(owners),)](sources, plan.rows, owners, plan.scales, output, like, BLOCK=BLOCK, num_warps=4)


def _kind(total: int, *maps: Tensor) -> tuple[Any, ...]:
    """What a kernel of maps of a size is compiled for, but its constants: see `launch`."""
    aligned = tuple([each.data_ptr() % 16 == 0 for each in maps])
    return maps[0].get_device(), maps[0].dtype, aligned, total % 16 == 0, total == 1, total >> 31


def bias_relu(x: Tensor, bias: Tensor, residual: Tensor | None, output: Tensor, *, relu: bool = True) -> None:
    """`backbones.epilogue.bias_relu`, or `add_bias`, into `output`; maps (B, C, H, W) of one dtype and dense layout."""
    if (total := x.numel()) == 0:
        return
    other = x if residual is None else residual
    shape = x.stride(1), x.shape[1], residual is not None, relu, BLOCK
    key = (*_kind(total, x, bias, other, output), bias.dtype, *shape)
    launch(_bias_relu_kernel, (-(-total // BLOCK), 1, 1), key, x, bias, other, output, total, *shape, num_warps=4)


def sum_relu_backward(first: Tensor, second: Tensor, output: Tensor, gradient: Tensor) -> None:
    """`backbones.epilogue.sum_relu_backward` into `gradient`; all of one dtype and dense layout."""
    if total := output.numel():
        key = _kind(total, first, second, output, gradient)
        grid = -(-total // BLOCK), 1, 1
        launch(_sum_relu_backward_kernel, grid, key, first, second, output, gradient, total, BLOCK, num_warps=4)


def spread_relu_backward(means: Tensor, output: Tensor, gradient: Tensor) -> None:
    """`backbones.epilogue.relu_backward` of means (B, C), one for all pixels, into `gradient`; channels_last maps."""
    if total := output.numel():
        shape = output.shape[1], output.shape[2] * output.shape[3], BLOCK
        key = (*_kind(total, means, output, gradient), *shape)
        grid = -(-total // BLOCK), 1, 1
        launch(_spread_relu_backward_kernel, grid, key, means, output, gradient, total, *shape, num_warps=4)
