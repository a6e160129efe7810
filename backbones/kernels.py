"""What code for CUDA needs: the Triton kernels where Triton is installed (elsewhere other operators do the work), and
small tables on the device without a wait."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch


def kernels_for(tensor: torch.Tensor, module: str) -> ModuleType | None:
    """The module of Triton kernels of this name for a tensor on CUDA where Triton is installed, else None."""
    return _kernels(module) if tensor.is_cuda else None


def constant(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A table of Python numbers on a device; on CUDA kept from the first call on, and copied without a wait."""
    if device.type != "cuda":
        return torch.tensor(rows, dtype=dtype, device=device)
    if torch.cuda.is_current_stream_capturing():  # the graph copies anew, from the host's table, which is kept
        return _pinned(rows, dtype).to(device, non_blocking=True)
    with torch.inference_mode(False):  # what is made in inference mode could not take part in training afterwards
        return _kept(rows, dtype, device)


@functools.cache
def _pinned(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype).pin_memory()


@functools.cache
def _kept(rows: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _pinned(rows, dtype).to(device, non_blocking=True)


@functools.cache
def _kernels(module: str) -> ModuleType | None:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(module)
