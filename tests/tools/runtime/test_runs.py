"""Folders of runs: found at any depth, what each says, whether it is at work, how long it has trained."""

from __future__ import annotations

import contextlib
import os

import pytest

from configs.errors import UserError
from tests.tools.runtime.test_curves import ROWS, write
from tools.runtime.curves import read_rows
from tools.runtime.run_folder import RunFolder
from tools.runtime.runs import find_runs, read_run, state_of, training_time


def test_runs_are_found_once_at_any_depth(tmp_path):
    first, second = write(tmp_path / "b/deep/er"), write(tmp_path / "a")
    assert find_runs([tmp_path]) == [second, first]
    assert find_runs([first, tmp_path]) == [first, second]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no run"):
        find_runs([tmp_path, tmp_path / "empty"])


@pytest.mark.parametrize(
    ("text", "config", "best_metric"),
    [
        ("# Command:   train_det.py --cfg 'my own.yaml'\ntrain: {best_metric: coco.AP}\n", "my own.yaml", "coco.AP"),
        ("# Command:   pytest\ntrain: {best_metric: loss}\n", "", "loss"),
        ("train: 3\n", "", "voc12.mAP"),  # the first figure that validations are read by
        ("{", "", "voc12.mAP"),
    ],
)  # fmt: skip
def test_config(tmp_path, text, config, best_metric):
    (write(tmp_path) / "config.yaml").write_text(text)
    run = read_run(tmp_path)
    assert (run.config, run.best_metric, len(run.rows)) == (config, best_metric, len(ROWS))


def test_states(tmp_path):
    write(tmp_path)
    assert state_of(tmp_path) == "stopped"
    (tmp_path / ".lock").write_text("process 1 on a machine\n")  # of a process that was killed
    assert state_of(tmp_path) == "stopped"
    with RunFolder(tmp_path) as at_work:
        at_work.prepare(overwrite=True)
        assert state_of(tmp_path) == "running"
    assert state_of(tmp_path) == "stopped"  # it has logged nothing
    with contextlib.suppress(RuntimeError), RunFolder(tmp_path / "new") as fails:
        fails.open("")
        raise RuntimeError
    assert state_of(tmp_path / "new") == "stopped"
    with RunFolder(tmp_path / "new") as ends:  # as by tools.runtime.loop.fit, which draws no curves
        ends.prepare(overwrite=True)
        ends.open("")
        assert not (tmp_path / "new/.ended").exists()
    assert state_of(tmp_path / "new") == "finished"
    (tmp_path / "curves.png").touch()
    assert state_of(tmp_path) == "finished"
    earlier = (tmp_path / "metrics.jsonl").stat().st_mtime_ns - 10**9
    os.utime(tmp_path / "curves.png", ns=(earlier, earlier))  # of a training that has gone on since
    assert state_of(tmp_path) == "stopped"


def test_training_time(tmp_path):
    """10 iterations of 2 s and 10 of 1 s; 3,000 of 2 s; nothing."""
    assert training_time(read_rows(write(tmp_path) / "metrics.jsonl")) == "0:00:30"
    assert training_time([{"iteration": 3000, "split": "train", "seconds": 2.0}]) == "1:40:00"
    assert training_time([]) == ""
