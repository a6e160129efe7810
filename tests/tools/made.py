"""A tiny localisation set and a config that trains on it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

COLOURS = {"n01": (220, 40, 30), "n02": (30, 60, 220)}


def write_set(root: Path, split: str, count: int) -> None:
    """Tiny-ImageNet's layout: a square of the class's colour on grey noise, in images of 32x32."""
    rng = np.random.default_rng(len(split))
    for wnid, colour in COLOURS.items():
        folder = root / split / wnid
        (folder / "images").mkdir(parents=True)
        lines = []
        for number in range(count):
            image = rng.integers(90, 150, (32, 32, 3)).astype(np.uint8)
            width, height = rng.integers(12, 24, 2)
            x, y = rng.integers(0, 32 - width), rng.integers(0, 32 - height)
            image[y : y + height, x : x + width] = colour
            name = f"{wnid}_{number}.png"
            cv2.imwrite(str(folder / "images" / name), image[:, :, ::-1])
            lines.append(f"{name}\t{x}\t{y}\t{x + width}\t{y + height}")
        (folder / f"{wnid}_boxes.txt").write_text("\n".join(lines))


def localisation_values(root: Path) -> dict:
    """The values of a config over the set that is written here: two classes, 16 and 6 images each."""
    write_set(root / "data", "train", 16)
    write_set(root / "data", "val", 6)
    source = {"format": "tiny_imagenet", "root": str(root / "data")}
    return {
        "data": {
            "train": {**source, "split": "train"}, "val": {**source, "split": "val"}, "crop_size": 32,
            "test_resize": 32, "augment": {"crop": "random_resized", "area": [0.7, 1.0]}, "num_workers": 0,
        },
        "model": {
            "backbone": {
                "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": False},
                "stages": [{"units": 1, "width": 8, "stride": 1}, {"units": 1, "width": 16, "stride": 2}],
                "unit": "basic",
            },
            "norm": "batch",
            "rpn": {
                "hidden_channels": 16, "anchors": {"sizes": [12, 20], "offset": 0.5}, "batch_size_per_image": 32,
                "fg_iou_thresh": 0.5, "classification_loss_weight": 1.0,
            },
            "rcnn": {"warp_size": 16, "context": 2, "rois_per_image": 4},
        },
        "optim": {"lr": 0.1, "reference_batch_size": 8},
        "schedule": {"iterations": 6, "policy": "cosine", "warmup_iterations": 2},
        "train": {"batch_size": 8, "log_every": 2, "validate_every": 3},
        "test": {"view": "dense", "scales": [32, 48], "proposals": 20},
    }  # fmt: skip
