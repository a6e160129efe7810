"""Numbers of a config from a set and a machine, against arithmetic; texts that YAML could misread."""

from __future__ import annotations

import numpy as np
import pytest

from configs.detection import DetectionConfig, SourceConfig
from configs.loading import parse_config, parse_yaml
from datasets.make_records import make_records
from datasets.records import Records
from tools.runtime.suggest import (
    Machine,
    anchor_sizes,
    aspect_ratios,
    batch_size,
    config_text,
    input_size,
    make_plan,
)


def records_of(count: int, size: tuple[int, int], side: float, names: tuple[str, ...] = ("a",)) -> Records:
    """Images of (H, W), each with one square of each class."""
    return make_records(
        images=[(f"/x/{i}.jpg", f"{i}", size) for i in range(count)],
        boxes=[(0, 0, side, side)] * (count * len(names)),
        labels=list(range(1, len(names) + 1)) * count,
        counts=[len(names)] * count,
        class_names=list(names),
        source="set",
        annotation_file="{}",
    )


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((480, 640), 100, (240, 320)),  # halved: objects of 50 pixels
        ((640, 480), 100, (240, 320)),
        ((480, 640), 24, (320, 432)),  # halved they would measure 12: a third more; 426.7 to a multiple of 16
        ((480, 640), 4, (480, 640)),  # at most twice as large
        ((100, 128), 40, (96, 128)),  # small images are not enlarged
    ],
)
def test_input_size(size, side, expected) -> None:
    assert input_size(records_of(20, size, side), long_side=320) == expected


def test_anchors_span_the_objects() -> None:
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(16), np.log(256), 4000))
    sizes = anchor_sizes(np.stack([sides, sides], axis=1))
    # 5 % and 95 % of a logarithmic range of 4 octaves: 16 * 2 ** .2 and 16 * 2 ** 3.8, and a geometric row between them
    assert sizes == pytest.approx([18.4, 34.3, 64, 119.4, 222.9], rel=0.06)
    assert anchor_sizes(np.full((50, 2), 100.0)) == [67, 82, 100, 122, 150]
    tiny = anchor_sizes(np.full((50, 2), 4.0))
    assert tiny == [8, 16, 32, 64, 128]  # twice the stride
    assert anchor_sizes(np.zeros((0, 2))) == [16, 32, 64, 96, 128]


def test_long_objects_get_long_anchors() -> None:
    assert aspect_ratios(np.array([[10.0, 50.0]] * 9)) == [0.5, 1.0, 2.0, 4.0]
    assert aspect_ratios(np.array([[50.0, 10.0]] * 9)) == [0.25, 0.5, 1.0, 2.0]
    assert aspect_ratios(np.zeros((0, 2))) == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("images", "gpu", "expected"),
    [(1, None, 1), (6, None, 2), (20, None, 4), (300, None, 8), (300, 80, 16), (300, 6, 4)],
)
def test_batches_are_no_larger_than_the_set(images, gpu, expected) -> None:
    assert batch_size(images, Machine(2, gpu)) == expected


@pytest.mark.parametrize(("count", "epochs"), [(300, 15), (16, 281), (4, 300), (100_000, 12)])
def test_epochs_follow_the_number_of_images(count, epochs) -> None:
    plan = make_plan(records_of(count, (480, 640), 100), Machine(2))
    assert plan.epochs == epochs  # 4500 / count, between 12 and 300
    assert plan.warmup_iterations <= plan.epochs * count / plan.batch_size / 10 + 1


def test_no_mirror_images_of_left_and_right() -> None:
    assert make_plan(records_of(9, (48, 64), 20, ("turn left", "turn_right")), Machine(1)).hflip == 0
    assert make_plan(records_of(9, (48, 64), 20, ("0", "1", "2")), Machine(1)).hflip == 0
    assert make_plan(records_of(9, (48, 64), 20, ("leftover",)), Machine(1)).hflip == 0.5


@pytest.mark.parametrize("machine", [Machine(2), Machine(16, 79.0)])
def test_the_text_is_a_config_with_the_same_values(machine: Machine) -> None:
    names = ["no", "2007", "yes: or", "müde 猫", '"quoted"', "null", "1e3"]
    train = records_of(40, (480, 640), 90, tuple(names))
    plan = make_plan(train, machine)
    source = SourceConfig(format="voc", root="/data/my photos: 1 # 2", split=0.8, split_by=r"(.*)_\d+", split_seed=3)
    text = config_text(
        {"train": [source], "val": [source]}, names, plan, machine, about="a", command="b", start="c"
    )  # fmt: skip
    config = parse_config(parse_yaml(text, "text"), [], DetectionConfig, "text")
    assert config.data.classes == names
    assert config.data.train == config.data.val == [source]
    assert config.data.min_size == config.data.test_min_size == plan.min_size
    assert config.model.anchors.sizes == [[size] for size in plan.anchor_sizes]
    assert config.schedule.epochs == plan.epochs
    assert config.test.score_thresh == 0.01
    assert config.train.batch_size == plan.batch_size
    assert config.train.amp == ("bf16" if machine.gpu_gib else "none")
    assert len(max(text.splitlines(), key=len)) < 400
