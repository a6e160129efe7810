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
        self.own: set[int] = set()
        """Storages that were made while recording."""
        self.before: dict[int, tuple[Tensor, torch.UntypedStorage]] = {}
        """Storage of others -> a tensor in it, and the values that it had."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = set()
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                given.add(place := x.untyped_storage().data_ptr())
                if place not in self.own and place not in self.before:
                    self.before[place] = (x, x.untyped_storage().clone())
        result = function(*args, **kwargs)
        written = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        fresh = [x for x in written if x.untyped_storage().data_ptr() not in given]
        self.own.update(x.untyped_storage().data_ptr() for x in fresh)
        self.calls.append((function, args, kwargs, fresh))
        return result

    def undo(self) -> None:
        """A capture runs nothing: what it would have written is as before."""
        for x, values in self.before.values():
            x.untyped_storage().copy_(values)

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, fresh in self.calls:
                result = function(*args, **kwargs)
                if fresh:
                    again = [x for x in tree_leaves(result) if isinstance(x, Tensor)][-len(fresh) :]
                    for place, value in zip(fresh, again, strict=True):
                        place.copy_(value)


def record(function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """In the place of `backbones.compilation._capture`."""
    random = torch.get_rng_state()
    with _Recorder() as recorder:
        outputs = function()
    recorder.undo()
    torch.set_rng_state(random)
    for x in tree_leaves(outputs):
        if isinstance(x, Tensor):
            x.detach().zero_()
    return recorder.replay, outputs
