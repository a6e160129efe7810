"""Loaders: `make_loader` starts the workers of all three stages, which make uint8 samples and collate them.

Which samples, and in which batches, is said in `detection_loader.py`, `classification.py` and `localisation_views.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from configs.common import OnError
from configs.errors import UserError
from datasets.batch import TensorBatch, map_tensors, tensors_of
from datasets.complaints import keep_damage, note_damage
from datasets.failures import RESTARTS, HandedKeys, Read, Reading, Tally, WorkerLost, has_ended, logger, worker_lost

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)


class ReadsItems(Protocol[Item]):
    """What a loader's workers read: a sample for each key; raises UserError where one cannot be read."""

    def __getitem__(self, key: Any, /) -> Item: ...


class Loader(Generic[T]):
    """Batches in the order of their keys, made by worker processes; iterating anew starts anew.

    Raises, while iterating:
        UserError: a sample cannot be read; the message is the one that the data set gave, from a worker as well.
        WorkerLost: the system ended a worker.
    """

    def __init__(self, start: Callable[[HandedKeys], DataLoader], keys: Iterable[list[Any]], restarts: int) -> None:
        """Args:
        start: makes the loader of torch for some keys.
        keys: of each batch.
        restarts: how often workers may be started again for the same batch.
        """
        self._start, self._all_keys, self._restarts = start, keys, restarts
        self._keys = HandedKeys(keys)
        self._batches = start(self._keys)

    def __iter__(self) -> Iterator[T]:
        self._keys.begin()
        tally, losses = Tally(), 0
        try:
            while True:
                try:
                    for batch, faults, damage in self._read():
                        losses = 0
                        tally.add(faults)
                        for text in damage:
                            note_damage(text)
                        if faults and isinstance(batch, TensorBatch):
                            batch = replace(batch, replaced=len(faults))
                        yield batch
                    return
                except WorkerLost as error:
                    losses += 1
                    if losses > self._restarts:
                        raise
                    logger.warning("%s: they start again at the same batch", error)
                    self._batches = self._start(self._keys)
        finally:
            tally.close()

    def _read(self) -> Iterator[tuple[T, tuple[str, ...], tuple[str, ...]]]:
        """Batches as long as the workers live, each as `_Loaded`."""
        # From its first iterator on, torch raises an error about a worker's end anywhere in this process, in the midst
        # of an update too. It also looks itself, while it waits for a batch.
        handler = signal.getsignal(signal.SIGCHLD)
        batches = iter(self._batches)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        try:
            for loaded in batches:
                if isinstance(loaded, UserError):
                    try:
                        raise loaded
                    finally:
                        # Error, traceback, this frame, error: such a cycle would be left to the garbage collector,
                        # which closes the workers' queues before their end is announced there: a wait of five seconds.
                        del loaded
                self._keys.arrived()
                yield loaded
        except (RuntimeError, OSError, EOFError) as error:
            # Of a worker that has ended, torch says so, or a batch that it still announced can no longer be fetched.
            workers = getattr(batches, "_workers", [])
            if not has_ended(workers):
                raise
            lost = worker_lost(workers)
            for worker in workers:
                worker.kill()  # else they would be waited for
            batches._shutdown_workers()  # type: ignore[attr-defined]  # else new workers, which inherit it, try to
            raise lost from error

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: they have no end.
        """
        if not isinstance(self._all_keys, Sized):
            raise TypeError("training batches have no end")
        return len(self._all_keys)


def make_loader(
    dataset: ReadsItems[Item],
    keys: Iterable[list[Any]],
    collate: Callable[[list[Item]], T],
    *,
    num_workers: int,
    on_error: OnError = "stop",
    images: int | None = None,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> Loader[T]:
    """The one way in which batches are loaded, whatever is trained or evaluated.

    What a batch holds must follow from its keys alone: then the number of workers changes nothing but the speed.
    Workers start with the first batch, keep two batches each ahead, stay for the next iteration, run one thread each,
    and leave Ctrl-C, which a terminal sends to them too, to their parent. The global random generators are neither used
    nor changed.

    Args:
        dataset: gives the sample of a key.
        keys: the keys of each batch, in order; may have no end.
        collate: samples -> batch; called in the worker, so it must be possible to pickle it, like the data set.
        num_workers: processes, at most; never more than this process may use CPUs. 0: this process reads the samples.
        on_error: `data.on_error`.
        images: of the training set, whose samples may be replaced; None: an evaluation's are not.
        pin_memory: batches lie in page-locked memory (for CUDA).
        multiprocessing_context: fork, spawn or forkserver; None: fork on Linux, so that workers share the set's arrays,
            which Python 3.14's own forkserver would copy to each; elsewhere the platform's.
    """
    workers = min(num_workers, usable_cpus())
    if multiprocessing_context is None and sys.platform == "linux":
        multiprocessing_context = "fork"

    def start(handed: HandedKeys) -> DataLoader:
        return DataLoader(
            Reading(dataset, on_error, images),  # type: ignore[arg-type]
            batch_sampler=handed,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_Collated(collate),
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            multiprocessing_context=multiprocessing_context if workers else None,
            generator=torch.Generator(),  # DataLoader draws a seed for its workers: not from the global state
        )

    return Loader(start, keys, 0 if on_error == "stop" else RESTARTS)


class _Loaded(NamedTuple):
    """What a worker hands over: a batch, why images in it were replaced, and which seem damaged."""

    batch: Any
    faults: tuple[str, ...]
    damage: tuple[str, ...]
    """What is said of images that are damaged inside."""


@dataclass(frozen=True)
class _Collated:
    """The batch of some samples, or the first error among them, which `Loader` raises."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Read | UserError]) -> _Loaded | UserError:
        read: list[Read] = []
        for item in items:
            if isinstance(item, UserError):
                return item
            read.append(item)
        batch = self.collate([item.sample for item in read])
        if get_worker_info() is not None:
            batch = _shared(batch)
            if isinstance(batch, UserError):
                return batch
        faults = tuple(fault for item in read for fault in item.faults)
        return _Loaded(batch, faults, tuple(text for item in read for text in item.damage))


def _shared(batch: Any) -> Any:
    """The batch in the memory that processes share, or the error that there is too little of it, or of open files.

    DataLoader would do the same in a thread of the worker, whose errors nobody sees: the training would wait for ever.
    """
    few_files = UserError(
        "too many open files: processes that read images hand over each tensor of a batch as one: raise the limit "
        "(ulimit -n 4096), or set data.num_workers=0"
    )
    try:
        shared = map_tensors(batch, Tensor.share_memory_)
        count = sum(1 for _ in tensors_of(shared))
        return few_files if _free_files() < count + _OTHER_FILES else shared  # that thread opens each once more
    except RuntimeError as error:
        if "Too many open files" in str(error):
            return few_files
        if "shared memory" not in str(error):
            raise
        size = sum(tensor.nbytes for tensor in tensors_of(batch))
        return UserError(
            f"{SHARED_MEMORY} has {_free_megabytes():.1f} MB free, too little for the loader's batches of "
            f"{size / 2**20:.1f} MB: in a container, docker run --shm-size=8g; else set data.num_workers=0"
        )


_OTHER_FILES = 8
"""Files that handing over takes besides one for each tensor: sockets on which they are asked for."""


def _free_files() -> int:
    """How many more files this process may open; a great number where the system does not tell."""
    try:
        from resource import RLIMIT_NOFILE, getrlimit

        return getrlimit(RLIMIT_NOFILE)[0] - len(os.listdir("/dev/fd"))
    except ImportError:  # Windows
        return 1_000_000
    except OSError as error:
        return 0 if error.errno == errno.EMFILE else 1_000_000


SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the memory that processes share."""


def _free_megabytes() -> float:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free / 2**20
    except OSError:
        return 0.0


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    keep_damage()
    # Ctrl-C reaches the whole process group: the training loop decides, and still needs its batches for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def usable_cpus() -> int:
    """Processors that this process may use; containers often show more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
