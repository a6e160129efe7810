"""The classification training script, end to end on tiny images: results, exact resumption, events, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.classification import build_classifier, load_classifier
from backbones.pretrained import load_backbone_weights
from backbones.zoo import build_backbone
from configs.classification import ClassificationConfig, ClassifierConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.classification import build_splits
from tools import pretrain
from tools.runtime import cli, loop
from tools.runtime.classification import make_normalize
from tools.runtime.plan import make_plan
from tools.runtime.run_folder import RunFolder
from tools.runtime.tasks import classification as task_module
from tools.runtime.tasks.classification import ClassificationTask
from tools.runtime.training import NonFiniteLoss

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    "data.augment.crop=random_resized", "data.augment.pad=4", "data.mean=channel", "data.test_resize=14",
    "data.augment.lighting=0.1",
]  # fmt: skip
"""The loader's way in place of the set in memory."""


def arguments(config: Path, out: Path, *more: str) -> list[str]:
    return ["--cfg", str(config), "--out", str(out), "--device", "cpu", *more]


def train(config: Path, out: Path, *more: str) -> None:
    pretrain.main(pretrain.make_parser().parse_args(arguments(config, out, *more)))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


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


# ---------------------------------------------------------------------------------------------- a whole run


@pytest.mark.parametrize("more", [[], ["train.amp=bf16", *FILES]])
def test_steps_as_graphs_give_the_same_weights(classifier_config, tmp_path, graphs_on_the_cpu, more):
    """Captured once, replayed with other images, rates and averages; dropout, clipping and resumption included."""
    settings = ["train.ema_decay=0.9", "model.dropout=0.3", "optim.clip_norm=0.5", *more]
    for graphs in ("false", "true"):
        train(classifier_config, tmp_path / graphs, "--set", *settings, f"train.graphs={graphs}")
    assert len(graphs_on_the_cpu) == 1
    a, b = (load(tmp_path / graphs / "last.pt") for graphs in ("false", "true"))
    assert a["config"]["train"].pop("graphs") is not b["config"]["train"].pop("graphs")
    assert_same(a, b)
    logged = [[line.get("cross_entropy") for line in lines(tmp_path / graphs)] for graphs in ("false", "true")]
    assert logged[0] == logged[1]


@pytest.mark.gpu
def test_steps_as_graphs_give_the_same_weights_on_a_gpu(classifier_config, tmp_path, caplog):
    runs = {}
    for graphs in ("false", "true"):
        settings = ["train.ema_decay=0.9", "model.dropout=0.3", f"train.graphs={graphs}"]
        train(classifier_config, tmp_path / graphs, "--device", "cuda", "--set", *settings)
        runs[graphs] = load(tmp_path / graphs / "last.pt")
    assert not [record for record in caplog.records if record.name == "backbones.compilation"]
    for name, value in runs["false"]["model"].items():
        torch.testing.assert_close(runs["true"]["model"][name], value, rtol=1e-3, atol=1e-3)


def test_steps_as_graphs_are_all_the_same(classifier_config, tmp_path):
    for setting in ("train.accumulate=2", "data.augment.mixup=0.2", "data.augment.cutmix=1"):
        with pytest.raises(UserError, match=f"not with {setting.partition('=')[0]}"):
            load_config(classifier_config, ["train.graphs=true", setting], ClassificationConfig)


def test_a_run_learns_and_leaves_what_the_interface_promises(classifier_config, tmp_path, capsys):
    out = tmp_path / "run"
    settings = ["schedule.iterations=30", "schedule.milestones=[20]", "train.validate_every=10", "train.log_every=10"]
    train(classifier_config, out, "--set", *settings)
    for name in [
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "metrics_val.json",
        "metrics.json",
        "curves.png",
    ]:
        assert (out / name).is_file(), name
    assert (out / "curves.png").is_file()
    assert list((out / "tensorboard").glob("events*"))
    config = load_config(classifier_config, settings, ClassificationConfig)
    assert load_config(out / "config.yaml", [], ClassificationConfig) == config

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 24
    assert metrics["top1_error"] < 0.2, "three colours are easy"
    assert metrics["top5_error"] == 0.0
    logged = lines(out)
    assert [(line["split"], line["iteration"]) for line in logged if line["split"] != "recalibrated"] == [
        (split, iteration) for iteration in (10, 20, 30) for split in ("train", "val", "test")
    ]
    training = [line for line in logged if line["split"] == "train"]
    assert [line["rate"] for line in training] == pytest.approx([0.05, 0.05, 0.005])
    assert training[0]["epoch"] == pytest.approx(10 * 8 / 24)
    assert training[-1]["top1_error"] < training[0]["top1_error"]

    last = load(out / "last.pt")
    assert (last["format"], last["kind"], last["class_names"]) == (1, "classifier", ["blue", "green", "red"])
    assert last["stride_in_1x1"] is False
    assert ClassificationConfig(**last["config"]) == config
    assert "optimizer" not in load(out / "best.pt")["training"]
    printed = capsys.readouterr().out
    assert "24 to train on, 24 to validate, 24 to test images, in memory" in printed
    assert "30 iterations, 10 epochs of 3, rate 0.05 -> 0.005 at 20" in printed


def test_the_stored_mean_is_that_of_the_training_images(classifier_config, tmp_path):
    train(classifier_config, tmp_path / "run", "--set", "schedule.iterations=1", "schedule.milestones=[]")
    last = load(tmp_path / "run/last.pt")
    data = load_config(classifier_config, [], ClassificationConfig).data
    images = build_splits(data, tmp_path).train.images.astype(np.float64)
    np.testing.assert_allclose(last["mean_image"].permute(1, 2, 0), images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(last["preprocessing"]["mean"], images.mean((0, 1, 2)), rtol=1e-6)
    assert last["preprocessing"]["std"] == [50.0, 50.0, 50.0]
    assert last["preprocessing"]["channel_order"] == "rgb"


def test_recalibrated_statistics_are_the_true_ones(classifier_config, tmp_path):
    """conv1's batch norm: mean and variance of its input over the training set, by hand."""
    settings = ["schedule.iterations=3", "schedule.milestones=[]"]
    train(classifier_config, tmp_path / "run", "--set", *settings)
    last = load(tmp_path / "run/last.pt")
    data = load_config(classifier_config, [], ClassificationConfig).data
    images = torch.from_numpy(build_splits(data, tmp_path).train.images).permute(0, 3, 1, 2).double()
    x = torch.nn.functional.conv2d(
        (images - last["mean_image"]) / 50, last["model"]["conv1.weight"].double(), padding=1
    )
    torch.testing.assert_close(last["model"]["bn1.running_mean"].double(), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        last["model"]["bn1.running_var"].double(), x.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5
    )
    running = last["training"]["weights"]["bn1.running_mean"]
    assert not torch.allclose(running, last["model"]["bn1.running_mean"], rtol=1e-3), "the running ones are kept too"
    train(classifier_config, tmp_path / "raw", "--set", *settings, "train.recalibrate=false")
    assert torch.equal(load(tmp_path / "raw/last.pt")["model"]["bn1.running_mean"], running)


def test_a_detectors_backbone_takes_the_checkpoint_by_path(classifier_config, tmp_path):
    settings = ["model.backbone=resnet18", "schedule.iterations=1", "schedule.milestones=[]", "data.mean=channel"]
    train(classifier_config, tmp_path / "run", "--set", *settings, "data.test=null", "data.val=null")
    torch.manual_seed(1)
    net = build_backbone("resnet18", norm="frozen", num_classes=1000)
    path = tmp_path / "run/last.pt"
    preprocessing = load_backbone_weights(net, "resnet18", str(path), stride_in_1x1=False)
    last = load(path)
    assert torch.equal(net.layer3[0].conv1.weight, last["model"]["layer3.0.conv1.weight"])
    assert torch.equal(net.bn1.running_var, last["model"]["bn1.running_var"])
    assert preprocessing.to_dict() == last["preprocessing"]
    assert preprocessing.mean != (123.675, 116.28, 103.53), "its own, not torchvision's"


# ---------------------------------------------------------------------------------------------- resumption


def run_and_resume(config: Path, tmp_path: Path, monkeypatch, options: list[str], stop_after: int) -> tuple[Path, Path]:
    """The same run in one go, and interrupted and resumed."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, *options)
    real = loop.seed_step

    def stop(seed: int, iteration: int) -> None:
        real(seed, iteration)
        if iteration == stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "seed_step", stop)
    with pytest.raises(SystemExit) as ending:
        cli.run(pretrain.main, pretrain.make_parser(), arguments(config, parts, *options))
    assert ending.value.code == 3
    assert load(parts / "last.pt")["training"]["iteration"] == stop_after
    monkeypatch.setattr(loop, "seed_step", real)
    train(config, parts, "--resume", *options)
    return whole, parts


@pytest.mark.parametrize("way", ["memory", "files"])
def test_interrupted_and_resumed_equals_uninterrupted(classifier_config, tmp_path, monkeypatch, way):
    """Weights, averages, statistics, optimiser, events, best error: bit for bit, with all augmentation and dropout."""
    settings = [
        "schedule.policy=cosine", "schedule.milestones=[]", "schedule.warmup_iterations=3", "train.ema_decay=0.9",
        "train.accumulate=2", "optim.clip_norm=1.0", "model.dropout=0.3", "data.augment.mixup=0.4",
        "data.augment.cutmix=1.0", "data.augment.erasing=0.5", "train.label_smoothing=0.1", "train.log_every=1",
        *(FILES if way == "files" else []),
    ]  # fmt: skip
    whole, parts = run_and_resume(classifier_config, tmp_path, monkeypatch, ["--set", *settings], 3)
    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))
    assert_same(load(whole / "best.pt"), load(parts / "best.pt"))
    assert (whole / "metrics.json").read_bytes() == (parts / "metrics.json").read_bytes()
    logged = [[{k: v for k, v in line.items() if "seconds" not in k} for line in lines(run)] for run in (whole, parts)]
    assert logged[0] == logged[1]


def test_events_survive_a_resumption(classifier_config, tmp_path, monkeypatch):
    """The warm-up's end comes in the window that the interruption cuts; the plateau's steps lie on both sides."""
    monkeypatch.setattr(task_module, "WARMUP_WINDOW", 8)
    settings = [
        "schedule.iterations=40", "schedule.policy=plateau", "schedule.milestones=[]", "schedule.plateau_patience=3",
        "schedule.plateau_threshold=0.9", "schedule.warmup_until_error=0.4", "train.log_every=1",
    ]  # fmt: skip
    whole, parts = run_and_resume(classifier_config, tmp_path, monkeypatch, ["--set", *settings], 13)
    assert_same(load(whole / "last.pt"), load(parts / "last.pt"))
    training = load(whole / "last.pt")["training"]
    state, events = training["state"], training["events"]
    assert events["warmup_event"] == 16, "the window from 8 to 16, in whose midst the run was interrupted"
    # No error is lower by 0.9 than the first: a step after every third validation from the second on.
    assert events["plateau"]["events"] == [8, 14, 20]
    assert state["iteration"] == 26, "the plateau after the third step is the end"
    rates = {line["iteration"]: line["rate"] for line in lines(parts) if line["split"] == "train"}
    assert sorted(rates) == list(range(1, 27))
    for done, rate in rates.items():
        i = done - 1
        assert rate == pytest.approx(0.05 * (1.0 if i >= 16 else 0.1) * 0.1 ** sum(i >= e for e in (8, 14, 20)))


def test_a_longer_schedule_goes_on_from_the_raw_statistics(classifier_config, tmp_path, capsys):
    """After a finished, recalibrated run: as if it had been that long from the beginning."""
    settings = ["schedule.milestones=[]", "train.validate_every=2"]
    train(classifier_config, tmp_path / "run", "--set", *settings, "schedule.iterations=2", "train.ema_decay=0.5")
    train(classifier_config, tmp_path / "run", "--resume", "--set", *settings, "schedule.iterations=4",
          "train.ema_decay=0.5")  # fmt: skip
    assert "resumed with schedule.iterations 4 (before: 2)" in capsys.readouterr().out
    train(classifier_config, tmp_path / "long", "--set", *settings, "schedule.iterations=4", "train.ema_decay=0.5")
    assert_same(load(tmp_path / "run/last.pt"), load(tmp_path / "long/last.pt"))


# ---------------------------------------------------------------------------------------------- options


def test_reading_files_with_workers_and_the_paper_recipe(classifier_config, tmp_path):
    settings = [
        "data.augment={crop: scale_jitter, scale: [14,20]}", "data.augment.lighting=0.1",
        "data.test_resize=14", "data.num_workers=1", "train.amp=bf16", "data.reduced_decode=true",
    ]  # fmt: skip
    train(classifier_config, tmp_path / "run", "--set", *settings)
    weights = load(tmp_path / "run/last.pt")["model"]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values() if value.ndim)
    assert load(tmp_path / "run/last.pt")["mean_image"].shape == (3, 12, 12)


def test_the_average_is_what_evaluates(classifier_config, tmp_path):
    train(classifier_config, tmp_path / "run", "--set", "train.ema_decay=0.9", "train.recalibrate=false")
    last = load(tmp_path / "run/last.pt")
    assert not torch.equal(last["model"]["conv1.weight"], last["training"]["weights"]["conv1.weight"])
    member = load_classifier(tmp_path / "run/last.pt", ClassifierConfig(backbone="x"))
    assert torch.equal(member.net.conv1.weight, last["model"]["conv1.weight"])


def test_fine_tuning_takes_the_weights_own_input(classifier_config, tmp_path):
    train(classifier_config, tmp_path / "first", "--set", "schedule.iterations=1", "schedule.milestones=[]")
    weights = tmp_path / "first/last.pt"
    settings = [f"model.weights={weights}", "optim.lr=1e-12", "data.std=[1,1,1]", "train.recalibrate=false"]
    train(classifier_config, tmp_path / "second", "--set", *settings)
    first, second = load(weights), load(tmp_path / "second/last.pt")
    assert torch.allclose(first["model"]["layer1.0.conv1.weight"], second["model"]["layer1.0.conv1.weight"], atol=1e-9)
    assert second["preprocessing"] == first["preprocessing"]


def test_a_new_run_starts_from_given_weights(classifier_config, tmp_path):
    """--init-from, a path from the present folder on, whatever the data root."""
    short = ["--set", "schedule.iterations=1", "schedule.milestones=[]", "train.recalibrate=false"]
    train(classifier_config, tmp_path / "first", *short)
    weights = tmp_path / "first/last.pt"
    more = ["--init-from", str(weights), "--data-root", str(tmp_path)]
    train(classifier_config, tmp_path / "second", *more, *short, "optim.lr=1e-12", "seed=5")
    first, second = load(weights), load(tmp_path / "second/last.pt")
    assert torch.allclose(first["model"]["layer1.0.conv1.weight"], second["model"]["layer1.0.conv1.weight"], atol=1e-9)
    assert second["config"]["model"]["weights"] == str(weights)


def test_a_non_finite_loss_is_named_and_not_saved(classifier_config, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"iteration \d+: .*rate 1e\+30"):
        train(classifier_config, tmp_path / "run", "--set", "optim.lr=1e30")
    assert not (tmp_path / "run/last.pt").exists() or all(
        value.isfinite().all() for value in load(tmp_path / "run/last.pt")["model"].values()
    )


class NoHostSync(TorchDispatchMode):
    """Fails where a value of the device is read by the host or decides a shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reading = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select)
        assert func.overloadpacket not in reading, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["memory", "files"])
def test_a_step_never_waits_for_the_device(classifier_config, tmp_path, way):
    settings = [
        "data.augment.lighting=0.1",
        "data.augment.erasing=0.5",
        "data.augment.cutmix=1.0",
        "train.ema_decay=0.9",
    ]
    config = load_config(
        classifier_config, [*settings, *(FILES if way == "files" else [])], ClassificationConfig
    )  # fmt: skip
    device = torch.device("cpu")
    splits = build_splits(config.data, tmp_path)
    net = build_classifier(config.model, 3)
    normalize = make_normalize(config, net, splits.train, None, tmp_path)
    task = ClassificationTask(config, net, normalize, splits, device)
    plan = make_plan(task, RunFolder(tmp_path / "run"), device)
    batches = task.batches(0)
    for iteration in range(3):
        # At its beginning a DataLoader reads a seed, on the host.
        with NoHostSync() if iteration else nullcontext():
            loop._update(task, plan, [next(batches)])
            plan.state.iteration += 1
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():
        task.figures()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.train.root=nowhere"], "nowhere"),
        (["train.accumulate=3"], "not a multiple of train.accumulate 3"),
        (["schedule.policy=plateau", "schedule.milestones=[]", "data.val=null"], "policy plateau watches"),
        (["train.patience=2", "data.val=null"], "train.patience watches"),
        (["data.hold_out=4"], "either val or hold_out"),
        (["data.augment.trivial_augment=true"], "not with crop: pad"),
        (["data.crop_size=16"], "but the images are 12x12"),
        (["model.backbone=resnet19"], "did you mean resnet1"),
        (["model.weights=absent.pt"], "there is no file absent.pt"),
        (["data.augment={crop: scale_jitter, scale: [8,20]}"], "below the crop of 12"),
        (["data.augmnt.crop=pad"], "did you mean data.augment?"),
        (["data.test.format=cifar10"], "needs split: train or test"),
    ],
)
def test_mistakes_take_one_line(classifier_config, tmp_path, capsys, settings, words):
    options = arguments(classifier_config, tmp_path / "run", "--data-root", str(tmp_path), "--set", *settings)
    with pytest.raises(SystemExit) as ending:
        cli.run(pretrain.main, pretrain.make_parser(), options)
    assert ending.value.code == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "\n" not in message


def test_a_run_is_not_overwritten_unasked(classifier_config, tmp_path):
    settings = ["--set", "schedule.iterations=1", "schedule.milestones=[]"]
    train(classifier_config, tmp_path / "run", *settings)
    with pytest.raises(UserError, match=r"holds a run already .*--resume"):
        train(classifier_config, tmp_path / "run", *settings)
    train(classifier_config, tmp_path / "run", "--overwrite", *settings)
    with pytest.raises(UserError, match=r"train\.batch_size 8, the config now says 4"):
        train(classifier_config, tmp_path / "run", "--resume", *settings, "train.batch_size=4")


def test_two_processes_make_one_training(classifier_config, tmp_path):
    """With batch norm over all processes, two with half the step each train as one does, up to rounding."""
    settings = ["--set", "model.norm=sync", "data.augment.erasing=0.5", "data.augment.lighting=0.1", "optim.lr=0.01",
                "data.augment.mixup=0.4", "data.augment.cutmix=1.0", "train.recalibrate=false"]  # fmt: skip
    train(classifier_config, tmp_path / "one", *settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "tools/pretrain.py", *arguments(classifier_config, tmp_path / "two", *settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (load(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name, value in one["model"].items():
        if value.is_floating_point():
            torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    errors = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert errors[0]["images"] == errors[1]["images"] == 24
