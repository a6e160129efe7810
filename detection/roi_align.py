"""RoIAlign (He et al. 2017, Sec. 3) as one operator on channels-last maps, with its gradient.

RoIAlign is linear in the feature map: each bin is a weighted sum of pixels, and the weights factor into one along y and
one along x. On the CPU that is an embedding bag whose rows are the pixels' channels, several times as fast as
torchvision's loop over channels; on CUDA a Triton kernel where Triton is installed, torchvision's operator elsewhere.

Shapes: B images, R RoIs an image, C channels, S bins a side, T = ceil(S / step) bins of them that are computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.autograd.function import once_differentiable

from backbones.kernels import kernels_for

PIECE = 1 << 20
"""Numbers that are summed in float32 at a time where the map is bfloat16."""


@torch.library.custom_op("detection::roi_align", mutates_args=())
def roi_align(
    feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """The features (B * R, C, T, T) under RoIs, in the map's dtype, channels_last; sums are float32.

    Args:
        feature: (B, C, H, W) float32 or bfloat16.
        rois: (B, R, 4) float32 in pixels of the images.
        scale: feature pixels for each image pixel.
        size: S.
        step: of the S x S bins only every `step`-th row and column is computed: all that a convolution with a 1x1
            kernel and this stride reads.
        sampling_ratio: samples a bin and side; 0: as many as the bin has feature pixels.
        aligned: half-pixel correction.
    """
    if feature.device.type == "cpu":
        sums = _weighted_sums(feature, _taps(feature, rois, scale, size, step, sampling_ratio, aligned))
        side = -(-size // step)
        return _from_rows(sums, (-1, side, side, feature.shape[1]))
    if kernels := kernels_for(feature, "detection.triton_kernels"):
        return kernels.roi_align(feature, rois, scale, size, step, sampling_ratio, aligned)
    pooled = torchvision.ops.roi_align(feature.float(), with_image(rois), size, scale, sampling_ratio, aligned)
    return pooled[:, :, ::step, ::step].to(feature.dtype, memory_format=torch.channels_last, copy=True)


@torch.library.custom_op("detection::roi_align_backward", mutates_args=())
def roi_align_backward(
    gradient: Tensor,
    feature: Tensor,
    rois: Tensor,
    scale: float,
    size: int,
    step: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The gradient (B, C, H, W) of the map from that of the output, (B * R, C, T, T); of `feature` the shape counts."""
    kernels = kernels_for(gradient, "detection.triton_kernels")
    if kernels is not None:
        return kernels.roi_align_backward(gradient, feature, rois, scale, size, step, sampling_ratio, aligned)
    if gradient.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        taps = _taps(feature, rois, scale, size, step, sampling_ratio, aligned)
        return _scattered_sums(gradient, feature, taps)
    shape = feature.shape
    full = gradient.new_zeros((len(gradient), shape[1], size, size), dtype=torch.float32)
    full[:, :, ::step, ::step] = gradient
    result = torch.ops.torchvision._roi_align_backward(
        full, with_image(rois), scale, size, size, *shape, sampling_ratio, aligned
    )
    return result.to(feature.dtype, memory_format=torch.channels_last)


@roi_align.register_fake
def _(feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool) -> Tensor:
    side = -(-size // step)
    shape = (rois.shape[0] * rois.shape[1], feature.shape[1], side, side)
    return torch.empty(shape, dtype=feature.dtype, device=feature.device, memory_format=torch.channels_last)


@roi_align_backward.register_fake
def _(gradient: Tensor, feature: Tensor, rois: Tensor, *options: Any) -> Tensor:
    return torch.empty(feature.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)


def _keep_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    feature, rois, *ctx.options = inputs
    ctx.save_for_backward(feature, rois)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    feature, rois = ctx.saved_tensors
    return roi_align_backward(gradient, feature, rois, *ctx.options), *[None] * 6


roi_align.register_autograd(_backward, setup_context=_keep_inputs)


class _OnCuda(torch.autograd.Function):
    """The Triton kernels without the operator around them, which takes the host several times as long as they do."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, rois: Tensor, kernels: Any, *options: Any) -> Tensor:
        _keep_inputs(ctx, (feature, rois, *options), feature)
        ctx.kernels = kernels
        return kernels.roi_align(feature, rois, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: any
        return ctx.kernels.roi_align_backward(gradient, *ctx.saved_tensors, *ctx.options), *[None] * 7


def align(
    feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """`roi_align`, called as a function where nothing is traced; in an exported graph torchvision's operator, which
    other runtimes know."""
    options = (scale, size, step, sampling_ratio, aligned)
    if torch.compiler.is_exporting():
        pooled = torchvision.ops.roi_align(feature, with_image(rois), size, scale, sampling_ratio, aligned)
        return pooled[:, :, ::step, ::step]
    if not torch.compiler.is_compiling() and (kernels := kernels_for(feature, "detection.triton_kernels")):
        return cast(Tensor, _OnCuda.apply(feature, rois, kernels, *options))
    return roi_align(feature, rois, *options)


def with_image(rois: Tensor) -> Tensor:
    """(B * R, 5): the image's number and the box, as torchvision's operators want them."""
    image = torch.arange(len(rois), device=rois.device, dtype=rois.dtype)[:, None, None].expand(-1, rois.shape[1], 1)
    return torch.cat((image, rois), dim=-1).flatten(0, 1)


# ---------------------------------------------------------------------------------------------- as weighted sums


class _Taps(NamedTuple):
    """Bin n is the sum over k in [offsets[n], offsets[n + 1]) of weight[k] * row pixel[k]."""

    pixel: Tensor
    """(K,) int32 into the B * H * W pixels."""
    weight: Tensor
    """(K,) float32."""
    offsets: Tensor
    """(B * R * T * T + 1,) int32."""


def _axis_taps(
    low: Tensor, high: Tensor, length: int, size: int, step: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Pixels (N, T, w) int64 and weights (N, T, w) of the bins along one axis, w being the widest bin's pixels.

    Args:
        low, high: (N,) the RoIs' edges in feature pixels.
        length: of the map along the axis.
    """
    if aligned:
        low, high = low - 0.5, high - 0.5
        extent = high - low
    else:
        extent = (high - low).clamp(min=1.0)
    bin_size = extent[:, None, None] / size
    samples = torch.full_like(bin_size, sampling_ratio) if sampling_ratio else bin_size.ceil()
    most = max(1, int(samples.amax())) if len(low) else 1
    k = torch.arange(most, device=low.device)
    bins = torch.arange(0, size, step, device=low.device)[:, None]
    position = low[:, None, None] + bins * bin_size + (k + 0.5) * (bin_size / samples)
    counts = (k < samples) & (position >= -1.0) & (position <= length)
    weight = counts / samples.clamp(min=1.0)
    position = torch.where(counts, position, 0.0).clamp(0.0, length - 1.0)
    first = position.long()
    fraction = position - first
    second = (first + 1).clamp(max=length - 1)
    dense = weight.new_zeros(len(low), len(bins), length)
    dense.scatter_add_(2, first, weight * (1.0 - fraction)).scatter_add_(2, second, weight * fraction)
    start = torch.where(counts, first, length - 1).amin(2, keepdim=True)
    widest = (
        int((torch.where(counts, second, 0).amax(2, keepdim=True) - start).clamp(min=0).amax()) + 1 if len(low) else 1
    )
    pixel = start + torch.arange(widest, device=low.device)
    inside = pixel < length
    pixel = pixel.clamp(max=length - 1)
    return pixel, dense.gather(2, pixel) * inside


def _taps(
    feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool
) -> _Taps:
    """The weighted sum that each bin is. torchvision's rule, sample by sample, gathered by pixel."""
    batch, _, height, width = feature.shape
    x1, y1, x2, y2 = (rois.flatten(0, 1) * scale).unbind(1)
    y, y_weight = _axis_taps(y1, y2, height, size, step, sampling_ratio, aligned)
    x, x_weight = _axis_taps(x1, x2, width, size, step, sampling_ratio, aligned)
    image = torch.arange(batch, device=rois.device).repeat_interleave(rois.shape[1])
    row = ((image[:, None, None] * height + y) * width).int()
    pixel = (row[:, :, None, :, None] + x.int()[:, None, :, None, :]).flatten(3).flatten(0, 2)
    weight = (y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]).flatten(3).flatten(0, 2)
    used = weight != 0
    return _Taps(pixel[used], weight[used], _offsets(used.sum(1)))


def _offsets(counts: Tensor) -> Tensor:
    """(N + 1,) int32: where each of N bags begins, and the end, from their lengths."""
    return F.pad(counts.cumsum(0), (1, 0)).int()


def _weighted_sums(feature: Tensor, taps: _Taps) -> Tensor:
    """(B * R * T * T, C): the bins, one a row."""
    rows = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]).float()
    if feature.dtype == rows.dtype:
        return _bags(taps.pixel, rows, taps.offsets, taps.weight)
    count, step = len(taps.offsets) - 1, max(1, PIECE // rows.shape[1])
    sums = feature.new_empty(count, rows.shape[1])
    for first in range(0, count, step):  # in pieces, whose float32 sums do not leave the cache
        offsets = taps.offsets[first : first + step + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        sums[first : first + step] = _bags(taps.pixel[low:high], rows, offsets - low, taps.weight[low:high])
    return sums


def _bags(pixel: Tensor, rows: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """The weighted sums (N, C) of rows (P, C), bag by bag."""
    return F.embedding_bag(pixel, rows, offsets, mode="sum", per_sample_weights=weight, include_last_offset=True)


def _scattered_sums(gradient: Tensor, feature: Tensor, taps: _Taps) -> Tensor:
    """The transpose of `_weighted_sums`: for each pixel the weighted sum over the bins that read it, always in the
    same order."""
    channels, pixels = feature.shape[1], feature.numel() // max(1, feature.shape[1])
    order = taps.pixel.argsort(stable=True)
    lengths = taps.offsets.diff()
    bins = torch.arange(len(lengths), device=lengths.device, dtype=torch.int32).repeat_interleave(lengths)
    per_pixel = torch.bincount(taps.pixel, minlength=pixels)
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels).float()
    sums = _bags(bins[order], rows, _offsets(per_pixel), taps.weight[order])
    return _from_rows(sums.to(gradient.dtype), feature.permute(0, 2, 3, 1).shape)


def _from_rows(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(N * H * W, C) as (N, C, H, W), channels_last, on the same memory.

    Not a view: autograd forbids to change an operator's output in place if it is one.
    """
    view = rows.view(shape).permute(0, 3, 1, 2)
    return rows.new_empty(0).set_(rows.untyped_storage(), rows.storage_offset(), view.shape, view.stride())
