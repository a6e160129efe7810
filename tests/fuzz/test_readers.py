"""Mutated files of each format: read, or refused in one printable line, within seconds, and never silently changed.

Mutations of each format run with the other tests, thousands with those marked slow (COUNT of them, others for another
SEED). A case is a pure function of its format and number, which a failure names; `run_case(format, number, folder)`
repeats it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.errors import MESSAGE_LIMIT, UserError
from tests.fuzz.formats import FORMATS, make_folder

COUNT = int(os.environ.get("COUNT", "10000"))
FIRST = int(os.environ.get("SEED", "0")) * 1_000_000
"""The number of the first case; another seed has other cases."""
SECONDS = 10.0
"""Of CPU time; no case may take longer."""
MEMORY = 2 << 30
"""Bytes, at most, that the process grows by."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def run_case(name: str, number: int, folder: Path) -> bool:
    """Whether the mutated file was read; a refusal must be one printable line, and either must come soon."""
    start, before = time.process_time(), _resident("VmRSS")
    measured = _forget_peak()
    try:
        with _ended_after(2 * SECONDS):
            FORMATS[name](folder, random.Random(f"{name} {number}"))
        read = True
    except UserError as error:
        message, read = " ".join(str(error).split()), False
        assert message.isprintable(), f"{name} {number}: control characters: {message!r}"
        assert 0 < len(message) < MESSAGE_LIMIT + 100, f"{name} {number}: {len(message)} characters"
    except Exception as error:
        raise AssertionError(f"{name} case {number}: {type(error).__name__} in place of one line") from error
    taken = time.process_time() - start
    assert taken < SECONDS, f"{name} case {number}: {taken:.1f} s"
    grown = _resident("VmHWM") - before if measured else 0
    assert grown < MEMORY, f"{name} case {number}: {grown >> 20} MiB"
    return read


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within a block that takes more CPU time, so that what would never end is named."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"after {seconds:.0f} s")

    previous = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _forget_peak() -> bool:
    """Whether the process's peak of memory counts from here on; some containers do not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(which: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))


@pytest.mark.parametrize("name", FORMATS)
def test_mutated_files_are_read_or_refused_in_one_line(name: str, folder: Path) -> None:
    read = [run_case(name, number, folder) for number in range(FIRST, FIRST + 100)]
    assert 0 < sum(read) < len(read)  # the mutations are neither harmless nor all fatal


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_mutated_files(name: str, folder: Path) -> None:
    for number in range(FIRST + 100, FIRST + COUNT):
        run_case(name, number, folder)
