from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from detection.boxes import (
    clip_boxes,
    decode_boxes,
    decode_clipped,
    encode_boxes,
    gather_boxes,
    large_enough,
    pairwise_iou,
)


def random_boxes(generator: torch.Generator, *shape: int, size: float = 200.0) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * size
    return torch.cat((corner, corner + 10 + torch.rand(*shape, 2, generator=generator) * size), dim=-1)


def test_encoding_by_hand():
    # Reference 10 wide, 20 high, centre (15, 30); box 20 wide, 10 high, centre (20, 25).
    reference = torch.tensor([10.0, 20.0, 20.0, 40.0])
    box = torch.tensor([10.0, 20.0, 30.0, 30.0])
    expected = torch.tensor([(20 - 15) / 10, (25 - 30) / 20, torch.tensor(2.0).log(), torch.tensor(0.5).log()])
    torch.testing.assert_close(encode_boxes(box, reference), expected)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    torch.testing.assert_close(encode_boxes(box, reference, weights), expected * weights)


@given(st.integers(0, 10_000))
def test_decoding_inverts_encoding(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes, references = random_boxes(generator, 2, 7), random_boxes(generator, 2, 7)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    deltas = encode_boxes(boxes, references, weights)
    torch.testing.assert_close(decode_boxes(deltas, references, weights), boxes, rtol=1e-4, atol=1e-3)


def test_decoding_equals_torchvisions_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    references = random_boxes(generator, 50)
    deltas = torch.randn(50, 4, generator=generator) * 15
    assert (deltas[:, 2:] / 5 > math.log(1000 / 16)).any()  # beyond the bound on dw and dh
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    ours = decode_boxes(deltas, references, torch.tensor([10.0, 10.0, 5.0, 5.0]))
    assert torch.equal(ours, coder.decode_single(deltas, references))


def test_iou_equals_torchvisions_and_padding_overlaps_nothing():
    generator = torch.Generator().manual_seed(1)
    boxes, candidates = random_boxes(generator, 2, 5), random_boxes(generator, 2, 9)
    boxes[1, 3:] = 0
    iou = pairwise_iou(boxes, candidates)
    for image in range(2):
        torch.testing.assert_close(iou[image], torchvision.ops.box_iou(boxes[image], candidates[image]))
    assert (iou[1, 3:] == 0).all()
    shared = pairwise_iou(boxes, candidates[:1])
    torch.testing.assert_close(shared[1], torchvision.ops.box_iou(boxes[1], candidates[0]))


def test_clipping_knows_height_from_width():
    boxes = torch.tensor([[[-5.0, -6.0, 500.0, 500.0]], [[10.0, 20.0, 30.0, 40.0]]])
    sizes = torch.tensor([[100, 300], [25, 15]])  # (H, W)
    expected = torch.tensor([[[0.0, 0.0, 300.0, 100.0]], [[10.0, 20.0, 15.0, 25.0]]])
    assert torch.equal(clip_boxes(boxes, sizes), expected)


def test_large_enough_needs_both_sides():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 5.0], [0.0, 0.0, 5.0, 1.0]])
    assert large_enough(boxes, 2.0).tolist() == [True, False, False]


def test_gather_boxes_takes_from_the_own_image():
    boxes = torch.arange(24.0).view(2, 3, 4)
    taken = gather_boxes(boxes, torch.tensor([[2], [0]]))
    assert taken.tolist() == [[[8, 9, 10, 11]], [[12, 13, 14, 15]]]


@pytest.mark.parametrize("shared", [True, False])
def test_decode_clipped_takes_each_box_s_own_reference(shared):
    """Deltas of zero: the references themselves, cut to the image of 20 x 30 (H, W)."""
    first = [[0.0, 0, 8, 8], [10, 10, 40, 18], [2, 2, 3, 12]]
    second = first if shared else [[1.0, 1, 5, 25], [4, 4, 9, 9], [0, 0, 6, 6]]
    references = torch.tensor([first] if shared else [first, second])
    rows, places = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1, 2], [0, 1]])
    sizes = torch.tensor([[20, 30], [20, 30]])
    boxes, large = decode_clipped(torch.zeros(2, 2, 4), rows, references, places, None, sizes, 2.0)
    cut = [[min(x1, 30), min(y1, 20), min(x2, 30), min(y2, 20)] for x1, y1, x2, y2 in second]
    assert boxes.tolist() == [[[10, 10, 30, 18], [2, 2, 3, 12]], [cut[0], cut[1]]]
    assert large.tolist() == [[True, False], [True, True]]
