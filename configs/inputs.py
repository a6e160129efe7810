"""Opening input files, and which of them a reading depended on, so that its result can be kept until one changes.

The readers' own functions (`configs.files`, `datasets.listing`, `datasets.images`) note what they look at while
somebody asks for it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

State = tuple[int, int, int, int]
"""Size, times of the last change of content and of attributes in nanoseconds, inode; zeros: there is no such file."""

ABSENT: State = (0, 0, 0, 0)

_noted: list[dict[str, State]] = []


@contextmanager
def noting() -> Iterator[dict[str, State]]:
    """What is read within the block: absolute path -> its state just before it was looked at first."""
    seen: dict[str, State] = {}
    _noted.append(seen)
    try:
        yield seen
    finally:
        _noted.remove(seen)


def note(path: str | Path) -> None:
    """Note a file that is about to be read, or a folder whose names are about to be looked at."""
    text = os.fspath(path)
    for seen in _noted:
        if text in seen:  # as the keys are: nothing to make absolute
            continue
        absolute = os.path.abspath(text)
        if absolute not in seen:
            seen[absolute] = state_of(absolute)


def note_place(path: str | Path) -> None:
    """Note that somebody is about to look whether there is such a file: its folder's names decide."""
    if _noted:
        note(os.path.dirname(path) or ".")


def state_of(path: str) -> State:
    """What tells, without reading it, whether a file or a folder's list of names was changed."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return ABSENT
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def digest_of(path: str) -> bytes:
    """32 bytes that tell a file's content, or a folder's names, from any other; zeros: there is no such file."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            names = sorted(os.fsencode(name) for name in os.listdir(path))
            return hashlib.sha256(b"\0".join([b"folder", *names])).digest()
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):
        return bytes(32)


_OWN_PIPES = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Where this process's own inputs are: what a shell writes for `<(...)`."""


def open_file(path: str | Path) -> BufferedReader:
    """The file, open to read bytes. What is no file is refused before it is opened: reading it might never end.

    Raises:
        OSError: as `open` does; or a pipe (other than this process's own), a socket or a device.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or os.fspath(path).startswith(_OWN_PIPES)):
        raise OSError(errno.EINVAL, "it is no file (a pipe, a socket or a device)", os.fspath(path))
    return open(path, "rb")
