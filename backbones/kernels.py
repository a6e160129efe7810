"""What code for CUDA needs: the Triton kernels where Triton works (elsewhere other operators do the work), and
small tables on the device without a wait."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import subprocess
from types import ModuleType
from typing import Any

import torch

logger = logging.getLogger(__name__)


def kernels_for(tensor: torch.Tensor, module: str) -> ModuleType | None:
    """The module of Triton kernels of this name for a tensor on CUDA where Triton works, else None."""
    return _kernels(module) if tensor.is_cuda else None


@functools.cache
def why_no_kernels() -> str | None:
    """Why Triton's kernels cannot be used on this machine; None: they can. Said once, for what replaces them is slow.

    One is tried: at the first launch Triton builds a part of itself with the machine's C compiler.
    """
    reason = None
    if torch.version.hip is not None:
        reason = "they are for CUDA"
    elif importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    else:
        try:
            _try_one()
        except subprocess.CalledProcessError as error:
            reason = f"{error.cmd[0]} cannot build Triton's launcher, which needs Python's headers (python3-dev)"
        except Exception as error:  # no C compiler, a driver that is too old: whatever Triton raises
            reason = " ".join(str(error).split())[:200] or type(error).__name__
    if reason is not None:
        logger.warning("Triton's kernels are not used, and slower operators do their work: %s", reason)
    return reason


def _try_one() -> None:
    """Compile and launch a small kernel; nothing waits for it."""
    x = torch.zeros(1, 1, 1, 1, device="cuda")
    importlib.import_module("backbones.triton_kernels").bias_relu(x, x[0, 0, 0], None, x)


_ready: dict[tuple[Any, ...], Any] = {}


def launch(kernel: Any, grid: tuple[int, int, int], key: tuple[Any, ...], *arguments: Any, **options: Any) -> None:
    """Launches a Triton kernel that a step launches a hundred times, without Triton's own look-up of what it compiled
    for such arguments, which takes the host as long as several of torch's operators.

    Args:
        kernel: compiled at the first launch.
        grid: the programs along three axes.
        key: what it was compiled for: dtypes, alignments, the constants, and whether sizes are 1, multiples of 16 or
            larger than 32 bits hold.
        arguments: all of them, constants too, in the order of its signature.
        options: of the compilation.
    """
    key = (kernel, *key)
    if (ready := _ready.get(key)) is not None:
        ready[grid](*arguments)
    elif (compiled := kernel[grid](*arguments, **options)) is not None:  # Triton's interpreter compiles nothing
        _ready[key] = compiled


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


_of_graphs: list[torch.Tensor] = []


def on_device(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A table that the host has just made, on a device; on CUDA copied without a wait. Where a graph is captured, the
    host's is kept for good: each launch copies it anew."""
    if device.type != "cuda":
        return table.to(device)
    pinned = table.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _of_graphs.append(pinned)
    return pinned.to(device, non_blocking=True)


@functools.cache
def _kernels(module: str) -> ModuleType | None:
    return importlib.import_module(module) if why_no_kernels() is None else None
