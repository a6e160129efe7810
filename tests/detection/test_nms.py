from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from detection.nms import nms


@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(1, 4), st.integers(1, 20))
def test_equals_torchvisions_by_group(seed, num, num_groups, max_output):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, num, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + 5 + torch.rand(2, num, 2, generator=generator) * 20), dim=-1)
    scores = torch.rand(2, num, generator=generator)
    valid = torch.rand(2, num, generator=generator) < 0.8
    groups = torch.randint(0, num_groups, (2, num), generator=generator)
    kept = nms(boxes, scores, valid, groups, 0.5, max_output)
    assert kept.shape == (2, max_output)
    for image in range(2):
        index = valid[image].nonzero().squeeze(1)
        expected = index[
            torchvision.ops.batched_nms(boxes[image, index], scores[image, index], groups[image, index], 0.5)
        ]
        ours = kept[image][kept[image] >= 0]
        assert ours.tolist() == expected[:max_output].tolist()
        assert (kept[image][len(ours) :] == -1).all()


def test_a_beginning_with_too_few_survivors_is_not_taken_for_the_end():
    # 30 copies of one box score best; the 4 others come after the first 3 * max_output = 12.
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]] * 30 + [[20.0 * k, 50.0, 20.0 * k + 10, 60.0] for k in range(4)]])
    scores = torch.linspace(1, 0.1, 34)[None]
    kept = nms(boxes, scores, torch.ones(1, 34, dtype=torch.bool), torch.zeros(1, 34, dtype=torch.int64), 0.5, 4)
    assert kept.tolist() == [[0, 30, 31, 32]]


def test_operator_is_well_formed():
    boxes = torch.rand(2, 5, 4)
    args = (boxes, torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.int64), 0.5, 3)
    torch.library.opcheck(torch.ops.detection.nms.default, args)


@pytest.mark.gpu
@pytest.mark.parametrize(("num", "max_output", "num_groups"), [(12000, 2000, 1), (6000, 300, 5), (10, 100, 1)])
def test_cuda_equals_the_cpu_without_a_sync(num, max_output, num_groups):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3, num, 2, generator=generator) * 900
    boxes = torch.cat((corner, corner + 20 + torch.rand(3, num, 2, generator=generator) * 200), dim=-1)
    args = (
        boxes,
        torch.rand(3, num, generator=generator),
        torch.rand(3, num, generator=generator) < 0.9,
        torch.randint(0, num_groups, (3, num), generator=generator),
    )
    expected = nms(*args, 0.7, max_output)
    on_device = [arg.cuda() for arg in args]
    nms(*on_device, 0.7, max_output)  # compiles the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept = nms(*on_device, 0.7, max_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(kept.cpu(), expected)
