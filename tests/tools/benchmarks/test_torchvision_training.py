"""torchvision's FasterRCNN in our loop: its losses, coordinates of the original images, going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from tests.tools.conftest import COLOURS
from tools.benchmarks import torchvision_training as script
from tools.runtime import cli
from tools.runtime.checkpoint import load_checkpoint
from tools.runtime.evaluation import score
from tools.runtime.run_folder import RunFolder
from tools.runtime.start import Job


@pytest.fixture
def fpn_config(tiny_config) -> Path:
    """The tiny detector with a narrow pyramid."""
    values = yaml.safe_load(tiny_config.read_text())
    values["model"] |= {"neck": "fpn", "fpn_channels": 8, "anchors": {"sizes": [[8], [16], [32], [48], [64]]}}
    values["model"]["rpn"] |= {"hidden_channels": 8}
    values["model"]["box"] |= {"pool_size": 2, "sampling_ratio": 1, "fc_width": 16}
    tiny_config.write_text(yaml.safe_dump(values))
    return tiny_config


class Painter(nn.Module):
    """Finds the squares by their colours, in the pixels that torchvision would get."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found = []
        for image in images:
            boxes, labels = [], []
            for label, colour in enumerate(COLOURS.values(), 1):
                distance = (image * 255 - torch.tensor(colour)[:, None, None]).abs().sum(0)
                rows, columns = (distance < 60).nonzero(as_tuple=True)
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    labels.append(label)
            scores = torch.linspace(0.9, 0.8, len(labels))
            tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            found.append({"boxes": tensor, "labels": torch.tensor(labels), "scores": scores})
        return found


def test_perfect_detections_of_resized_images_score_one(fpn_config, tmp_path):
    config = load_config(fpn_config, ["data.test_min_size=96", "data.test_max_size=120"])  # factors 1.875 and 1.86
    dataset = build_dataset(config.data, "test", tmp_path, seed=0, class_names=["red", "blue"])
    detections = script.detect(Painter(), dataset, config, torch.device("cpu"))
    metrics = score(dataset.records, detections, config.metrics)
    assert metrics["voc12"]["mAP"] == pytest.approx(1.0)
    assert metrics["coco"]["AP75"] == pytest.approx(1.0), "within a pixel or two of 14 to 26"


def test_losses_are_those_that_torchvision_gives_for_the_same_images(fpn_config, tmp_path):
    config = load_config(fpn_config)
    train_set = build_dataset(config.data, "train", tmp_path, seed=0)
    net = script.build(config, 2)
    task = script.TorchvisionTask(config, net, train_set, torch.device("cpu"))
    batch = next(task.batches(0))
    torch.manual_seed(1)
    ours = task.losses(batch, 0)
    assert set(ours) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    images, targets = [], []
    for row in range(len(batch.index)):
        height, width = batch.image_sizes[row].tolist()
        images.append(batch.images[row, :, :height, :width] / 255)
        count = int(batch.valid[row].sum())
        targets.append({"boxes": batch.boxes[row, :count], "labels": batch.labels[row, :count]})
    torch.manual_seed(1)
    expected = net(images, targets)
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-5), name
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert "backbone.body.conv1.weight" in trained, "all trains from random weights"
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16)])
def test_it_trains_in_the_precision_that_the_config_asks_for(amp, dtype, fpn_config, tmp_path):
    config = load_config(fpn_config, [f"train.amp={amp}"])
    net = script.build(config, 2)
    task = script.TorchvisionTask(config, net, build_dataset(config.data, "train", tmp_path), torch.device("cpu"))
    seen = []
    net.get_submodule("backbone.body.conv1").register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    losses = task.losses(next(task.batches(0)), 0)
    assert seen == [dtype]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_a_run_that_was_stopped_ends_like_one_that_was_not(fpn_config, tmp_path, monkeypatch):
    config = load_config(fpn_config, ["schedule.iterations=2"])
    stopping = {"at": None, "stop": None}

    def step_done(self, iteration):
        if iteration == stopping["at"]:
            stopping["stop"].requested = True

    monkeypatch.setattr(script.TorchvisionTask, "step_done", step_done)

    def train(folder: str) -> dict:
        with cli.StopRequest() as stop, RunFolder(tmp_path / folder) as run:
            stopping["stop"] = stop
            resumes = run.prepare(resume="auto")
            script.train(config, Job(torch.device("cpu"), stop, run, tmp_path, None, resumes))
        return load_checkpoint(tmp_path / folder / "last.pt")["model"]

    whole = train("whole")
    assert (tmp_path / "whole/metrics.json").is_file()
    stopping["at"] = 1
    with pytest.raises(cli.Interrupted):
        train("stopped")
    stopping["at"] = None
    resumed = train("stopped")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.neck=none", "model.anchors.sizes=[16]"], "neck: fpn"),
        (["model.rpn.hidden_channels=4"], "hidden_channels"),
        (["model.weights=torchvision:IMAGENET1K_V1"], "weights: random"),
    ],
)
def test_what_it_cannot_compare_is_refused(changes, message, fpn_config):
    with pytest.raises(UserError, match=message):
        script.refuse_what_it_has_not(load_config(fpn_config, changes))
