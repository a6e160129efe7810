"""Views of a batch: mirror images with padding, their boxes, and the merging."""

from __future__ import annotations

import pytest
import torch

from configs.detection import TtaConfig
from datasets.batch import Batch, ScaledImages
from detection.postprocess import BatchDetections
from detection.tta import merge, mirror_batch, mirror_detections, mirror_images, views


def test_the_mirror_leaves_the_padding_where_it_is():
    images = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 0]], dtype=torch.uint8).reshape(1, 1, 2, 4).repeat(2, 3, 1, 1)
    mirrored = mirror_images(images, torch.tensor([[2, 3], [2, 4]]))
    assert mirrored[0, 0].tolist() == [[3, 2, 1, 0], [6, 5, 4, 0]]
    assert mirrored[1, 2].tolist() == [[0, 3, 2, 1], [0, 6, 5, 4]]
    assert torch.equal(mirror_images(mirrored, torch.tensor([[2, 3], [2, 4]])), images)


def found(*rows: tuple[list[float], float, int]) -> BatchDetections:
    boxes, scores, labels = zip(*rows, strict=True)
    scores = torch.tensor([scores])
    return BatchDetections(torch.tensor([boxes], dtype=torch.float32), scores, torch.tensor([labels]), scores > 0)


def test_boxes_come_back():
    """x' = W - x, where sizes are (H, W)."""
    detections = found(([10, 20, 40, 50], 0.9, 1), ([0, 0, 0, 0], 0.0, 0))
    mirrored = mirror_detections(detections, torch.tensor([[80, 100]]))
    assert mirrored.boxes.tolist() == [[[60, 20, 90, 50], [0, 0, 0, 0]]]


def test_merging_by_nms_and_by_voting():
    one = found(([0, 0, 10, 10], 0.6, 1), ([50, 50, 60, 60], 0.5, 1))
    two = found(([0, 0, 10, 8], 0.9, 1), ([0, 0, 10, 10], 0.3, 2))  # IoU 0.8 with the first
    kept = merge([one, two], 0.5, 10, None)
    assert kept.boxes[kept.valid].tolist() == [[0, 0, 10, 8], [50, 50, 60, 60], [0, 0, 10, 10]]
    assert kept.labels[kept.valid].tolist() == [1, 1, 2]
    voted = merge([one, two], 0.5, 10, 0.5)
    assert voted.boxes[0, 0].tolist() == pytest.approx([0, 0, 10, (6 + 7.2) / 1.5])  # 0.6 * 10 and 0.9 * 8
    assert torch.equal(voted.boxes[0, 1:], kept.boxes[0, 1:])
    assert torch.equal(voted.scores, kept.scores)
    assert merge([one, two], 0.5, 1, None).valid.sum() == 1


def test_views_are_the_sizes_and_their_mirrors():
    sizes = torch.tensor([[4, 3]])
    batch = Batch(
        images=torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4), image_sizes=sizes, original_sizes=sizes * 5,
        boxes=torch.zeros(1, 8, 4), labels=torch.zeros(1, 8), valid=torch.zeros(1, 8), index=torch.zeros(1),
        scaled=(ScaledImages(torch.ones(1, 3, 8, 8, dtype=torch.uint8), sizes * 2), None),
    )  # fmt: skip
    assert [(view is batch, mirrored) for view, mirrored in views(batch, TtaConfig())] == [(True, False)]
    (_, first), (other, second) = views(batch, TtaConfig(hflip=True))
    assert (first, second) == (False, True)
    assert torch.equal(other.images[0, 0, 0], torch.tensor([2, 1, 0, 3], dtype=torch.uint8))
    assert other.scaled[1] is None  # the mirror of the batch's own size is that of its images
    four = list(views(batch, TtaConfig(hflip=True, scales=[8, 4])))
    assert [tuple(view.images.shape[2:]) for view, _ in four] == [(8, 8), (8, 8), (4, 4), (4, 4)]
    assert [mirrored for _, mirrored in four] == [False, True] * 2
    assert torch.equal(mirror_batch(mirror_batch(batch)).images, batch.images)
