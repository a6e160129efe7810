"""One process or several (torchrun). Every function here also works in a single process, where it costs nothing."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from configs.errors import UserError, printable

Value = TypeVar("Value")
_hang_limit = 0.0
"""Seconds that a process waits for the others, at most; 0: there is no process group."""


@contextmanager
def processes(device: torch.device, hang_limit: float = 1800.0) -> Iterator[None]:
    """Joins the processes that torchrun started: tensors on a GPU go through NCCL, those of the host through gloo.

    A process that stays away from the others for so long prints the stack of its threads: there it hangs.

    Args:
        device: this process's.
        hang_limit: seconds after which processes that wait for one that does not answer end with an error; longer than
            the longest work that one process does alone, such as the figures of a large validation set.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    global _hang_limit
    _end_with_parent()
    try:
        _join(device, timedelta(seconds=hang_limit))
        _hang_limit = hang_limit
        if not is_main():
            logging.disable(logging.WARNING)  # process 0 has said it
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise UserError(
            f"another process has ended, or has not answered for {hang_limit:g} seconds (--hang-limit): its own "
            f"message says why ({' '.join(str(error).split())[:200]})"
        ) from error
    finally:
        _hang_limit = 0.0
        faulthandler.cancel_dump_traceback_later()
    gc.collect()  # a wrapped model is a cycle; if it outlives its group, the threads of the group end by abort at exit
    dist.destroy_process_group()  # not after an error, for the others may be waiting elsewhere: torchrun ends them


def _end_with_parent() -> None:
    """Have Linux end this process when torchrun ends, however that does: it would train on, beside its successor."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _join(device: torch.device, timeout: timedelta) -> None:
    """Make the process group; on GPUs NCCL notes what a collective that nobody ends was waiting for."""
    if device.type == "cuda":
        os.environ.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")  # its flight recorder
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    store, number, count = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(_agreed_prefix(store, number, count, timeout), store),
        rank=number,
        world_size=count,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )


def _agreed_prefix(store: Store, number: int, count: int, timeout: timedelta) -> str:
    """A word that just these processes share: a text that none of the earlier ones knew.

    torchrun hands the same store to the processes that it starts anew, in which the addresses of the earlier ones still
    are, and its number of the start may differ between machines. So process 0 invents a word, each of the others
    answers to it with one of its own, and who finds its own among those that process 0 repeats knows the word as new.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if number == 0:
        store.set("word", mine)
        answers = [store.get(f"{mine}/{other}").decode() for other in range(1, count)]
        store.set(f"{mine}/all", " ".join(answers))
        return mine
    while time.monotonic() < end:
        word = store.get("word").decode()
        store.set(f"{word}/{number}", mine)
        if store.check([f"{word}/all"]) and mine in store.get(f"{word}/all").decode().split():
            return word
        time.sleep(0.05)
    raise dist.DistStoreError("process 0 did not answer")


@contextmanager
def _meeting() -> Iterator[None]:
    """Within this context the process waits for the others; after it, they wait for this one."""
    faulthandler.cancel_dump_traceback_later()
    yield
    if _hang_limit:
        faulthandler.dump_traceback_later(_hang_limit)


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def say(*words: object) -> None:
    """Print, from one process only; control characters, which names from data may hold, are escaped."""
    if is_main():
        print(*(printable(str(word), sys.maxsize) for word in words), flush=True)


def all_gather(value: Value) -> list[Value]:
    """The values of all processes, by rank, on every process. Anything that pickle takes; on the host."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    with _meeting():
        dist.all_gather_object(gathered, value)
    return gathered


def any_process(flag: bool) -> bool:
    """Whether the flag is set on some process, so that all of them decide the same. Does not wait for the GPU."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(int(flag))
    with _meeting():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())


def reduce_max(tensor: Tensor) -> None:
    """Put the largest value of all processes in place, on the tensor's own device, without waiting for it."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def reduce_sum(tensor: Tensor) -> None:
    """Put the sum over all processes in place, on the tensor's own device, without waiting for it."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def on_main(action: Callable[[], Value]) -> Value:
    """What `action` returns on process 0, for all; its UserError is everybody's. The others wait.

    The value must be one that pickle takes.
    """
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None, None]
    if is_main():
        try:
            outcome[0] = action()
        except UserError as error:
            outcome[1] = str(error)
        except Exception as error:
            outcome[2] = error
    shared = [outcome[0], outcome[1], repr(outcome[2]) if outcome[2] is not None else None]
    with _meeting():
        dist.broadcast_object_list(shared, src=0)
    if shared[1] is not None:
        raise UserError(shared[1])
    if outcome[2] is not None:
        raise outcome[2]
    if shared[2] is not None:
        raise RuntimeError(f"process 0 failed: {shared[2]}")
    return shared[0]


def main_first(action: Callable[[], Value]) -> Value:
    """What `action` returns, on every process; process 0 goes first, for it may make files that the others find."""
    first: list[Value] = []
    on_main(lambda: first.append(action()))
    return first[0] if first else action()


class _Averaging(nn.parallel.DistributedDataParallel):
    """DistributedDataParallel that takes synchronised batch norm on the CPU too: this project's own can do it."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        if self.device_type != "cpu":
            super()._passing_sync_batchnorm_handle(module)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over all processes; in a single process the model itself."""
    if world_size() == 1:
        return model
    return _Averaging(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,  # statistics are each process's own until `average_statistics`
        gradient_as_bucket_view=True,
    )


def without_sync(model: nn.Module) -> AbstractContextManager:
    """A context in which backward passes of a model of `wrap` leave each process its own gradients."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
