"""The least time that a piece of code could take: of each operator the larger of arithmetic and memory traffic.

Only operators that do arithmetic (convolutions, matrix products) are counted; everything else is taken to be fused into
them. Two constants describe the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PEAK_FLOPS = 788e12
"""bf16 matrix product, H200, measured by others; FLOP/s."""
PEAK_BYTES = 4.3e12
"""Copy from device to device, reading and writing counted, H200, measured by others; bytes/s."""


class _Roofline(TorchDispatchMode):
    def __init__(self, flops: float, bandwidth: float, itemsize: int) -> None:
        super().__init__()
        self.flops, self.bandwidth, self.itemsize = flops, bandwidth, itemsize
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            elements = sum(leaf.numel() for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            arithmetic = formula(*args, **kwargs, out_val=result) / self.flops
            self.seconds += max(arithmetic, elements * self.itemsize / self.bandwidth)
        return result


def roofline_seconds(
    work: Callable[[], object], flops: float = PEAK_FLOPS, bandwidth: float = PEAK_BYTES, itemsize: int = 2
) -> float:
    """Seconds of one call of `work` at best; values of `itemsize` bytes. Fake tensors will do."""
    with _Roofline(flops, bandwidth, itemsize) as mode:
        work()
    return mode.seconds
