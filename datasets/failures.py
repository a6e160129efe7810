"""What happens when an image of a training cannot be read, or a process that reads images ends: `data.on_error`.

Nothing here depends on the number of workers or on what came before: what takes an image's place follows from its key.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from configs.common import OnError
from configs.errors import UserError, counted, printable_logger
from datasets.complaints import take_damage
from datasets.target import SampleKey

logger = printable_logger(__name__)

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before an image is read again under `retry`."""
CANDIDATES = 100
"""Images that are tried in the place of one; where none of so many can be read, the disk is gone."""
RESTARTS = 3
"""How often workers are started again, at most, for one batch."""


class WorkerLost(UserError, RuntimeError):
    """A loader's worker process was ended from outside, most often because memory ran out.

    Also a RuntimeError, as torch's own error is: a training loop that was asked to stop catches that.
    """


def has_ended(workers: Sequence[Any]) -> bool:
    """Whether one of some processes has ended; called where it seems so, and the system may know it a moment later."""
    if workers and all(worker.exitcode is None for worker in workers):
        time.sleep(0.2)
    return any(worker.exitcode is not None for worker in workers)


def worker_lost(workers: Iterable[Any]) -> WorkerLost:
    """What is known about the end of a worker, and what may be done.

    Args:
        workers: the loader's processes, `multiprocessing.Process`.
    """
    ended = [(worker.pid, worker.exitcode) for worker in workers if worker.exitcode is not None]
    reasons = [
        f"process {pid}: {signal.strsignal(-code) if code < 0 else f'exit code {code}'}" for pid, code in ended
    ] or ["unknown"]
    return WorkerLost(
        f"data.num_workers: a process that reads images was ended by the system ({', '.join(reasons)}). If memory ran "
        "out, set fewer workers or a smaller train.batch_size; in a container, raise its shared memory (docker run "
        "--shm-size); data.on_error=retry starts such processes again"
    )


class Read(NamedTuple):
    """A sample, and why other images could not be read in its place."""

    sample: Any
    faults: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    """What is said of images that were read but are damaged inside, in a worker process."""


@dataclass(frozen=True)
class Reading:
    """The data set's samples as `Read`; a UserError takes the place of a sample that cannot be read.

    If the worker raised it, DataLoader would raise it again with the worker's whole traceback as its message. This is
    the one place where a sample's error is known while the rest of its batch is not lost.
    """

    dataset: Any
    on_error: OnError = "stop"
    images: int | None = None
    """Number of images of the training set; None: samples are not replaced, for figures over other images would be
    other figures."""

    def __getitem__(self, key: Any) -> Read | UserError:
        try:
            read = Read(self._again(key) if self.on_error == "retry" else self.dataset[key])
        except UserError as error:
            read = error if self.images is None else self._unread(key, error)
        damage = take_damage()
        return read._replace(damage=damage) if damage and isinstance(read, Read) else read

    def _unread(self, key: Any, error: UserError) -> Read | UserError:
        """What takes the place of a sample of the training set that cannot be read."""
        if self.on_error == "skip":
            return self._instead(key, error)
        return UserError(f"{error} (data.on_error=skip passes over such images)")

    def _again(self, key: Any) -> Any:
        """The sample, tried again a few times: network drives come back."""
        for pause in PAUSES:
            try:
                return self.dataset[key]
            except UserError:
                time.sleep(pause)
        return self.dataset[key]

    def _instead(self, key: Any, error: UserError) -> Read | UserError:
        """The sample of the next image of the set that can be read."""
        assert self.images is not None
        for step in range(1, min(self.images, CANDIDATES)):
            try:
                return Read(self.dataset[moved(key, step, self.images)], (str(error),))
            except UserError:
                pass
        return UserError(
            f"{error}; nor can any of the {counted(min(self.images, CANDIDATES) - 1, 'image')} after it be read"
        )


def moved(key: Any, step: int, images: int) -> Any:
    """The key of the image `step` places on in a set, all else being equal; after the last comes the first."""
    if isinstance(key, int):
        return (key + step) % images
    if isinstance(key, SampleKey):
        return key._replace(index=(key.index + step) % images)
    epoch, index = key
    return epoch, (index + step) % images


class HandedKeys:
    """The keys of a loader's batches. It remembers those whose batches have not come, for workers that start again."""

    def __init__(self, keys: Iterable[list[Any]]) -> None:
        self._keys = keys
        self._rest = iter(keys)
        self._handed: deque[list[Any]] = deque()

    def begin(self) -> None:
        """Start with the first batch."""
        self._rest = iter(self._keys)
        self._handed.clear()

    def arrived(self) -> None:
        """The batch of the oldest key has come."""
        self._handed.popleft()

    def __iter__(self) -> Iterator[list[Any]]:
        again = list(self._handed)
        self._handed.clear()
        for key in chain(again, self._rest):
            self._handed.append(key)
            yield key


class Tally:
    """Counts the images that were replaced, and tells it: the 1st, 2nd, 4th, 8th, ..., and in the end."""

    def __init__(self) -> None:
        self.count = self._told = 0

    def add(self, faults: Iterable[str]) -> None:
        """Take note of some, each with its reason."""
        for fault in faults:
            self.count += 1
            if self.count >= 2 * self._told:
                self._tell(f"{fault}: another image takes its place (data.on_error=skip)")

    def close(self) -> None:
        """Tell the number if it was not the last thing told."""
        if self.count > self._told:
            self._tell("images could not be read, and others took their places (data.on_error=skip)")

    def _tell(self, words: str) -> None:
        self._told = self.count
        logger.warning("%s; %d so far", words, self.count)
