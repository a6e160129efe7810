"""Each kernel beside torchvision's (or torch's) operators, at true shapes: what `kernels.py` compares.

Every entry of `KERNELS` makes its inputs on the device: at the sizes of a training step of R101-C4 (16 images of
600x1000, maps at stride 16) or R101-FPN (800x1333), or at a few dozen pixels (`small`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher

from backbones.epilogue import bias_relu, sum_relu_backward
from configs.detection import BoxConfig
from detection.boxes import decode_clipped
from detection.losses import classification_loss
from detection.matching import Matches, match
from detection.nms import nms
from detection.roi_align import roi_align, roi_align_backward
from detection.roi_features import RoiFeatures
from detection.rpn import best_of_levels
from detection.sampling import random_keys, sample

ROI_OPTIONS = (1 / 16, 14, 1, 0, True)
"""scale, size, step, sampling_ratio, aligned of the C4 detectors."""

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
    return _gradient_of(*_pooled(device, small), ROI_OPTIONS, device)


def _roi_align_backward_fpn(device: torch.device, small: bool) -> Kernel:
    """On the canvas that holds P2 to P5 of 800x1344; an RoI has 14 to 28 pixels of its level a side."""
    if small:
        return _gradient_of(*_pooled(device, small), (1 / 16, 7, 1, 2, False), device)
    feature, boxes = _map((16, 256, 306, 339), device), random_boxes(16, 512, device)
    corner = boxes[..., :2] * torch.tensor([310 / 1000, 276 / 600], device=device)
    sides = 14 + 14 * (boxes[..., 2:] / 1000)
    return _gradient_of(feature, torch.cat((corner, corner + sides), -1), (1.0, 7, 1, 2, False), device)


def _gradient_of(
    feature: Tensor, rois: Tensor, options: tuple[float, int, int, int, bool], device: torch.device
) -> Kernel:
    """The gradient of a map from that of the bins."""
    scale, size, _, ratio, aligned = options
    gradient = _map((rois.shape[0] * rois.shape[1], feature.shape[1], size, size), device, seed=3)

    def theirs(gradient: Tensor, feature: Tensor, rois: Tensor) -> Tensor:
        result = torch.ops.torchvision._roi_align_backward(
            gradient.float(), _with_image(rois), scale, size, size, *feature.shape, ratio, aligned
        )
        return result.to(gradient.dtype)

    def ours(gradient: Tensor, feature: Tensor, rois: Tensor) -> Tensor:
        return roi_align_backward(gradient, feature, rois, *options)

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


def _sample(device: torch.device, small: bool) -> Kernel:
    """Random keys, and 256 of an FPN's anchors by them, half of them positive; there are enough of both kinds."""
    images, anchors, size = (2, 500, 16) if small else (16, sum(LEVELS), 256)
    draw = torch.rand(images, anchors, generator=torch.Generator().manual_seed(5)).to(device)
    numbers, codes = torch.arange(images, device=device), torch.arange(anchors, device=device)

    def keys(codes: Tensor) -> Tensor:
        return random_keys(3, 7, 0, numbers.to(codes.device), codes)

    def ours(positive: Tensor, negative: Tensor, codes: Tensor) -> Tensor:
        chosen = sample(positive, negative, keys(codes), size, 0.5)
        return torch.where(chosen.valid, chosen.index, -1)

    def theirs(positive: Tensor, negative: Tensor, codes: Tensor) -> Tensor:
        kinds = (torch.where(kind, keys(codes), -1) for kind in (positive, negative))
        return torch.cat([kind.topk(size // 2).indices for kind in kinds], 1)

    positive, negative = draw < 0.1, draw > 0.4
    return Kernel(ours, theirs, (positive, negative, codes), _bytes(positive, negative) + 16 * positive.numel())


LEVELS = [201_600, 50_400, 12_600, 3_150, 819]
"""Anchors of P2 to P6 at 800x1344."""


def _best_of_levels(device: torch.device, small: bool) -> Kernel:
    """The best 2,000 anchors of each level, in the order of their places."""
    images, sizes, count = (2, [70, 30, 9], 20) if small else (16, LEVELS, 2000)
    logits = torch.randn(images, sum(sizes), generator=torch.Generator().manual_seed(6)).to(device)

    def ours(logits: Tensor) -> Tensor:
        return best_of_levels(logits, sizes, count)[1].sort(1).values

    def theirs(logits: Tensor) -> Tensor:
        taken, first = [], 0
        for level in logits.split(sizes, 1):
            taken.append(level.topk(min(count, level.shape[1])).indices + first)
            first += level.shape[1]
        return torch.cat(taken, 1).sort(1).values

    return Kernel(ours, theirs, (logits,), _bytes(logits))


def _decode(device: torch.device, small: bool) -> Kernel:
    """The boxes of 12,000 of C4's anchors an image, cut to it."""
    images, anchors, count = (2, 300, 100) if small else (16, 38 * 63 * 9, 12_000)
    generator = torch.Generator().manual_seed(7)
    deltas = (torch.randn(images, anchors, 4, generator=generator) * 0.3).to(device)
    rows = torch.randint(0, anchors, (images, count), generator=generator).to(device)
    references = random_boxes(1, anchors, device)
    sizes = torch.tensor([[600, 1000]] * images, device=device)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def ours(deltas: Tensor, rows: Tensor, references: Tensor, sizes: Tensor) -> Tensor:
        return decode_clipped(deltas, rows, references, rows, None, sizes, 0.0)[0]

    def theirs(deltas: Tensor, rows: Tensor, references: Tensor, sizes: Tensor) -> Tensor:
        chosen = deltas.gather(1, rows[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = coder.decode_single(chosen, references[0][rows].flatten(0, 1)).unflatten(0, rows.shape)
        return torchvision.ops.clip_boxes_to_image(boxes, (600, 1000))

    return Kernel(ours, theirs, (deltas, rows, references, sizes), (2 * 16 + 8 + 16 + 1) * rows.numel())


def _classification_loss(device: torch.device, small: bool) -> Kernel:
    """The gradient of COCO's cross-entropy of 512 RoIs an image, and the loss."""
    rois, classes = (40, 6) if small else (16 * 512, 81)
    generator = torch.Generator().manual_seed(8)
    logits = (3 * torch.randn(rois, classes, generator=generator)).to(device)
    labels = torch.randint(0, classes, (rois,), generator=generator).to(device)

    def with_gradient(loss_of: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
        logits = logits.detach().requires_grad_()
        loss = loss_of(logits)
        (gradient,) = torch.autograd.grad(loss, logits)
        return torch.cat((gradient.flatten(), loss.detach()[None]))

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        count = torch.full((), float(rois), device=logits.device)
        return with_gradient(lambda x: classification_loss(x, labels, labels >= 0, count), logits)

    def theirs(logits: Tensor, labels: Tensor) -> Tensor:
        return with_gradient(lambda x: F.cross_entropy(x, labels), logits)

    return Kernel(ours, theirs, (logits, labels), 2 * _bytes(logits) + _bytes(labels))


def _pyramid(device: torch.device, small: bool) -> Kernel:
    """RoIs pooled from P2 to P5, whose canvas is filled for it."""
    images, rois, channels, height, width = (2, 5, 12, 16, 24) if small else (16, 512, 256, 200, 336)
    strides = [4, 8, 16, 32]
    features = [_map((images, channels, height >> k, width >> k), device, k) for k in range(4)]
    boxes = random_boxes(images, rois, device) / (12 if small else 1)
    pool = RoiFeatures(BoxConfig(pool_size=7, sampling_ratio=2, aligned=False), strides)
    align = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)

    def ours(boxes: Tensor, *features: Tensor) -> Tensor:
        return pool(list(features), boxes)

    def theirs(boxes: Tensor, *features: Tensor) -> Tensor:
        named = {str(k): feature.float() for k, feature in enumerate(features)}
        padded = (4 * features[0].shape[2], 4 * features[0].shape[3])
        return align(named, list(boxes), [padded] * len(boxes)).to(features[0].dtype)

    moved = 3 * _bytes(*features) + images * rois * 49 * channels * features[0].element_size()
    return Kernel(ours, theirs, (boxes, *features), moved)


KERNELS: dict[str, Callable[[torch.device, bool], Kernel]] = {
    "nms": _nms,
    "roi_align": _roi_align,
    "roi_align_backward": _roi_align_backward,
    "roi_align_backward_fpn": _roi_align_backward_fpn,
    "bias_relu": _bias_relu,
    "bias_residual_relu": _bias_residual_relu,
    "sum_relu_backward": _sum_relu_backward,
    "match": _match,
    "sample": _sample,
    "best_of_levels": _best_of_levels,
    "decode": _decode,
    "classification_loss": _classification_loss,
    "pyramid": _pyramid,
}
