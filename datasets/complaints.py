"""What decoders complain of, and how a process says what it has to say of a file: once.

A loader's worker keeps what it would say of damaged images (`keep_damage`), and hands it over with its batches: another
worker may have met the same image, and only the process that started them knows. Imports no torch.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from configs.errors import printable_logger

logger = printable_logger(__name__)

_COMPLAINTS = re.compile(
    r"Corrupt JPEG|Premature end of JPEG|Invalid SOS|Inconsistent progression|libpng (?:error|warn)|\[ ?(?:ERROR|WARN)"
)
"""How lines of decoders on the error stream begin."""
_hearing = threading.Lock()


@contextmanager
def heard() -> Iterator[list[str]]:
    """What decoders complain of within the block: libjpeg and libpng tell it on the error stream only, without a name.

    What they call a warning is left out (profiles, tags). Within another such block, also one of another thread,
    nothing is heard: the outer block hears it. Nor is anything where the process has no error stream.
    """
    complaints: list[str] = []
    if not _hearing.acquire(blocking=False):
        yield complaints
        return
    try:
        before = None
        with suppress(OSError):  # closed
            before = os.dup(2)
        if before is None:
            yield complaints
            return
        ear = _ear(os.getpid())
        os.dup2(ear, 2)
        try:
            yield complaints
        finally:
            os.dup2(before, 2)
            os.close(before)
            if os.fstat(ear).st_size:
                lines = os.pread(ear, 1 << 16, 0).decode("utf-8", "replace").splitlines(keepends=True)
                os.ftruncate(ear, 0)
                os.lseek(ear, 0, os.SEEK_SET)
                others = [line for line in lines if line.strip() and not _COMPLAINTS.match(line)]
                os.write(2, "".join(others).encode("utf-8", "replace"))  # of another thread
                said = [line.rpartition("] global ")[2].strip() for line in lines if _COMPLAINTS.match(line)]
                complaints += [words for words in said if "warn" not in words.lower()]
    finally:
        _hearing.release()


@functools.lru_cache(maxsize=1)
def _ear(process: int) -> int:
    """A file in memory that stands in for the error stream; each process needs its own."""
    return os.memfd_create("decoders") if hasattr(os, "memfd_create") else os.dup(tempfile.TemporaryFile().fileno())


_told: set[str] = set()
_TELLABLE = 10_000
"""Texts that are remembered; a server may see any number."""
_kept: list[str] | None = None
"""What `note_damage` was given and has not said; None: it says it."""


def say_once(key: str, text: str) -> None:
    """Say it in this process once, for sets are listed more than once."""
    if key not in _told and len(_told) < _TELLABLE:
        _told.add(key)
        logger.warning("%s", text)


def note_damage(text: str) -> None:
    """Say that an image is damaged inside, once; or, after `keep_damage`, keep it."""
    if _kept is None:
        say_once(text, text)
    elif text not in _told and len(_told) < _TELLABLE:
        _told.add(text)
        _kept.append(text)


def keep_damage() -> None:
    """Let this process, a loader's worker, keep what it would say, for `take_damage`: another says it, once."""
    global _kept
    _kept = []


def take_damage() -> tuple[str, ...]:
    """What was kept since the last call."""
    taken = tuple(_kept or ())
    if taken:
        keep_damage()
    return taken
