"""Batches: padding by hand; the same for any number of workers, start method and processes; errors stay readable."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import operator
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from configs.detection import AugmentConfig, DataConfig, PhotometricConfig
from configs.errors import UserError
from datasets import samplers
from datasets.batch import Batch, ScaledImages, tensors_of
from datasets.classification import LabelledBatch
from datasets.detection import DetectionDataset
from datasets.images import read_image
from datasets.loader import Collate, epoch_orders, eval_loader, make_loader, prefetch, train_loader, usable_cpus
from datasets.localisation_views import LocalisationBatch
from datasets.resize import resize_image, resized_size
from datasets.target import Sample, Target

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


# ------------------------------------------------------------------------------------------------ all stages


class _Squares:
    """The square of a key; some keys have none."""

    def __getitem__(self, key: int) -> int:
        if key < 0:
            raise UserError(f"{key}.png: cannot be decoded")
        return key * key


class _Workers:
    """What a worker is like."""

    def __getitem__(self, key: int) -> tuple[int, int, bool]:
        return os.getpid(), cv2.getNumThreads(), signal.getsignal(signal.SIGINT) is signal.SIG_IGN


class _Fatal:
    def __getitem__(self, key: int) -> int:
        if key == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
        return key


KEYS = [[1, 2], [3], [4, 5]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_their_keys_again_and_again(workers: int) -> None:
    loader = make_loader(_Squares(), KEYS, tuple, num_workers=workers)
    assert list(loader) == list(loader) == [(1, 4), (9,), (16, 25)]
    assert len(loader) == 3


def test_keys_may_have_no_end() -> None:
    loader = make_loader(_Squares(), ([k] for k in itertools.count(3)), tuple, num_workers=0)
    assert list(itertools.islice(loader, 2)) == [(9,), (16,)]
    with pytest.raises(TypeError, match="no end"):
        len(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_samples_error_arrives_as_it_was_raised(workers: int) -> None:
    iterator = iter(make_loader(_Squares(), [[1, 2], [3, -4, -5], [6]], tuple, num_workers=workers))
    assert next(iterator) == (1, 4)
    with pytest.raises(UserError) as error:
        next(iterator)
    assert type(error.value) is UserError
    assert str(error.value) == "-4.png: cannot be decoded"
    frames = [frame for frame, _ in traceback.walk_tb(error.value.__traceback__)]
    held = [value for frame in frames if frame.f_code.co_name == "__iter__" for value in frame.f_locals.values()]
    assert held  # by the loader
    assert error.value not in held, "such a cycle lets the workers linger for five seconds"


def test_a_worker_that_the_system_ends_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^data\.num_workers: .*Killed.*fewer workers") as error:
        list(make_loader(_Fatal(), KEYS, tuple, num_workers=1))
    assert isinstance(error.value, RuntimeError)
    assert "\n" not in str(error.value)


def test_workers_are_no_more_than_processors_with_one_thread_each(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    items = [item for batch in make_loader(_Workers(), [[k] for k in range(6)], tuple, num_workers=4) for item in batch]
    ((pid, threads, ignores),) = set(items)
    assert pid != os.getpid()
    assert threads == 1
    assert ignores
    before = signal.getsignal(signal.SIGINT), cv2.getNumThreads()
    ((pid, threads, _),) = next(iter(make_loader(_Workers(), [[0]], tuple, num_workers=0)))
    assert pid == os.getpid()
    assert (signal.getsignal(signal.SIGINT), threads) == before


def test_processors_that_this_process_may_use(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert usable_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    assert usable_cpus() == 64


# ------------------------------------------------------------------------------------------------ collate


def _sample(size: tuple[int, int], count: int, padded: tuple[int, int] | None = None, index: int = 0) -> Sample:
    rng = np.random.default_rng(index)
    low = rng.uniform(0, 10, (count, 2))
    target = Target(
        boxes=np.concatenate([low, low + 5], axis=1).astype(np.float32),
        labels=rng.integers(1, 4, count),
        area=np.full(count, 25, np.float32),
        iscrowd=np.arange(count) % 4 == 3,
        difficult=np.arange(count) % 3 == 1,
    )
    return Sample(rng.integers(1, 256, (*size, 3), np.uint8), target, index, (99, 77), padded)


@pytest.mark.parametrize(("largest", "slots"), [(0, 8), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (100, 128)])
def test_ground_truth_is_padded_to_powers_of_two(largest: int, slots: int) -> None:
    batch = Collate()([_sample((20, 30), largest, index=1), _sample((20, 30), 0, index=2)])
    assert batch.boxes.shape == (2, slots, 4)
    assert batch.labels.shape == batch.valid.shape == (2, slots)
    assert not batch.boxes[1].any()
    assert not batch.labels[1].any()
    assert not batch.valid[1].any()
    assert not batch.boxes[0, largest:].any()
    assert not batch.labels[0, largest:].any()


def test_images_lie_at_the_upper_left_of_a_channels_last_array() -> None:
    samples = [_sample((20, 30), 2, (32, 48), 1), _sample((25, 17), 1, (32, 48), 2)]
    batch = Collate()(samples)
    assert batch.images.shape == (2, 3, 32, 48)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for b, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        assert np.array_equal(batch.images[b, :, :height, :width].permute(1, 2, 0).numpy(), sample.image)
        assert int(batch.images[b].count_nonzero()) == sample.image.size
        assert np.array_equal(batch.boxes[b, : len(sample.target)].numpy(), sample.target.boxes)
    assert batch.image_sizes.tolist() == [[20, 30], [25, 17]]
    assert batch.original_sizes.tolist() == [[99, 77]] * 2
    assert batch.index.tolist() == [1, 2]
    for name, dtype in [("boxes", torch.float32), ("labels", torch.int64), ("valid", torch.bool)]:
        assert getattr(batch, name).dtype == dtype
    for name in ("image_sizes", "original_sizes", "index"):
        assert getattr(batch, name).dtype == torch.int64


def test_without_a_planned_size_the_largest_counts() -> None:
    batch = Collate(size_divisor=32)([_sample((20, 70), 0), _sample((33, 10), 0)])
    assert batch.images.shape == (2, 3, 64, 96)


def test_crowd_and_difficult_do_not_train() -> None:
    sample = _sample((20, 30), 7)  # crowd: 3; difficult: 1, 4
    assert Collate()([sample]).valid[0].tolist() == [True, False, True, False, False, True, True, False]
    with_difficult = Collate(train_difficult=True)([sample]).valid[0]
    assert with_difficult.tolist() == [True, True, True, False, True, True, True, False]


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


# ------------------------------------------------------------------------------------------------ prefetch


class _FakeCuda:
    """Stands in for CUDA on a machine without it: says in which order things happen, and on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple] = []
        self.copies: list[torch.Tensor] = []
        self.active = self.default = _FakeStream("default", self.events)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: _FakeStream(f"copies to {device}", self.events))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.active)
        monkeypatch.setattr(torch.cuda, "stream", self._use)
        monkeypatch.setattr(torch.Tensor, "to", self._to)
        monkeypatch.setattr(torch.Tensor, "record_stream", self._record)

    @contextlib.contextmanager
    def _use(self, stream: _FakeStream) -> Iterator[None]:
        before, self.active = self.active, stream
        yield
        self.active = before

    @property
    def _to(self):
        def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
            self.events.append(("copy", str(device), non_blocking, self.active.name))
            self.copies.append(tensor.clone())
            return self.copies[-1]

        return to

    @property
    def _record(self):
        def record(tensor: torch.Tensor, stream: _FakeStream) -> None:
            assert any(tensor is copy for copy in self.copies), "what is on the host needs no record"
            self.events.append(("record", stream.name))

        return record


@dataclass
class _FakeStream:
    name: str
    events: list[tuple]

    def wait_stream(self, other: _FakeStream) -> None:
        self.events.append(("wait", self.name, other.name))


def _batches_of_each_stage() -> list[tuple[str, object]]:
    images = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4)
    numbers = [torch.tensor([[k]]) for k in range(6)]
    labelled = LabelledBatch(images, *numbers[:2])
    return [
        ("detection", Batch(images, *numbers, scaled=(None, ScaledImages(images[..., :2], numbers[0])))),
        ("classification", labelled),
        ("classification at two scales", [labelled, LabelledBatch(images[..., :2], *numbers[:2])]),
        ("localisation", LocalisationBatch(images, *numbers)),
    ]


@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in _batches_of_each_stage()])
def test_cuda_copies_batches_of_every_stage_on_a_stream_of_their_own(batch, monkeypatch) -> None:
    cuda = _FakeCuda(monkeypatch)
    taken = []

    def batches():
        for number in range(3):
            taken.append(number)
            yield batch

    count = len(list(tensors_of(batch)))
    for number, moved in enumerate(prefetch(batches(), "cuda:1")):
        assert taken == list(range(number + 1))
        assert type(moved) is type(batch)
        for tensor, original in zip(tensors_of(moved), tensors_of(batch), strict=True):
            assert torch.equal(tensor, original)
            assert tensor is not original
        assert cuda.events == [
            *[("copy", "cuda:1", True, "copies to cuda:1")] * count,
            ("wait", "default", "copies to cuda:1"),  # before the caller works on it
            *[("record", "default")] * count,
        ]
        cuda.events.clear()
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in _batches_of_each_stage()])
def test_elsewhere_batches_pass_through(batch) -> None:
    for moved in prefetch([batch, batch], torch.device("meta")):
        assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    (same,) = prefetch([batch], "cpu")
    assert all(one is other for one, other in zip(tensors_of(same), tensors_of(batch), strict=True))


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


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in _batches_of_each_stage()])
def test_every_stages_batches_on_cuda(batch) -> None:
    loader = make_loader([batch] * 3, [[k] for k in range(3)], operator.itemgetter(0), num_workers=1, pin_memory=True)
    for moved in prefetch(loader, "cuda"):
        for tensor, original in zip(tensors_of(moved), tensors_of(batch), strict=True):
            assert tensor.is_cuda
            assert torch.equal(tensor.cpu(), original)


def test_too_little_shared_memory_is_one_line(tmp_path, monkeypatch):
    """As torch says it in a worker; its own attempt, in a thread there, would leave the training waiting for ever."""

    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    numbers = [torch.ones(1 << 18)] * 4
    batches = make_loader(numbers, [[0, 1], [2, 3]], torch.stack, num_workers=1)
    with pytest.raises(UserError, match=r"MB free, too little for the loader's batches of 2\.0 MB: .*--shm-size"):
        next(iter(batches))
