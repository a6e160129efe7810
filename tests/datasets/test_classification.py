"""Sets of a config and their batches: the same images for the same (seed, iteration), whoever loads them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from configs.classification import ImageDataConfig
from configs.errors import UserError
from datasets.classification import build_splits, centre_batches, scaled_batches, spread, train_batches

COUNT = 10


@pytest.fixture
def root(tmp_path):
    """train/ and val/ of ten images of two classes each; of three sizes; the grey value is the image's number."""
    for split in ("train", "val"):
        for number in range(COUNT):
            path = tmp_path / split / ("cat" if number < 6 else "dog") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = ((20, 30), (30, 20), (24, 24))[number % 3]
            cv2.imwrite(str(path), np.full((*size, 3), 10 * number, np.uint8))
    return tmp_path


def config(**values):
    augment = {"crop": "random_resized", **values.pop("augment", {})}
    return ImageDataConfig(
        train={"format": "folders", "root": "train"},
        **{"val": {"format": "folders", "root": "val"}, "crop_size": 16, "test_resize": 18, "num_workers": 0, **values},
        augment=augment,
    )


def first(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def test_training_batches_do_not_depend_on_processes_workers_or_the_start(root):
    data = config()
    train = build_splits(data, root).train
    whole = first(train_batches(train, data, batch_size=4, seed=3), 4)
    halves = [first(train_batches(train, data, batch_size=4, seed=3, rank=r, world_size=2), 4) for r in (0, 1)]
    later = first(train_batches(train, data, batch_size=4, seed=3, start_iteration=2), 2)
    workers = first(train_batches(train, config(num_workers=1), batch_size=4, seed=3), 4)
    for i in range(4):
        assert torch.equal(torch.cat([halves[0][i].images, halves[1][i].images]), whole[i].images)
        assert torch.equal(workers[i].images, whole[i].images)
        assert whole[i].images.shape == (4, 3, 16, 16)
        assert whole[i].images.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a.images, b.images) for a, b in zip(later, whole[2:], strict=True))
    for batch in whole:
        assert torch.equal(batch.images[:, 0, 8, 8].long() // 10, batch.index)
        assert batch.labels.tolist() == [int(index >= 6) for index in batch.index]


def test_each_test_image_comes_once_over_all_processes(root):
    data = config()
    val = build_splits(data, root).val
    batches = [batch for rank in range(3) for batch in centre_batches(val, data, batch_size=2, rank=rank, world_size=3)]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(COUNT))
    assert all(len(batch.index) <= 2 for batch in batches)


def test_scaled_batches_hold_images_of_one_size_at_every_scale(root):
    data = config()
    val = build_splits(data, root).val
    seen = []
    for small, asis in scaled_batches(val, data, [10, None], batch_size=3):
        assert torch.equal(small.index, asis.index)
        size = {0: (20, 30), 1: (30, 20), 2: (24, 24)}[int(asis.index[0]) % 3]
        assert tuple(asis.images.shape[2:]) == size
        assert min(small.images.shape[2:]) == 10
        assert small.images.shape[2] * size[1] == pytest.approx(small.images.shape[3] * size[0])
        seen += asis.index.tolist()
    assert sorted(seen) == list(range(COUNT))


def test_the_held_out_images_are_the_same_for_every_seed_and_no_longer_trained_on(root):
    data = config(val=None, hold_out=4)
    splits = build_splits(data, root)
    held, kept = set(splits.val.names.tolist()), set(splits.train.names.tolist())
    assert (len(held), len(kept)) == (4, 6)
    assert not held & kept
    assert set(build_splits(data, root).val.names.tolist()) == held
    with pytest.raises(UserError, match=r"10 of 10 training images"):
        build_splits(config(val=None, hold_out=10), root)


def test_a_set_of_one_size_in_memory(root):
    for split in ("train", "val"):
        for path in (root / split).rglob("*.png"):
            number = int(path.stem)
            cv2.imwrite(str(path), np.full((16, 16, 3), 10 * number, np.uint8))
    data = config(augment={"crop": "pad"}, test_resize=None)
    splits = build_splits(data, root)
    assert splits.train.images.shape == (COUNT, 16, 16, 3)
    assert (splits.train.images[:, 0, 0, 0] // 10).tolist() == list(range(COUNT))
    (batch,) = centre_batches(splits.val, data, batch_size=16)
    assert batch.images[:, 2, 3, 5].tolist() == [10 * number for number in range(COUNT)]
    ((scaled,),) = scaled_batches(splits.val, data, [24], batch_size=16)
    assert scaled.images.shape == (COUNT, 3, 24, 24)
    with pytest.raises(UserError, match=r"crop_size: 32, but the images are 16x16"):
        build_splits(config(augment={"crop": "pad"}, test_resize=None, crop_size=32), root)


def test_a_sample_is_spread_over_the_set(root):
    train = build_splits(config(), root).train
    assert [train.names.tolist().index(name) for name in spread(train, 5).names.tolist()] == [0, 2, 4, 6, 8]
    assert spread(train, None) is train
    assert spread(train, 10) is train


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(root, workers):
    (root / "train/cat/2.png").write_bytes(b"no image")
    data = config(num_workers=workers)
    train = build_splits(data, root).train
    with pytest.raises(UserError) as error:
        first(train_batches(train, data, batch_size=5), 2)
    assert "2.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_of_the_validation_set_must_be_the_training_sets(root):
    (root / "val/dog").rename(root / "val/dgo")
    with pytest.raises(UserError, match=r"dgo is none of the 2 classes: did you mean dog\?"):
        build_splits(config(), root)
