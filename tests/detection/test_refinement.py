"""Box refinement and voting, by hand and against loops."""

from __future__ import annotations

import pytest
import torch

from detection.boxes import pairwise_iou
from detection.postprocess import BatchDetections, collect_candidates, suppress
from detection.refinement import join_rounds, next_rois, vote
from detection.scoring import Scored


def detections(*rows: tuple[list[float], float, int]) -> BatchDetections:
    """One image's; a score below 0 marks what is not valid."""
    boxes, scores, labels = zip(*rows, strict=True)
    scores = torch.tensor([scores])
    return BatchDetections(torch.tensor([boxes], dtype=torch.float32), scores, torch.tensor([labels]), scores >= 0)


def test_voting_by_hand():
    """The mean, weighted by 0.9, 0.6 and 0.3, of the three boxes of class 1 that overlap by half or more."""
    candidates = detections(
        ([0, 0, 10, 10], 0.9, 1),
        ([0, 0, 10, 8], 0.6, 1),  # IoU 0.8
        ([2, 0, 12, 10], 0.3, 1),  # IoU 80 / 120
        ([6, 0, 16, 10], 0.8, 1),  # IoU 40 / 160: no voter
        ([0, 0, 9, 9], 0.7, 2),  # of another class
        ([0, 0, 9, 9], -1.0, 1),  # below the threshold
    )
    kept = detections(([0, 0, 10, 10], 0.9, 1), ([6, 0, 16, 10], 0.8, 1), ([0, 0, 0, 0], -1.0, 0))
    voted = vote(kept, candidates, 0.5)
    # x1 = 0.3 * 2 / 1.8; x2 = (9 + 6 + 3.6) / 1.8; y2 = (9 + 4.8 + 3) / 1.8
    # The other has a voter at 60 / 140 only, which is too little: it stays.
    expected = torch.tensor([[[1 / 3, 0, 31 / 3, 28 / 3], [6, 0, 16, 10], [0, 0, 0, 0]]])
    torch.testing.assert_close(voted.boxes, expected)
    assert torch.equal(voted.scores, kept.scores)
    assert torch.equal(voted.labels, kept.labels)


def test_an_overlap_of_exactly_the_threshold_votes():
    candidates = detections(([0, 0, 10, 10], 0.5, 1), ([0, 0, 10, 5], 0.5, 1))
    kept = detections(([0, 0, 10, 10], 0.5, 1))
    assert vote(kept, candidates, 0.5).boxes[0, 0].tolist() == [0, 0, 10, 7.5]
    assert vote(kept, candidates, 0.51).boxes[0, 0].tolist() == [0, 0, 10, 10]


def test_without_a_voter_a_box_stays():
    """Of no extent, so that it overlaps not even itself."""
    kept = detections(([5, 5, 5, 9], 0.5, 1))
    assert vote(kept, kept, 0.5).boxes[0, 0].tolist() == [5, 5, 5, 9]


def test_voting_on_a_batch_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 60, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 5 + torch.rand(3, 60, 2, generator=generator) * 40), dim=-1)
    scores = torch.rand(3, 60, generator=generator)
    labels = torch.randint(1, 4, (3, 60), generator=generator)
    candidates = BatchDetections(boxes, scores, labels, torch.rand(3, 60, generator=generator) < 0.8)
    kept = suppress(candidates, 0.3, 20)
    voted = vote(kept, candidates, 0.4)
    moved = 0
    for image, slot in kept.valid.nonzero().tolist():
        near = pairwise_iou(kept.boxes[image, slot : slot + 1], boxes[image])[0] >= 0.4
        voters = near & (labels[image] == kept.labels[image, slot]) & candidates.valid[image]
        weights = scores[image, voters].double()
        mean = (boxes[image, voters].double() * weights[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(voted.boxes[image, slot], mean.float())
        moved += int(voters.sum()) > 1
    assert moved > 10
    with torch.autocast("cpu", torch.bfloat16):  # pixels need more digits than bf16 has
        assert torch.equal(vote(kept, candidates, 0.4).boxes, voted.boxes)


def test_the_next_rois_are_the_boxes_of_the_best_classes():
    scores = torch.tensor([[[0.1, 0.6, 0.2], [0.5, 0.0, 0.1], [0.2, 0.1, 0.3]]])
    boxes = torch.arange(36.0).reshape(1, 3, 3, 4)
    boxes[0, 2, 2] = torch.tensor([7.0, 3.0, 7.0, 9.0])  # without width
    rois, valid = next_rois(Scored(scores, boxes, torch.tensor([[True, True, True]])))
    assert rois[0, :2].tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert valid.tolist() == [[True, True, False]]
    rois, valid = next_rois(Scored(scores, boxes[:, :, :1], torch.tensor([[True, False, True]])))
    assert rois[0, 1].tolist() == [12, 13, 14, 15]  # one box for all classes
    assert valid.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("nms_thresh", "boxes"),
    [(0.3, [[1, 0, 11, 10], [30, 0, 40, 10]]), (0.9, [[1, 0, 11, 10], [30, 0, 40, 10], [0, 0, 10, 10]])],
)
def test_union_of_the_rounds_and_nms(nms_thresh, boxes):
    """The second round moved the first RoI's box by a pixel (IoU 90 / 110) and raised its score; the second RoI's
    second box is not valid."""
    first = Scored(torch.tensor([[[0.6], [0.7]]]), torch.tensor([[[[0.0, 0, 10, 10]], [[30, 0, 40, 10]]]]),
                   torch.tensor([[True, True]]))  # fmt: skip
    second = Scored(torch.tensor([[[0.8], [0.9]]]), torch.tensor([[[[1.0, 0, 11, 10]], [[29, 0, 39, 10]]]]),
                    torch.tensor([[True, False]]))  # fmt: skip
    kept = suppress(collect_candidates(*join_rounds([first, second]), 0.05), nms_thresh, 4)
    assert kept.boxes[kept.valid].tolist() == boxes
    assert kept.scores[0, :2].tolist() == pytest.approx([0.8, 0.7])
