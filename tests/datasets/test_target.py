"""The checker refuses every breach of the contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from datasets.target import Sample, SampleKey, Target, check_sample


def _sample(**changes) -> Sample:
    target = Target(
        boxes=np.array([[0, 0, 40, 30], [1, 2, 3, 4]], np.float32),
        labels=np.array([1, 2], np.int64),
        area=np.array([1200, 4], np.float32),
        iscrowd=np.zeros(2, bool),
        difficult=np.zeros(2, bool),
    )
    fields = {name: changes.pop(name) for name in list(changes) if name in vars(target)}
    sample = Sample(np.zeros((30, 40, 3), np.uint8), replace(target, **fields), 5, (30, 40), (32, 64))
    return replace(sample, **changes)


def test_good_samples_pass() -> None:
    check_sample(_sample(), num_classes=2)
    check_sample(_sample(padded_size=None))
    nothing = {"iscrowd": np.zeros(0, bool), "difficult": np.zeros(0, bool), "area": np.zeros(0, np.float32)}
    check_sample(_sample(boxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64), **nothing))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": np.zeros((30, 40, 3), np.float32)}, "not uint8"),
        ({"image": np.zeros((3, 30, 40), np.uint8)}, "not \\(H, W, 3\\)"),
        ({"boxes": np.array([[0, 0, 40, 30.5], [1, 2, 3, 4]], np.float32)}, "object 0: box .* is not inside"),
        ({"boxes": np.array([[0, 0, 30, 30], [3, 2, 3, 4]], np.float32)}, "object 1: box"),
        ({"boxes": np.array([[0, 0, 30, 30], [1, 4, 3, 4]], np.float32)}, "object 1: box"),
        ({"boxes": np.array([[0, 0, 30, 40], [1, 2, 3, 4]], np.float32)}, "object 0"),  # height and width swapped
        ({"boxes": np.array([[0, 0, np.nan, 30], [1, 2, 3, 4]], np.float32)}, "object 0"),
        ({"boxes": np.zeros((2, 4))}, "boxes is float64"),
        ({"boxes": np.zeros((1, 4), np.float32)}, "boxes has the shape"),
        ({"labels": np.array([0, 1], np.int64)}, "0 is background"),
        ({"labels": np.array([1, 3], np.int64)}, "above the 2 classes"),
        ({"labels": np.array([1, 2], np.int32)}, "labels is int32"),
        ({"iscrowd": np.zeros(2, np.int64)}, "iscrowd is int64"),
        ({"area": np.zeros(3, np.float32)}, "area has the shape"),
        ({"padded_size": (32, 32)}, "larger than its padded size"),
        ({"padded_size": (29, 64)}, "larger than its padded size"),
        ({"image": np.zeros((0, 40, 3), np.uint8)}, "no pixels"),
        ({"image": np.zeros((30, 40, 4), np.uint8)}, "not \\(H, W, 3\\)"),
        ({"original_size": (0, 40)}, "original_size is \\(0, 40\\)"),
        ({"original_size": (30, 40, 3)}, "original_size is \\(30, 40, 3\\)"),
    ],
)
def test_breaches_are_named(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"sample 5: .*{said}"):
        check_sample(_sample(**changes), num_classes=2)


def test_the_smallest_legal_sample_passes() -> None:
    target = Target(
        boxes=np.array([[0, 0, 1, 1]], np.float32), labels=np.array([1]), area=np.ones(1, np.float32),
        iscrowd=np.zeros(1, bool), difficult=np.zeros(1, bool),
    )  # fmt: skip
    check_sample(Sample(np.zeros((1, 1, 3), np.uint8), target, 0, (1, 1), (1, 1)), num_classes=1)


def test_a_key_alone_plans_no_padding_and_is_the_first_showing() -> None:
    assert SampleKey(4, 3) == (4, 3, None, 0, None)
