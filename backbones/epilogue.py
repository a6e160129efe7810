"""What follows a convolution whose batch norm is constant, in one pass over its output: bias, residual and ReLU.

torch runs the convolution, an addition of the bias, an addition of the residual and a ReLU as kernels of their own,
each of which reads and writes the whole map. A Triton kernel does it in one pass on CUDA; elsewhere it is torch's
operators.

Shapes: maps (B, C, H, W), bias (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.kernels import kernels_for


def bias_relu(x: Tensor, bias: Tensor, residual: Tensor | None = None, *, inplace: bool = False) -> Tensor:
    """relu(x + bias [+ residual]) in the dtype and layout of x; no gradient.

    Args:
        x: dense (contiguous or channels_last).
        bias: of any dtype; sums are float32 on CUDA.
        residual: of x's shape.
        inplace: over x itself.
    """
    if residual is not None:
        residual = _laid_out_as(residual, x)
    if kernels := kernels_for(x, "backbones.triton_kernels"):
        output = x if inplace else torch.empty_like(x)
        kernels.bias_relu(x, bias, residual, output)
        return output
    column = bias.to(x.dtype)[:, None, None]
    output = x.add_(column) if inplace else x + column
    if residual is not None:
        output += residual
    return output.relu_()


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """x + bias, over x itself; see `bias_relu`. torch's own addition reaches a quarter of a GPU's bandwidth."""
    if kernels := kernels_for(x, "backbones.triton_kernels"):
        kernels.bias_relu(x, bias, None, x, relu=False)
        return x
    return x.add_(bias.to(x.dtype)[:, None, None])


def relu_backward(gradient: Tensor, output: Tensor, *, inplace: bool = False) -> Tensor:
    """The gradient of relu's input from that of its output, the map `output` itself; `inplace`: over `gradient`.

    A gradient expanded from one number for all pixels of a map is not written out first.
    """
    same = gradient.stride()[2:] == (0, 0)
    if same and output.stride(1) == 1 and (kernels := kernels_for(output, "backbones.triton_kernels")):
        masked = torch.empty_like(output)
        kernels.spread_relu_backward(gradient[:, :, 0, 0].contiguous(), output, masked)
        return masked
    laid = _laid_out_as(gradient, output)
    if inplace or laid is not gradient:
        return torch.ops.aten.threshold_backward.grad_input(laid, output, 0, grad_input=laid)
    return torch.ops.aten.threshold_backward.default(laid, output, 0)


def sum_relu_backward(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
    """The same from a gradient that comes along two ways: `first` + `second`; over `first`."""
    first, second = _laid_out_as(first, output), _laid_out_as(second, output)
    if kernels := kernels_for(output, "backbones.triton_kernels"):
        kernels.sum_relu_backward(first, second, output, first)
        return first
    return relu_backward(first.add_(second), output, inplace=True)


def _laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """x itself where it lies in memory as `like` does, else a copy that does."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)
