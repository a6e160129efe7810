"""What a detector says of RoIs, against its own parts called one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.weights import IMAGENET
from configs.detection import ModelConfig
from detection.boxes import clip_boxes, decode_boxes
from detection.model import Detector, build_detector
from detection.scoring import Scorer

SIZES = torch.tensor([[48, 64], [40, 32]])
ROIS = torch.tensor([[[0.0, 0, 30, 40], [20, 8, 63, 47]], [[1.0, 2, 31, 39], [0, 0, 5, 5]]])
VALID = torch.tensor([[True, True], [True, False]])


def made(**box) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0,
            "anchors": {"sizes": [16]}, "rpn": {"hidden_channels": 4}, "box": {"pool_size": 2} | box,
        }
    )  # fmt: skip
    detector = build_detector(config, ["red", "blue"], preprocessing=IMAGENET).eval()
    for layer in (detector.roi_heads.box_predictor.cls_score, detector.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(layer.weight, std=1.0)
    return detector


def maps() -> list[torch.Tensor]:
    return [torch.randn(2, 256, 3, 4, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("box", [{}, {"class_agnostic": True}, {"unused_outputs": 2}], ids=str)
@torch.no_grad()
def test_scores_and_boxes_without_background_and_unused_outputs(box):
    detector = made(**box)
    scored = Scorer(detector, maps(), SIZES)(ROIS, VALID)
    logits, deltas = detector.roi_heads(maps(), ROIS, SIZES)
    torch.testing.assert_close(scored.scores, logits.softmax(-1)[..., 1:3])
    kinds = [0] if box.get("class_agnostic") else [1, 2]
    assert scored.boxes.shape == (2, 2, len(kinds), 4)
    for position, output in enumerate(kinds):
        expected = clip_boxes(decode_boxes(deltas[:, :, output], ROIS, torch.tensor([10.0, 10, 5, 5])), SIZES)
        torch.testing.assert_close(scored.boxes[:, :, position], expected)
    assert torch.equal(scored.valid, VALID)
    assert (scored.boxes[0, ..., 3] <= 48).all()
    assert (scored.boxes[1, ..., 2] <= 32).all()


@torch.no_grad()
def test_the_context_is_computed_once_and_equals_the_heads(monkeypatch: pytest.MonkeyPatch):
    detector = made(global_context=True)
    scorer = Scorer(detector, maps(), SIZES)
    counted = []
    hidden = detector.roi_heads.hidden
    monkeypatch.setattr(detector.roi_heads, "hidden", lambda m, rois: counted.append(rois.shape[1]) or hidden(m, rois))
    first, again = scorer(ROIS, VALID), scorer(ROIS[:, :1], VALID[:, :1])
    assert counted == [3, 1]  # the first RoIs take the image's box along
    monkeypatch.undo()
    logits, _ = detector.roi_heads(maps(), ROIS, SIZES)
    torch.testing.assert_close(first.scores, logits.softmax(-1)[..., 1:])
    torch.testing.assert_close(again.scores, first.scores[:, :1])
    torch.testing.assert_close(again.boxes, first.boxes[:, :1], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_p6_is_not_pooled_from():
    detector = made()
    detector.backbone.fpn = nn.Identity()
    assert len(Scorer(detector, maps() * 5, SIZES).maps) == 4
