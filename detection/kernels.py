"""Where the Triton kernels can be had: on CUDA, with Triton installed. Elsewhere other operators do the work."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch


def kernels_for(tensor: torch.Tensor) -> ModuleType | None:
    """`detection.triton_kernels` for a tensor on CUDA where Triton is installed, else None."""
    return _kernels() if tensor.is_cuda else None


@functools.cache
def _kernels() -> ModuleType | None:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return None
    from detection import triton_kernels

    return triton_kernels
