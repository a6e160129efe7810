"""Test-time augmentation: the whole detector on resized and mirrored views of an image, their detections merged.

The common alternative to the paper's multi-scale detector, which merges features in place of detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from configs.detection import TtaConfig
from datasets.batch import Batch, ScaledImages
from detection.postprocess import BatchDetections, suppress
from detection.refinement import vote


def views(batch: Batch, config: TtaConfig) -> Iterator[tuple[Batch, bool]]:
    """The batch in each size that `config` names, and whether it is mirrored; without any the batch itself."""
    for k in range(max(1, len(config.scales))):
        view = batch.at_scale(k) if config.scales else batch
        yield view, False
        if config.hflip:
            yield mirror_batch(view), True


def mirror_batch(batch: Batch) -> Batch:
    """The mirror images, with their padding still at the right; ground truth is not carried along."""
    scaled = tuple(
        None if part is None else ScaledImages(mirror_images(part.images, part.image_sizes), part.image_sizes)
        for part in batch.scaled
    )
    return replace(batch, images=mirror_images(batch.images, batch.image_sizes), scaled=scaled)


def mirror_images(images: Tensor, image_sizes: Tensor) -> Tensor:
    """(B, 3, H, W): column x < W_i of image i becomes column W_i - 1 - x; padding stays.

    Args:
        images: (B, 3, H, W).
        image_sizes: (B, 2), (H_i, W_i).
    """
    columns = torch.arange(images.shape[3], device=images.device)
    source = image_sizes[:, 1:] - 1 - columns
    source = torch.where(source < 0, columns, source)
    mirrored = images.gather(3, source[:, None, None, :].expand_as(images))
    return mirrored.contiguous(memory_format=torch.channels_last)


def mirror_detections(detections: BatchDetections, sizes: Tensor) -> BatchDetections:
    """Boxes of the mirror images in the images: x' = W - x.

    Args:
        detections: in pixels of images of `sizes` (B, 2), (H, W).
    """
    x1, y1, x2, y2 = detections.boxes.unbind(-1)
    width = sizes[:, 1:].to(x1.dtype)
    boxes = torch.stack((width - x2, y1, width - x1, y2), dim=-1)
    return detections._replace(boxes=boxes * detections.valid[..., None])


def merge(
    found: Sequence[BatchDetections], nms_thresh: float, detections_per_img: int, vote_iou: float | None
) -> BatchDetections:
    """Class-wise NMS over the detections of all views and, unless `vote_iou` is None, voting among them."""
    union = BatchDetections(*(torch.cat(parts, dim=1) for parts in zip(*found, strict=True)))
    kept = suppress(union, nms_thresh, detections_per_img)
    return kept if vote_iou is None else vote(kept, union, vote_iou)
