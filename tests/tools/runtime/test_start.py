"""How a training begins and ends: its folder, what it starts from, a folder that is given back, the last figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from backbones.weights import IMAGENET
from configs.errors import UserError
from tools.runtime import cli
from tools.runtime.checkpoint import save_checkpoint
from tools.runtime.run_folder import RunFolder
from tools.runtime.start import is_finished, training, write_final_figures


def arguments(tmp_path: Path, *more: str) -> argparse.Namespace:
    parser = cli.make_parser("x", config=True, data_root=True, device=True)
    cli.add_run(parser)
    given = ["--cfg", str(tmp_path / "my.yaml"), "--device", "cpu", "--data-root", str(tmp_path), *more]
    return parser.parse_args(given)


def save_run(path: Path, kind: str = "detector") -> None:
    path.mkdir()
    (path / "config.yaml").write_text("seed: 0\n")
    content = {
        "kind": kind,
        "config": {"model": {}},
        "class_names": [],
        "preprocessing": IMAGENET.to_dict(),
        "model": {},
        "training": {},
    }
    save_checkpoint(path / "last.pt", {"format": 1, **content})


def test_a_new_run_starts_from_what_is_given(tmp_path):
    with training(arguments(tmp_path, "--out", str(tmp_path / "run"), "--init-from", "w.pt")) as job:
        assert (job.device, job.run.path, job.data_root) == (torch.device("cpu"), tmp_path / "run", tmp_path)
        assert (job.init_from, job.resumes) == ("w.pt", False)
        assert job.checkpoint("detector") is None


def test_the_folder_is_named_after_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with training(arguments(tmp_path)) as job:
        assert job.run.path == Path("runs/my")


def test_a_resumed_run_goes_on_from_its_own_checkpoint(tmp_path):
    save_run(tmp_path / "run")
    given = ["--out", str(tmp_path / "run"), "--resume"]
    with training(arguments(tmp_path, *given, "--init-from", "w.pt")) as job:
        assert job.resumes
        assert job.init_from is None
        checkpoint = job.checkpoint("detector")
        assert checkpoint is not None
        assert checkpoint["kind"] == "detector"
        with pytest.raises(UserError, match="detector"):
            job.checkpoint("classifier")
    with pytest.raises(UserError, match=r"--resume|--overwrite"), training(arguments(tmp_path, *given[:2])):
        pass


def test_the_folder_is_locked_meanwhile_and_free_afterwards_whatever_happens(tmp_path):
    given = arguments(tmp_path, "--out", str(tmp_path / "run"))
    with training(given), pytest.raises(UserError), RunFolder(tmp_path / "run") as second:
        second.prepare()
    with pytest.raises(ZeroDivisionError), training(given):
        1 / 0  # noqa: B018
    with training(given):
        pass


def save(path: Path, iteration: int) -> None:
    training_part = {"iteration": iteration}
    content = {"format": 1, "kind": "detector", "config": {"model": {}}, "class_names": [], "training": training_part}
    save_checkpoint(path, {**content, "preprocessing": IMAGENET.to_dict(), "model": {"w": torch.ones(1)}}, keep=2)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    path = tmp_path / "run" / "last.pt"
    for iteration in (1, 2):
        save(path, iteration)
    given = ["--out", str(path.parent), "--resume"]
    with training(arguments(tmp_path, *given, "auto")) as job:
        assert job.checkpoint("detector")["training"]["iteration"] == 2
    path.write_bytes(path.read_bytes()[:-100])
    with training(arguments(tmp_path, *given)) as job:
        assert job.checkpoint("detector")["training"]["iteration"] == 1
    assert "last_1.pt, which was last.pt before" in capsys.readouterr().out
    assert path.read_bytes() == path.with_name("last_1.pt").read_bytes(), (
        "else the next writing would lose the good one"
    )
    path.write_bytes(path.read_bytes()[:-100])
    path.with_name("last_1.pt").unlink()
    with training(arguments(tmp_path, *given)) as job, pytest.raises(UserError, match=r"last\.pt"):
        job.checkpoint("detector")


def test_a_checkpoint_of_another_kind_stays(tmp_path):
    path = tmp_path / "run" / "last.pt"
    for iteration in (1, 2):
        save(path, iteration)
    before = path.read_bytes()
    with (
        training(arguments(tmp_path, "--out", str(path.parent), "--resume")) as job,
        pytest.raises(UserError, match="holds a 'detector', not a"),
    ):
        job.checkpoint("classifier")
    assert path.read_bytes() == before


def test_a_run_is_finished_when_both_files_are_there(tmp_path):
    for name in ("metrics.json", "last.pt"):
        assert not is_finished(tmp_path)
        (tmp_path / name).touch()
    assert is_finished(tmp_path)


@pytest.mark.parametrize(
    ("final", "written"),
    [
        ({"val": {"error": 0.5}, "test": {"error": 0.25}}, {"metrics": 0.25, "metrics_val": 0.5}),
        ({"val": {"error": 0.5}}, {"metrics": 0.5, "metrics_val": 0.5}),
        ({"test": {"error": 0.25}}, {"metrics": 0.25}),
        ({}, {}),
    ],
)
def test_the_final_figures_are_the_tests_else_the_validations(tmp_path, capsys, final, written):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "split": "train", "loss": 1.0}\n')
    write_final_figures(RunFolder(tmp_path), final)
    found = {path.stem: json.loads(path.read_text())["error"] for path in tmp_path.glob("metrics*.json")}
    assert found == written
    assert (tmp_path / "curves.png").exists()
    assert capsys.readouterr().out == f"curves     {tmp_path / 'curves.png'}\nweights    {tmp_path / 'last.pt'}\n"
    write_final_figures(RunFolder(tmp_path / "other", writes=False), final)
    assert not (tmp_path / "other").exists()
