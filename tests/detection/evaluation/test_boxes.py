"""The frames of VOC and COCO and the ways between them, by hand and to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detection.evaluation import boxes as frames

VOC, COCO, CONTINUOUS = [5.0, 6.0, 14.0, 25.0], [4.0, 5.0, 10.0, 20.0], [4.0, 5.0, 14.0, 25.0]
"""Ten columns from the fifth on and twenty rows from the sixth on, in the three frames."""


@pytest.mark.parametrize(
    ("convert", "given_box", "expected"),
    [
        (frames.voc_to_coco, VOC, COCO),
        (frames.coco_to_voc, COCO, VOC),
        (frames.voc_to_continuous, VOC, CONTINUOUS),
        (frames.continuous_to_voc, CONTINUOUS, VOC),
        (frames.coco_to_continuous, COCO, CONTINUOUS),
        (frames.continuous_to_coco, CONTINUOUS, COCO),
    ],
)
def test_frames_by_hand(convert, given_box: list[float], expected: list[float]) -> None:
    rows = np.array([given_box, given_box])
    np.testing.assert_array_equal(convert(rows), [expected, expected])
    assert convert(np.zeros((0, 4))).shape == (0, 4)


@given(arrays(np.float64, (5, 4), elements=st.floats(0.5, 1e5)))
def test_voc_boxes_survive_the_projects_frame_to_the_last_bit(boxes: np.ndarray) -> None:
    np.testing.assert_array_equal(frames.continuous_to_voc(frames.voc_to_continuous(boxes)), boxes)
