"""CUDA graphs on a CPU: operators are recorded with the tensors that they read and write, and run again on these.

As in a CUDA graph numbers are constants, memory is fixed, and nothing of Python runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = function(*args, **kwargs)
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        fresh = [x for x in written if x.untyped_storage().data_ptr() not in given]
        self.calls.append((function, args, kwargs, fresh))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, fresh in self.calls:
                result = function(*args, **kwargs)
                if fresh:
                    again = [x for x in tree_leaves(result) if isinstance(x, Tensor)][-len(fresh) :]
                    for place, value in zip(fresh, again, strict=True):
                        place.copy_(value)


def record(function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """In the place of `backbones.compilation._capture`. What it computes is thrown away: a capture runs nothing."""
    with _Recorder() as recorder:
        outputs = function()
    for x in tree_leaves(outputs):
        if isinstance(x, Tensor):
            x.detach().zero_()
    return recorder.replay, outputs
