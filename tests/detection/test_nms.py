from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


KERNELS = """
import itertools, sys, torch
from detection import triton_kernels
from detection.nms import nms
generator = torch.Generator().manual_seed(0)

def random_boxes(batch, num, span=100, side=40):
    corner = torch.rand(batch, num, 2, generator=generator) * span
    return torch.cat((corner, corner + torch.rand(batch, num, 2, generator=generator) * side), -1)

def check(name, boxes, scores, valid=None, groups=None, threshold=0.5, max_output=200, is_sorted=False):
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups
    args = (boxes, scores, valid, groups, threshold, max_output)
    expected, kept = nms(*args), triton_kernels.nms(*args, is_sorted)
    assert torch.equal(kept, expected), (name, kept, expected)

cases = (1, 1, 0.5, 1), (63, 10, 0.3, 2), (64, 64, 0.5, 1), (65, 65, 0.7, 3), (130, 200, 0.0, 2), (257, 33, 0.5, 1)
for (num, output, threshold, kinds), chunk in itertools.product(cases, (64, 128, 4096)):
    if (num <= 65 and chunk == 128) or (sys.argv[1] == "few" and (num, chunk) not in ((65, 64), (130, 64))):
        continue
    triton_kernels.CHUNK = chunk
    valid = torch.rand(2, num, generator=generator) < 0.8
    groups = torch.randint(0, kinds, (2, num), generator=generator) - 1 + (1 << 40)
    scores = torch.rand(2, num, generator=generator)
    check(("random", num, chunk), random_boxes(2, num), scores, valid, groups, threshold, output)
    check(("ties", num, chunk), random_boxes(2, num).round(), (scores * 4).round(), valid, groups, threshold, output)
    scores = scores.sort(dim=1, descending=True).values
    check(("sorted", num, chunk), random_boxes(2, num), scores, valid, groups, threshold, output, True)
triton_kernels.CHUNK = 64
num = 100 if sys.argv[1] == "all" else 70
boxes, scores = random_boxes(2, num), torch.rand(2, num, generator=generator)
some = torch.rand(2, num, generator=generator) < 0.7
check("no valid box", boxes, scores, ~torch.ones_like(some))
check("one image without", boxes, scores, torch.stack((some[0], ~torch.ones_like(some[0]))))
check("one box everywhere", boxes[:, :1].expand(-1, num, -1), scores)
check("no area", torch.full((2, num, 4), 5.0), scores)
check("inverted", boxes[..., [2, 3, 0, 1]], scores)
if sys.argv[1] == "all":
    check("areas overflow", boxes * 1e18, scores)
    check("tiny", boxes * 1e-20, scores)
for value in ("-inf", "nan", "inf"):
    odd = scores.clone()
    odd[:, ::5] = float(value)
    check(("scores", value), boxes, odd, some)  # an invalid box never gets in, whatever it scores
    if sys.argv[1] == "all":
        check(("all scores", value), boxes, torch.full_like(scores, float(value)), some)
thirds = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 5], [0, 0, 10, 3], [0, 0, 10, 7]] * 4])
for threshold in (0.5, 0.3, 0.7, 0.15, 1.0):  # ratios at the threshold, as float32 and as float64 have it
    check(("at the threshold", threshold), thirds, torch.rand(1, 20, generator=generator), threshold=threshold)
chain = torch.arange(100.0)[:, None] * torch.tensor([3.0, 0, 3, 0]) + torch.tensor([0.0, 0, 10, 10])
check("a chain", chain[None], torch.arange(100.0, 0, -1)[None], threshold=0.4, max_output=60)
check("no boxes", torch.zeros(2, 0, 4), torch.zeros(2, 0), max_output=5)
check("no output", boxes, scores, max_output=0)
"""


@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_triton_kernels_equal_the_cpus_operator(root: Path, cases):
    """In Triton's interpreter, which runs kernels on the CPU; in chunks of 64 candidates and more."""
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with NumPy 2.4, its compiler does not
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(root))
    command = [sys.executable, "-W", "ignore", "-c", KERNELS, cases]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
