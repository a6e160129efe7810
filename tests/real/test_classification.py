"""Real images and independently trained weights: published figures through the scripts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from configs.classification import ImageDataConfig
from datasets.classification import build_splits, centre_batches, scaled_batches
from datasets.folders import read_folders
from tools import convert_weights, test_cls
from tools.runtime import cli

CONFIG = Path(__file__).resolve().parents[2] / "configs/cifar5k_resnet20.yaml"
WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}


def run(script, *arguments: object) -> None:
    with pytest.raises(SystemExit) as ending:
        cli.run(script.main, script.make_parser(), [str(argument) for argument in arguments])
    assert ending.value.code == 0


@pytest.fixture(scope="module")
def converted(data_dir, tmp_path_factory) -> dict[int, Path]:
    """Depth -> converted checkpoint."""
    folder = tmp_path_factory.mktemp("converted")
    paths = {depth: folder / f"resnet{depth}.pt" for depth in WEIGHTS}
    for depth, name in WEIGHTS.items():
        run(convert_weights, "--source", "akamaster", data_dir / "resnet_cifar10_weights" / name, paths[depth])
    return paths


def accuracy(data_dir, out: Path, *weights: Path) -> float:
    """Per cent, on the 1,000 lossless images, through the script."""
    run(
        test_cls, "--cfg", CONFIG, "--data-root", data_dir, "--device", "cpu", "--out", out, "--weights", *weights
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 1000
    return 100 * (1 - metrics["top1_error"])


@pytest.mark.parametrize(("depth", "published"), [(20, 91.5), (32, 92.8), (56, 92.6)])
def test_converted_cifar_nets_reach_their_measured_accuracy(data_dir, converted, tmp_path, depth, published):
    """Measured independently on the same images with the mean and std that the weights were trained with."""
    assert accuracy(data_dir, tmp_path, converted[depth]) == pytest.approx(published, abs=0.15)


def test_the_ensemble_beats_each_of_its_members(data_dir, converted, tmp_path):
    assert accuracy(data_dir, tmp_path, *converted.values()) > 93.0


def test_tiny_imagenet_as_it_comes(data_dir, tmp_path):
    with zipfile.ZipFile(data_dir / "tiny_imagenet_20.zip") as archive:
        names = [
            name
            for name in archive.namelist()
            if name.startswith("val") or name.endswith(("_0.JPEG", "_1.JPEG", "_boxes.txt"))
        ]
        archive.extractall(tmp_path, names)
        truth = dict(line.split("\t")[:2] for line in archive.read("val/val_annotations.txt").decode().splitlines())
        wnids = archive.read("wnids.txt").decode().split()
    tiny = {"format": "tiny_imagenet", "root": str(tmp_path)}
    data = ImageDataConfig(
        train={**tiny, "split": "train"}, val={**tiny, "split": "val"}, crop_size=64, test_resize=None,
        augment={"crop": "pad"},
    )  # fmt: skip
    splits = build_splits(data, tmp_path)
    assert splits.train.class_names == sorted(wnids)
    assert np.bincount(splits.train.labels).tolist() == [2] * 20
    assert np.bincount(splits.val.labels).tolist() == [50] * 20
    assert splits.val.images.shape == (1000, 64, 64, 3)
    names = sorted(truth)
    assert [splits.val.class_names[label] for label in splits.val.labels] == [truth[name] for name in names]


def test_full_size_photos_of_all_shapes(data_dir):
    """One photo of each of 100 classes: centre crops, and groups of one size at several scales."""
    root = data_dir / "imagenet_sample_100"
    files = read_folders(root)
    assert len(files) == len(files.class_names) == 100
    source = {"format": "folders", "root": str(root)}
    data = ImageDataConfig(train=source, test_resize=256, crop_size=224, num_workers=0, reduced_decode=True)
    batches = list(centre_batches(files.take(np.arange(12)), data, batch_size=8))
    assert sum(len(batch.labels) for batch in batches) == 12
    assert all(batch.images.shape[1:] == (3, 224, 224) for batch in batches)
    seen = 0
    for small, large in scaled_batches(files.take(np.arange(12)), data, [224, 256], batch_size=4):
        assert min(small.images.shape[2:]) == 224
        assert min(large.images.shape[2:]) == 256
        seen += len(small.labels)
    assert seen == 12
