"""The localisation scripts, end to end on a tiny generated set: both stages, ensembles, exact resumption, mistakes."""

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

from tests.tools.made import localisation_values
from tools import test_loc as script
from tools import train_loc
from tools.runtime import cli, loop
from tools.runtime.tasks import localisation as task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("loc")
    path = root / "tiny_loc.yaml"
    path.write_text(yaml.safe_dump(localisation_values(root)))
    return path


def train(config: Path, out: Path, *more: str) -> None:
    train_loc.main(train_loc.make_parser().parse_args(arguments(config, out, *more)))


def arguments(config: Path, out: Path, *more: str) -> list[str]:
    return ["--cfg", str(config), "--out", str(out), "--device", "cpu", *more]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def rpn(config, tmp_path_factory) -> Path:
    """A run of stage rpn that has learned something."""
    out = tmp_path_factory.mktemp("runs") / "rpn"
    train(config, out, "--set", "schedule.iterations=60", "train.validate_every=30", "train.log_every=20")
    return out


@pytest.fixture(scope="module")
def rcnn(config, rpn) -> Path:
    """A run of stage rcnn on its proposals."""
    out = rpn.parent / "rcnn"
    train(config, out, "--set", "model.stage=rcnn", f"model.rcnn.proposals={rpn}/last.pt", "optim.lr=0.02")
    return out


def test_a_run_learns_and_leaves_what_the_interface_promises(rpn):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "metrics.json",
        "metrics_val.json",
        "curves.png",
    ):
        assert (rpn / name).is_file(), name
    assert (rpn / "curves.png").is_file()
    metrics = json.loads((rpn / "metrics.json").read_text())
    assert metrics["images"] == 12
    assert metrics["true_class_error"] <= 0.34
    assert metrics["true_class_error"] < min(metrics["mean_box_error"], metrics["centre_box_error"])
    assert metrics["top1_class_error"] <= metrics["top1_error"]
    assert metrics["top5_class_error"] == 0, "there are two classes"
    assert metrics["top5_error"] == metrics["true_class_error"]
    lines = [json.loads(line) for line in (rpn / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["iteration"]) for line in lines] == [
        ("train", 20), ("val", 30), ("train", 40), ("train", 60), ("val", 60),
    ]  # fmt: skip
    training = [line for line in lines if line["split"] == "train"]
    assert training[-1]["loss"] < training[0]["loss"]
    assert {"loss_objectness", "loss_box_reg", "loss_classifier", "rate", "seconds", "data_seconds"} <= training[
        0
    ].keys()
    last, best = load(rpn / "last.pt"), load(rpn / "best.pt")
    assert (last["format"], last["kind"], last["class_names"]) == (1, "localiser", ["n01", "n02"])
    assert len(last["mean_boxes"]) == 2
    assert "optimizer" not in best["training"]


def test_the_last_validation_is_not_done_twice(config, rpn, tmp_path, monkeypatch):
    """Where it has the test's view, its figures are the test's: those of a run whose views differ."""
    passes = []

    def counted(*inputs, view: str, **more):
        passes.append(view)
        return predict(*inputs, view=view, **more)

    predict = train_loc.predict
    monkeypatch.setattr(train_loc, "predict", counted)
    monkeypatch.setattr(task, "predict", counted)
    overrides = ("--set", "train.validate_every=null", "schedule.iterations=2")
    for view in ("dense", "center"):
        train(config, tmp_path / view, *overrides, f"test.validation_view={view}")
    assert passes == ["dense", "center", "dense"]
    twice, once = (json.loads((tmp_path / view / "metrics.json").read_text()) for view in ("center", "dense"))
    assert once == twice


def test_the_second_stage_and_the_test_of_both(config, rpn, rcnn, tmp_path):
    assert load(rcnn / "last.pt")["config"]["model"]["stage"] == "rcnn"
    assert not any(name.startswith("proposer") for name in load(rcnn / "last.pt")["model"])
    run = [sys.executable, str(ROOT / "tools/test_loc.py"), "--cfg", str(config), "--device", "cpu", "--weights"]
    run += [str(rpn / "last.pt")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*run, "--out", str(tmp_path / "one")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "true class, its mean box" in done.stdout
    one = json.loads((tmp_path / "one/metrics.json").read_text())
    trained = json.loads((rpn / "metrics.json").read_text())
    assert {name: one[name] for name in one if name.endswith("_error")} == {
        name: trained[name] for name in trained if name.endswith("_error")
    }, "the script and the end of the training agree"
    predictions = json.loads((tmp_path / "one/predictions.json").read_text())
    assert len(predictions) == 12 * 2
    assert predictions[0].keys() == {"image_id", "category", "bbox", "score"}

    both = [*arguments(config, tmp_path / "both"), "--weights", str(rpn / "last.pt"), "--rcnn", str(rcnn / "last.pt")]
    script.main(script.make_parser().parse_args(both))
    metrics = json.loads((tmp_path / "both/metrics.json").read_text())
    assert metrics["rcnn"] == [str(rcnn / "last.pt")]
    twice = [*both, str(rcnn / "last.pt"), "--out", str(tmp_path / "twice")]
    script.main(script.make_parser().parse_args(twice))
    again = json.loads((tmp_path / "twice/metrics.json").read_text())
    assert {k: v for k, v in again.items() if k != "rcnn"} == {k: v for k, v in metrics.items() if k != "rcnn"}
    validated = json.loads((rcnn / "metrics.json").read_text())
    assert validated["true_class_error"] == metrics["true_class_error"]


def test_a_classifiers_checkpoint_predicts_the_classes(config, rpn, tmp_path, capsys):
    """The RPN's own classifier, saved as one, gives the same figures; one of other classes is refused."""
    last = load(rpn / "last.pt")
    classifier = {
        "format": 1, "kind": "classifier", "class_names": last["class_names"], "training": {},
        "config": {"model": {"backbone": last["config"]["model"]["backbone"]}, "data": {"crop_size": 32}},
        "preprocessing": last["preprocessing"],
        "model": {name[4:]: value for name, value in last["model"].items() if name.startswith("net.")},
    }  # fmt: skip
    torch.save(classifier, tmp_path / "classifier.pt")
    options = [*arguments(config, tmp_path / "out"), "--weights", str(rpn / "last.pt")]
    options += ["--classifier", str(tmp_path / "classifier.pt")]
    script.main(script.make_parser().parse_args(options))
    metrics, trained = (json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "out", rpn))
    assert metrics["top1_error"] == trained["top1_error"]
    torch.save({**classifier, "class_names": ["n01", "n03"]}, tmp_path / "classifier.pt")
    with pytest.raises(SystemExit) as ending:
        cli.run(script.main, script.make_parser(), options)
    assert ending.value.code == 2
    assert "classifier.pt: other classes than the localiser's (n02, n03 differ)" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["rpn", "rcnn"])
def test_interrupted_and_resumed_equals_uninterrupted(config, rpn, tmp_path, monkeypatch, stage):
    """Weights, averages, optimiser and the best figure: bit for bit."""
    settings = ["--set", "train.ema_decay=0.9", "train.accumulate=2", "optim.clip_norm=1.0", "train.log_every=1"]
    settings += [f"model.stage={stage}", f"model.rcnn.proposals={rpn}/last.pt"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, *settings)
    real = loop.seed_step

    def stop(seed: int, iteration: int) -> None:
        real(seed, iteration)
        if iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "seed_step", stop)
    with pytest.raises(SystemExit) as ending:
        cli.run(train_loc.main, train_loc.make_parser(), arguments(config, parts, *settings))
    assert ending.value.code == 3
    assert load(parts / "last.pt")["training"]["iteration"] == 4
    monkeypatch.setattr(loop, "seed_step", real)
    train(config, parts, "--resume", *settings)
    for name in ("last.pt", "best.pt"):
        assert same(load(whole / name), load(parts / name)), name
    assert (whole / "metrics.json").read_bytes() == (parts / "metrics.json").read_bytes()


@pytest.mark.slow  # two processes start up
def test_two_processes_make_one_training(config, tmp_path):
    """With batch norm over all processes, two with half the step each train and test as one does, up to rounding."""
    settings = ["--set", "model.norm=sync", "optim.lr=0.01"]
    train(config, tmp_path / "one", *settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "tools/train_loc.py", *arguments(config, tmp_path / "two", *settings)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (load(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    for name, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert figures[0]["images"] == figures[1]["images"] == 12


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.train.root=nowhere"], "nowhere"),
        (["model.stage=rcnn", "model.rcnn.proposals=absent.pt"], "absent.pt: there is no such weights file"),
        (["model.weights=absent.pt"], "there is no file absent.pt"),
        (["model.rpn.anchor.sizes=[8]"], "did you mean model.rpn.anchors?"),
        (["data.val.split=vla"], "must be one of train, val"),
    ],
)
def test_mistakes_take_one_line(config, tmp_path, capsys, settings, words):
    with pytest.raises(SystemExit) as ending:
        cli.run(train_loc.main, train_loc.make_parser(), arguments(config, tmp_path / "run", "--set", *settings))
    assert ending.value.code == 2
    message = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert words in message[-1]
    assert len(message) == 1


def test_another_stages_checkpoint_is_refused(config, rpn, rcnn, tmp_path, capsys):
    options = [*arguments(config, tmp_path / "out"), "--weights", str(rcnn / "last.pt")]
    with pytest.raises(SystemExit) as ending:
        cli.run(script.main, script.make_parser(), options)
    assert ending.value.code == 2
    assert "of stage rcnn, where stage rpn is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ending:
        cli.run(train_loc.main, train_loc.make_parser(), arguments(config, rpn))
    assert ending.value.code == 2
    assert "holds a run already" in capsys.readouterr().err


def test_a_new_run_starts_from_a_localisers_weights(config, rpn, tmp_path, capsys):
    """The same classes keep their layers; of other ones those are left out that belong to single classes."""
    short = ["--init-from", str(rpn / "last.pt"), "--set", "schedule.iterations=1", "optim.lr=1e-12"]
    train(config, tmp_path / "same", *short)
    given, same_classes = (load(folder / "last.pt")["model"] for folder in (rpn, tmp_path / "same"))
    for name in ("siblings.cls_logits.weight", "siblings.shared_logits.weight", "conv.0.weight"):
        assert torch.allclose(same_classes[name], given[name], atol=1e-6), name
    renamed = load(rpn / "last.pt")
    torch.save({**renamed, "class_names": ["n07", "n08"]}, tmp_path / "other.pt")
    capsys.readouterr()
    train(config, tmp_path / "other", "--init-from", str(tmp_path / "other.pt"), *short[2:])
    other = load(tmp_path / "other/last.pt")["model"]
    assert torch.allclose(other["conv.0.weight"], given["conv.0.weight"], atol=1e-6)
    assert not torch.allclose(other["siblings.cls_logits.weight"], given["siblings.cls_logits.weight"], atol=1e-3)
    assert "from scratch: " in capsys.readouterr().out
