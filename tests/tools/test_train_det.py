"""The training script, end to end on a tiny set: results, exact resumption, interruption, mistakes of the user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import load_config
from detection.checkpoint import load_detector
from detection.model import Detector
from tools import test_det, train_det
from tools.runtime import cli, evaluation, loop, setup, tasks
from tools.runtime.tasks.detection import DetectionTask
from tools.runtime.training import LossMonitor, NonFiniteLoss

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def report(monkeypatch):
    """The report takes a second: one test writes it, the others do without."""
    real = evaluation.write_report
    monkeypatch.setattr(evaluation, "write_report", lambda folder, *_, **__: folder / "index.html")
    return real


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


def with_validation(image_set: str = "test") -> str:
    return f"data.val=[{{format: voc, root: tiny, image_set: {image_set}}}]"


def data_root(config: Path) -> list[str]:
    return ["--data-root", str(config.parent / "data")]


# ---------------------------------------------------------------------------------------------- a whole run


def test_run_leaves_what_the_interface_promises(tiny_config, tmp_path, monkeypatch, capsys, report):
    monkeypatch.setattr(evaluation, "write_report", report)
    out = tmp_path / "run"
    settings = [with_validation(), "train.validate_every=2", "optim.lr=0.004", "optim.reference_batch_size=4"]
    train(tiny_config, out, *data_root(tiny_config), "--set", *settings)
    printed = capsys.readouterr().out
    results = [
        "metrics_val.json",
        "metrics.json",
        "detections.json",
        "comp4_det_test_red.txt",
        "comp4_det_test_blue.txt",
    ]
    pictures = ["pictures/overview.png", "pictures/image_6.png", "report/index.html", "curves.png"]
    for name in ["config.yaml", "metrics.jsonl", "last.pt", "best.pt", *results, *pictures]:
        assert (out / name).is_file(), name
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"val_classes/voc12.red", "val_classes/coco.blue"} <= set(events.Tags()["scalars"])
    assert {"val_classes/red", "val_classes/blue"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("val_classes/red")] == [2, 4]

    config = load_config(tiny_config, settings)
    assert load_config(out / "config.yaml") == config
    assert f"# Data root: {tmp_path / 'data'}\n" in (out / "config.yaml").read_text()
    last = load(out / "last.pt")
    assert (last["format"], last["kind"], last["class_names"]) == (1, "detector", ["red", "blue"])
    assert DetectionConfig(**last["config"]) == config
    assert "optimizer" not in load(out / "best.pt")["training"]

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["iteration"]) for line in lines] == [
        ("train", 2),
        ("val", 2),
        ("val_classes", 2),
        ("train", 4),
        ("val", 4),
        ("val_classes", 4),
    ]
    assert lines[2]["voc12"].keys() == lines[2]["coco"].keys() == {"red", "blue"}
    assert lines[0]["rate"] == 0.002  # 0.004 at 4 images, 2 images a step
    assert lines[0]["loss"] == pytest.approx(sum(v for k, v in lines[0].items() if k.startswith("loss_")), rel=1e-5)
    assert set(json.loads((out / "metrics.json").read_text())) >= {"voc07", "voc12", "coco"}

    assert '<section id="training">' in (out / "report/index.html").read_text()
    assert "0.004 at 4 images a step, so 0.002 at 2" in printed
    assert "2: red, blue" in printed
    assert "4 iterations, 1.333 epochs of 3" in printed
    assert "data.val and data.test have 2 images in common" in printed
    assert "VOC12 AP" in printed
    assert str(out / "pictures") in printed
    assert f"{out / 'best.pt'}: the best by the validation set, to use" in printed
    assert f"{out / 'last.pt'}: the last, which the table is of" in printed
    assert "4 steps are too few to learn from: raise schedule.epochs" in printed.partition("VOC12 AP")[2]

    evaluate = test_det.make_parser().parse_args(
        ["--cfg", str(tiny_config), "--weights", str(out / "last.pt"), "--out", str(tmp_path / "again")]
    )
    test_det.main(evaluate)
    for name in ("metrics.json", "detections.json", "comp4_det_test_red.txt"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_interrupted_and_resumed_equals_uninterrupted(tiny_config, tmp_path, monkeypatch, capsys):
    """Weights, averages, optimiser, best metric, patience: bit for bit, with accumulation, clipping and colours."""
    settings = [
        with_validation(), "schedule.iterations=6", "schedule.policy=cosine", "schedule.warmup_iterations=3",
        "train.validate_every=2", "train.ema_decay=0.9", "train.accumulate=2", "optim.clip_norm=1.0",
        "data.augment.photometric.p=0.5", "train.best_metric=loss", "train.patience=5",
    ]  # fmt: skip
    options = [*data_root(tiny_config), "--set", *settings]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny_config, whole, *options)

    real = loop.seed_step

    def stop_in_the_fourth(seed: int, iteration: int) -> None:
        real(seed, iteration)
        if iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "seed_step", stop_in_the_fourth)
    parser = train_det.make_parser()
    with pytest.raises(SystemExit) as ending:
        cli.run(train_det.main, parser, arguments(tiny_config, parts, *options))
    assert ending.value.code == 3
    assert "--resume" in capsys.readouterr().err
    assert load(parts / "last.pt")["training"]["iteration"] == 4
    monkeypatch.setattr(loop, "seed_step", real)
    train(tiny_config, parts, "--resume", *options)
    assert f"resumed    {parts / 'last.pt'}, after 4 iterations" in capsys.readouterr().out

    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))
    assert_same(load(whole / "best.pt"), load(parts / "best.pt"))
    assert (whole / "metrics.json").read_bytes() == (parts / "metrics.json").read_bytes()
    logged = [
        [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in (run / "metrics.jsonl").open()]
        for run in (whole, parts)
    ]
    assert logged[0] == logged[1]


def test_interrupted_validation_is_done_again(tiny_config, tmp_path, monkeypatch):
    settings = [*data_root(tiny_config), "--set", with_validation(), "train.validate_every=1", "schedule.iterations=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny_config, whole, *settings)

    real = DetectionTask.validate

    def interrupted(*_: object) -> None:
        raise cli.Interrupted("now")

    monkeypatch.setattr(DetectionTask, "validate", interrupted)
    with pytest.raises(cli.Interrupted, match="after 1 iteration;"):
        train(tiny_config, parts, *settings)
    monkeypatch.setattr(DetectionTask, "validate", real)
    train(tiny_config, parts, "--resume", *settings)
    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))


def test_early_stopping(tiny_config, tmp_path, monkeypatch, capsys):
    """Validation losses 3, 2, 2.5, 2.2, patience 2: best.pt is of the second validation, the fourth ends the run."""
    losses = iter([3.0, 2.0, 2.5, 2.2])
    real = evaluation.run_detector

    def scripted(*args: object, **options: object) -> object:
        outcome = real(*args, **options)
        if options.get("losses"):
            outcome.losses["loss"] = next(losses)
        return outcome

    monkeypatch.setattr(tasks.detection, "run_detector", scripted)
    settings = ["schedule.iterations=9", "train.validate_every=1", "train.patience=2", "train.best_metric=loss"]
    out = tmp_path / "run"
    train(tiny_config, out, *data_root(tiny_config), "--set", with_validation(), *settings)
    assert load(out / "last.pt")["training"]["iteration"] == 4
    assert load(out / "best.pt")["training"]["iteration"] == 2
    assert "ended early" in capsys.readouterr().out


def test_without_validation_and_test(tiny_config, tmp_path, capsys):
    settings = ["data.test=[]", "schedule.iterations=1", "train.channels_last=false", "train.batch_size=auto"]
    train(tiny_config, tmp_path / "run", "--set", *settings)
    assert load(tmp_path / "run/last.pt")["config"]["train"]["batch_size"] == 2  # on a CPU reference_batch_size
    assert_same(load(tmp_path / "run/last.pt")["model"], load(tmp_path / "run/best.pt")["model"])
    assert not (tmp_path / "run/metrics.json").exists()
    assert "is the result" in capsys.readouterr().out


def test_validation_set_stands_in_for_a_missing_test_set(tiny_config, tmp_path):
    settings = ["data.test=[]", "schedule.iterations=1", with_validation()]
    train(tiny_config, tmp_path / "run", *data_root(tiny_config), "--set", *settings)
    read = [json.loads((tmp_path / "run" / name).read_text()) for name in ("metrics.json", "metrics_val.json")]
    assert read[0] == read[1]


def test_bf16_and_adamw(tiny_config, tmp_path):
    settings = ["train.amp=bf16", "optim.name=adamw", "schedule.iterations=2"]
    train(tiny_config, tmp_path / "run", "--set", *settings)
    weights = load(tmp_path / "run/last.pt")["model"]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values() if value.ndim)


# ---------------------------------------------------------------------------------------------- a non-finite loss


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_non_finite_loss_never_reaches_the_weights(tiny_config, tmp_path, monkeypatch, name):
    """Iteration 2 breaks, the next reading is after iteration 4: the weights stay those of before iteration 2."""
    options = ["--set", f"optim.name={name}", "train.log_every=4", "schedule.iterations=8", "train.ema_decay=0.9"]
    good, broken = tmp_path / "good", tmp_path / "broken"
    train(tiny_config, good, *options, "schedule.iterations=2")

    seen: dict[str, object] = {}
    real_losses, real_check = Detector.losses, LossMonitor.check

    def losses(self, batch, *, seed, iteration):
        parts = real_losses(self, batch, seed=seed, iteration=iteration)
        if iteration == 2:
            seen["images"] = batch.index.tolist()
            parts["loss_rpn_box_reg"] = parts["loss_rpn_box_reg"] * float("inf")
        seen["detector"] = self
        return parts

    def check(self, *args):
        seen["weights"] = {key: value.clone() for key, value in seen["detector"].named_parameters()}
        return real_check(self, *args)

    monkeypatch.setattr(Detector, "losses", losses)
    monkeypatch.setattr(LossMonitor, "check", check)
    with pytest.raises(NonFiniteLoss) as error:
        train(tiny_config, broken, *options, "train.checkpoint_every=2")
    message = str(error.value)
    for text in ("iteration 2", "loss_rpn_box_reg inf", "rate 0.002", *(f"image_{i}" for i in seen["images"])):
        assert text in message
    assert "\n" not in message
    saved = load(broken / "last.pt")
    assert saved["training"]["iteration"] == 2
    assert_same(saved["training"]["weights"], load(good / "last.pt")["training"]["weights"])
    for key, value in seen["weights"].items():  # after two more updates that were not made
        assert torch.equal(value, saved["training"]["weights"][key]), key


# ---------------------------------------------------------------------------------------------- other beginnings


def test_init_from_a_detector_of_other_classes(tiny_config, tiny_voc, tmp_path, capsys):
    train(tiny_config, tmp_path / "first", "--set", "schedule.iterations=1")
    for xml in (tiny_voc / "Annotations").iterdir():
        xml.write_text(xml.read_text().replace(">red<", ">cat<"))
    weights = tmp_path / "first/last.pt"
    settings = ["data.classes=[blue, cat]", "schedule.iterations=1", "optim.lr=1e-12", "model.norm=batch"]
    train(tiny_config, tmp_path / "second", "--init-from", str(weights), "--set", *settings)
    assert "from scratch: roi_heads.box_predictor.cls_score.weight" in capsys.readouterr().out
    before, after = load(weights)["model"], load(tmp_path / "second/last.pt")["model"]
    for name, value in before.items():
        if name.endswith(("weight", "bias")):
            kept = torch.allclose(value, after[name], atol=1e-9)
            assert kept == ("box_predictor" not in name), name
    assert load_detector(tmp_path / "second/last.pt")[0].class_names == ["blue", "cat"]


def test_init_from_a_detector_of_more_classes(tiny_config, tmp_path, capsys):
    """COCO -> VOC: other numbers of outputs; the two class layers start afresh, all the rest is carried over."""
    train(tiny_config, tmp_path / "first", "--set", "schedule.iterations=1", "data.classes=[red, blue, green]")
    settings = ["schedule.iterations=1", "optim.lr=1e-12", "model.norm=batch"]
    weights = tmp_path / "first/last.pt"
    train(tiny_config, tmp_path / "second", "--init-from", str(weights), "--set", *settings)
    layers = [f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")]
    fresh = ", ".join(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))
    assert f"from scratch: {fresh}\n" in capsys.readouterr().out
    before, after = load(weights)["model"], load(tmp_path / "second/last.pt")["model"]
    for name, value in before.items():
        if name.endswith(("weight", "bias")) and "box_predictor" not in name:
            assert torch.allclose(value, after[name], atol=1e-9), name
    assert after[f"{layers[0]}.weight"].shape[0] == 3


def test_a_run_is_not_overwritten_unasked(tiny_config, tmp_path):
    out = tmp_path / "run"
    train(tiny_config, out, "--set", "schedule.iterations=1")
    with pytest.raises(UserError, match=r"holds a run already .*--resume"):
        train(tiny_config, out, "--set", "schedule.iterations=1")
    (out / "notes.txt").write_text("mine")
    train(tiny_config, out, "--overwrite", "--set", "schedule.iterations=2", "data.test=[]")
    assert not (out / "metrics.json").exists()
    assert (out / "notes.txt").exists()
    assert load(out / "last.pt")["training"]["iteration"] == 2


def test_resume_refuses_another_training(tiny_config, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no run to resume"):
        train(tiny_config, out, "--resume")
    with pytest.raises(UserError, match="contradict"):
        train(tiny_config, out, "--resume", "--overwrite")
    train(tiny_config, out, "--set", "schedule.iterations=1")
    with pytest.raises(UserError, match=r"model\.rpn\.nms_thresh 0.7, the config now says 0.5"):
        train(tiny_config, out, "--resume", "--set", "model.rpn.nms_thresh=0.5")
    with pytest.raises(UserError, match=r"optimi.er|optim\.name"):
        train(tiny_config, out, "--resume", "--set", "optim.name=adamw")


def test_a_longer_schedule_goes_on(tiny_config, tmp_path, capsys):
    out = tmp_path / "run"
    train(tiny_config, out, "--set", "schedule.iterations=1")
    train(tiny_config, out, "--resume", "--set", "schedule.iterations=2", "train.batch_size=auto")
    assert load(out / "last.pt")["training"]["iteration"] == 2
    assert load(out / "last.pt")["config"]["train"]["batch_size"] == 2  # the run's own
    printed = capsys.readouterr().out
    assert "resumed with schedule.iterations 2 (before: 1)" in printed
    assert "nothing is left to train" not in printed
    train(tiny_config, out, "--resume", "--set", "schedule.iterations=2")
    assert "2 iterations of the training made before: nothing is left to train" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["frcnn_r101_voc.yaml", "frcnn_r101_coco.yaml"])
def test_missing_data_is_one_line_before_any_model(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "build_detector", None)  # would be an internal error
    parser = train_det.make_parser()
    argv = arguments(ROOT / "configs" / name, tmp_path / "run", "--data-root", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit) as ending:
        cli.run(train_det.main, parser, argv)
    assert ending.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert str(tmp_path / "nowhere") in message
    assert "prepare_data.py" in message
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_work_are_refused_at_the_start(tiny_config, tmp_path):
    with pytest.raises(UserError, match=r"patience needs data\.val"):
        train(tiny_config, tmp_path / "run", "--set", "train.patience=2")
    root = data_root(tiny_config)
    with pytest.raises(UserError, match="needs voc12 among metrics"):
        train(tiny_config, tmp_path / "run", *root, "--set", with_validation(), "metrics=[coco]")


# ---------------------------------------------------------------------------------------------- as a person runs it


@pytest.mark.parametrize("workers", [0, 1])
def test_control_c_writes_a_checkpoint(tiny_config, tmp_path, workers):
    """SIGINT goes to the whole process group, the loader's workers included, as from a terminal."""
    out = tmp_path / "run"
    settings = ["schedule.iterations=100000", "train.log_every=1", f"data.num_workers={workers}"]
    command = [sys.executable, str(ROOT / "tools/train_det.py"), *arguments(tiny_config, out, "--set", *settings)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        limit = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    assert errors.count("stopping after this step") == 1
    assert load(out / "last.pt")["training"]["iteration"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model.norm=sync", "schedule.iterations=1"],  # later, batch norm of such small maps magnifies rounding
        ["model.backbone=vgg16", "model.box.fc_width=32", "data.num_workers=1", "train.accumulate=2"],
    ],
    ids=["sync", "vgg"],
)
def test_two_processes_train_like_one(tiny_config, tmp_path, settings):
    """The same steps on 1 and 2 processes (gloo): equal weights but for the order of sums; equal test results."""
    config = yaml.safe_load(tiny_config.read_text())
    config["train"] |= {"batch_size": 4, "validate_every": 2, "best_metric": "loss"}
    config["data"]["val"] = config["data"]["test"]
    tiny_config.write_text(yaml.safe_dump(config))
    script = str(ROOT / "tools/train_det.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launchers = {1: [sys.executable], 2: torchrun}
    for count, launcher in launchers.items():
        out = tmp_path / f"run{count}"
        command = [*launcher, script, *arguments(tiny_config, out, "--set", *settings)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test set, 2 images") == 1  # one process prints
    one, two = (load(tmp_path / f"run{count}/last.pt") for count in (1, 2))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], rtol=1e-4, atol=1e-5), key
    logs = [map(json.loads, (tmp_path / f"run{count}/metrics.jsonl").open()) for count in (1, 2)]
    for a, b in zip(*logs, strict=True):
        assert (a["split"], a["iteration"]) == (b["split"], b["iteration"])
        if a["split"] != "val_classes":  # AP by class
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert {path.name for path in (tmp_path / "run1").iterdir()} == {
        path.name for path in (tmp_path / "run2").iterdir()
    }
