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

from detection import roi_align as module
from detection.roi_align import align, roi_align


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


def test_a_map_of_bfloat16_is_summed_in_float32(monkeypatch):
    """In pieces: here of 7 of the 2 * 5 * 9 bins, as 4 channels of them are 28 numbers; 6 are left."""
    generator = torch.Generator().manual_seed(0)
    feature, rois = torch.randn(2, 4, 9, 13, generator=generator).bfloat16(), random_rois(generator, 5)
    expected = roi_align(feature.float(), rois, 1 / 16, 3, 1, 2, True).bfloat16()
    monkeypatch.setattr(module, "PIECE", 31)
    pieces = []
    bags = module._bags
    monkeypatch.setattr(module, "_bags", lambda *args: pieces.append(len(args[2]) - 1) or bags(*args))
    assert torch.equal(roi_align(feature, rois, 1 / 16, 3, 1, 2, True), expected)
    assert pieces == [7] * 12 + [6]


def test_an_exported_graph_has_torchvisions_operator(monkeypatch):
    """Which takes RoIs with the numbers of their images, and computes all bins."""
    generator = torch.Generator().manual_seed(0)
    feature, rois = torch.randn(2, 4, 9, 13, generator=generator), random_rois(generator, 5)
    options = (1 / 16, 7, 2, 2, True)
    assert torch.equal(align(feature, rois, *options), roi_align(feature, rois, *options))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    monkeypatch.setattr(module, "roi_align", None)
    exported = align(feature, rois, *options)
    torch.testing.assert_close(exported, roi_align(feature, rois, *options), rtol=1e-4, atol=1e-5)


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
import itertools, sys, torch
from detection import triton_kernels
from detection.roi_align import roi_align, roi_align_backward
generator = torch.Generator().manual_seed(0)
triton_kernels.TILE = 4

def check(name, feature, rois, *options):
    expected, pooled = roi_align(feature, rois, *options), triton_kernels.roi_align(feature, rois, *options)
    tolerance = 2e-5 if feature.dtype == torch.float32 else 2e-2
    message = lambda text: f"{name}: {text}"
    torch.testing.assert_close(pooled, expected, rtol=tolerance, atol=tolerance, msg=message)
    gradient = torch.randn(pooled.shape, generator=generator).to(feature.dtype)
    args = (gradient, feature, rois, *options)
    gathered = triton_kernels.roi_align_backward(*args)
    torch.testing.assert_close(gathered, roi_align_backward(*args), rtol=tolerance, atol=2 * tolerance, msg=message)
    assert gathered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(gathered, triton_kernels.roi_align_backward(*args)), name

def random_rois(batch, num):
    corner = torch.rand(batch, num, 2, generator=generator) * torch.tensor([200.0, 140.0]) - 40
    return torch.cat((corner, corner + torch.rand(batch, num, 2, generator=generator) * 120), -1)

kinds = (4, 1, 0, True), (5, 2, 0, True), (3, 1, 2, False), (4, 2, 1, False), (3, 1, 2, True), (3, 2, 0, False)
for (number, kind), channels in itertools.product(enumerate(kinds), (1, 6, 33)):
    if sys.argv[1] == "few" and number % 3 != (1, 6, 33).index(channels):
        continue
    for dtype in (torch.float32, torch.bfloat16)[: 2 if channels == 6 else 1]:
        feature = torch.randn(2, channels, 5, 7, generator=generator).to(dtype)
        if channels == 6:
            feature = feature.to(memory_format=torch.channels_last)
        check((kind, channels, dtype), feature, random_rois(2, 2), 1 / 16, *kind)
feature = torch.randn(2, 3, 4, 6, generator=generator)
for kind in kinds[:4] if sys.argv[1] == "all" else ((2, 1, 2, True),):
    check(("no RoIs", kind), feature, torch.zeros(2, 0, 4), 1 / 16, *kind)
    outside = torch.tensor([[[-500.0, -500, -300, -300], [1000, 1000, 1200, 1200]]] * 2)
    check(("outside", kind), feature, outside, 1 / 16, *kind)
    check(("no extent", kind), feature, torch.tensor([[[0.0, 0, 0, 0], [33, 20, 33, 40]]] * 2), 1 / 16, *kind)
    check(("all, and more", kind), feature, torch.tensor([[[0.0, 0, 96, 64], [-40, -30, 140, 90]]] * 2), 1 / 16, *kind)
    check(("inside out", kind), feature, torch.tensor([[[60.0, 50, 20, 20], [60, 20, 20, 60]]] * 2), 1 / 16, *kind)

from detection import triton_canvas
from detection.roi_features import pack_pyramid
triton_canvas.PIXELS, triton_canvas.CHANNELS = 4, 4
for dtype in (torch.float32, torch.bfloat16):
    sizes = (5, 9), (3, 4), (2, 2), (1, 1)
    maps = [torch.randn(2, 6, *size, generator=generator).to(dtype).float().requires_grad_() for size in sizes]
    expected, origins = pack_pyramid(maps)
    canvas = torch.zeros_like(expected, dtype=dtype, memory_format=torch.channels_last)
    gradient = torch.randn(expected.shape, generator=generator).to(dtype)
    theirs = torch.autograd.grad(expected, maps, gradient.float())
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    for level, origin, size, its in zip(maps, origins, sizes, theirs):
        triton_canvas.fill(canvas, level.detach().to(dtype), *origin)
        ours = triton_canvas.gather(gradient, size, *origin)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.float(), its, rtol=1e-6 if dtype == torch.float32 else 0.008, atol=1e-6)
    assert torch.equal(canvas.float(), expected)
check("one pixel", torch.randn(1, 4, 1, 1, generator=generator), random_rois(1, 3), 1 / 16, 3, 1, 0, True)
"""


@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_triton_kernels_equal_the_cpus_operators(root: Path, cases):
    """In Triton's interpreter, which runs kernels on the CPU; the gradient twice the same, bit for bit."""
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with NumPy 2.4, its compiler does not
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(root))
    command = [sys.executable, "-W", "ignore", "-c", KERNELS, cases]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
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
