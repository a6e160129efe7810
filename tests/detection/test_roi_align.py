"""RoIAlign against torchvision's operator."""

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

from detection.roi_align import roi_align


def random_rois(generator: torch.Generator, num: int) -> torch.Tensor:
    """(2, num, 4): of all sizes, without extent, across the border and outside of a map of 13 x 9 at stride 16."""
    corner = torch.rand(2, num, 2, generator=generator) * torch.tensor([260.0, 200.0]) - 40
    size = torch.rand(2, num, 2, generator=generator) * 150 * (torch.rand(2, num, 1, generator=generator) < 0.9)
    return torch.cat((corner, corner + size), dim=-1)


@given(
    st.integers(0, 1000), st.sampled_from([0, 1, 2]), st.booleans(), st.sampled_from([1, 2]), st.sampled_from([6, 7])
)
def test_equals_torchvisions_forward_and_backward(seed, sampling_ratio, aligned, step, size):
    generator = torch.Generator().manual_seed(seed)
    rois = random_rois(generator, 5)
    ours = torch.randn(2, 4, 9, 13, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    image = torch.arange(2.0)[:, None, None].expand(-1, 5, 1)
    expected = torchvision.ops.roi_align(
        theirs, torch.cat((image, rois), -1).flatten(0, 1), size, 1 / 16, sampling_ratio, aligned
    )[:, :, ::step, ::step]
    pooled = roi_align(ours, rois, 1 / 16, size, step, sampling_ratio, aligned)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn(pooled.shape, generator=generator)
    pooled.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_no_rois_at_all():
    feature = torch.randn(1, 4, 5, 6, requires_grad=True)
    pooled = roi_align(feature, torch.zeros(1, 0, 4), 1 / 16, 7, 1, 0, True)
    assert pooled.shape == (0, 4, 7, 7)
    pooled.sum().backward()
    assert (feature.grad == 0).all()


def test_operator_is_well_formed():
    args = (
        torch.randn(1, 3, 5, 6, requires_grad=True),
        torch.tensor([[[0.0, 0.0, 60.0, 50.0]]]),
        1 / 16,
        4,
        2,
        0,
        True,
    )
    torch.library.opcheck(torch.ops.detection.roi_align.default, args)


KERNELS = """
import torch
from detection import triton_kernels
from detection.nms import nms
from detection.roi_align import roi_align, roi_align_backward
generator = torch.Generator().manual_seed(0)
for num, groups, output in ((150, 3, 40), (70, 1, 100), (200, 1, 7), (5, 1, 3)):
    corner = torch.rand(2, num, 2, generator=generator) * 100
    boxes = torch.cat((corner, corner + 5 + torch.rand(2, num, 2, generator=generator) * 30), -1)
    scores = torch.rand(2, num, generator=generator).round(decimals=2)  # ties
    valid = torch.rand(2, num, generator=generator) < 0.8
    group = torch.randint(0, groups, (2, num), generator=generator)
    args = (boxes, scores, valid, group, 0.5, output)
    assert torch.equal(triton_kernels.nms(*args), nms(*args)), num
chain = torch.arange(100.0)[:, None] * torch.tensor([3.0, 0, 3, 0]) + torch.tensor([0.0, 0, 10, 10])
args = (chain[None], torch.arange(100.0, 0, -1)[None], torch.ones(1, 100, dtype=torch.bool),
        torch.zeros(1, 100, dtype=torch.int64), 0.4, 60)
kept = triton_kernels.nms(*args)
assert torch.equal(kept, nms(*args)) and kept[0, :3].tolist() == [0, 2, 4]
for ratio, aligned, step, dtype in ((0, True, 2, torch.float32), (2, False, 1, torch.bfloat16)):
    feature = torch.randn(2, 6, 5, 7, generator=generator).to(dtype)
    corner = torch.rand(2, 2, 2, generator=generator) * torch.tensor([110.0, 80.0]) - 10
    rois = torch.cat((corner, corner + torch.rand(2, 2, 2, generator=generator) * 70), -1)
    args = (rois, 1 / 16, 4, step, ratio, aligned)
    expected = roi_align(feature, *args)
    pooled = triton_kernels.roi_align(feature, *args)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(pooled, expected, rtol=tolerance, atol=tolerance)
    gradient = torch.randn(pooled.shape, generator=generator).to(dtype)
    torch.testing.assert_close(triton_kernels.roi_align_backward(gradient, feature, *args),
                               roi_align_backward(gradient, feature, *args), rtol=tolerance, atol=tolerance)
"""


def test_triton_kernels_equal_the_cpus_operators(root: Path):
    """In Triton's interpreter, which runs kernels on the CPU."""
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with NumPy 2.4, its compiler does not
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, "-c", KERNELS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_equals_the_cpu(dtype):
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 700, 38, 63, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    rois = random_rois(generator, 60) * 4
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for step, ratio, aligned in ((1, 0, True), (2, 0, True), (1, 2, False)):
        ours = feature.cuda().requires_grad_()
        theirs = feature.clone().requires_grad_()
        pooled = roi_align(ours, rois.cuda(), 1 / 16, 14, step, ratio, aligned)
        expected = roi_align(theirs, rois, 1 / 16, 14, step, ratio, aligned)
        torch.testing.assert_close(pooled.cpu(), expected, rtol=tolerance, atol=tolerance)
        gradient = torch.randn(expected.shape, generator=generator).to(dtype)
        pooled.backward(gradient.cuda())
        expected.backward(gradient)
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=tolerance, atol=10 * tolerance)
