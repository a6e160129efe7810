"""How a training begins: which checkpoint it goes on from."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from backbones.weights import IMAGENET
from configs.errors import UserError
from tools.runtime import cli
from tools.runtime.checkpoint import save_checkpoint
from tools.runtime.start import training


def arguments(path: Path, *more: str) -> argparse.Namespace:
    parser = cli.make_parser("x", config=True, data_root=True, device=True)
    cli.add_run(parser)
    return parser.parse_args(["--cfg", "a.yaml", "--out", str(path), "--device", "cpu", *more])


def save(path: Path, iteration: int) -> None:
    training_part = {"iteration": iteration}
    content = {"format": 1, "kind": "detector", "config": {}, "class_names": [], "training": training_part}
    save_checkpoint(path, {**content, "preprocessing": IMAGENET.to_dict(), "model": {"w": torch.ones(1)}}, keep=2)


def test_a_new_run(tmp_path):
    with training(arguments(tmp_path / "run", "--init-from", "w.pt")) as job:
        assert job.checkpoint("detector") is None
        assert (job.run.path, job.init_from, job.resumes) == (tmp_path / "run", "w.pt", False)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    path = tmp_path / "last.pt"
    for iteration in (1, 2):
        save(path, iteration)
    with training(arguments(tmp_path, "--resume", "auto")) as job:
        assert job.checkpoint("detector")["training"]["iteration"] == 2
    path.write_bytes(path.read_bytes()[:-100])
    with training(arguments(tmp_path, "--resume")) as job:
        assert job.checkpoint("detector")["training"]["iteration"] == 1
    assert "last_1.pt, which was last.pt before" in capsys.readouterr().out
    assert path.read_bytes() == (tmp_path / "last_1.pt").read_bytes(), "else the next writing would lose the good one"
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "last_1.pt").unlink()
    with training(arguments(tmp_path, "--resume")) as job, pytest.raises(UserError, match=r"last\.pt"):
        job.checkpoint("detector")


def test_a_checkpoint_of_another_kind_stays(tmp_path):
    path = tmp_path / "last.pt"
    for iteration in (1, 2):
        save(path, iteration)
    before = path.read_bytes()
    with training(arguments(tmp_path, "--resume")) as job, pytest.raises(UserError, match="holds a 'detector', not a"):
        job.checkpoint("classifier")
    assert path.read_bytes() == before
