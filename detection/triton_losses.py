"""The losses of a sample with their gradients, in Triton: one kernel each in the place of twenty.

Imported only where Triton is installed (`backbones.kernels`); the oracles are `detection.losses`, with which the tests
compare these in Triton's interpreter. Sums are made by torch, in a fixed order.
"""

# Launches have options that a kernel's signature lacks, and constants are given as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256


@triton.jit
def _objectness_kernel(logits, positive, valid, count, losses, gradient, total, BLOCK: tl.constexpr):
    """Binary cross-entropy of valid anchors / count."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < total
    x = tl.load(logits + at, mask=here, other=0.0)
    target = (tl.load(positive + at, mask=here, other=0) != 0).to(tl.float32)
    counts = tl.load(valid + at, mask=here, other=0) != 0
    power = tl.exp(-tl.abs(x))
    log = tl.where(power < 1e-4, power - 0.5 * power * power, tl.log(1.0 + power))  # of 1 + power
    loss = tl.where(x > 0, x, 0.0) - x * target + log
    slope = tl.where(x >= 0, 1.0, power) / (1.0 + power) - target
    number = tl.load(count)
    tl.store(losses + at, tl.where(counts, loss / number, 0.0), mask=here)
    tl.store(gradient + at, tl.where(counts, slope / number, 0.0), mask=here)


@triton.jit
def _classification_kernel(
    logits, labels, valid, count, losses, gradient, classes, BLOCK: tl.constexpr
):  # fmt: skip
    """Cross-entropy of a valid RoI / count; a program each."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    here = at < classes
    x = tl.load(logits + row * classes + at, mask=here, other=float("-inf"))
    counts = tl.load(valid + row) != 0
    own = at == tl.load(labels + row)
    number = tl.load(count)
    power = tl.exp(x - tl.max(x, axis=0))
    total = tl.sum(power, axis=0)
    loss = tl.log(total) + tl.max(x, axis=0) - tl.sum(tl.where(own, x, 0.0), axis=0)
    slope = power / total - own.to(tl.float32)
    tl.store(losses + row, tl.where(counts, loss / number, 0.0))
    tl.store(gradient + row * classes + at, tl.where(counts, slope / number, 0.0), mask=here)


@triton.jit
def _box_kernel(deltas, targets, positive, count, losses, gradient, total, beta, BLOCK: tl.constexpr):
    """Smooth L1 of positives / count, number by number."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < total
    difference = tl.load(deltas + at, mask=here, other=0.0) - tl.load(targets + at, mask=here, other=0.0)
    counts = tl.load(positive + at // 4, mask=here, other=0) != 0
    size = tl.abs(difference)
    near = size < beta
    side = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))  # NaN stays NaN
    width = tl.where(beta > 0, beta, 1.0)
    loss = tl.where(near, 0.5 * difference * difference / width, size - 0.5 * beta)
    slope = tl.where(near, difference / width, side)
    number = tl.load(count)
    tl.store(losses + at, tl.where(counts, loss / number, 0.0), mask=here)
    tl.store(gradient + at, tl.where(counts, slope / number, 0.0), mask=here)


class _Loss(torch.autograd.Function):
    """The sum of a kernel's losses; the gradient was made with them."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, kernel: Any, *arguments: Any) -> Tensor:
        losses, gradient = kernel(predicted.contiguous(), *arguments)
        ctx.save_for_backward(gradient)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: any
        (gradient,) = ctx.saved_tensors
        return gradient * factor, *[None] * (len(ctx.needs_input_grad) - 1)


def loss(kernel: Any, predicted: Tensor, *arguments: Any) -> Tensor:
    """() the sum of `objectness`, `classification` or `box`, with its gradient."""
    return cast(Tensor, _Loss.apply(predicted, kernel, *arguments))


def objectness(logits: Tensor, positive: Tensor, valid: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of `detection.losses.objectness_loss` (B, S), and the gradient of their sum by the logits."""
    losses, gradient = torch.empty_like(logits), torch.empty_like(logits)
    if total := logits.numel():
        _objectness_kernel[(triton.cdiv(total, BLOCK),)](
            logits, _bytes(positive), _bytes(valid), count, losses, gradient, total, BLOCK=BLOCK
        )
    return losses, gradient


def classification(logits: Tensor, labels: Tensor, valid: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The parts of `detection.losses.classification_loss` (R,), and the gradient of their sum by the logits."""
    rows, classes = logits.shape
    losses, gradient = torch.empty(rows, device=logits.device), torch.empty_like(logits)
    if rows:
        _classification_kernel[(rows,)](
            logits, labels.contiguous(), _bytes(valid), count, losses, gradient, classes,
            BLOCK=triton.next_power_of_2(classes),
        )  # fmt: skip
    return losses, gradient


def box(deltas: Tensor, targets: Tensor, positive: Tensor, count: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The parts of `detection.losses.box_loss` (..., 4), and the gradient of their sum by the deltas."""
    losses, gradient = torch.empty_like(deltas), torch.empty_like(deltas)
    if total := deltas.numel():
        _box_kernel[(triton.cdiv(total, BLOCK),)](
            deltas, targets.contiguous(), _bytes(positive), count, losses, gradient, total, float(beta), BLOCK=BLOCK
        )
    return losses, gradient


def _bytes(mask: Tensor) -> Tensor:
    return mask.contiguous().view(torch.uint8)
