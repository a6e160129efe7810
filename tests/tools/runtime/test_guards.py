"""Sentences about trainings that would come to nothing; silence about those that would not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.common import ScheduleConfig
from configs.detection import SourceConfig
from configs.loading import load_config
from datasets.build import build_records
from datasets.cifar import ImageArrays
from datasets.classification import Splits
from datasets.folders import read_folders
from datasets.make_records import make_records
from datasets.records import Records
from tests.datasets.conftest import write_image
from tools.runtime.guards import (
    before_training,
    classification_warnings,
    common_images,
    data_warnings,
    nothing_found,
    schedule_warnings,
    why_zero,
    zero_based_warnings,
)


def records_of(counts: dict[str, int], box=(5, 5, 9, 9), source: str = "set") -> Records:
    """One image with so many objects of each class."""
    labels = [label for label, count in enumerate(counts.values(), 1) for _ in range(count)]
    return make_records(
        images=[("/x/a.jpg", "a", (20, 20))],
        boxes=[box] * len(labels),
        labels=labels,
        counts=[len(labels)],
        class_names=list(counts),
        source=source,
        annotation_file="{}",
    )


def test_the_first_try_of_a_new_user_is_warned_of() -> None:
    """20 photos in steps of 8 for 20 epochs are 50 steps: the 50 of the warm-up."""
    found = schedule_warnings(ScheduleConfig(epochs=20, warmup_iterations=50), batch_size=8, images=20)
    assert len(found) == 2
    assert "warmup_iterations 50 is not shorter than the whole training of 50 steps" in found[0]
    assert "set schedule.warmup_iterations=5, or schedule.epochs=200" in found[0]
    assert "the whole training of 50 steps is too short to learn from: set schedule.epochs=400" in found[1]


@pytest.mark.parametrize(
    ("schedule", "batch_size", "images", "said"),
    [
        ({"iterations": 1000, "warmup_iterations": 400}, 8, 100, ["takes up 40 % of 1,000 steps"]),
        ({"iterations": 100}, 8, 100, ["100 steps is too short to learn from: set schedule.iterations=1000"]),
        ({"iterations": 300}, 16, 6, ["batch_size 16 is more than the 6 training images", "train.batch_size=3"]),
        (
            {"epochs": 1},
            16,
            6,
            ["batch_size 16", "of 1 step is too short", "train.batch_size=3", "schedule.epochs=500"],
        ),
        ({"epochs": 16, "warmup_iterations": 50}, 8, 292, []),
    ],
)
def test_schedules(schedule: dict, batch_size: int, images: int, said: list[str]) -> None:
    found = " ".join(schedule_warnings(ScheduleConfig(**schedule), batch_size=batch_size, images=images))
    assert all(text in found for text in said)
    assert bool(found) == bool(said)


def test_all_together(tiny_config: Path, tmp_path: Path) -> None:
    """The tiny training: 4 steps; 9 red and blue objects in 6 images; no object at the border."""
    config = load_config(tiny_config, ["schedule.warmup_iterations=4"])
    sets = [build_records(config.data, part, tmp_path) for part in ("train", "test")]
    found = before_training(config, sets[0], sets[1:])
    assert ["is not shorter" in found[0], "4 steps" in found[1], "red (6), blue (3)" in found[2]] == [True] * 3
    assert len(found) == 3


def test_rare_and_unlearned_classes() -> None:
    train = records_of({"cat": 10, "dog": 9, "cow": 0})
    found = data_warnings(train, [records_of({"cat": 1, "dog": 0, "cow": 2}, source="val")])
    assert len(found) == 2
    assert "2 of 3 classes with fewer than 10 objects to learn from: dog (9), cow (0)" in found[0]
    assert found[1] == "val has objects of classes that the training set lacks: cow"
    assert data_warnings(records_of({"cat": 10})) == []


@pytest.mark.parametrize(
    ("zero_based", "corner", "said"),
    [
        (False, -1, "set zero_based: true"),  # the file says 0
        (True, 1, "set zero_based: false"),  # the file says 1
        (True, 0, None),
        (False, 0, None),
        (False, 5, None),  # nothing at the border
    ],
)
def test_where_pixels_count_from(zero_based: bool, corner: int, said: str | None) -> None:
    source = SourceConfig(format="voc", root="x", image_set="train", zero_based=zero_based)
    found = zero_based_warnings([source], records_of({"cat": 3}, box=(corner, corner, 15, 15)))
    assert [text for text in found if said and said in text] == found
    assert bool(found) == (said is not None)
    other = SourceConfig(format="yolo", root="x", image_set="train")
    assert zero_based_warnings([source, other], records_of({"cat": 3}, box=(corner, corner, 15, 15))) == []


def test_the_best_score_is_named() -> None:
    text = nothing_found([0.1, 0.256, 0.2], 0.5)
    assert text == "nothing reaches the threshold 0.5: the best score was 0.26: --threshold 0.25 shows it"
    assert nothing_found([0.1, 0.5], 0.5) is None
    assert "at any score" in (nothing_found([], 0.5) or "")


@pytest.mark.parametrize(
    ("ap", "scores", "iterations", "said"),
    [
        (0.0, [], 50, ["AP is 0.0 %", "no detection reaches test.score_thresh 0.05", "50 steps are too few"]),
        (0.0, [], 5000, ["no detection reaches", "test.score_thresh=0.001 shows weaker ones"]),
        (0.004, [0.11, 0.25], 5000, ["AP is 0.4 %", "the best of 2 detections has score 0.25", "model.anchors.sizes"]),
        (0.0, [0.25], None, ["the best of 1 detection has", "model.anchors.sizes"]),
        (0.01, [0.25], 5, []),
        (None, [], 5, []),
    ],
)
def test_why_the_mean_ap_is_zero(
    ap: float | None, scores: list[float], iterations: int | None, said: list[str]
) -> None:
    metrics = {"voc12": {"mAP": ap}, "voc_by_iou": {"mAP": {"0.50": 0.0}}, "coco_backend": "x"}
    found = why_zero(metrics, np.array(scores), 0.05, iterations)
    assert all(text in (found or "") for text in said)
    assert bool(found) == bool(said)
    if found is not None:  # the best of the protocols counts
        assert why_zero({**metrics, "coco": {"AP": 0.5}}, np.array(scores), 0.05, iterations) is None


def test_images_that_two_sets_have_in_common(tmp_path: Path) -> None:
    """The same files, copies under other names and links; not other images, though of the same size in bytes."""
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
    train = [tmp_path / "train" / f"{number}.png" for number in range(5)]
    for number, path in enumerate(train):
        path.write_bytes(bytes([number]) * 30)
    val = [tmp_path / "val" / name for name in ("copy.png", "link.png", "own.png")]
    val[0].write_bytes(train[3].read_bytes())
    val[1].symlink_to(train[1])
    val[2].write_bytes(bytes([9]) * 30)
    (said,) = common_images({"train": train, "val": val})
    assert said.startswith("2 of 3 images of data.val that were looked at are in data.train too, under another name")
    assert list(common_images({"train": train, "val": val[2:]})) == []
    (said,) = common_images({"train": train, "test": [*val[2:], train[0]]})
    assert said == "data.train and data.test have 1 image in common: the test set's figures flatter"
    assert list(common_images({"train": train, "val": [tmp_path / "gone.png"]})) == []


def test_a_classifiers_sets(tmp_path: Path) -> None:
    for name, classes in {"train": ("cat", "dog", "eel"), "val": ("cat", "dog")}.items():
        for number, text in enumerate(classes):
            write_image(tmp_path / name / text / "1.png", (20, 30), number)
    train = read_folders(tmp_path / "train")
    val = read_folders(tmp_path / "val", train.class_names)
    without, common = classification_warnings(Splits(train, val, None))
    assert without == "data.val has no image of 1 of 3 classes: eel"
    assert common.startswith("2 of 2 images of data.val that were looked at are in data.train")
    (alone,) = classification_warnings(Splits(replace(val, class_names=["train"], labels=val.labels * 0), None, None))
    assert alone.startswith("there is only one class, train, so there is nothing to tell apart")
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    both, second = (ImageArrays(pixels[k:], np.arange(k, 2), ["a", "b"]) for k in (0, 1))
    (said,) = [text for text in classification_warnings(Splits(both, second, None)) if "no image of" not in text]
    assert said.startswith("1 of 1 image of data.val that were looked at is in data.train")
