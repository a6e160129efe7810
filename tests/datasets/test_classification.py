"""Sets of a config and their batches: the same images for the same (seed, iteration), whoever loads them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from configs.classification import ImageDataConfig, ImageSourceConfig
from configs.errors import UserError
from datasets import classification
from datasets.cifar import ImageArrays
from datasets.classification import TrainImages, build_splits, centre_batches, scaled_batches, spread, train_batches
from datasets.classification_transforms import TrainTransform
from datasets.folders import read_folders

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


def test_scaled_batches_are_dealt_out_to_the_processes(root):
    data = config()
    val = build_splits(data, root).val
    shares = [
        [small.index.tolist() for small, _ in scaled_batches(val, data, [8, 12], batch_size=2, rank=r, world_size=2)]
        for r in (0, 1)
    ]
    # Sizes by number modulo 3; in the order of first appearance, in batches of two.
    assert shares == [[[0, 3], [1, 4], [2, 5]], [[6, 9], [7], [8]]]


def test_centre_crops_are_the_middle_of_the_resized_image(root):
    image = np.zeros((36, 54, 3), np.uint8)
    image[:, 18:36] = 200  # the middle third, which is the whole of the crop at shorter side 18: rows and columns halve
    cv2.imwrite(str(root / "val/cat/0.png"), image)
    data = config(reduced_decode=False)
    val = build_splits(data, root).val
    batch = next(iter(centre_batches(val, data, batch_size=1)))
    assert batch.images.shape == (1, 3, 16, 16)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    rows = batch.images[0, 0].float()
    # 54 columns -> 27, of which 16 from column 5 on; the bright third is columns 9 to 18: 4 to 13 of the crop
    assert rows[:, 6:11].min() > 190
    assert rows[:, :2].max() < 10
    assert rows[:, 15].max() < 10


def test_processes_share_images_in_memory(root):
    images = ImageArrays(np.arange(7, dtype=np.uint8).repeat(12).reshape(7, 2, 2, 3), np.arange(7) % 2, ["a", "b"])
    data = config()
    shares = [
        [batch.index.tolist() for batch in centre_batches(images, data, batch_size=2, rank=r, world_size=2)]
        for r in (0, 1)
    ]
    assert shares == [[[0, 2], [4, 6]], [[1, 3], [5]]]
    (batch,) = centre_batches(images, data, batch_size=7)
    assert batch.images[:, 1, 0, 1].tolist() == batch.index.tolist() == list(range(7))
    assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert {batch.labels.dtype, batch.index.dtype} == {torch.int64}


def test_crops_are_functions_of_seed_epoch_and_image(root):
    files = read_folders(root / "train")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    cv2.imwrite(str(root / "train/cat/0.png"), noise)
    images = TrainImages(files, TrainTransform(config()), seed=3)
    (first,), label, index = images[4, 0]
    assert (label, index) == (0, 0)
    assert np.array_equal(pickle.loads(pickle.dumps(images))[4, 0][0][0], first)
    for other in (images[5, 0], TrainImages(files, TrainTransform(config()), seed=4)[4, 0]):
        assert not np.array_equal(other[0][0], first)


def test_each_format_has_its_reader(tmp_path, monkeypatch):
    called = []

    def reader(name):
        return lambda *values: called.append((name, *values))

    for name in ("read_cifar10", "read_tiny_imagenet", "read_imagenet_val", "read_folders"):
        monkeypatch.setattr(classification, name, reader(name))
    for values in (
        {"format": "cifar10", "split": "test"}, {"format": "tiny_imagenet", "split": "val"},
        {"format": "imagenet_val", "ground_truth": "truth.txt"}, {"format": "folders"},
    ):  # fmt: skip
        classification.read_set(ImageSourceConfig(root="set", **values), tmp_path, ["a"])
    root = tmp_path / "set"
    assert called == [
        ("read_cifar10", root, "test", ["a"]),
        ("read_tiny_imagenet", root, "val", ["a"]),
        ("read_imagenet_val", root, tmp_path / "truth.txt", ["a"]),
        ("read_folders", root, ["a"]),
    ]


def test_a_set_that_is_in_memory_anyway_is_augmented_there(root, monkeypatch):
    arrays = ImageArrays(np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int64), ["a"])
    monkeypatch.setattr(classification, "read_set", lambda *_: arrays)
    with pytest.raises(UserError, match=r"data\.augment\.crop: a cifar10 set .* pad"):
        build_splits(config(val=None), root)


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
