"""A tiny VOC set and a tiny detector's config for the tests of the scripts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

COLOURS = {"red": (220, 40, 30), "blue": (30, 60, 220)}


def write_tiny_voc(root: Path, names: tuple[str, ...] = ("red", "blue"), images: int = 8) -> None:
    """A VOC folder of small grey images with one or two coloured squares; train has 6 images, test 2."""
    rng = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = [f"image_{number}" for number in range(images)]
    for number, image_id in enumerate(ids):
        height, width = ((48, 64), (64, 48))[number % 2]
        image = np.full((height, width, 3), 128, np.uint8)
        objects = ""
        for name, colour in list(zip(names, COLOURS.values(), strict=True))[: 1 + number % 2]:
            side = int(rng.integers(14, 26))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            image[y : y + side, x : x + side] = colour
            objects += (
                f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + side}</xmax><ymax>{y + side}</ymax></bndbox></object>"
            )
        cv2.imwrite(str(root / "JPEGImages" / f"{image_id}.png"), image[:, :, ::-1])
        (root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><filename>{image_id}.png</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
    for image_set, part in {"train": ids[: images - 2], "test": ids[images - 2 :]}.items():
        (root / "ImageSets/Main" / f"{image_set}.txt").write_text("\n".join(part) + "\n")


@pytest.fixture
def tiny_voc(tmp_path: Path) -> Path:
    """The root of a tiny VOC set, in a folder that serves as --data-root."""
    root = tmp_path / "data" / "tiny"
    write_tiny_voc(root)
    return root


def detector_values(root: Path) -> dict:
    """The values of a config that trains a ResNet-18-C4 on the tiny set at `root` for 4 iterations, and tests it."""
    source = {"format": "voc", "root": str(root)}
    return {
        "data": {
            "train": [{**source, "image_set": "train"}],
            "test": [{**source, "image_set": "test"}],
            "classes": ["red", "blue"],
            "min_size": 48, "max_size": 64, "test_min_size": 48, "test_max_size": 64, "num_workers": 0,
        },
        "model": {
            "backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0,
            "anchors": {"sizes": [16, 32]},
            "rpn": {"hidden_channels": 16, "batch_size_per_image": 16, "post_nms_top_n_train": 20,
                    "post_nms_top_n_test": 10},
            "box": {"pool_size": 2, "batch_size_per_image": 8},
        },
        "optim": {"name": "sgd", "lr": 0.002, "reference_batch_size": 2},
        "schedule": {"iterations": 4, "policy": "constant"},
        "train": {"batch_size": 2, "log_every": 2},
        "test": {"score_thresh": 0.0},
    }  # fmt: skip


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_voc: Path) -> Path:
    """The same as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(detector_values(tiny_voc)))
    return path


# ---------------------------------------------------------------------------------------------- a tiny classifier

CLASSES = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}


def write_tiny_images(root: Path, count: int = 8, side: int = 12) -> None:
    """train/, val/ and test/ with `count` noisy images of one colour for each of three classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, colour in CLASSES.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.clip(np.array(colour) + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])


def tiny_classifier_values(root: Path) -> dict:
    """The values of a config that trains a net of two units on the tiny images, in memory, for 6 iterations."""
    write_tiny_images(root)
    return {
        "data": {
            **{split: {"format": "folders", "root": str(root / split)} for split in ("train", "val", "test")},
            "crop_size": 12, "test_resize": None, "mean": "pixel", "std": [50, 50, 50],
            "augment": {"crop": "pad", "pad": 2}, "num_workers": 0,
        },
        "model": {
            "backbone": {
                "stem": {"kernel": 3, "width": 8, "stride": 1, "pool": False},
                "stages": [{"units": 1, "width": 8, "stride": 1}, {"units": 1, "width": 8, "stride": 2}],
                "unit": "basic", "shortcut": "A",
            }
        },
        "optim": {"lr": 0.05, "reference_batch_size": 8},
        "schedule": {"iterations": 6, "milestones": [4]},
        "train": {"batch_size": 8, "log_every": 2, "validate_every": 2},
    }  # fmt: skip


@pytest.fixture
def classifier_values(tmp_path: Path) -> dict:
    """The values of a config over tiny images that are written here."""
    return tiny_classifier_values(tmp_path / "images")


@pytest.fixture
def classifier_config(tmp_path: Path, classifier_values: dict) -> Path:
    """The same as a file."""
    path = tmp_path / "classifier.yaml"
    path.write_text(yaml.safe_dump(classifier_values))
    return path
