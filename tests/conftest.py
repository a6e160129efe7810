"""What all tests share: the checkout on sys.path, one thread, real data where DATA_DIR names it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Before torch is imported: two test processes on two cores must not fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
from hypothesis import settings

# Shared machines are slow at times; examples are the same each time, so that a failure can be had again.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A script that sets up logging (`serve.py` speaks at INFO) does so for its own test alone."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; the test is skipped where there is none."""
    value = os.environ.get("DATA_DIR")
    if not value or not Path(value).is_dir():
        pytest.skip("DATA_DIR does not name a folder with real data")
    return Path(value)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def graphs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """`Graphs` record and replay on the CPU; the list has an item for each capture."""
    from backbones import compilation
    from tests.replay import record

    captures: list[object] = []

    def capture(function, pool):
        captures.append(function)
        return record(function, pool)

    monkeypatch.setattr(compilation, "_capture", capture)
    monkeypatch.setattr(compilation, "_capturable", lambda inputs: True)
    monkeypatch.setattr(compilation.Graphs, "_shared_pool", lambda self: None)
    return captures
