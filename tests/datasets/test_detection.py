"""The detection data set: samples are pure functions of their keys, sizes are known beforehand, faults are survived."""

from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.detection import AugmentConfig, PhotometricConfig
from configs.errors import UserError
from datasets import detection
from datasets.detection import DetectionDataset, _with_boxes
from datasets.images import read_image
from datasets.resize import resize_image
from datasets.target import Sample, SampleKey, check_sample

SIZES = [(60, 80), (80, 60), (50, 90), (64, 64), (30, 90)]
EVERYTHING = AugmentConfig(hflip=0.5, vflip=0.5, crop=0.5, expand=0.5, photometric=PhotometricConfig(p=0.5))


def equal(first: Sample, second: Sample) -> bool:
    """Whether two samples are the same in every bit."""
    arrays = [(first.image, second.image)]
    arrays += [(getattr(first.target, n), getattr(second.target, n)) for n in vars(first.target)]
    return first.original_size == second.original_size and all(np.array_equal(a, b) for a, b in arrays)


@pytest.fixture
def dataset(random_records) -> DetectionDataset:
    return DetectionDataset(random_records(SIZES), min_sizes=(40, 56), max_size=90, augment=EVERYTHING, seed=3)


def test_every_sample_passes_the_checker_and_has_its_planned_size(dataset) -> None:
    for epoch in range(8):
        for index in range(len(dataset)):
            sample = dataset[SampleKey(epoch, index)]
            check_sample(sample, num_classes=3)
            assert sample.image.shape[:2] == dataset.output_size(epoch, index)
            assert sample.original_size == SIZES[index]
            assert len(sample.target) == len(dataset.records.target(index))


def test_a_sample_is_a_function_of_seed_and_key(dataset) -> None:
    keys = [SampleKey(epoch, index, repeat=repeat) for epoch in range(3) for index in range(5) for repeat in range(2)]
    first = [dataset[key] for key in keys]
    copy = pickle.loads(pickle.dumps(dataset))
    np.random.default_rng(0).shuffle(order := list(range(len(keys))))
    for i in order:  # another order, another object, another state of the global generators
        np.random.seed(i)  # noqa: NPY002
        assert equal(copy[keys[i]], first[i])
    distinct = {sample.image.tobytes() for sample in first}
    assert len(distinct) > 0.9 * len(keys)
    other = DetectionDataset(dataset.records, min_sizes=(40, 56), max_size=90, augment=EVERYTHING, seed=4)
    assert sum(equal(other[key], sample) for key, sample in zip(keys, first, strict=True)) < len(keys) // 4


def test_without_augmentation_the_image_is_only_resized(random_records) -> None:
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(30,), max_size=1000)
    sample = dataset[SampleKey(5, 1)]
    assert sample.image.shape == (40, 30, 3)
    expected = dataset.records.target(1).boxes / 2
    assert sample.target.boxes == pytest.approx(expected, abs=1e-4)
    assert dataset.evaluation_size(1) == (40, 30)
    assert equal(sample, dataset[SampleKey(0, 1)])


def test_a_steps_own_scale_changes_nothing_but_the_scale(random_records) -> None:
    """The other draws are those that the sample has without it."""
    common = {"max_size": 200, "augment": AugmentConfig(hflip=0.5)}
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(20, 30), **common)
    plain = DetectionDataset(random_records(SIZES), min_sizes=(50,), **common)
    for epoch in range(4):
        key = SampleKey(epoch, 1, min_size=50)
        assert equal(dataset[key], plain[SampleKey(epoch, 1)])
        assert dataset.output_size(epoch, 1, 0, 50) == dataset[key].image.shape[:2]


def test_declared_size_that_is_wrong(random_records, caplog) -> None:
    records = random_records(SIZES)
    wrong = replace(records, sizes=np.array([(60, 80), (20, 30), (50, 90), (64, 64), (30, 90)]))
    dataset = DetectionDataset(wrong, min_sizes=(40,), max_size=200)
    truth = DetectionDataset(records, min_sizes=(40,), max_size=200)
    sample = dataset[SampleKey(0, 1)]
    # the image counts, and the boxes are left as they are
    assert equal(sample, truth[SampleKey(0, 1)])
    assert sample.original_size == (80, 60)
    (record,) = caplog.records
    assert "1.png: the image is 60 wide and 80 high, its annotation declares 30 wide and 20 high" in record.getMessage()
    # planned for (40, 60), it comes at (53, 40): it is made to fit
    assert dataset.output_size(0, 1) == (40, 60)
    fitted = dataset[SampleKey(0, 1, padded_size=(40, 64))]
    check_sample(fitted, num_classes=3)
    assert fitted.image.shape[0] == 40
    factor = fitted.image.shape[0] / sample.image.shape[0]
    assert fitted.target.boxes == pytest.approx(sample.target.boxes * factor, rel=0.03)
    assert "resized to fit" in caplog.records[-1].getMessage()
    before = len(caplog.records)
    dataset[SampleKey(0, 1, padded_size=(40, 64))]
    assert len(caplog.records) == before  # each kind is reported once
    assert dataset.evaluation_size(1) == (53, 40)  # evaluation asks the file itself


def test_errors_name_the_file(dataset) -> None:
    path = str(dataset.records.image_paths[2])
    Path(path).write_bytes(Path(path).read_bytes()[:100])
    with pytest.raises(UserError) as error:
        dataset[SampleKey(0, 2)]
    assert path in str(error.value)
    shutil.rmtree(Path(path).parent)
    with pytest.raises(UserError, match=r"0\.png"):
        dataset[SampleKey(0, 0)]


def test_nothing_is_reported_for_good_data(dataset, caplog) -> None:
    with caplog.at_level(logging.INFO):
        dataset[SampleKey(0, 1)]
    assert not caplog.records


def test_further_sizes_are_resized_from_the_file_with_the_cap_in_proportion(random_records) -> None:
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(40,), max_size=70)
    assert dataset.scaled_evaluation_sizes(4) == []
    scaled = dataset.with_scales([20, 40, 80])
    assert (dataset.scales, scaled.scales) == ((), (20, 40, 80))
    # 30 x 90, where the cap decides: 35 / 90, 70 / 90, 140 / 90
    assert scaled.evaluation_size(4) == (23, 70)
    assert scaled.scaled_evaluation_sizes(4) == [(12, 35), (23, 70), (47, 140)]
    sample = scaled[SampleKey(0, 4)]
    decoded = read_image(str(scaled.records.image_paths[4]))
    small, own, large = sample.scaled
    assert own is sample.image
    assert np.array_equal(small, resize_image(decoded, (12, 35)))
    assert np.array_equal(large, resize_image(decoded, (47, 140)))


def test_objects_that_vanish_in_the_resize_are_left_out(random_records) -> None:
    records = random_records([(100, 200), (100, 200)])
    records.boxes[:] = (10, 20, 30, 60)
    records.difficult[:] = records.iscrowd[:] = False
    records.boxes[0] = (150, 20, 152, 99)
    sample = DetectionDataset(records, min_sizes=(1,), max_size=2)[SampleKey(0, 1)]
    check_sample(sample)
    assert sample.image.shape == (1, 2, 3)
    boxes, count = sample.target.boxes, len(records.target(1))
    assert boxes[0] == pytest.approx([1.5, 0.2, 1.52, 0.99])
    assert len(boxes) == count
    kept = _with_boxes(records.target(1), np.array([[3.0, 4.0, 3.0, 9.0], *[[1.0, 2.0, 3.0, 4.0]] * (count - 1)]))
    assert len(kept) == len(kept.boxes) == count - 1
    assert kept.labels.tolist() == records.target(1).labels[1:].tolist()


def test_the_file_is_asked_for_its_size_once(random_records, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(detection, "image_file_size", lambda path, declared: asked.append(path) or declared)
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(40,), max_size=90)
    assert [dataset.evaluation_size(1) for _ in range(3)] == [(53, 40)] * 3
    assert len(asked) == 1


def test_one_of_several_sizes_is_drawn_without_augmentation_too(random_records) -> None:
    dataset = DetectionDataset(random_records(SIZES), min_sizes=(20, 40), max_size=500)
    sizes = {dataset.output_size(epoch, 3) for epoch in range(20)}
    assert sizes == {(20, 20), (40, 40)}
    assert len({dataset.output_size(0, 3, repeat) for repeat in range(20)}) == 2


def test_a_crop_keeps_the_objects_that_it_is_drawn_around(random_records) -> None:
    records = random_records(SIZES)
    dataset = DetectionDataset(records, min_sizes=(60,), max_size=90, augment=AugmentConfig(hflip=0, crop=1.0))
    crops = {dataset._geometry(SampleKey(epoch, 1), SIZES[1]).crop for epoch in range(20)}
    assert len(crops) > 5
    x1, y1 = records.target(1).boxes[:, :2].min(axis=0)
    x2, y2 = records.target(1).boxes[:, 2:].max(axis=0)
    for left, top, right, bottom in crops:
        assert left <= x1 + 1 and top <= y1 + 1 and right >= x2 - 1 and bottom >= y2 - 1  # noqa: PT018


@pytest.mark.parametrize("padded", [(32, 64), (64, 32), (40, 53)])
def test_an_image_too_large_is_fitted_into_either_side(random_records, padded: tuple[int, int]) -> None:
    dataset = DetectionDataset(random_records([(60, 80)] * 2), min_sizes=(60,), max_size=200)
    sample = dataset[SampleKey(0, 1, padded_size=padded)]
    scale = min(padded[0] / 60, padded[1] / 80)
    assert sample.image.shape[:2] == (int(60 * scale), int(80 * scale))
    assert sample.target.boxes == pytest.approx(dataset.records.target(1).boxes * scale, rel=0.03, abs=0.6)
