"""Global context: the whole image's feature beside each RoI's, with numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs.detection import BoxConfig
from detection.context import image_boxes, join_context
from detection.heads import BoxPredictor
from detection.roi_features import RoiFeatures
from detection.roi_heads import RoiHeads


def test_boxes_of_whole_images_and_concatenation():
    boxes = image_boxes(torch.tensor([[20, 30], [40, 10]]))  # (H, W)
    assert boxes.tolist() == [[[0, 0, 30, 20]], [[0, 0, 10, 40]]]
    hidden = torch.arange(8.0).reshape(2, 2, 2)
    joined = join_context(hidden, torch.tensor([[[10.0, 11]], [[20, 21]]]))
    assert joined.tolist() == [[[0, 1, 10, 11], [2, 3, 10, 11]], [[4, 5, 20, 21], [6, 7, 20, 21]]]


def tiny_heads() -> RoiHeads:
    """One channel, one bin, a head that doubles: an RoI's feature is twice the map's value at its centre."""
    config = BoxConfig(global_context=True, pool_size=1, sampling_ratio=1, class_agnostic=True)
    head = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False))
    predictor = BoxPredictor(2, 1, class_agnostic=True)
    with torch.no_grad():
        head[1].weight.fill_(2.0)
        predictor.cls_score.weight.copy_(torch.tensor([[1.0, 3.0], [-1.0, 5.0]]))
        predictor.bbox_pred.weight.zero_()
    return RoiHeads(config, RoiFeatures(config, [1]), head, predictor)


def test_logits_and_gradients_by_hand():
    """The map is x + 10 y. The RoI's centre lies at pixel (0.5, 0.5): 5.5; that of the image, 4 wide and 2 high in a
    padded map, at (1.5, 0.5): 6.5."""
    heads = tiny_heads()
    feature = torch.arange(6.0) + 10 * torch.arange(4.0)[:, None]
    logits, _ = heads([feature[None, None]], torch.tensor([[[0.0, 0, 2, 2]]]), torch.tensor([[2, 4]]))
    hidden, context = 2 * 5.5, 2 * 6.5
    assert logits[0, 0].tolist() == [hidden + 3 * context, -hidden + 5 * context]
    logits[0, 0, 1].backward()
    # d logit / d W = (hidden, context); d logit / d w = -5.5 + 5 * 6.5 through both
    assert heads.box_predictor.cls_score.weight.grad.tolist() == [[0, 0], [hidden, context]]
    assert heads.box_head[1].weight.grad.item() == pytest.approx(-5.5 + 5 * 6.5)


def test_the_context_is_each_images_own():
    heads = tiny_heads()
    feature = torch.arange(6.0) + 10 * torch.arange(4.0)[:, None]
    rois = torch.tensor([[[0.0, 0, 2, 2], [1, 1, 3, 3]], [[0, 0, 2, 2], [2, 0, 4, 2]]])
    sizes = torch.tensor([[2, 4], [4, 6]])
    logits, _ = heads([feature[None, None].repeat(2, 1, 1, 1)], rois, sizes)
    for image in range(2):
        alone, _ = heads([feature[None, None]], rois[image : image + 1], sizes[image : image + 1])
        assert torch.equal(logits[image], alone[0])
    assert logits[0, 0, 0] != logits[1, 0, 0]
