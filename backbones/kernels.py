"""Where the Triton kernels can be had: on CUDA, with Triton installed. Elsewhere other operators do the work."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch


def kernels_for(tensor: torch.Tensor, module: str) -> ModuleType | None:
    """The module of Triton kernels of this name for a tensor on CUDA where Triton is installed, else None."""
    return _kernels(module) if tensor.is_cuda else None


@functools.cache
def _kernels(module: str) -> ModuleType | None:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(module)
