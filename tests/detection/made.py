"""A small detector with random weights that finds much of everything, as a checkpoint, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from configs.detection import DetectionConfig
from configs.loading import parse_config
from detection.model import build_detector

VALUES = {
    "data": {
        "train": [{"format": "voc", "root": "x", "image_set": "train"}], "classes": ["red", "blue"],
        "min_size": 48, "max_size": 64, "test_min_size": 48, "test_max_size": 64,
    },
    "model": {
        "backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0,
        "anchors": {"sizes": [16, 32]}, "rpn": {"hidden_channels": 16, "post_nms_top_n_test": 10},
        "box": {"pool_size": 2},
    },
    "optim": {"name": "sgd", "lr": 0.002, "reference_batch_size": 2},
    "schedule": {"iterations": 4, "policy": "constant"},
    "train": {"batch_size": 2},
}  # fmt: skip


def save_detector(path: Path, seed: int = 0, names: tuple[str, ...] = ("red", "blue")) -> Path:
    """Write a checkpoint of a ResNet-18-C4 with random weights."""
    config = parse_config(VALUES, [], DetectionConfig, "made")
    torch.manual_seed(seed)
    detector = build_detector(config.model, list(names))
    content = {
        "format": 1, "kind": "detector", "config": config.model_dump(mode="json"), "class_names": list(names),
        "preprocessing": detector.preprocessing.to_dict(), "model": detector.state_dict(),
    }  # fmt: skip
    torch.save(content, path)
    return path


def make_image(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.kron(small, np.ones((-(-size[0] // 6), -(-size[1] // 8), 1), np.uint8))[: size[0], : size[1]]
