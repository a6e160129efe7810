"""A convolution, the residual that is added to it and the ReLU behind both, as each device computes them fastest.

Of a module that is packed for inference on the CPU (`pack`), large 3x3 convolutions in float32 take Winograd's way
(`backbones.winograd`), and the other ones are one call of oneDNN, which adds the residual and cuts at zero before the
outputs leave the registers. In training the former are an option (`train_by_winograd`), for they round otherwise.
On CUDA, in 16 bits, cuDNN adds bias and residual and cuts at zero within the convolution, which then takes as long as
without them; only a bias alone is a pass of its own. (A stage: `backbones.fused`.) Elsewhere, and in compiled and
exported graphs, all are torch's operators.

Shapes: x (B, C, H, W), outputs (B, K, H', W').
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones import winograd
from backbones.epilogue import add_bias, bias_relu, relu_backward
from backbones.kernels import kernels_for

logger = logging.getLogger(__name__)
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation, groups."""

_POINTWISE = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
"""oneDNN's convolution with what follows it; torch.compile's own, without a public name."""


def convolve(
    conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, *,
    relu: bool = False, overwrite: bool = False,
) -> Tensor:  # fmt: skip
    """relu(convolution + residual), with neither, or with one of them.

    Args:
        conv: its stride, padding, dilation and groups count.
        x: the input.
        weight, bias: in the place of the module's own, as a batch norm folded into them makes them.
        residual: of the output's shape and dtype.
        relu: whether there is a ReLU.
        overwrite: the residual's memory may become the output's where no gradient is wanted. (Fresh memory for large
            maps costs the CPU as much as filling it.)
    """
    if bias is not None and (dtype := _fuses_on_cuda(conv, x, weight, residual)) is not None:
        geometry = cast(Geometry, (conv.stride, conv.padding, conv.dilation, conv.groups))
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
            return cast(Tensor, _OnCuda.apply(x, weight, bias, dtype, relu, geometry))
        return convolve_on_cuda(x.to(dtype), weight.to(dtype), bias, residual, geometry, relu=relu)
    fast = isinstance(conv, FastConv2d)
    packed = conv.packed if fast and not torch.is_grad_enabled() else None
    if fast and winograd.serves(conv, x, weight):
        if packed is None:
            output = winograd.convolve(x, weight, bias)
        else:
            output = packed.convolve(x, relu=relu and residual is None)
            relu = relu and residual is not None
    elif packed is not None and _fuses(conv, x, weight, residual):
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        after = "relu" if relu else None
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, after or "none", [], "")
        options = (weight, bias, *geometry, "add", 1.0, after, [], "")
        if overwrite:
            return torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, *options)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *options)
    elif not fast and weight is conv.weight and bias is conv.bias:
        output = conv(x)  # as a module, which may have hooks
    elif conv.padding_mode != "zeros":
        output = conv._conv_forward(x, weight, bias)
    else:
        dilation = _dilation(conv, x) if fast else conv.dilation
        output = F.conv2d(x, weight, bias, conv.stride, conv.padding, dilation, conv.groups)
    if residual is not None:
        output += residual
    return F.relu(output, inplace=True) if relu else output


def convolve_on_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, geometry: Geometry, *, relu: bool
) -> Tensor:
    """`convolve` on CUDA, where x and weight have one dtype, the bias any; no gradient.

    In float32, and where cuDNN cannot join a convolution with what follows it, a kernel of its own does that.
    """
    assert relu or residual is None
    stride, padding, dilation, groups = geometry
    joined = relu and groups == 1 and x.dtype != torch.float32 and x.is_cuda and torch.backends.cudnn.enabled
    if joined and x.dtype not in _refused:
        rounded = bias.to(x.dtype)
        try:
            if residual is None:
                return torch.cudnn_convolution_relu(x, weight, rounded, *geometry)
            return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, rounded, *geometry)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _refused[x.dtype] = " ".join(str(error).split())[:200]
            logger.warning("cuDNN joins no convolutions with their ReLU here, which costs time: %s", _refused[x.dtype])
    output = torch.convolution(x, weight, None, stride, padding, dilation, False, (0, 0), groups)
    return bias_relu(output, bias, residual, inplace=True) if relu else add_bias(output, bias)


_refused: dict[torch.dtype, str] = {}
"""The dtypes of which cuDNN has refused a convolution, and why."""


class _OnCuda(torch.autograd.Function):
    """`convolve_on_cuda` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, relu: bool, geometry: Geometry
    ) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        output = convolve_on_cuda(x, weight, bias, None, geometry, relu=relu)
        ctx.save_for_backward(x, weight, *([output] if relu else []))
        ctx.geometry = geometry
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: any
        x, weight, *output = ctx.saved_tensors
        if output:
            gradient = relu_backward(gradient, output[0])
        stride, padding, dilation, groups = ctx.geometry
        options = ([len(weight)], stride, padding, dilation, False, (0, 0), groups, list(ctx.needs_input_grad[:3]))
        return *torch.ops.aten.convolution_backward.default(gradient, x, weight, *options), None, None, None


def _fuses_on_cuda(conv: nn.Conv2d, x: Tensor, weight: Tensor, residual: Tensor | None) -> torch.dtype | None:
    """The dtype, of 16 bits, in which `convolve_on_cuda` can have it; None: it cannot."""
    if not x.is_cuda or type(x) is not Tensor or torch.compiler.is_compiling():
        return None
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else x.dtype
    fits = (
        dtype in (torch.bfloat16, torch.float16)
        and (autocast or weight.dtype == dtype)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and (residual is None or (residual.dtype == dtype and not torch.is_grad_enabled()))
        and kernels_for(x, "backbones.triton_kernels") is not None
    )
    return dtype if fits else None


def _dilation(conv: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """The convolution's, or where it means nothing the one with which torch is fastest."""
    if conv.kernel_size == (1, 1) and x.device.type == "cpu" and min(conv.in_channels, conv.out_channels) >= 128:
        # torch leaves 1x1 convolutions of few images on one thread to MKL; a dilation gives them to oneDNN.
        return (2, 2) if type(x) is Tensor and torch.get_num_threads() == 1 else conv.dilation
    return conv.dilation


def _fuses(conv: nn.Conv2d, x: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether oneDNN's operator can have it."""
    return (
        _POINTWISE is not None
        and x.device.type == "cpu"
        and type(x) is Tensor  # counts and exports look at tensors of their own
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        and x.dim() == 4
        and x.numel() > 0
        and (residual is None or residual.is_contiguous(memory_format=torch.channels_last))
        and conv.groups == 1  # of several the sum in bf16 is not there
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class FastConv2d(nn.Conv2d):
    """A convolution that takes the fastest way there is on the CPU; see `pack` and `train_by_winograd`."""

    packed: winograd.PackedWeights | None = None
    """The weights for inference."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H', W')."""
        return convolve(self, input, self.weight, self.bias)


def pack(module: nn.Module) -> None:
    """Make a module's convolutions fast for inference on the CPU, in place; their weights must not change after it.

    Those that Winograd's algorithm serves keep further 4 bytes for each of 4 times their weights, from their first use.
    """
    for conv in _made_fast(module):
        conv.packed = winograd.PackedWeights(conv.weight, conv.bias)


def train_by_winograd(module: nn.Module) -> None:
    """Make a module's convolutions fast on the CPU, in place, with their gradients, in float32.

    They round otherwise than torch's: a ReLU or a maximum near a tie goes the other way, and trained weights differ.
    """
    _made_fast(module)


def _made_fast(module: nn.Module) -> list[FastConv2d]:
    """The module's convolutions on the CPU, after they became fast ones."""
    found: list[FastConv2d] = []
    for conv in module.modules():
        if type(conv) in (nn.Conv2d, FastConv2d) and conv.weight.device.type == "cpu":
            conv.__class__ = FastConv2d  # parameters, hooks and references stay
            assert isinstance(conv, FastConv2d)
            found.append(conv)
    return found
