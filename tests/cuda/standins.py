"""In the place of cuDNN, cuBLAS and Triton on the CUDA runtime whose kernels do nothing (`runtime.c`).

Convolutions and products give uninitialised memory of the shape, dtype and layout that the libraries give, after the
checks that they make; Triton kernels are counted, their arguments checked against their signatures. Everything else
is torch's own.
"""

from __future__ import annotations

import collections
import ctypes
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

KINDS = ("launches", "copies", "fills", "waits", "graphs")
"""Of `runtime.c`, in its order."""
calls: collections.Counter[str] = collections.Counter()
"""Of the libraries and of Triton, which the runtime does not see."""
_runtime = ctypes.CDLL(None)
INSTEAD_OF_A_GPU = hasattr(_runtime, "counted_calls")
"""Whether the runtime is there: what runs on it can run on a GPU too, and then counts nothing."""
_overrides = torch.library.Library("aten", "IMPL")


def counts() -> dict[str, int]:
    """What has been called so far; `all`: what a GPU would have been told to do."""
    found = {kind: _runtime.counted_calls(number) if INSTEAD_OF_A_GPU else 0 for number, kind in enumerate(KINDS)}
    found["libraries"] = sum(calls.values())
    found["all"] = sum(found[kind] for kind in ("launches", "copies", "fills", "graphs", "libraries"))
    return found


@contextmanager
def no_waits() -> Iterator[dict[str, int]]:
    """Inside, a wait of the host is an error; afterwards the dict holds what was called inside."""
    found: dict[str, int] = {}
    before = counts()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found.update({kind: value - before[kind] for kind, value in counts().items()})


def install() -> None:
    """Put the stand-ins in place, where there is no GPU."""
    if not INSTEAD_OF_A_GPU:
        return
    for name, function in {
        "cudnn_convolution": _convolution, "cudnn_convolution_relu": _convolution_relu,
        "cudnn_convolution_add_relu": _convolution_add_relu, "convolution_backward": _convolution_backward,
        "cudnn_batch_norm": _batch_norm, "cudnn_batch_norm_backward": _batch_norm_backward,
        "mm": _mm, "mm.out": _mm_out, "addmm": _addmm, "addmm.out": _addmm_out, "bmm": _bmm, "bmm.out": _bmm_out,
    }.items():  # fmt: skip
        _overrides.impl(name, function, "CUDA")
    from triton.runtime.jit import JITFunction

    JITFunction.run = _run_kernel


def _empty(shape: list[int], like: Tensor, layout: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """cuDNN's: channels_last if either is."""
    channels_last = torch.channels_last in (suggest_memory_format(x), suggest_memory_format(weight))
    return torch.channels_last if channels_last else torch.contiguous_format


def _same_dtype(*tensors: Tensor) -> None:
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise RuntimeError(f"dtypes differ: {[tensor.dtype for tensor in tensors]}")


def _convolution(
    x: Tensor, weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, *_: Any
) -> Tensor:
    _same_dtype(x, weight)
    calls["convolution"] += 1
    sides = zip(x.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True)
    size = [(n + 2 * pad - dilate * (k - 1) - 1) // step + 1 for n, k, pad, step, dilate in sides]
    return _empty([len(x), len(weight), *size], x, _layout(x, weight))


def _convolution_relu(
    x: Tensor, weight: Tensor, bias: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    _same_dtype(x, weight, bias)
    return _convolution(x, weight, padding, stride, dilation, groups)


def _convolution_add_relu(
    x: Tensor, weight: Tensor, residual: Tensor, alpha: float, bias: Tensor, *geometry: Any
) -> Tensor:
    output = _convolution_relu(x, weight, bias, *geometry)
    if residual.shape != output.shape or residual.dtype != output.dtype or residual.stride() != output.stride():
        raise RuntimeError(f"the residual is {residual.shape}, {residual.stride()}, the output {output.shape}")
    return output


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, wanted: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    _same_dtype(gradient, x, weight)
    layout = _layout(x, weight)
    if not gradient.is_contiguous(memory_format=layout):
        calls["copy of a gradient into another layout"] += 1
    calls["convolution_backward"] += wanted[0] + wanted[1]
    return (
        _empty(list(x.shape), x, layout) if wanted[0] else None,
        _empty(list(weight.shape), weight, layout) if wanted[1] else None,
        gradient.sum((0, 2, 3)) if wanted[2] else None,
    )


def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    calls["batch_norm"] += 1
    saved = torch.empty(x.shape[1] if training else 0, device=x.device)
    return torch.empty_like(x), saved, saved.clone(), torch.empty(0, dtype=torch.uint8, device=x.device)


def _batch_norm_backward(x: Tensor, gradient: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    calls["batch_norm_backward"] += 1
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _mm_out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))


def _mm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    _same_dtype(a, b, out)
    calls["mm"] += 1
    return out


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    _same_dtype(bias, a)
    return _mm(a, b)


def _addmm_out(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor) -> Tensor:
    _same_dtype(bias, a)
    return _mm_out(a, b, out=out)


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    return _bmm_out(a, b, out=a.new_empty(a.shape[0], a.shape[1], b.shape[2]))


def _bmm_out(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    _same_dtype(a, b, out)
    calls["bmm"] += 1
    return out


_OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion", "maxnreg"}


def _run_kernel(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """A launch: all tensors lie on the device, contiguous in some order, and no argument is missing or unknown."""
    named = {name: value for name, value in options.items() if name not in _OPTIONS}
    bound = inspect.signature(kernel.fn).bind(*arguments, **named)
    for name, value in bound.arguments.items():
        if isinstance(value, Tensor) and not value.is_cuda:
            raise RuntimeError(f"{kernel.fn.__name__}: {name} lies on {value.device}")
    assert all(isinstance(side, int) and side > 0 for side in grid), (kernel.fn.__name__, grid)
    calls[kernel.fn.__name__] += 1
