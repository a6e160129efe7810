"""Union of proposals, averages, and classes that differ."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.errors import UserError
from detection import ensemble
from detection.ensemble import average, check_class_names, load_ensemble, unite_proposals
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


def test_all_members_are_loaded_and_the_config_is_the_first_s(monkeypatch):
    asked = []

    def load(path, *, overrides, device):
        asked.append((path, overrides, device))
        return SimpleNamespace(class_names=["cat", "dog"] if path != "c.pt" else ["cow"], path=path), f"{path}'s config"

    monkeypatch.setattr(ensemble, "load_detector", load)
    detectors, config = load_ensemble(["a.pt", "b.pt"], overrides=["test.nms_thresh=0.4"], device="meta")
    assert [detector.path for detector in detectors] == ["a.pt", "b.pt"]
    assert config == "a.pt's config"
    assert asked == [(path, ["test.nms_thresh=0.4"], "meta") for path in ("a.pt", "b.pt")]
    with pytest.raises(UserError, match=r"c\.pt: other classes"):
        load_ensemble(["a.pt", "c.pt"])
