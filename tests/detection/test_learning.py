"""It can learn: eight real images are learned by heart, so that a wrong sign anywhere shows."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch

from configs.detection import DataConfig, DetectionConfig
from configs.loading import parse_config
from datasets.batch import Batch
from datasets.build import build_dataset
from datasets.detection import DetectionDataset
from datasets.detection_loader import eval_loader
from datasets.resize import resized_size
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import evaluate
from detection.model import Detector, build_detector
from detection.prediction import to_numpy

SIDE = {"data.min_size": 240, "data.max_size": 320, "data.test_min_size": 240, "data.test_max_size": 320}
MIN_OBJECT = 24
"""Pixels of the resized image: smaller objects are less than two feature pixels of a stride-16 map."""


def config_for(backbone: str, box: dict, lr: float) -> DetectionConfig:
    """The consensus settings at 240x320 from random weights."""
    content = {
        "data": {
            "train": [{"format": "voc", "root": "voc2012_100", "image_set": "all"}],
            "classes": "voc",
            "train_difficult": True,
            "num_workers": 0,
            "augment": {"hflip": 0.0},
        },
        "model": {
            "backbone": backbone,
            "weights": "random",
            "norm": "batch",
            "frozen_stages": 0,
            "anchors": {"sizes": [32, 64, 128, 256]},
            "rpn": {"hidden_channels": 128, "post_nms_top_n_train": 300},
            "box": {"batch_size_per_image": 32, "positive_fraction": 0.5} | box,
        },
        "optim": {"name": "adamw", "lr": lr, "reference_batch_size": 4},
        "schedule": {"iterations": 300},
        "train": {"batch_size": 4},
        "test": {"score_thresh": 0.05},
    }
    return parse_config(content, [f"{key}={value}" for key, value in SIDE.items()], DetectionConfig, "test")


def eight_images(data: DataConfig, data_dir: Path) -> DetectionDataset:
    """Eight landscape images whose objects are all large enough, as a data set that is only resized."""
    dataset = build_dataset(data, "train", data_dir, seed=0)
    chosen = []
    for index in range(len(dataset)):
        target = dataset.records.target(index)
        height, width = resized_size(dataset.records.image_size(index), 240, 320)
        sides = (target.boxes[:, 2:] - target.boxes[:, :2]) * width / dataset.records.image_size(index)[1]
        if len(target) and (sides >= MIN_OBJECT).all() and height > 224 and width > 288:
            chosen.append(index)
    subset = dataset.records.subset(chosen[:8])
    assert len(subset) == 8
    return DetectionDataset(subset, min_sizes=[240], max_size=320)


def learn_by_heart(detector: Detector, batches: list[Batch], lr: float, iterations: int) -> None:
    """AdamW with a cosine schedule; batch norm is held fixed at the end, as it will be at test."""
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=lr, fused=True)
    detector.train()
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (iteration + 1) / 20) * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
        if iteration == iterations * 2 // 3:
            for module in detector.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        losses = detector(batches[iteration % len(batches)], seed=0, iteration=iteration)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        optimizer.step()


@torch.no_grad()
def voc12_map(detector: Detector, dataset: DetectionDataset, data: DataConfig) -> float:
    """mAP on the data set."""
    detector.eval()
    found = {}
    for batch in eval_loader(dataset, data, batch_size=4):
        found.update(zip(batch.index.tolist(), to_numpy(detector(batch)), strict=True))
    truth = GroundTruth.from_records(dataset.records)
    detections = Detections.from_images(
        dataset.records.image_ids, [found[k] for k in range(len(dataset))], dataset.class_names, frame=truth.frame
    )
    return evaluate(truth, detections, ["voc12"])["voc12"]["mAP"]


@pytest.fixture
def all_cores():
    """All of them for a test that runs alone; as the suite's worker processes go, one each."""
    threads = torch.get_num_threads()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(
    ("backbone", "box", "lr", "iterations"),
    [
        ("resnet18", {"pool_size": 7}, 5e-4, 360),
        ("vgg16_bn", {"pool_size": 7, "fc_width": 256}, 3e-4, 120),
    ],
)
def test_learns_eight_real_images_by_heart(data_dir, backbone, box, lr, iterations):
    config = config_for(backbone, box, lr)
    dataset = eight_images(config.data, data_dir)
    torch.manual_seed(0)
    detector = build_detector(config.model, dataset.class_names, test=config.test).to(memory_format=torch.channels_last)
    batches = list(eval_loader(dataset, config.data, batch_size=2 if backbone == "resnet18" else 4))
    learn_by_heart(detector, batches, lr, iterations)
    score = voc12_map(detector, dataset, config.data)
    assert score >= 0.95, score
