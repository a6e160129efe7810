"""The rehearsal with the largest batch, the batch that it chooses, and what chooses best.pt."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from detection.model import build_detector
from tools.runtime import distributed, setup
from tools.runtime.setup import automatic_batch_size, build_datasets, check_validation, rehearse


def test_rehearsal_takes_the_largest_batch_and_leaves_nothing(tiny_config, tmp_path, monkeypatch):
    """Images of 48x64 and 64x48 may come together: 64x64. 4 images in 2 parts: 2 at a time."""
    config = load_config(tiny_config, ["train.batch_size=4", "train.accumulate=2"])
    dataset = build_dataset(config.data, "train", tmp_path)
    detector = build_detector(config.model, dataset.class_names).train()
    seen = []
    real = detector.forward
    monkeypatch.setattr(detector, "forward", lambda batch, **options: seen.append(batch) or real(batch, **options))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    rehearse(detector, dataset, config, torch.device("cpu"))
    assert [tuple(batch.images.shape) for batch in seen] == [(2, 3, 64, 64)]
    assert seen[0].boxes.shape == (2, 8, 4)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("memory", "accumulate", "images", "expected"),
    [(5, 1, 6, 4), (100, 1, 6, 4), (2, 2, 6, 4), (1, 1, 6, 1), (100, 4, 3, 4)],
)
def test_automatic_batch_size_is_the_largest_that_fits(
    tiny_config, tmp_path, monkeypatch, capsys, memory: int, accumulate: int, images: int, expected: int
) -> None:
    """A device that holds `memory` images at a time; parts of 1, 2, 4, ... images, no more a step than there are."""
    config = load_config(tiny_config, ["train.batch_size=auto", f"train.accumulate={accumulate}"])
    assert config.train.batch_size == 0
    dataset = build_dataset(config.data, "train", tmp_path)
    tried = []

    def rehearse(_model, _dataset, config, _device) -> None:
        tried.append(config.train.batch_size // config.train.accumulate)
        if tried[-1] > memory:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(setup, "rehearse", rehearse)
    monkeypatch.setattr(type(dataset), "__len__", lambda self: images)
    assert setup._largest_batch(config, nn.Linear(1, 1), dataset, torch.device("cpu")) == expected
    assert tried == [1, 2, 4, 8][: len(tried)]
    parts = max(1, min(2, images) // accumulate) * accumulate  # the config's reference_batch_size is 2
    assert automatic_batch_size(config, nn.Linear(1, 1), dataset, torch.device("cpu")) == parts
    assert f"{parts} images a step (auto): optim.reference_batch_size" in capsys.readouterr().out


def test_automatic_batch_size_needs_one_process_and_room_for_one_image(tiny_config, tmp_path, monkeypatch) -> None:
    config = load_config(tiny_config, ["train.batch_size=auto"])
    dataset = build_dataset(config.data, "train", tmp_path)

    def rehearse(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(setup, "rehearse", rehearse)
    with pytest.raises(torch.OutOfMemoryError):
        setup._largest_batch(config, nn.Linear(1, 1), dataset, torch.device("cpu"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="in one process: give the number"):
        automatic_batch_size(config, nn.Linear(1, 1), dataset, torch.device("cpu"))


def test_a_validation_set_without_objects_chooses_nothing(tiny_config, tmp_path, capsys) -> None:
    """Its images alone: mean AP has no value, so best.pt would never be written, and patience would run out."""
    config = load_config(tiny_config, ["train.best_metric=voc12.mAP"])
    dataset = build_dataset(config.data, "train", tmp_path)
    check_validation(config, dataset, dataset, None)
    assert "no object to be found" not in capsys.readouterr().out
    empty = copy.copy(dataset)
    empty.records = replace(dataset.records, difficult=np.ones(len(dataset.records.labels), bool))
    check_validation(config, dataset, empty, None)
    assert "so voc12.mAP cannot be computed, and no best.pt will be written" in capsys.readouterr().out
    check_validation(load_config(tiny_config, ["train.best_metric=loss"]), dataset, empty, None)
    assert "no object to be found" not in capsys.readouterr().out
    impatient = load_config(tiny_config, ["train.best_metric=voc12.mAP", "train.patience=2"])
    with pytest.raises(UserError, match=r"train\.patience: .* has no object to be found"):
        check_validation(impatient, dataset, empty, None)


def validated(path) -> DetectionConfig:
    """The config of a file, the training set to validate on."""
    config = load_config(path, [])
    return config.model_copy(update={"data": config.data.model_copy(update={"val": config.data.train, "test": []})})


def test_sets_and_what_chooses_the_best_checkpoint(tiny_config, tmp_path) -> None:
    config = validated(tiny_config)
    train_set, val_set, test_set = build_datasets(config, tmp_path)
    assert val_set is not None
    assert val_set.class_names == train_set.class_names
    assert test_set is None
    check_validation(config, train_set, val_set, None)
    for name in ("loss", f"{config.metrics[0]}.x"):
        train = config.train.model_copy(update={"best_metric": name})
        check_validation(config.model_copy(update={"train": train}), train_set, val_set, None)
    train = config.train.model_copy(update={"best_metric": "imagenet_det.mAP"})
    with pytest.raises(UserError, match=r"train\.best_metric imagenet_det\.mAP needs imagenet_det among metrics"):
        check_validation(config.model_copy(update={"train": train}), train_set, val_set, None)
    train = config.train.model_copy(update={"patience": 3})
    with pytest.raises(UserError, match=r"train\.patience needs data\.val"):
        check_validation(config.model_copy(update={"train": train}), train_set, None, None)


def test_a_run_does_not_lie_among_its_images(tiny_config, tmp_path) -> None:
    source = {"format": "csv", "annotations": "my/a.csv", "images": "my/photos/*"}
    config = load_config(tiny_config, [f"data.val=[{source}]"])
    (tmp_path / "link").symlink_to(tmp_path / "my" / "photos")
    for run in ("my/photos", "link", "my/other/../photos"):
        with pytest.raises(UserError, match="is the folder of the data"):
            build_datasets(config, tmp_path, tmp_path / run)


def test_one_set_within_another_is_told(tiny_config, tmp_path, capsys) -> None:
    config = validated(tiny_config)
    train_set, val_set, _ = build_datasets(config, tmp_path)
    check_validation(config, train_set, val_set, None)
    assert "warning: " in capsys.readouterr().out
