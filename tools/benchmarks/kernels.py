"""Each kernel beside its oracle, the CPU's operator, and beside torchvision's: differences, times, bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from backbones.kernels import why_no_kernels
from configs.errors import UserError
from tools.benchmarks.kernel_cases import KERNELS
from tools.benchmarks.timing import compare

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Relative to the largest value: two or three roundings of bf16."""
CALLS = 20
"""In sequence: the host's part of a launch must not show."""


def kernel_row(name: str, device: torch.device, *, tiny: bool = False) -> dict[str, Any]:
    """Differences, seconds a call and the bandwidth that they mean, in bytes/s and as a share of a copy's.

    Args:
        name: one of `KERNELS`.
        device: where it runs.
        tiny: measure at the small shapes too, for a test.

    Raises:
        UserError: the kernel does not compute what the oracle does, or cannot be used here; then no time is given.
    """
    if device.type == "cuda" and (reason := why_no_kernels()) is not None:
        raise UserError(f"{name}: no time, for Triton's kernels cannot be used: {reason}")
    small = KERNELS[name](device, True)
    on_cpu = [value.float().cpu() if value.is_floating_point() else value.cpu() for value in small.inputs]
    result = small.ours(*small.inputs)
    report: dict[str, Any] = {"difference_from_oracle": _difference(result, small.ours(*on_cpu))}
    check(name, report["difference_from_oracle"], result.dtype)
    kernel = small if tiny else KERNELS[name](device, False)
    report["difference_from_torchvision"] = _difference(kernel.ours(*kernel.inputs), kernel.theirs(*kernel.inputs))
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: kernel.ours(*kernel.inputs),
        "torchvision": lambda: kernel.theirs(*kernel.inputs),
    }
    report["seconds"] = compare(
        works,
        reference="torchvision",
        repetitions=2 if tiny else 5,
        warmup=1,
        device=device,
        calls=2 if tiny else CALLS,
    )
    clock = "device" if device.type == "cuda" else "wall"
    report["bytes"] = kernel.moved
    report["bandwidth"] = kernel.moved / report["seconds"]["ours"][clock]["median"]
    report["share_of_copy"] = report["bandwidth"] / copy_bandwidth(device, 1 << (16 if tiny else 29))
    return report


def check(name: str, difference: float, dtype: torch.dtype) -> None:
    """Refuse a kernel that differs from its oracle: whole numbers must be equal, others within `TOLERANCE`.

    Raises:
        UserError: it differs by more.
    """
    tolerance = TOLERANCE.get(dtype, 0.0)
    if not difference <= tolerance:
        raise UserError(
            f"{name}: no time, for it is off the CPU's operator by {difference:.3g} (allowed: {tolerance:g})"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; of whole numbers the share that differs."""
    ours, theirs = ours.cpu(), theirs.cpu()
    if not ours.is_floating_point():
        return (ours != theirs).float().mean().item()
    worst = (ours.float() - theirs.float()).abs().amax() / theirs.float().abs().amax().clamp(min=1e-9)
    return worst.item()


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s of a copy of `size` bytes on the device, reading and writing counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = compare(
        {"copy": lambda: target.copy_(source)}, reference=None, repetitions=5, warmup=1, device=device, calls=5
    )
    return 2 * size / found["copy"]["device" if device.type == "cuda" else "wall"]["median"]
