"""The resize rule: numbers worked out by hand, and its properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.resize import clip_boxes, resize_boxes, resize_image, resized_size, scaled_sizes


@pytest.mark.parametrize(
    ("size", "min_size", "max_size", "expected"),
    [
        ((375, 500), 600, 1000, (600, 800)),  # shorter side 600: factor 1.6
        ((500, 375), 600, 1000, (800, 600)),
        ((200, 1000), 600, 1000, (200, 1000)),  # the cap: factor 1
        ((100, 400), 600, 1000, (250, 1000)),  # the cap: factor 2.5
        ((600, 600), 600, 1000, (600, 600)),
        ((3, 2), 3, 100, (5, 3)),  # 4.5 is rounded up
        ((480, 640), 800, 1333, (800, 1067)),  # 1066.67
        ((1, 5000), 600, 1000, (1, 1000)),  # 0.2 becomes 1, never 0
    ],
)
def test_resized_size_by_hand(size, min_size, max_size, expected) -> None:
    assert resized_size(size, min_size, max_size) == expected


sides = st.integers(1, 3000)


@given(sides, sides, st.integers(1, 1500), st.integers(1, 2000))
def test_resized_size_keeps_its_promises(height, width, min_size, max_size) -> None:
    new = resized_size((height, width), min_size, max_size)
    assert min(new) >= 1
    assert max(new) <= max(max_size, 1)
    assert min(new) == min(min_size, max_size) or max(new) == max_size or min(new) <= min_size
    assert resized_size((width, height), min_size, max_size) == new[::-1]
    # one of the two limits is reached
    assert min(new) == min_size or max(new) == max_size


def test_the_cap_goes_along_with_the_scale() -> None:
    assert scaled_sizes((375, 500), 600, 1000, [300, 1200]) == [(300, 400), (1200, 1600)]
    assert scaled_sizes((200, 1000), 600, 1000, [300, 1200]) == [(100, 500), (400, 2000)]  # caps of 500 and 2000
    assert scaled_sizes((200, 1000), 600, 600, [1]) == [(1, 1)]


def test_resize_image_takes_height_first() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:10] = 200  # the upper half
    new = resize_image(image, (40, 90))
    assert new.shape == (40, 90, 3)
    assert (new[:18] == 200).all()
    assert (new[22:] == 0).all()
    assert resize_image(image, (20, 30)) is image
    assert np.array_equal(new, cv2.resize(image, (90, 40)))


def test_resize_boxes_each_axis_has_its_factor() -> None:
    boxes = np.array([[3.0, 2.0, 30.0, 20.0]])
    resized = resize_boxes(boxes, (20, 30), (40, 90))  # y doubled, x tripled
    assert resized.dtype == np.float32
    assert resized.tolist() == [[9.0, 4.0, 90.0, 40.0]]


def test_clip_boxes() -> None:
    boxes = np.array([[-5.0, 3.0, 50.0, 70.0], [-9.0, -9.0, -3.0, -3.0]])
    assert clip_boxes(boxes, (20, 30)).tolist() == [[0, 3, 30, 20], [0, 0, 0, 0]]
    assert clip_boxes(np.zeros((0, 4)), (20, 30)).shape == (0, 4)
