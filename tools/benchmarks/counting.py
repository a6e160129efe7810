"""Kernel launches, host syncs and FLOPs of a piece of code, counted on the CPU: GPU speed that needs no GPU to test.

What is counted, at the level of the operators that reach a device:

- a launch: every operator but views and other changes of metadata (`view`, `expand`, `detach`), and bare allocations
  (`empty`). A custom operator counts as one, whatever it does inside.
- a sync: the host waits for the device. Values read (`item`, `tolist`, `if tensor`), copies to the host (`cpu`),
  outputs whose size the data decide (`nonzero`, boolean indexing, `unique`, torchvision's `nms`), and tensors made from
  Python numbers (`torch.tensor`), which are copies from pageable memory.
- FLOPs: two for each multiply-add of convolutions and matrix products, by torch's own formulas.

On fake tensors (`torch._subclasses.FakeTensorMode`) nothing is computed, so that true shapes cost milliseconds; there a
sync is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
METADATA = {"is_same_size", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "device", "set_", "resize_"}
READS = {"_local_scalar_dense", "equal", "is_nonzero"}
SIZED_BY_DATA = {
    "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "bincount", "nms",
}  # fmt: skip
HOST_COPIES = {"cpu", "numpy", "tolist"}


@dataclass
class Counts:
    """What a piece of code asks of a device."""

    launches: int = 0
    syncs: int = 0
    flops: int | None = None
    """None: not counted."""
    operators: Counter[str] = field(default_factory=Counter)
    """Launches by operator."""
    sync_sources: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, int]:
        flops = {} if self.flops is None else {"flops": self.flops}
        return {"launches": self.launches, "syncs": self.syncs, **flops}


def _is_view(operator: torch._ops.OpOverload) -> bool:
    """Whether the output shares the memory of an input that is not written."""
    return any(value.alias_info is not None and not value.alias_info.is_write for value in operator._schema.returns)


def _indexes_by_mask(operator: torch._ops.OpOverload, args: tuple) -> bool:
    if operator._schema.name not in ("aten::index", "aten::index_put", "aten::index_put_"):
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _Operators(TorchDispatchMode):
    """Sees each operator on its way to the device."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        namespace, name = func._schema.name.split("::")
        counts = self.counts
        if name in READS or (name in SIZED_BY_DATA and (namespace, name) != ("detection", "nms")):
            counts.syncs += 1
            counts.sync_sources[name] += 1
        elif _indexes_by_mask(func, args):
            counts.syncs += 1
            counts.sync_sources["boolean indexing"] += 1
        elsewhere = name in ALLOCATIONS | METADATA | READS or namespace in ("profiler", "prim")
        if not elsewhere and not _is_view(func):
            counts.launches += 1
            counts.operators[f"{namespace}::{name}"] += 1
        return func(*args, **(kwargs or {}))


class _HostCopies(TorchFunctionMode):
    """Sees copies between host and device, which on the CPU do not reach the device at all."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.on_host: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if func is torch.tensor or (name in HOST_COPIES and not any(args[0] is tensor for tensor in self.on_host)):
            self.counts.syncs += 1
            self.counts.sync_sources[name] += 1
        if name in ("cpu", "detach") and (name == "cpu" or any(args[0] is tensor for tensor in self.on_host)):
            self.on_host.append(result)
        return result


def count(work: Callable[[], object]) -> Counts:
    """The counts of one call of `work`, forward and backward.

    The first call builds what is kept for later (anchors, frozen batch norm's constants): call it once before.
    """
    counts = Counts()
    flops = FlopCounterMode(display=False)
    with flops, _HostCopies(counts), _Operators(counts):
        work()
    counts.flops = flops.get_total_flops()
    return counts


def make_fake(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The same module, in place, with fake parameters and buffers: shapes and layouts without values."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach())
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = mode.from_tensor(value)
    return module
