"""Union of proposals, averages, and classes that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from detection.ensemble import average, check_class_names, unite_proposals
from detection.rpn import Proposals
from detection.scoring import Scored


def proposals(*images: list[list[float]]) -> Proposals:
    """Padded with zeros to two more than the longest."""
    count = max(map(len, images)) + 2
    boxes = torch.zeros(len(images), count, 4)
    valid = torch.zeros(len(images), count, dtype=torch.bool)
    for image, rows in enumerate(images):
        boxes[image, : len(rows)] = torch.tensor(rows)
        valid[image, : len(rows)] = True
    return Proposals(boxes, torch.zeros(len(images), count), valid)


A, B, C = [0.0, 0, 100, 50], [10.0, 10, 60, 90], [300.0, 200, 420, 333]


def test_each_box_once():
    nearly_a = [0.0, 0, 100, 50.00001]
    other = [0.0, 0, 100, 50.5]  # IoU 0.99: another box
    rois, valid = unite_proposals([proposals([A, B], [B]), proposals([C, nearly_a, other, B], [B])])
    assert valid.tolist() == [[True, True, True, True], [True, False, False, False]]
    assert rois.tolist() == [[A, B, C, other], [B, [0] * 4, [0] * 4, [0] * 4]]


def test_no_proposals_at_all():
    empty = Proposals(torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    rois, valid = unite_proposals([empty, empty])
    assert valid.tolist() == [[False]]
    assert rois.tolist() == [[[0.0] * 4]]


def test_means_by_hand():
    valid = torch.tensor([[True]])
    one = Scored(torch.tensor([[[0.2, 0.6]]]), torch.tensor([[[[0.0, 0, 10, 10], [2, 2, 8, 8]]]]), valid)
    agnostic = Scored(torch.tensor([[[0.4, 0.2]]]), torch.tensor([[[[4.0, 2, 10, 20]]]]), valid)
    mean = average([one, agnostic])
    torch.testing.assert_close(mean.scores, torch.tensor([[[0.3, 0.4]]]))
    assert mean.boxes.tolist() == [[[[2, 1, 10, 15], [3, 2, 9, 14]]]]
    assert average([agnostic]) is agnostic


def test_members_share_their_classes():
    paths = [Path("a.pt"), Path("b.pt"), Path("c.pt")]
    check_class_names([["cat", "dog"]] * 3, paths)
    with pytest.raises(UserError, match=r"c\.pt: other classes than a\.pt's \(cow, dog in one of them only\)"):
        check_class_names([["cat", "dog"], ["cat", "dog"], ["cat", "cow"]], paths)
    with pytest.raises(UserError, match="another order"):
        check_class_names([["cat", "dog"], ["dog", "cat"]], paths[:2])
