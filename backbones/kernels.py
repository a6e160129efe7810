"""Where the Triton kernels can be had: on CUDA, with Triton installed. Elsewhere other operators do the work."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch


def kernels_for(tensor: torch.Tensor, package: str) -> ModuleType | None:
    """`<package>.triton_kernels` for a tensor on CUDA where Triton is installed, else None."""
    return _kernels(package) if tensor.is_cuda else None


@functools.cache
def _kernels(package: str) -> ModuleType | None:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"{package}.triton_kernels")
