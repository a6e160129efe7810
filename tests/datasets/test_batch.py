"""The base of all batches reaches every tensor and nothing else; padding by hand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.batch import (
    Batch,
    ScaledImages,
    TensorBatch,
    map_tensors,
    padded_count,
    stack_images,
    tensors_of,
    to_device,
)
from datasets.classification import LabelledBatch
from datasets.localisation_views import LocalisationBatch


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
