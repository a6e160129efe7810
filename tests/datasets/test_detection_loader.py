"""Batches are the same for any number of workers, start method and processes; an evaluation sees each image once."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.detection import AugmentConfig, DataConfig, PhotometricConfig
from configs.errors import UserError
from datasets import samplers
from datasets.batch import Batch, prefetch
from datasets.detection import DetectionDataset
from datasets.detection_loader import epoch_orders, eval_loader, train_loader
from datasets.images import read_image
from datasets.resize import resize_image, resized_size

SIZES = [(60, 80), (80, 60), (50, 90), (64, 64), (30, 90), (60, 80), (48, 64), (90, 50), (70, 70), (33, 77)]


def config(**changes) -> DataConfig:
    source = {"format": "voc", "root": "x", "image_set": "train"}
    return DataConfig(train=[source], **{"num_workers": 0, "aspect_groups": 2, "size_divisor": 16, **changes})


@pytest.fixture
def dataset(random_records) -> DetectionDataset:
    augment = AugmentConfig(hflip=0.5, crop=0.3, expand=0.3, photometric=PhotometricConfig(p=0.3))
    return DetectionDataset(random_records(SIZES), min_sizes=(32, 48), max_size=80, augment=augment, seed=1)


def assert_equal(first: Batch, second: Batch) -> None:
    assert len(first.scaled) == len(second.scaled)
    for position, (one, other) in enumerate(zip(first.tensors(), second.tensors(), strict=True)):
        assert torch.equal(one, other), position


# ------------------------------------------------------------------------------------------------ training


def first_batches(dataset: DetectionDataset, data: DataConfig, count: int, **options) -> list[Batch]:
    return list(itertools.islice(train_loader(dataset, data, **{"batch_size": 4, "seed": 9, **options}), count))


def test_workers_and_start_methods_do_not_matter(dataset) -> None:
    expected = first_batches(dataset, config(), 6)
    assert {int(i) for batch in expected for i in batch.index} == set(range(len(SIZES)))
    for workers, method in [(2, None), (1, "spawn")]:
        batches = first_batches(dataset, config(num_workers=workers), 6, multiprocessing_context=method)
        for batch, other in zip(batches, expected, strict=True):
            assert_equal(batch, other)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_scale_for_each_step_with_few_padded_sizes(dataset, monkeypatch) -> None:
    """All images of a step have one shorter side, but for those that the longer side's cap holds back."""
    monkeypatch.setattr(samplers, "PLANNED_STEPS", 40)
    batches = first_batches(dataset, config(scale_per="step", padded_sizes=2), 12)
    assert len({batch.images.shape[2:] for batch in batches}) == 2
    drawn = set()
    for batch in batches:
        shorter, longer = batch.image_sizes.min(1).values, batch.image_sizes.max(1).values
        free = shorter[longer < 80].tolist()
        assert len(set(free)) <= 1
        drawn.update(free)
    assert drawn == {32, 48}
    again = first_batches(dataset, config(scale_per="step", padded_sizes=2), 4, start_iteration=8)
    for batch, other in zip(again, batches[8:], strict=True):
        assert_equal(batch, other)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_processes_see_the_same_step(dataset, world_size: int, accumulate: int) -> None:
    expected = first_batches(dataset, config(), 5)
    ranks = [
        first_batches(dataset, config(), 5 * accumulate, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(expected):
        parts = [rank[step * accumulate + a] for a in range(accumulate) for rank in ranks]
        joined = torch.cat([part.images for part in parts])  # equal shapes: the padding is the whole step's
        assert torch.equal(joined, whole.images)
        assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
        objects = [part.boxes[part.valid] for part in parts]
        assert torch.equal(torch.cat(objects), whole.boxes[whole.valid])


def test_resumption_goes_on_where_it_was(dataset) -> None:
    whole = first_batches(dataset, config(), 9)
    for batch, other in zip(first_batches(dataset, config(), 4, start_iteration=5), whole[5:], strict=True):
        assert_equal(batch, other)
    parts = first_batches(dataset, config(), 4, accumulate=2, start_iteration=5)
    assert torch.equal(torch.cat([parts[0].index, parts[1].index]), whole[5].index)


def test_the_global_generator_is_left_alone(dataset) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first_batches(dataset, config(), 1)
    assert torch.equal(torch.rand(3), expected)


def test_repeat_threshold_shows_rare_classes_more_often(random_records) -> None:
    records = random_records([(40, 50)] * 12)
    records.difficult[:] = records.iscrowd[:] = False
    records.labels[:] = 1
    records.labels[records.objects(5)] = 2  # class b is in image 5 only
    dataset = DetectionDataset(records, min_sizes=(32,), max_size=80, augment=AugmentConfig(hflip=0.5))
    seen = [int(i) for batch in first_batches(dataset, config(repeat_threshold=1.0), 60) for i in batch.index]
    assert 2.5 < seen.count(5) / np.mean([seen.count(i) for i in range(12) if i != 5]) < 4.5  # sqrt(12) = 3.5
    assert epoch_orders(dataset, config(repeat_threshold=1.0), batch_size=4).epoch_length == 15  # 10 x 1.1 + 3.5 + 1
    assert epoch_orders(dataset, config(), batch_size=4).epoch_length == 12


def test_error_in_a_worker_is_one_line_that_names_the_file(dataset) -> None:
    path = Path(str(dataset.records.image_paths[4]))
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError) as error:
        first_batches(dataset, config(num_workers=1), 6)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_workers_survive_ctrl_c(dataset) -> None:
    iterator = iter(train_loader(dataset, config(num_workers=1), batch_size=4, seed=9))
    expected = first_batches(dataset, config(), 12)
    next(iterator)
    for child in multiprocessing.active_children():  # a terminal sends it to the whole group
        os.kill(child.pid, signal.SIGINT)
    for other in expected[1:]:
        assert_equal(next(iterator), other)


@pytest.mark.gpu
def test_prefetch_on_cuda(dataset) -> None:
    expected = first_batches(dataset, config(), 8)
    loader = train_loader(dataset, config(num_workers=2), batch_size=4, seed=9, pin_memory=True)
    for batch, other in zip(itertools.islice(prefetch(loader, "cuda"), 8), expected, strict=True):
        assert batch.images.is_cuda
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        total = batch.images.float().sum()  # work on the device while the next batch is copied
        assert_equal(batch.to("cpu"), other)
        assert float(total) == float(other.images.float().sum())


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_the_set_with_each_images_own_padding(random_records, world_size: int) -> None:
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(48,), max_size=80)
    seen = []
    for rank in range(world_size):
        for batch in eval_loader(dataset, config(), batch_size=3, rank=rank, world_size=world_size):
            seen += batch.index.tolist()
            for b, i in enumerate(batch.index.tolist()):
                height, width = dataset.evaluation_size(i)
                assert batch.image_sizes[b].tolist() == [height, width]
                assert batch.images.shape[2:] == (-(-height // 16) * 16, -(-width // 16) * 16)
    assert sorted(seen) == list(range(len(SIZES)))


def test_evaluation_of_a_wrong_declared_size_uses_the_files_own(random_records) -> None:
    records = random_records(SIZES)
    records.sizes[1] = (20, 200)
    dataset = DetectionDataset(records, min_sizes=(48,), max_size=80)
    (batch,) = [b for b in eval_loader(dataset, config(), batch_size=1) if b.index.tolist() == [1]]
    assert batch.image_sizes.tolist() == [[64, 48]]
    assert batch.images.shape[2:] == (64, 48)


def test_evaluation_at_several_sizes(random_records) -> None:
    """Images at 24, 48 (the own) and 96 pixels from the files' own pixels; a batch pads each size alike, by the image's
    own rule; workers, pinning and copies carry all along."""
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(48,), max_size=80)
    scaled = dataset.with_scales([24, 48, 96])
    plain = {int(b.index[0]): b for b in eval_loader(dataset, config(), batch_size=1)}
    seen = []
    for batch in eval_loader(scaled, config(num_workers=1), batch_size=3):
        small, own, large = batch.scaled
        assert own is None
        assert batch.at_scale(1) is batch
        for b, i in enumerate(batch.index.tolist()):
            height, width = batch.image_sizes[b].tolist()
            assert torch.equal(batch.images[b, :, :height, :width], plain[i].images[0, :, :height, :width])
            for part, scale, cap in ((small, 24, 40), (large, 96, 160)):
                size = resized_size(SIZES[i], scale, cap)
                assert tuple(part.image_sizes[b].tolist()) == size
                assert part.images.shape[2:] == tuple(-(-side // 16) * 16 for side in size)
                image = resize_image(read_image(str(scaled.records.image_paths[i])), size)
                assert np.array_equal(part.images[b, :, : size[0], : size[1]].permute(1, 2, 0).numpy(), image)
                assert int(part.images[b].count_nonzero()) == np.count_nonzero(image)
        moved = batch.to("cpu")
        assert_equal(moved, batch)
        assert moved.scaled[1] is None
        view = batch.at_scale(2)
        assert view.images is large.images
        assert view.original_sizes is batch.original_sizes
        assert len(list(batch.tensors())) == 7 + 4
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(len(SIZES)))
    assert all(batch.scaled == () for batch in plain.values())


def test_only_evaluation_knows_several_sizes(dataset) -> None:
    with pytest.raises(ValueError, match="not augmented"):
        dataset.with_scales([24])
