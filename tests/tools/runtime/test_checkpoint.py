"""Checkpoints: whole or not at all."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from configs.errors import UserError
from tools.runtime import checkpoint as checkpoints
from tools.runtime.checkpoint import load_checkpoint, save_checkpoint, without_training


def content(**values) -> dict:
    return {"format": 1, "kind": "detector", "model": {"w": torch.arange(3.0)}, **values}


def test_checkpoint_round_trip_executes_no_code(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(
        path, content(training={"iteration": 3, "optimizer": {"state": {0: torch.ones(2)}, "betas": (0.9, 1)}})
    )
    read = load_checkpoint(path)
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
    with pytest.raises(UserError, match=r"last\.pt: cannot be written: No space"):
        save_checkpoint(path, content(kind="other"))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("size", [0, 100, 3000, 100_000])
def test_a_limit_on_the_size_of_files(tmp_path, size):
    """As with a full disk, writing stops in the middle of the file, wherever that is."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    before = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        with pytest.raises(UserError, match=r"last\.pt: cannot be written: File too large"):
            save_checkpoint(path, content(model={f"w{number}": torch.ones(9_000) for number in range(9)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
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


def test_the_newest_files_are_kept(tmp_path):
    path = tmp_path / "last.pt"
    for number in range(5):
        save_checkpoint(path, content(training={"iteration": number}), keep=3)
    kept = [path, *checkpoints.older(path)]
    assert [file.name for file in kept] == ["last.pt", "last_1.pt", "last_2.pt"]
    assert [load_checkpoint(file)["training"]["iteration"] for file in kept] == [4, 3, 2]
    save_checkpoint(path, content(training={"iteration": 5}), keep=1)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    before = path.read_bytes()
    broken = {"w": torch.tensor([1.0, float("inf")]), "count": torch.tensor(3)}
    with pytest.raises(checkpoints.NonFiniteWeights, match=r"last\.pt: is not written, .*not finite \(w\).*optim\.lr"):
        save_checkpoint(path, {**content(), "model": broken})
    assert path.read_bytes() == before


def test_files_with_similar_names_stay(tmp_path):
    """A net that is saved as net.pt has nothing to do with net_2.pt beside it."""
    for name in ("net_1.pt", "net_2.pt", "net.pt"):
        save_checkpoint(tmp_path / name, content())
    assert sorted(os.listdir(tmp_path)) == ["net.pt", "net_1.pt", "net_2.pt"]
