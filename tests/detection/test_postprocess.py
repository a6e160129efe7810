"""From logits and deltas to detections: by hand, and against torchvision's per-image code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoiHeads

from configs.detection import TestConfig as Thresholds
from detection import postprocess as module
from detection.postprocess import (
    BatchDetections,
    collect_candidates,
    only_classes,
    select_candidates,
    suppress,
    to_original,
)

ONES = torch.ones(4)
SIZE = torch.tensor([[100, 200]])


def logits_of(*scores: list[float]) -> Tensor:
    """(1, R, K + 1) logits whose softmax is what is given, the background first."""
    return torch.tensor(scores).log()[None]


def rows(detections: BatchDetections, image: int = 0) -> list[tuple[list[float], float, int]]:
    """The valid ones as boxes, scores and labels of two decimals."""
    valid = detections.valid[image]
    return [
        ([round(x, 2) for x in box], round(score, 2), label)
        for box, score, label in zip(
            detections.boxes[image][valid].tolist(),
            detections.scores[image][valid].tolist(),
            detections.labels[image][valid].tolist(),
            strict=True,
        )
    ]


def test_pairs_of_a_roi_and_a_class_by_hand():
    """Two RoIs, two classes; each class moves an RoI by its own deltas, best score first."""
    logits = logits_of([0.2, 0.5, 0.3], [0.88, 0.08, 0.04])
    rois = torch.tensor([[[10.0, 20.0, 50.0, 40.0], [100.0, 0.0, 120.0, 10.0]]])
    deltas = torch.zeros(1, 2, 3, 4)
    deltas[0, 0, 0] = 9  # of the background: never read
    deltas[0, 0, 1] = torch.tensor([0.25, 0.0, 0.0, 0.0])  # a quarter of the width 40 to the right
    deltas[0, 0, 2] = torch.tensor([0.0, -0.5, 0.0, math.log(2)])  # half the height 20 up, twice as high
    found = select_candidates(logits, deltas, rois, torch.tensor([[True, True]]), SIZE, ONES, 0.05)
    assert rows(found) == [([20, 20, 60, 40], 0.5, 1), ([10, 0, 50, 40], 0.3, 2), ([100, 0, 120, 10], 0.08, 1)]
    weighted = select_candidates(logits, deltas, rois, torch.tensor([[True, True]]), SIZE, ONES * 10, 0.05)
    assert rows(weighted)[0] == ([11, 20, 51, 40], 0.5, 1)


def test_a_single_class_has_a_box_of_its_own():
    deltas = torch.zeros(1, 1, 2, 4)
    deltas[0, 0, 0], deltas[0, 0, 1, 0] = 9, 0.25
    rois = torch.tensor([[[10.0, 20.0, 50.0, 40.0]]])
    found = select_candidates(logits_of([0.5, 0.5]), deltas, rois, torch.tensor([[True]]), SIZE, ONES, 0.05)
    assert rows(found) == [([20, 20, 60, 40], 0.5, 1)]


def test_scores_must_be_above_the_threshold_and_rois_valid():
    logits = torch.zeros(1, 3, 4)  # 0.25 each
    rois = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]).repeat(1, 3, 1)
    valid = torch.tensor([[True, False, True]])
    deltas = torch.zeros(1, 3, 1, 4)
    assert len(rows(select_candidates(logits, deltas, rois, valid, SIZE, ONES, 0.2499))) == 6
    assert rows(select_candidates(logits, deltas, rois, valid, SIZE, ONES, 0.25)) == []


def test_boxes_are_cut_to_height_and_width_and_slivers_dropped():
    """The image is 100 high and 200 wide: an RoI at its right edge, one below it, those with 0.005 and 0.015 pixels
    left; a hundredth of a pixel is enough."""
    rois = [[150.0, 90.0, 230.0, 130.0], [0.0, 101.0, 50.0, 120.0], [199.995, 0.0, 220.0, 50.0], [5.0, -9, 9, 0.015]]
    valid = torch.ones(1, 4, dtype=torch.bool)
    args = (torch.zeros(1, 4, 1, 4), torch.tensor([rois]), valid, SIZE, ONES, 0.05)
    found = rows(select_candidates(torch.zeros(1, 4, 2), *args))
    assert sorted(found) == [([5, 0, 9, 0.02], 0.5, 1), ([150, 90, 200, 100], 0.5, 1)]


@pytest.mark.parametrize("shared", [False, True])
def test_collecting_decoded_boxes_gives_the_same(shared):
    generator = torch.Generator().manual_seed(0)
    rois = torch.rand(2, 6, 4, generator=generator) * 40
    rois[..., 2:] += rois[..., :2] + 5
    boxes = rois[:, :, None] + (0 if shared else torch.arange(3.0)[:, None])
    scores = torch.rand(2, 6, 3, generator=generator)
    found = collect_candidates(scores, boxes, torch.ones(2, 6, dtype=torch.bool), 0.4)
    for image in range(2):
        expected = sorted(
            (
                (float(scores[image, roi, label]), label + 1, boxes[image, roi, 0 if shared else label].tolist())
                for roi in range(6)
                for label in range(3)
                if scores[image, roi, label] > 0.4
            ),
            reverse=True,
        )
        valid = found.valid[image]
        assert found.scores[image][valid].tolist() == [score for score, _, _ in expected]
        assert found.labels[image][valid].tolist() == [label for _, label, _ in expected]
        assert found.boxes[image][valid].tolist() == [box for _, _, box in expected]


def test_only_so_many_pairs_go_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_CANDIDATES", 2)
    scores = torch.tensor([[[0.1, 0.6], [0.9, 0.2]]])
    boxes = torch.tensor([0.0, 0.0, 5.0, 5.0]).expand(1, 2, 1, 4)
    found = collect_candidates(scores, boxes, torch.ones(1, 2, dtype=torch.bool), 0.05)
    assert rows(found) == [([0, 0, 5, 5], 0.9, 1), ([0, 0, 5, 5], 0.6, 2)]


def made(*parts: tuple[list[float], float, int]) -> BatchDetections:
    boxes, scores, labels = zip(*parts, strict=True)
    return BatchDetections(
        torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([labels]), torch.ones(1, len(parts)).bool()
    )


def test_suppression_is_class_by_class_and_keeps_the_best():
    """The second box overlaps the first by 1/3; of another class it stays."""
    candidates = made(
        ([0.0, 0.0, 10.0, 10.0], 0.9, 1), ([5.0, 0.0, 15.0, 10.0], 0.8, 1), ([5.0, 0.0, 15.0, 10.0], 0.7, 2),
        ([50.0, 50.0, 60.0, 60.0], 0.6, 1),
    )  # fmt: skip
    kept = suppress(candidates, 0.3, 3)
    assert rows(kept) == [([0, 0, 10, 10], 0.9, 1), ([5, 0, 15, 10], 0.7, 2), ([50, 50, 60, 60], 0.6, 1)]
    assert [score for _, score, _ in rows(suppress(candidates, 0.34, 2))] == [0.9, 0.8]
    few = suppress(candidates, 0.3, 4)
    assert few.valid.tolist() == [[True, True, True, False]]
    assert few.boxes[0, 3].tolist() == [0] * 4
    assert (few.scores[0, 3], few.labels[0, 3]) == (0, 0)


def test_only_the_first_classes():
    kept = only_classes(made(([0.0, 0.0, 1.0, 1.0], 0.9, 3), ([0.0, 0.0, 2.0, 2.0], 0.8, 2)), 2)
    assert kept.valid.tolist() == [[False, True]]
    assert rows(kept) == [([0, 0, 2, 2], 0.8, 2)]
    assert (kept.boxes[0, 0] == 0).all()
    assert kept.scores[0, 0] == kept.labels[0, 0] == 0


def test_boxes_go_back_to_the_file():
    """From 100 x 200 to 50 x 800: y is halved, x is four times as large."""
    back = to_original(made(([10.0, 20.0, 30.0, 40.0], 0.9, 1)), SIZE, torch.tensor([[50, 800]]))
    assert back.boxes.tolist() == [[[40, 10, 120, 20]]]


def test_equals_torchvisions_image_by_image():
    """Its rule with its own numbers: threshold 0.05, NMS at 0.5, the best 20; other images do not matter."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(90, 140), (120, 100)]
    logits = torch.randn(2, 40, 5, generator=generator) * 2
    deltas = torch.randn(2, 40, 5, 4, generator=generator)
    rois = torch.rand(2, 40, 4, generator=generator) * 80
    rois[..., 2:] += rois[..., :2] + 1
    theirs = TorchvisionRoiHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, (10.0, 10.0, 5.0, 5.0), score_thresh=0.05, nms_thresh=0.5,
        detections_per_img=20,
    )  # fmt: skip
    expected = theirs.postprocess_detections(logits.flatten(0, 1), deltas.flatten(0, 1).flatten(1), list(rois), sizes)
    image_sizes = torch.tensor(sizes)
    test = Thresholds(score_thresh=0.05, nms_thresh=0.5, detections_per_img=20)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    valid = torch.ones(2, 40, dtype=torch.bool)
    candidates = select_candidates(logits, deltas, rois, valid, image_sizes, weights, test.score_thresh)
    found = suppress(candidates, test.nms_thresh, test.detections_per_img)
    found = to_original(found, image_sizes, image_sizes * 2)
    for image, (boxes, scores, labels) in enumerate(zip(*expected, strict=True)):
        valid = found.valid[image]
        torch.testing.assert_close(found.boxes[image][valid], boxes * 2)
        torch.testing.assert_close(found.scores[image][valid], scores)
        assert found.labels[image][valid].tolist() == labels.tolist()
