"""Batches come in the order of their keys from any number of workers; errors stay readable."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import traceback

import cv2
import pytest
import torch

from configs.errors import UserError
from datasets import loader
from datasets.loader import make_loader, usable_cpus


class _Squares:
    """The square of a key; some keys have none."""

    def __getitem__(self, key: int) -> int:
        if key < 0:
            raise UserError(f"{key}.png: cannot be decoded")
        return key * key


class _Shared(_Squares):
    def __reduce__(self):
        raise AssertionError("is copied")


class _Workers:
    """What a worker is like."""

    def __getitem__(self, key: int) -> tuple[int, int, bool]:
        return os.getpid(), cv2.getNumThreads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


class _Fatal:
    def __getitem__(self, key: int) -> int:
        if key == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        return key


KEYS = [[1, 2], [3], [4, 5]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_keys_again_and_again(workers: int) -> None:
    loader = make_loader(_Squares(), KEYS, tuple, num_workers=workers)
    assert list(loader) == list(loader) == [(1, 4), (9,), (16, 25)]
    assert len(loader) == 3


def test_keys_may_have_no_end() -> None:
    loader = make_loader(_Squares(), ([k] for k in itertools.count(3)), tuple, num_workers=0)
    assert list(itertools.islice(loader, 2)) == [(9,), (16,)]
    with pytest.raises(TypeError, match="no end"):
        len(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_samples_error_arrives_as_it_was_raised(workers: int) -> None:
    iterator = iter(make_loader(_Squares(), [[1, 2], [3, -4, -5], [6]], tuple, num_workers=workers))
    assert next(iterator) == (1, 4)
    with pytest.raises(UserError) as error:
        next(iterator)
    assert type(error.value) is UserError
    assert str(error.value) == "-4.png: cannot be decoded"
    frames = [frame for frame, _ in traceback.walk_tb(error.value.__traceback__)]
    held = [value for frame in frames if frame.f_code.co_name == "__iter__" for value in frame.f_locals.values()]
    assert held  # by the loader
    assert error.value not in held, "such a cycle lets the workers linger for five seconds"


def test_a_worker_that_the_system_ends_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^data\.num_workers: .*Killed.*fewer workers") as error:
        list(make_loader(_Fatal(), KEYS, tuple, num_workers=1))
    assert isinstance(error.value, RuntimeError)
    assert "\n" not in str(error.value)


def test_workers_are_no_more_than_processors_with_one_thread_each(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    items = [item for batch in make_loader(_Workers(), [[k] for k in range(6)], tuple, num_workers=4) for item in batch]
    ((pid, threads, ignores),) = set(items)
    assert pid != os.getpid()
    assert threads == 1
    assert ignores
    before = signal.getsignal(signal.SIGINT), cv2.getNumThreads()
    ((pid, threads, _),) = next(iter(make_loader(_Workers(), [[0]], tuple, num_workers=0)))
    assert pid == os.getpid()
    assert (signal.getsignal(signal.SIGINT), threads) == before


def test_processors_that_this_process_may_use(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert usable_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    assert usable_cpus() == 64


def test_too_few_open_files_are_one_line(monkeypatch):
    """Handing over would fail in a thread of the worker that tells nobody, and the training wait for ever."""
    numbers = [torch.ones(4)] * 4
    for free, fails in ((8, True), (9, False)):
        monkeypatch.setattr(loader, "_free_files", lambda free=free: free)
        batches = make_loader(numbers, [[0, 1], [2, 3]], torch.stack, num_workers=1)
        if fails:
            with pytest.raises(UserError, match=r"too many open files: .*ulimit -n 4096.*data.num_workers=0"):
                next(iter(batches))
        else:
            assert len(list(batches)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
def test_workers_share_the_set_with_this_process(monkeypatch):
    """Python 3.14 would start others, each with a copy of the set."""
    other = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", other)
    assert next(iter(make_loader(_Shared(), [[2, 3]], torch.tensor, num_workers=1))).tolist() == [4, 9]


def test_files_that_may_still_be_opened():
    free = loader._free_files()
    with open(__file__):
        assert loader._free_files() == free - 1


def test_too_little_shared_memory_is_one_line(tmp_path, monkeypatch):
    """As torch says it in a worker; its own attempt, in a thread there, would leave the training waiting for ever."""

    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    numbers = [torch.ones(1 << 18)] * 4
    batches = make_loader(numbers, [[0, 1], [2, 3]], torch.stack, num_workers=1)
    with pytest.raises(UserError, match=r"MB free, too little for the loader's batches of 2\.0 MB: .*--shm-size"):
        next(iter(batches))
