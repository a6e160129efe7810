"""What the classification scripts share: the net's input, training batches, errors by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from backbones.preprocess import Normalize
from backbones.weights import MSRA, Preprocessing
from configs.classification import ClassificationConfig
from configs.loading import parse_config
from datasets.cifar import ImageArrays
from datasets.classification import Splits
from datasets.folders import read_folders
from tools.runtime import classification, distributed
from tools.runtime.classification import (
    TrainingError,
    describe,
    evaluate,
    format_errors,
    make_normalize,
    rank_classes,
    recalibrate_over,
    test_sets,
    train_feed,
)
from tools.runtime.run_folder import RunFolder
from tools.runtime.schedule import make_schedule

CPU = torch.device("cpu")
test_sets.__test__ = False  # type: ignore[attr-defined]


def config_of(*overrides: str) -> ClassificationConfig:
    source = {"format": "folders", "root": "x"}
    values = {
        "data": {
            "train": source, "val": source, "crop_size": 4, "test_resize": None, "mean": [10, 20, 30],
            "std": [1, 2, 4], "augment": {"crop": "pad", "pad": 1}, "num_workers": 0,
        },
        "model": {"backbone": "cifar_resnet8"},
        "optim": {"lr": 0.05, "reference_batch_size": 8},
        "schedule": {"iterations": 6},
        "train": {"batch_size": 4},
    }  # fmt: skip
    return parse_config(values, list(overrides), ClassificationConfig, "made")


def images_of(*pixels: int, labels: list[int] | None = None) -> ImageArrays:
    """4 x 4 images of one value each; three classes."""
    images = np.ones((len(pixels), 4, 4, 3), np.uint8) * np.array(pixels, np.uint8)[:, None, None, None]
    return ImageArrays(images, np.array(labels or [0] * len(pixels), np.int64), ["a", "b", "c"])


class Brightness(nn.Module):
    """Class 0 below 100, 1 below 200, 2 above; it answers in multiples of the pixels' mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3)) / 50
        return -torch.stack(((mean - 1).abs(), (mean - 3).abs(), (mean - 5).abs()), 1)


AS_IT_IS = Normalize(Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def test_errors_by_hand():
    """Three of four right; of three classes the true one is always among five. The mode comes back."""
    net = Brightness().train()
    images = images_of(40, 160, 240, 60, labels=[0, 1, 2, 2])
    values = evaluate([(net, AS_IT_IS)], images, config_of().data, CPU, batch_size=3)
    assert net.training
    assert (values["top1_error"], values["top5_error"], values["images"]) == (0.25, 0.0, 4)
    logits = net(torch.from_numpy(images.images).permute(0, 3, 1, 2).float())
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 2])).item()
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
    found = test_sets(config_of(), net, AS_IT_IS, Splits(images, images, None), CPU)
    assert found.keys() == {"val"}
    assert found["val"] == pytest.approx(values)
    assert format_errors({"val": values, "test": {"top1_error": 0.125, "top5_error": 0.01}}) == (
        "val error 25.00 % (top 5 0.00 %), test error 12.50 % (top 5 1.00 %)"
    )


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_ranks_are_in_the_sets_order_on_any_number_of_processes(monkeypatch, processes):
    """Labels are not read: the images have none."""
    net, images = Brightness().train(), images_of(40, 160, 240, 60, 150, 90, 210, labels=[-1] * 7)
    parts = []

    def alone(rank: int) -> None:
        """What a process hands over."""
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "all_gather", lambda mine: parts.append(mine) or [mine])
        rank_classes([(net, AS_IT_IS)], images, config_of().data, CPU, batch_size=2)

    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for rank in range(processes):
        alone(rank)
    monkeypatch.setattr(distributed, "all_gather", lambda mine: parts)
    found = rank_classes([(net, AS_IT_IS)], images, config_of().data, CPU, batch_size=2)
    assert found[:, 0].tolist() == [0, 1, 2, 0, 1, 0, 2]
    assert [sorted(row) for row in found.tolist()] == [[0, 1, 2]] * 7
    assert net.training
    monkeypatch.undo()
    best = rank_classes([(net, AS_IT_IS)], images, config_of().data, CPU, top=1)
    assert best.tolist() == found[:, :1].tolist()


def test_the_input_is_the_configs_the_sets_or_the_checkpoints(capsys):
    images, net = images_of(10, 30, 80), nn.Identity()
    fixed = make_normalize(config_of(), net, images, None, Path())
    assert fixed.preprocessing == Preprocessing((10, 20, 30), (1, 2, 4))
    measured = make_normalize(config_of("data.mean=channel"), net, images, None, Path())
    assert measured.preprocessing.mean == (40, 40, 40)
    assert measured.mean_image is None
    pixel = make_normalize(config_of("data.mean=pixel", "data.mean_images=2"), net, images, None, Path())
    assert torch.equal(pixel.mean_image, torch.full((3, 4, 4), 20.0))  # of the first two
    assert "of 2 images: 20.00, 20.00, 20.00 (RGB)" in capsys.readouterr().out
    kept = {"preprocessing": MSRA.to_dict(), "mean_image": torch.ones(3, 4, 4)}
    resumed = make_normalize(config_of("data.mean=channel"), net, images, kept, Path())
    assert resumed.preprocessing == MSRA
    assert torch.equal(resumed.mean_image, torch.ones(3, 4, 4))


def test_a_few_classes_are_named_and_of_many_the_first(capsys, tmp_path):
    config, net = config_of(), nn.Linear(1, 3)
    schedule = make_schedule(config.schedule, rate=0.1, iterations_per_epoch=1.0)
    for names, said in (
        (["a", "b", "c"], "3: a, b, c"),
        (list("abcdefghijk"), "11: a, b, c, d, e, f, g, h, i, j, ..."),
    ):
        images = replace(images_of(10, 20), class_names=names)
        describe(config, net, Splits(images, None, None), schedule, CPU, RunFolder(tmp_path))
        assert f"classes    {said}\n" in capsys.readouterr().out


def test_batches_are_a_function_of_the_iteration():
    """Parts of a step follow each other; what begins at iteration 2 is what others see there; an epoch is a shuffle."""
    config = config_of("train.accumulate=2")
    images = images_of(*range(10, 90, 10), labels=[0, 1, 2, 0, 1, 2, 0, 1])
    whole = list(itertools.islice(train_feed(images, config, AS_IT_IS, CPU, 0), 8))
    later = list(itertools.islice(train_feed(images, config, AS_IT_IS, CPU, 2), 4))
    for one, other in zip(whole[4:], later, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)
    assert [len(batch.labels) for batch in whole] == [2] * 8
    seen = torch.cat([batch.index for batch in whole])
    assert sorted(seen[:8].tolist()) == sorted(seen[8:].tolist()) == list(range(8))
    assert seen[:8].tolist() != seen[8:].tolist()
    for batch in whole:
        assert batch.labels.tolist() == images.labels[batch.index].tolist()
        values = 10.0 * (batch.index + 1)
        assert torch.equal(batch.images.amax((1, 2, 3)), values)  # a crop of one value, perhaps with a padded border


@pytest.mark.parametrize("way", ["memory", "files"])
@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixed_batches_are_parts_of_the_same_step_on_any_number_of_processes(monkeypatch, tmp_path, mixing, way):
    """Images and labels of three steps of 8 images, as they are put together; partners cross the processes' borders."""
    more = [f"data.augment.{mixing}=1", "data.augment.erasing=0.5", "train.batch_size=8"]
    images = images_of(*range(10, 120, 10), labels=[0, 1, 2] * 3 + [0, 1])
    if way == "files":
        more += ["data.augment.crop=random_resized", "data.augment.pad=4", "data.test_resize=4"]
        for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            (tmp_path / "abc"[label]).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / "abc"[label] / f"{number}.png"), image)
        images = read_folders(tmp_path)

    def steps(world_size: int, accumulate: int) -> list[tuple[torch.Tensor, ...]]:
        feeds = []
        monkeypatch.setattr(distributed, "world_size", lambda: world_size)
        for rank in range(world_size):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            feed = train_feed(images, config_of(*more, f"train.accumulate={accumulate}"), AS_IT_IS, CPU, 0)
            feeds.append(list(itertools.islice(feed, 3 * accumulate)))
        parts = [feeds[rank][k] for k in range(3 * accumulate) for rank in range(world_size)]
        fields = [(one.images, one.labels, one.index, one.mixed.others) for one in parts]
        count = accumulate * world_size
        return [tuple(map(torch.cat, zip(*fields[k : k + count], strict=True))) for k in range(0, 3 * count, count)]

    whole = steps(1, 1)
    for pixels, labels, index, others in whole:
        assert len(pixels) == 8
        assert labels.tolist() == images.labels[index].tolist()
        assert others.tolist() == labels.roll(1).tolist()
    for count, accumulate in ((2, 1), (4, 1), (2, 2), (1, 4)):
        for one, other in zip(whole, steps(count, accumulate), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), (count, accumulate)


def test_images_that_others_replace_are_counted(tmp_path):
    for number in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"a/{number}.png"), np.full((8, 8, 3), number, np.uint8))
    (tmp_path / "a/3.png").write_bytes(b"no image")
    more = [
        "data.augment.crop=random_resized",
        "data.augment.pad=4",
        "data.test_resize=4",
        "train.batch_size=3",
        "data.on_error=skip",
    ]
    batches = list(itertools.islice(train_feed(read_folders(tmp_path), config_of(*more), AS_IT_IS, CPU, 0), 4))
    assert sum(batch.replaced for batch in batches) == 2, "once an epoch"


def test_the_training_error_is_counted_since_each_mark():
    error = TrainingError(CPU)
    error.add(torch.tensor(3), 4)
    assert error.take("log") == 0.75
    error.add(torch.tensor(1), 4)
    assert error.take("warmup") == 0.5
    assert error.take("log") == 0.25
    assert error.take("log") == 0.0
    again = TrainingError(CPU)
    again.load_state_dict(error.state_dict())
    for one in (error, again):
        one.add(torch.tensor(2), 2)
        assert one.take("warmup") == 1.0
    assert again.state_dict() == error.state_dict()


def test_recalibrated_statistics_are_those_of_the_sample():
    """Pixels 10, 20, 30, 40: mean 25, variance of all values 125 (unbiased, over 64 values: 125 * 64 / 63)."""
    net = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate_over(images_of(10, 20, 30, 40), config_of(), net, AS_IT_IS, CPU)
    torch.testing.assert_close(net[0].running_mean, torch.full((3,), 25.0))
    assert net[0].running_var[0].item() == pytest.approx(125, rel=0.02)


def test_recalibration_sees_the_same_mixed_batches_on_any_number_of_processes(monkeypatch):
    images, config = images_of(*range(10, 170, 10), labels=[0] * 8 + [1] * 8), config_of("train.batch_size=8")

    def batches(rank: int, world_size: int) -> list[list[float]]:
        seen: list[list[float]] = []
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world_size)
        monkeypatch.setattr(
            classification, "recalibrate",
            lambda net, loader, device: seen.extend(batch[:, 0, 0, 0].tolist() for batch in loader),
        )  # fmt: skip
        recalibrate_over(images, config, nn.Identity(), AS_IT_IS, CPU)
        return seen

    alone = [sorted(batch) for batch in batches(0, 1)]
    assert sorted(itertools.chain(*alone)) == list(range(10, 170, 10))
    assert [len(batch) for batch in alone] == [8] * 2
    assert all(batch[0] <= 80 < batch[-1] for batch in alone), "each holds both classes"
    for count in (2, 4):
        shares = [batches(rank, count) for rank in range(count)]
        assert [sorted(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_recalibration_leaves_out_an_image_that_would_be_alone_in_its_batch():
    """Maps of 1x1 pixels, as of ResNets at 32 pixels: a batch of one image has one value for each channel."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    recalibrate_over(images_of(10, 20, 30, 40, 50), config_of("train.batch_size=2"), net, AS_IT_IS, CPU)
    assert 20 <= net[1].running_mean[0].item() <= 40  # of four of the five
