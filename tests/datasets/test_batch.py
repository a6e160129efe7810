"""The base of all batches reaches every tensor and nothing else; padding by hand; copies beside the work."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.batch import (
    Batch,
    Collate,
    ScaledImages,
    TensorBatch,
    map_tensors,
    padded_count,
    prefetch,
    stack_images,
    tensors_of,
    to_device,
)
from datasets.classification import LabelledBatch
from datasets.loader import make_loader
from datasets.localisation_views import LocalisationBatch
from datasets.target import Sample, Target


@dataclass(frozen=True)
class _Mixed(TensorBatch):
    first: Tensor
    name: str
    nothing: Tensor | None
    parts: tuple[ScaledImages | None, ...]
    listed: list[Tensor]
    last: Tensor


def _numbered(*numbers: int) -> list[Tensor]:
    return [torch.tensor([number]) for number in numbers]


@pytest.fixture
def mixed() -> _Mixed:
    a, b, c, d, e, f = _numbered(1, 2, 3, 4, 5, 6)
    return _Mixed(a, "name", None, (None, ScaledImages(b, c)), [d, e], f)


def one_of_each() -> list[TensorBatch | list]:
    """A batch of each stage, and a list of batches as evaluation at several sizes gives it."""
    scaled = (ScaledImages(*_numbered(8, 9)), None)
    labelled = LabelledBatch(*_numbered(1, 2, 3))
    return [
        Batch(*_numbered(1, 2, 3, 4, 5, 6, 7), scaled=scaled),
        labelled,
        LocalisationBatch(*_numbered(1, 2, 3, 4, 5, 6, 7)),
        [labelled, LabelledBatch(*_numbered(4, 5, 6))],
    ]


def test_tensors_come_in_the_order_of_the_fields_wherever_they_lie(mixed) -> None:
    assert [int(tensor) for tensor in mixed.tensors()] == [1, 2, 3, 4, 5, 6]
    assert [int(tensor) for tensor in tensors_of([mixed, (mixed.last, "x", 3)])] == [1, 2, 3, 4, 5, 6, 6]
    assert list(tensors_of(None)) == []


def test_each_tensor_is_changed_and_all_else_is_kept(mixed) -> None:
    changed = map_tensors(mixed, lambda tensor: tensor * 10)
    assert type(changed) is _Mixed
    assert [int(tensor) for tensor in changed.tensors()] == [10, 20, 30, 40, 50, 60]
    assert changed.name == "name"
    assert changed.nothing is None
    assert changed.parts[0] is None
    assert type(changed.parts) is tuple
    assert type(changed.listed) is list
    assert [int(tensor) for tensor in mixed.tensors()] == [1, 2, 3, 4, 5, 6]  # the old one is as it was


@pytest.mark.parametrize("batch", one_of_each(), ids=lambda batch: type(batch).__name__)
def test_every_stages_batch_moves_as_a_whole(batch) -> None:
    moved = to_device(batch, "meta")
    assert type(moved) is type(batch)
    assert [tensor.device.type for tensor in tensors_of(moved)] == ["meta"] * len(list(tensors_of(batch)))
    count = {Batch: 9, LabelledBatch: 3, LocalisationBatch: 7, list: 6}[type(batch)]
    assert [int(tensor) for tensor in tensors_of(batch)] == list(range(1, count + 1))


@pytest.mark.parametrize("kind", [Batch, LabelledBatch, LocalisationBatch, ScaledImages])
def test_no_batch_has_a_way_of_its_own(kind: type) -> None:
    assert issubclass(kind, TensorBatch)
    assert not {"to", "pin_memory", "tensors"} & set(vars(kind))


def test_copies_do_not_wait_unless_asked_to(mixed, monkeypatch) -> None:
    seen = []

    def to(tensor: Tensor, device: str, non_blocking: bool = False) -> Tensor:
        seen.append((int(tensor), device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    mixed.to("cuda")
    mixed.parts[1].to("cuda:1", non_blocking=False)
    assert seen == [(number, "cuda", True) for number in range(1, 7)] + [(2, "cuda:1", False), (3, "cuda:1", False)]
    to_device([mixed.last], "cuda:2")
    assert seen[-1] == (6, "cuda:2", True)


def test_copies_to_the_cpu_always_wait(mixed, monkeypatch) -> None:
    """torch gives pinned memory at once, and nobody could tell when the values have arrived."""
    seen = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _, non_blocking: seen.append(non_blocking) or tensor)
    mixed.to("cpu")
    assert seen == [False] * 6


def test_every_tensor_is_pinned(mixed, monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: -tensor)
    assert [int(tensor) for tensor in mixed.pin_memory().tensors()] == [-1, -2, -3, -4, -5, -6]


def test_detection_at_another_size() -> None:
    batch = one_of_each()[0]
    assert batch.at_scale(1) is batch
    view = batch.at_scale(0)
    assert (int(view.images), int(view.image_sizes), view.scaled) == (8, 9, ())
    assert view == replace(batch, images=view.images, image_sizes=view.image_sizes, scaled=())
    assert {field.name for field in fields(batch)} == {field.name for field in fields(view)}


# ------------------------------------------------------------------------------------------------ padding


def test_images_are_stacked_at_the_upper_left() -> None:
    images = [np.full((2, 3, 3), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(1, 4, 3) + 1]
    stacked = stack_images(images, (3, 5))
    assert stacked.shape == (2, 3, 3, 5)
    assert stacked.dtype == torch.uint8
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    assert stacked[0, 1].tolist() == [[7, 7, 7, 0, 0], [7, 7, 7, 0, 0], [0] * 5]
    assert stacked[1, 2].tolist() == [[3, 6, 9, 12, 0], [0] * 5, [0] * 5]  # the third channel


def test_images_of_one_size_need_no_padding() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in (4, 5)]
    assert torch.equal(stack_images(images), stack_images(images, (2, 3)))
    assert stack_images(images).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError):
        stack_images([images[0], np.zeros((3, 2, 3), np.uint8)])


def test_counts_are_powers_of_two() -> None:
    assert [padded_count(count) for count in (0, 1, 2, 3, 4, 5, 8, 9)] == [1, 1, 2, 4, 4, 8, 8, 16]
    assert [padded_count(count, 8) for count in (0, 7, 8, 9)] == [8, 8, 8, 16]


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
@pytest.mark.parametrize("batch", [pytest.param(batch, id=name) for name, batch in _batches_of_each_stage()])
def test_every_stages_batches_on_cuda(batch) -> None:
    loader = make_loader([batch] * 3, [[k] for k in range(3)], operator.itemgetter(0), num_workers=1, pin_memory=True)
    for moved in prefetch(loader, "cuda"):
        for tensor, original in zip(tensors_of(moved), tensors_of(batch), strict=True):
            assert tensor.is_cuda
            assert torch.equal(tensor.cpu(), original)
