"""Four-step alternating training by the script: the run's folder, resumption within any phase, mistakes of the user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from configs.errors import UserError
from detection.checkpoint import load_detector
from tools import train_det
from tools.runtime import cli, evaluation, loop

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tiny_config: Path) -> Path:
    """Phases of 2, 3, 2 and 3 iterations, with batches of 2 and 4, validated in phase 2 and 4."""
    values = yaml.safe_load(tiny_config.read_text())
    values["data"]["val"] = values["data"]["test"]
    values["train"] |= {
        "validate_every": 2, "log_every": 1, "best_metric": "loss",
        "alternating": {
            "rpn": {"schedule": {"iterations": 2, "policy": "constant"}},
            "detector": {
                "batch_size": 4, "lr": 0.001, "reference_batch_size": 2,
                "schedule": {"iterations": 3, "milestones": [2]},
            },
        },
    }  # fmt: skip
    tiny_config.write_text(yaml.safe_dump(values))
    return tiny_config


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(evaluation, "write_report", lambda folder, *_, **__: folder / "index.html")


def arguments(config: Path, out: Path, *more: str) -> list[str]:
    return ["--cfg", str(config), "--out", str(out), "--device", "cpu", *more]


def train(config: Path, out: Path, *more: str) -> None:
    train_det.main(train_det.make_parser().parse_args(arguments(config, out, *more)))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a: object, b: object, where: str = "") -> None:
    """Bit for bit, whatever is nested in what."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def test_a_run_of_four_phases(config, tmp_path, capsys):
    out = tmp_path / "run"
    train(config, out)
    log = log_of(out)
    slow = pytest.approx(0.0002)
    rates = {1: [0.002, 0.002], 2: [0.002, 0.002, slow], 3: [0.002, 0.002], 4: [0.002, 0.002, slow]}
    for phase, expected in rates.items():
        assert [line["rate"] for line in log if line.get("phase") == phase] == expected
    # in phase 2 after 2 and 3 of its iterations, in phase 4 the same
    assert [line["iteration"] for line in log if line["split"] == "val"] == [4, 5, 9, 10]
    for line in log:
        if line["split"] == "train":
            of_rpn = "loss_objectness" in line
            assert of_rpn == (line["phase"] in (1, 3))
            assert of_rpn != ("loss_classifier" in line)
    assert load(out / "best.pt")["training"]["iteration"] in (9, 10)  # phase 2's is no whole detector
    assert load(out / "last.pt")["training"]["alternating"] == {"first_body": None, "proposer": None}
    assert load_detector(out / "last.pt")[0].class_names == ["red", "blue"]
    assert set(json.loads((out / "metrics.json").read_text())) >= {"voc07", "voc12", "coco"}
    printed = capsys.readouterr().out
    assert "phase 2 of 4: the detector on phase 1's proposals" in printed
    assert "step       4 images, sgd, rate 0.001 at 2 images a step, so 0.002 at 4" in printed


def test_resumed_in_any_phase_equals_uninterrupted(config, tmp_path, monkeypatch):
    """Bit for bit: after 1 of 2, 2 of 3, 1 of 2 and 1 of 3 iterations of the phases, with averages and accumulation."""
    options = ["--set", "train.ema_decay=0.9", "train.accumulate=2", "data.augment.photometric.p=0.5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, *options)

    real = loop.seed_step
    stops = iter([0, 3, 5, 7, None])
    stop = next(stops)

    def stopping(seed: int, iteration: int) -> None:
        real(seed, iteration)
        if iteration == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "seed_step", stopping)
    resume = []
    while stop is not None:
        with pytest.raises(cli.Interrupted):
            train(config, parts, *resume, *options)
        state = load(parts / "last.pt")["training"]["state"]
        assert (state["iteration"], state["phase"]) == (stop + 1, {0: 1, 3: 2, 5: 3, 7: 4}[stop])
        resume, stop = ["--resume"], next(stops)
    train(config, parts, *resume, *options)

    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))
    assert_same(load(whole / "best.pt"), load(parts / "best.pt"))
    assert (whole / "metrics.json").read_bytes() == (parts / "metrics.json").read_bytes()
    assert log_of(whole) == log_of(parts)


def test_resumed_between_two_phases(config, tmp_path, monkeypatch):
    """The last checkpoint of phase 1 is found by a run that died in the first iteration of phase 2."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, "--set", "data.val=[]")
    real = loop.seed_step

    def dying(seed: int, iteration: int) -> None:
        if iteration == 2:
            raise KeyboardInterrupt
        real(seed, iteration)

    monkeypatch.setattr(loop, "seed_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config, parts, "--set", "data.val=[]")
    assert load(parts / "last.pt")["training"]["state"]["phase"] == 1
    monkeypatch.setattr(loop, "seed_step", real)
    train(config, parts, "--resume", "--set", "data.val=[]")
    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))
    assert_same(load(whole / "best.pt")["model"], load(whole / "last.pt")["model"])


def test_mistakes_are_told(config, tmp_path):
    with pytest.raises(UserError, match="patience is for joint training"):
        train(config, tmp_path / "run", "--set", "train.patience=2")
    with pytest.raises(UserError, match=r"train\.alternating\.detector\.batch_size 5 is not a multiple"):
        train(config, tmp_path / "run", "--set", "train.alternating.detector.batch_size=5", "train.accumulate=2")
    train(config, tmp_path / "run", "--set", "data.val=[]", "data.test=[]")
    resume = ["--resume", "--set", "data.val=[]", "data.test=[]"]
    with pytest.raises(UserError, match=r"train\.alternating a section, the config now says None"):
        train(config, tmp_path / "run", *resume, "train.alternating=null")
    with pytest.raises(UserError, match=r"train\.alternating\.detector\.batch_size 4, the config now says 2"):
        train(config, tmp_path / "run", *resume, "train.alternating.detector.batch_size=2")


def test_joint_training_does_not_resume_as_alternating(tiny_config, tmp_path):
    train(tiny_config, tmp_path / "run", "--set", "data.test=[]", "schedule.iterations=1")
    with pytest.raises(UserError, match=r"train\.alternating None, the config now says a section"):
        train(tiny_config, tmp_path / "run", "--resume", "--set", "data.test=[]", "train.alternating={}")


@pytest.mark.slow
def test_learns(config, tmp_path):
    """The losses of both kinds fall, and the fine-tuned parts do not lose what the first phases have learned."""
    lengths = [f"train.alternating.{name}.schedule.iterations=60" for name in ("rpn", "detector")]
    rates = ["optim.lr=0.02", "train.alternating.detector.lr=0.02", "train.alternating.detector.schedule.milestones=[]"]
    train(config, tmp_path / "run", "--set", "data.val=[]", "data.test=[]", "train.log_every=20", *lengths, *rates)
    log = log_of(tmp_path / "run")
    for phase in (1, 2):
        losses = [line["loss"] for line in log if line["phase"] == phase]
        assert losses[-1] < 0.8 * losses[0], phase
    for phase, of in ((3, 1), (4, 2)):
        before = [line["loss"] for line in log if line["phase"] == of]
        after = [line["loss"] for line in log if line["phase"] == phase]
        assert after[-1] < before[0], phase


@pytest.mark.slow
def test_two_processes_train_like_one(config, tmp_path):
    """Equal weights but for the order of sums, through all four phases."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = ["--set", "model.backbone=vgg16", "model.norm=frozen", "model.box.fc_width=32"]
    for count, launcher in {1: [sys.executable], 2: torchrun}.items():
        command = [*launcher, str(ROOT / "tools/train_det.py"), *arguments(config, tmp_path / f"run{count}", *settings)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("phase 3 of 4") == 1
    one, two = (load(tmp_path / f"run{count}/last.pt") for count in (1, 2))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], rtol=1e-4, atol=1e-5), key
