"""Checkpoints and run folders: whole or not at all, never overwritten unasked."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from configs.errors import UserError
from tools.runtime import checkpoint as checkpoints
from tools.runtime.checkpoint import load_checkpoint, save_checkpoint, without_training
from tools.runtime.run_folder import RunFolder, write_json


def content(**values) -> dict:
    return {"format": 1, "kind": "detector", "model": {"w": torch.arange(3.0)}, **values}


def test_checkpoint_round_trip_executes_no_code(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(
        path, content(training={"iteration": 3, "optimizer": {"state": {0: torch.ones(2)}, "betas": (0.9, 1)}})
    )
    read = load_checkpoint(path, kind="detector")
    assert torch.equal(read["model"]["w"], torch.arange(3.0))
    assert read["training"]["optimizer"]["betas"] == (0.9, 1)
    assert os.listdir(tmp_path) == ["last.pt"]
    assert without_training(read)["training"] == {"iteration": 3}


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    before = path.read_bytes()
    real = torch.save

    def break_down(obj, file):
        real(obj, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", break_down)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, content(kind="other"))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing\.pt"):
        load_checkpoint(tmp_path / "missing.pt")
    broken = tmp_path / "broken.pt"
    save_checkpoint(broken, content())
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"broken\.pt"):
        load_checkpoint(broken)
    torch.save({"weight": torch.ones(1)}, tmp_path / "bare.pt")
    with pytest.raises(UserError, match="convert_weights"):
        load_checkpoint(tmp_path / "bare.pt")
    save_checkpoint(tmp_path / "net.pt", content(kind="classifier"))
    with pytest.raises(UserError, match="holds a classifier, not a detector"):
        load_checkpoint(tmp_path / "net.pt", kind="detector")


# ---------------------------------------------------------------------------------------------- run folder


def test_folder_logs_lines_and_scalars(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.check(resume=False)
        run.open("seed: 0\n")
        run.log(5, {"loss": 0.5, "part": math.nan, "coco": {"AP": np.float64(0.25), "per": None}}, prefix="val")
        run.log_picture(5, "val/x", np.zeros((4, 5, 3), np.uint8))
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    line = json.loads((run.path / "metrics.jsonl").read_text())
    assert line == {"iteration": 5, "split": "val", "loss": 0.5, "part": None, "coco": {"AP": 0.25, "per": None}}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"val/loss", "val/coco.AP"}
    assert events.Scalars("val/coco.AP")[0].value == 0.25
    assert events.Tags()["images"] == ["val/x"]


def test_resumed_folder_drops_lines_that_come_again(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.open("")
        for iteration in (2, 4, 6):
            run.log(iteration, {"loss": float(iteration)})
    (run.path / "metrics.jsonl").open("a").write('{"iteration": 7, "lo')  # a crash in the middle of a line
    with RunFolder(tmp_path / "run") as again:
        again.check(resume=True)
        again.open("", from_iteration=4)
        again.log(6, {"loss": 0.0})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 0.0)]


def test_folder_that_does_not_write_leaves_nothing(tmp_path):
    with RunFolder(tmp_path / "run", writes=False) as run:
        run.open("")
        run.log(1, {"loss": 1.0})
        run.log_picture(1, "x", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def test_folder_checks(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.check(resume=False)
    with pytest.raises(UserError, match="no run to resume"):
        run.check(resume=True)
    run.path.mkdir()
    (run.path / "notes.txt").touch()
    run.check(resume=False)  # a folder with other things is no run
    (run.path / "last.pt").touch()
    run.check(resume=True)
    with pytest.raises(UserError, match="holds a run already"):
        run.check(resume=False)
    run.clear()
    assert os.listdir(run.path) == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        RunFolder(run.path / "notes.txt").check(resume=False)


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.inf, 1.0], "b": np.int64(3)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": 3}
