"""Runs that are ended at any moment and go on: equal to the uninterrupted one bit for bit, and nothing left behind.

KILLS=60 SEED=1 pytest -m "" tests/tools/test_kills.py   # so many kills of each training, at other moments
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.disturbed import (
    Forks,
    Training,
    assert_equal_runs,
    assert_orderly,
    content,
    make_training,
    names,
)

SEED = int(os.environ.get("SEED", "0"))
KILLS = int(os.environ.get("KILLS", "20"))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(params=["detection", "classification", "localisation"])
def training(request, forks, tmp_path) -> Training:
    """Six steps, three validations, and a test."""
    return make_training(request, forks, tmp_path)


# ---------------------------------------------------------------------------------------------- SIGKILL


def kill_often(training: Training, out: Path, kills: int, rng: random.Random) -> None:
    """Kill a run so many times, at random seconds and random changes of files; then let it end."""
    number = runs = 0
    while number < kills:
        run = out / f"{runs}"
        while number < kills:
            if rng.random() < 0.5:
                moment: dict[str, Any] = {"after": rng.uniform(0.0, 1.2 * training.seconds)}
            else:
                moment = {"file_event": rng.randrange(training.events), "folder": str(run)}
            ending = training(run, "--resume", "auto", **moment)
            if ending.code == 0:  # it was faster
                break
            assert ending.code == -9, (moment, ending.output)
            assert_orderly(ending)
            number += 1
        ending = training(run, "--resume", "auto")
        assert ending.code == 0, ending.output
        assert_equal_runs(training.whole, run)
        runs += 1
        print(f"{training.script}: {number} kills in {runs} runs")


def test_killed_and_resumed_equals_undisturbed(training, tmp_path):
    (tmp_path / "runs").mkdir()
    kill_often(training, tmp_path / "runs", 2, random.Random(f"{SEED} {training.script}"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_many_times(training, tmp_path):
    (tmp_path / "runs").mkdir()
    kill_often(training, tmp_path / "runs", KILLS, random.Random(f"{SEED} many {training.script}"))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_before_each_change_of_a_file(training, tmp_path):
    """Opening, renaming, linking, removing: each state of the folder is one that a run goes on from."""
    for event in range(training.events):
        out = tmp_path / f"run_{event}"
        ending = training(out, "--resume", "auto", file_event=event, folder=str(out))
        assert ending.code == -9, (event, ending.output)
        ending = training(out, "--resume", "auto")
        assert ending.code == 0, (event, ending.output)
        assert_equal_runs(training.whole, out)


# ---------------------------------------------------------------------------------------------- signals that ask

STAGES = {
    "tools.train_det": {
        "data": ("tools.train_det", "build_datasets", 0),
        "model": ("tools.train_det", "make_detector", 0),
        "first batch": ("tools.runtime.loop", "_fetch", 0),
        "step": ("tools.runtime.loop", "_update", 2),
        "saving": ("tools.runtime.loop", "save_checkpoint", 1),
        "validation": ("tools.runtime.tasks.detection", "run_detector", 0),
        "scores": ("tools.runtime.tasks.detection", "score", 1),
        "test": ("tools.train_det", "run_detector", 0),
        "results": ("tools.train_det", "write_results", 0),
    },
    "tools.pretrain": {
        "data": ("tools.pretrain", "build_splits", 0),
        "model": ("tools.pretrain", "build_classifier", 0),
        "first batch": ("tools.runtime.loop", "_fetch", 0),
        "step": ("tools.runtime.loop", "_update", 2),
        "saving": ("tools.runtime.loop", "save_checkpoint", 1),
        "validation": ("tools.runtime.tasks.classification", "test_sets", 1),
        "recalibration": ("tools.pretrain", "recalibrate_over", 0),
        "results": ("tools.runtime.start", "write_json", 0),
    },
    "tools.train_loc": {
        "data": ("tools.train_loc", "read_sets", 0),
        "model": ("tools.train_loc", "make_localiser", 0),
        "first batch": ("tools.runtime.loop", "_fetch", 0),
        "step": ("tools.runtime.loop", "_update", 2),
        "saving": ("tools.runtime.loop", "save_checkpoint", 1),
        "validation": ("tools.runtime.tasks.localisation", "predict", 1),
        "test": ("tools.train_loc", "predict", 0),
        "results": ("tools.runtime.start", "write_json", 0),
    },
}
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def ask(training: Training, out: Path, stage: str, number: int, *more: str, group: bool = False) -> None:
    """Code 3 and one line or two; then the run goes on to the same end."""
    at = STAGES[training.script][stage]
    ending = training(out, "--resume", "auto", *more, at=at, number=int(number), group=group)
    assert ending.code == 3, (stage, number, ending.output)
    assert_orderly(ending)
    assert "is written" in ending.output or "nothing is lost" in ending.output
    if out.exists():  # else it was asked before it began to write
        assert not [name for name in names(out) if name.startswith(".") and name != ".written.json"]
    ending = training(out, "--resume", "auto", *more)
    assert ending.code == 0, (stage, number, ending.output)
    assert_equal_runs(training.whole, out)


def test_asked_to_stop(training, tmp_path):
    rng = random.Random(f"{SEED} ask {training.script}")
    stage = rng.choice(sorted(STAGES[training.script]))
    ask(training, tmp_path / "run", stage, rng.choice(ASKING))


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("workers", [0, 2])
def test_asked_to_stop_at_each_stage(training, tmp_path, workers):
    for turn, stage in enumerate(STAGES[training.script]):
        for signals in range(2):
            number = ASKING[(turn + 2 * signals) % 4]
            out = tmp_path / f"{stage.replace(' ', '_')}_{number}"
            ask(training, out, stage, number, "--set", f"data.num_workers={workers}", group=signals == 1)


# ---------------------------------------------------------------------------------------------- disks

AFTER_THREE_STEPS = """
import os, resource, shutil, subprocess
from tools.runtime import loop
real = loop._update
def trouble(task, plan, parts):
    if plan.state.iteration == 3:
        {trouble}
    real(task, plan, parts)
loop._update = trouble
"""
TROUBLES = {
    "removed": "os.rename({run!r}, {run!r} + '.elsewhere')",
    "too large a file": "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))",
    "full disk": "subprocess.run(['dd', 'if=/dev/zero', 'of={disk}/filler'], stderr=subprocess.DEVNULL)",
    "read-only": "[subprocess.run(['mount', *how, {run!r}], check=True) for how in "
    "(('--bind', {run!r}), ('-o', 'remount,bind,ro'))]",
}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_trouble_with_the_disk_takes_one_line_and_loses_nothing(training, disk):
    for kind, trouble in TROUBLES.items():
        run = disk / kind.replace(" ", "_")
        patch = AFTER_THREE_STEPS.format(trouble=trouble.format(run=str(run), disk=str(disk)))
        ending = training(run, patch=patch, log=str(training.config.with_suffix(".log")))
        assert ending.code == 2, (kind, ending.output)
        assert "Traceback" not in ending.output, (kind, ending.output)
        said = [
            line for line in ending.output.splitlines() if line.startswith(Path(training.script).suffix[1:] + ".py")
        ]
        assert len(said) == 1, (kind, ending.output)
        assert str(run) in said[0]
        if kind == "read-only":
            subprocess.run(["umount", run], check=True)
        (disk / "filler").unlink(missing_ok=True)
        if kind == "removed":
            assert not run.exists(), "it is not made anew"
            run.with_name(run.name + ".elsewhere").rename(run)
        assert content(run / "last.pt")["training"]["iteration"] == 3
        assert not list(run.rglob(".*.part"))
        ending = training(run, "--resume", "auto")
        assert ending.code == 0, (kind, ending.output)
        assert_equal_runs(training.whole, run)
