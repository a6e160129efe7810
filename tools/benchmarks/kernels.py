"""Each kernel beside its oracle, the CPU's operator, and beside torchvision's (or torch's) operators, at true shapes.

Every entry of `KERNELS` makes its inputs on the device: at the sizes of a training step of R101-C4 (16 images of
600x1000, maps at stride 16), or at a few dozen pixels (`small`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from backbones.epilogue import bias_relu, sum_relu_backward
from backbones.kernels import why_no_kernels
from configs.errors import UserError
from detection.matching import Matches, match
from detection.nms import nms
from detection.roi_align import roi_align, roi_align_backward
from tools.benchmarks.timing import compare

ROI_OPTIONS = (1 / 16, 14, 1, 0, True)
"""scale, size, step, sampling_ratio, aligned of the C4 detectors."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Relative to the largest value: two or three roundings of bf16."""
CALLS = 20
"""In sequence: the host's part of a launch must not show."""

Work = Callable[..., Tensor]


class Kernel(NamedTuple):
    """What is compared."""

    ours: Work
    """Of the inputs; also the oracle, on the CPU in float32."""
    theirs: Work
    """The same by torchvision's or torch's own operators."""
    inputs: Sequence[Tensor]
    moved: int
    """Bytes that must be read and written at least."""


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _map(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    """Random values in bf16, channels_last; on the CPU float32, the kernels' oracle."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape[0], *shape[2:], shape[1], generator=generator).to(device)
    return values.to(torch.bfloat16 if device.type == "cuda" else torch.float32).permute(0, 3, 1, 2)


def random_boxes(images: int, count: int, device: torch.device) -> Tensor:
    """(images, count, 4) float32 in images of 600x1000, in clusters, so that many overlap."""
    generator = torch.Generator().manual_seed(1)
    limits = torch.tensor([1000.0, 600.0])
    centres = torch.rand(images, max(1, count // 40), 2, generator=generator) * limits
    chosen = torch.randint(centres.shape[1], (images, count, 1), generator=generator).expand(-1, -1, 2)
    centre = centres.gather(1, chosen) + 12 * torch.randn(images, count, 2, generator=generator)
    half = torch.exp(torch.empty(images, count, 2).uniform_(2.5, 5.2, generator=generator)) / 2
    corners = torch.cat((centre - half, centre + half), dim=-1).clamp(min=0)
    return torch.minimum(corners, limits.repeat(2)).to(device)


# ---------------------------------------------------------------------------------------------- the kernels


def _nms(device: torch.device, small: bool) -> Kernel:
    """12,000 candidates an image, 2,000 survivors, as the RPN has in training."""
    images, count, most = (2, 300, 100) if small else (16, 12_000, 2_000)
    boxes = random_boxes(images, count, device)
    scores = torch.linspace(1, 0, count, device=device).repeat(images, 1)
    valid = torch.rand(images, count, generator=torch.Generator().manual_seed(2)).to(device) < 0.98

    def theirs(boxes: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        output = torch.full((len(boxes), most), -1, dtype=torch.int64, device=boxes.device)
        for image in range(len(boxes)):
            places = valid[image].nonzero().squeeze(1)
            kept = places[torchvision.ops.nms(boxes[image, places], scores[image, places], 0.7)[:most]]
            output[image, : len(kept)] = kept
        return output

    def ours(boxes: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
        return nms(boxes, scores, valid, torch.zeros_like(valid, dtype=torch.int64), 0.7, most, True)

    return Kernel(ours, theirs, (boxes, scores, valid), _bytes(boxes, valid) + images * most * 8)


def _pooled(device: torch.device, small: bool) -> tuple[Tensor, Tensor]:
    """A map and RoIs: conv5's first convolution, which runs before the pooling, has 512 channels."""
    if small:
        return _map((2, 40, 9, 13), device), random_boxes(2, 6, device) / 5
    return _map((16, 512, 38, 63), device), random_boxes(16, 128, device)


def _with_image(rois: Tensor) -> Tensor:
    image = torch.arange(len(rois), device=rois.device, dtype=rois.dtype)
    return torch.cat((image[:, None, None].expand(-1, rois.shape[1], 1), rois), dim=-1).flatten(0, 1)


def _roi_align(device: torch.device, small: bool) -> Kernel:
    feature, rois = _pooled(device, small)
    scale, size, _, ratio, aligned = ROI_OPTIONS

    def theirs(feature: Tensor, rois: Tensor) -> Tensor:
        pooled = torchvision.ops.roi_align(feature.float(), _with_image(rois), size, scale, ratio, aligned)
        return pooled.to(feature.dtype)

    bins = rois.shape[0] * rois.shape[1] * size**2
    moved = _bytes(feature, rois) + bins * feature.shape[1] * feature.element_size()
    return Kernel(lambda feature, rois: roi_align(feature, rois, *ROI_OPTIONS), theirs, (feature, rois), moved)


def _roi_align_backward(device: torch.device, small: bool) -> Kernel:
    feature, rois = _pooled(device, small)
    scale, size, _, ratio, aligned = ROI_OPTIONS
    gradient = _map((rois.shape[0] * rois.shape[1], feature.shape[1], size, size), device, seed=3)

    def theirs(gradient: Tensor, feature: Tensor, rois: Tensor) -> Tensor:
        result = torch.ops.torchvision._roi_align_backward(
            gradient.float(), _with_image(rois), scale, size, size, *feature.shape, ratio, aligned
        )
        return result.to(gradient.dtype)

    def ours(gradient: Tensor, feature: Tensor, rois: Tensor) -> Tensor:
        return roi_align_backward(gradient, feature, rois, *ROI_OPTIONS)

    return Kernel(ours, theirs, (gradient, feature, rois), _bytes(gradient, rois, feature))


def _epilogue(device: torch.device, small: bool) -> list[Tensor]:
    """conv2's output and others of its shape."""
    shape = (2, 24, 7, 9) if small else (16, 256, 150, 250)
    return [_map(shape, device, seed) for seed in range(3)]


def _bias_relu(device: torch.device, small: bool) -> Kernel:
    x, *_ = _epilogue(device, small)
    bias = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(4)).to(device)

    def theirs(x: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(x + bias.to(x.dtype)[:, None, None])

    return Kernel(bias_relu, theirs, (x, bias), 2 * _bytes(x))


def _bias_residual_relu(device: torch.device, small: bool) -> Kernel:
    x, residual, _ = _epilogue(device, small)
    bias = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(4)).to(device)

    def theirs(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(x + bias.to(x.dtype)[:, None, None] + residual)

    return Kernel(bias_relu, theirs, (x, bias, residual), 3 * _bytes(x))


def _sum_relu_backward(device: torch.device, small: bool) -> Kernel:
    """It overwrites a gradient, so that both get a copy of it."""
    first, second, output = _epilogue(device, small)

    def ours(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
        return sum_relu_backward(first.clone(), second, output)

    def theirs(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
        return torch.where(output > 0, first.clone().add_(second), 0)

    return Kernel(ours, theirs, (first, second, output), 6 * _bytes(first))


def _match(device: torch.device, small: bool) -> Kernel:
    """An FPN's anchors (268,569 at 800x1344) and 8 objects an image."""
    images, anchors = (2, 500) if small else (16, 268_569)
    objects, candidates = random_boxes(images, 8, device), random_boxes(1, anchors, device)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def ours(objects: Tensor, candidates: Tensor) -> Tensor:
        valid = torch.ones(objects.shape[:2], dtype=torch.bool, device=objects.device)
        return _decided(match(objects, valid, candidates))

    def theirs(objects: Tensor, candidates: Tensor) -> Tensor:
        return torch.stack([matcher(torchvision.ops.box_iou(boxes, candidates[0])) for boxes in objects])

    return Kernel(ours, theirs, (objects, candidates), _bytes(objects, candidates) + images * anchors * 13)


def _decided(matches: Matches) -> Tensor:
    """The object's number, -1 for background, -2 between the thresholds: torchvision's way to say it."""
    others = torch.where(matches.iou < 0.3, -1, -2)
    return torch.where((matches.iou >= 0.7) | matches.is_best_of_object, matches.index, others)


KERNELS: dict[str, Callable[[torch.device, bool], Kernel]] = {
    "nms": _nms,
    "roi_align": _roi_align,
    "roi_align_backward": _roi_align_backward,
    "bias_relu": _bias_relu,
    "bias_residual_relu": _bias_residual_relu,
    "sum_relu_backward": _sum_relu_backward,
    "match": _match,
}

# ---------------------------------------------------------------------------------------------- what a row holds


def kernel_row(name: str, device: torch.device, *, tiny: bool = False) -> dict[str, Any]:
    """Differences, seconds a call and the bandwidth that they mean, in bytes/s and as a share of a copy's.

    Args:
        name: one of `KERNELS`.
        device: where it runs.
        tiny: measure at the small shapes too, for a test.

    Raises:
        UserError: the kernel does not compute what the oracle does, or cannot be used here; then no time is given.
    """
    if device.type == "cuda" and (reason := why_no_kernels()) is not None:
        raise UserError(f"{name}: no time, for Triton's kernels cannot be used: {reason}")
    small = KERNELS[name](device, True)
    on_cpu = [value.float().cpu() if value.is_floating_point() else value.cpu() for value in small.inputs]
    result = small.ours(*small.inputs)
    report: dict[str, Any] = {"difference_from_oracle": _difference(result, small.ours(*on_cpu))}
    check(name, report["difference_from_oracle"], result.dtype)
    kernel = small if tiny else KERNELS[name](device, False)
    report["difference_from_torchvision"] = _difference(kernel.ours(*kernel.inputs), kernel.theirs(*kernel.inputs))
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: kernel.ours(*kernel.inputs),
        "torchvision": lambda: kernel.theirs(*kernel.inputs),
    }
    report["seconds"] = compare(
        works,
        reference="torchvision",
        repetitions=2 if tiny else 5,
        warmup=1,
        device=device,
        calls=2 if tiny else CALLS,
    )
    clock = "device" if device.type == "cuda" else "wall"
    report["bytes"] = kernel.moved
    report["bandwidth"] = kernel.moved / report["seconds"]["ours"][clock]["median"]
    report["share_of_copy"] = report["bandwidth"] / copy_bandwidth(device, 1 << (16 if tiny else 29))
    return report


def check(name: str, difference: float, dtype: torch.dtype) -> None:
    """Refuse a kernel that differs from its oracle: whole numbers must be equal, others within `TOLERANCE`.

    Raises:
        UserError: it differs by more.
    """
    tolerance = TOLERANCE.get(dtype, 0.0)
    if not difference <= tolerance:
        raise UserError(
            f"{name}: no time, for it is off the CPU's operator by {difference:.3g} (allowed: {tolerance:g})"
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; of whole numbers the share that differs."""
    ours, theirs = ours.cpu(), theirs.cpu()
    if not ours.is_floating_point():
        return (ours != theirs).float().mean().item()
    worst = (ours.float() - theirs.float()).abs().amax() / theirs.float().abs().amax().clamp(min=1e-9)
    return worst.item()


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s of a copy of `size` bytes on the device, reading and writing counted."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = compare(
        {"copy": lambda: target.copy_(source)}, reference=None, repetitions=5, warmup=1, device=device, calls=5
    )
    return 2 * size / found["copy"]["device" if device.type == "cuda" else "wall"]["median"]
