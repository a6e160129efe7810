from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops.poolers import LevelMapper

from configs.detection import BoxConfig
from detection.roi_features import RoiFeatures, _Canvas, pack_pyramid, roi_levels

STRIDES = [4, 8, 16, 32]


def pyramid(seed: int, height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, height // s, width // s, generator=generator) for s in STRIDES]


def rois_in(seed: int, height: int, width: int, num: int = 24) -> torch.Tensor:
    """RoIs of all sizes, a good part of which touch the border, inside an image of the given size."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([width, height]).float()
    a, b = (torch.rand(2, num, 2, generator=generator) * 1.2 - 0.1 for _ in range(2))
    corners = torch.cat((torch.minimum(a, b), torch.maximum(a, b)), dim=-1).clamp(0, 1) * limits.repeat(2)
    # At least one pixel of P2 each way: see `pack_pyramid` on smaller ones.
    start = torch.minimum(corners[..., :2], limits - 8)
    return torch.cat((start, torch.maximum(corners[..., 2:], start + 4)), dim=-1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@given(st.integers(0, 1000), st.sampled_from([(64, 96), (320, 256), (512, 768)]))
def test_canvas_equals_pooling_level_by_level(aligned, sampling_ratio, seed, image_size):
    height, width = image_size
    features, rois = pyramid(seed, height, width), rois_in(seed, height, width)
    config = BoxConfig(pool_size=7, aligned=aligned, sampling_ratio=sampling_ratio)
    pooled = RoiFeatures(config, STRIDES)(features, rois)
    levels = roi_levels(rois).flatten()
    flat = torch.cat((torch.arange(2.0)[:, None, None].expand(-1, rois.shape[1], 1), rois), dim=-1).flatten(0, 1)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        here = levels == level
        expected = torchvision.ops.roi_align(feature, flat[here], 7, 1 / stride, sampling_ratio, aligned)
        torch.testing.assert_close(pooled[here], expected, rtol=1e-3, atol=2e-3)


def test_gradient_through_the_canvas():
    features, rois = pyramid(0, 128, 192), rois_in(3, 128, 192)
    config = BoxConfig(pool_size=7, aligned=False, sampling_ratio=2)
    ours = [f.clone().requires_grad_() for f in features]
    theirs = [f.clone().requires_grad_() for f in features]
    weight = torch.randn(48, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    (RoiFeatures(config, STRIDES)(ours, rois) * weight).sum().backward()
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps = {str(k): f for k, f in enumerate(theirs)}
    # LevelMapper reads P2..P5 from the scales that the pooler infers from the image's size.
    (pooler(maps, list(rois), [(128, 192)] * 2) * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=2e-3)


@given(st.integers(0, 1000))
def test_levels_equal_torchvisions(seed):
    rois = rois_in(seed, 800, 1333)
    mapper = LevelMapper(2, 5)
    assert torch.equal(roi_levels(rois).flatten(), mapper([*rois]))


def test_levels_at_the_boundaries():
    sides = torch.tensor([112.0, 224.0, 448.0, 20.0, 2000.0])
    rois = torch.stack((torch.zeros(5), torch.zeros(5), sides, sides), dim=1)
    assert roi_levels(rois).tolist() == [1, 2, 3, 0, 3]


def test_one_level_pools_each_image_for_itself():
    feature = torch.stack((torch.full((1, 8, 10), 1.0), torch.full((1, 8, 10), 2.0)))
    rois = torch.tensor([[[0.0, 0.0, 64.0, 48.0]], [[16.0, 16.0, 100.0, 100.0]]])
    for pool in ("roi_align", "roi_pool"):
        pooled = RoiFeatures(BoxConfig(pool=pool, pool_size=7), [16])([feature], rois)
        assert pooled.shape == (2, 1, 7, 7)
        assert (pooled[0] == 1).all()
        assert (pooled[1] == 2).all()


def test_bf16_features_keep_float32_coordinates():
    feature = torch.randn(1, 2, 50, 84, generator=torch.Generator().manual_seed(0))
    rois = rois_in(0, 800, 1333)[:1]
    exact = RoiFeatures(BoxConfig(pool_size=7), [16])([feature], rois)
    low = RoiFeatures(BoxConfig(pool_size=7), [16])([feature.bfloat16()], rois)
    assert low.dtype == torch.bfloat16
    # Only the features are rounded (8 bits): coordinates in bf16 would be off by pixels.
    assert (low.float() - exact).abs().max() < 0.03


def caffe_roi_pool(feature, box, size, scale):
    """One RoI after the text of Caffe's roi_pooling_layer: corners name pixels that belong to it."""
    channels, height, width = feature.shape

    def nearest(value):  # C's round: halves away from zero
        return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)

    left, top, right, bottom = (nearest(float(np.float32(each) * np.float32(scale))) for each in box)
    step_y = np.float32(max(bottom - top + 1, 1)) / np.float32(size)
    step_x = np.float32(max(right - left + 1, 1)) / np.float32(size)
    pooled = np.zeros((channels, size, size), np.float32)
    for row in range(size):
        for column in range(size):
            y0, y1 = math.floor(row * step_y) + top, math.ceil((row + 1) * step_y) + top
            x0, x1 = math.floor(column * step_x) + left, math.ceil((column + 1) * step_x) + left
            y0, y1 = (min(max(each, 0), height) for each in (y0, y1))
            x0, x1 = (min(max(each, 0), width) for each in (x0, x1))
            if y1 > y0 and x1 > x0:
                pooled[:, row, column] = feature[:, y0:y1, x0:x1].max((1, 2))
    return pooled


def test_roi_pool_is_caffes():
    """1,000 RoIs, of whole pixels and not, at the border and beyond it."""
    generator = np.random.default_rng(0)
    feature = generator.standard_normal((2, 20, 30)).astype(np.float32)
    corners = np.sort(generator.uniform(-20, 500, (1000, 2, 2)).astype(np.float32), axis=1) * [1, 0.66]
    inclusive = corners.reshape(1000, 4).astype(np.float32)
    inclusive[::2] = np.round(inclusive[::2])
    inclusive[::7, 2:] = inclusive[::7, :2]  # of one pixel
    continuous = torch.from_numpy(inclusive) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    rois = continuous[None]

    def pool(inclusive_edges):
        config = BoxConfig(pool="roi_pool", pool_size=7, pool_inclusive=inclusive_edges)
        return RoiFeatures(config, [16])([torch.from_numpy(feature)[None]], rois).numpy()

    # (x + 1) - 1 is x in float32 up to the last digit, which decides only at exact halves
    exact = (continuous - torch.tensor([0.0, 0.0, 1.0, 1.0])).numpy()
    expected = np.stack([caffe_roi_pool(feature, box, 7, 1 / 16) for box in exact])
    assert np.array_equal(pool(True), expected)
    differs = (pool(False) != expected).any((1, 2, 3)).mean()
    assert 0.05 < differs < 0.2  # a row or a column more: 1 - (15 / 16) ** 2 = 12 %


def test_inclusive_edges_are_for_roi_pool():
    with pytest.raises(ValueError, match="pool roi_align does not read pool_inclusive, which is for pool roi_pool"):
        BoxConfig(pool_inclusive=True)


def test_the_canvas_of_cuda_equals_that_of_the_cpu():
    """Values and gradients, in channels_last."""
    sizes = [(9, 14), (5, 7), (3, 4), (2, 2)]
    maps = [torch.randn(2, 3, *size).requires_grad_() for size in sizes]
    expected, origins = pack_pyramid(maps)
    canvas = _Canvas.apply(tuple(expected.shape[2:]), origins, *maps)
    assert torch.equal(canvas, expected)
    assert canvas.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(expected.shape)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), maps) for out in (canvas, expected))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)
        assert mine.is_contiguous(memory_format=torch.channels_last)
