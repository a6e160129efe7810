"""What is measured: the cases' changes of themselves, their inputs and their weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from configs.detection import ModelConfig
from tools.benchmarks.cases import CASES, NUM_OBJECTS, Case, make_inputs, spread_weights


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_models_config(name):
    model = ModelConfig.model_validate(CASES[name].section())
    assert (model.norm, model.frozen_stages) == ("frozen", 2)
    assert model.box.smooth_l1_beta == model.rpn.smooth_l1_beta == pytest.approx(1 / 9)


def test_changes_leave_the_rest_and_the_original_alone():
    case = Case("x", {"backbone": "resnet50", "box": {"pool_size": 7}, "rpn": {"num_convs": 2}}, (64, 96))
    changed = case.with_box(dropout=0.5).with_rpn(hidden_channels=8)
    assert changed.model["box"] == {"pool_size": 7, "dropout": 0.5}
    assert changed.model["rpn"] == {"num_convs": 2, "hidden_channels": 8}
    assert case.model["box"] == {"pool_size": 7}
    assert case.section()["box"] == {"pool_size": 7, "smooth_l1_beta": 1 / 9}
    assert case.section()["weights"] == "unused"


def test_every_candidate_is_in_the_losses():
    case = CASES["r101_c4_coco"]
    for changed in (case.small(), case.full()):
        model = ModelConfig.model_validate(changed.section())
        assert model.rpn.batch_size_per_image == model.box.batch_size_per_image == 10**6
    assert case.small().image_size == (96, 128)
    assert case.full().image_size == case.image_size
    # Of 512 RoIs, eight are the objects themselves.
    assert ModelConfig.model_validate(case.full().section()).rpn.post_nms_top_n_train == 512 - NUM_OBJECTS


def test_inputs_have_objects_inside_and_zeros_at_the_right_and_the_bottom():
    case = Case("x", {}, (50, 70), num_classes=3)
    inputs = make_inputs(case, 2, "cpu")
    assert inputs.images.shape == (2, 3, 64, 96)
    assert not inputs.images[:, :, 50:].any()
    assert not inputs.images[..., 70:].any()
    assert (inputs.images[:, :, :50, :70].std((2, 3)) > 0.5).all()
    x1, y1, x2, y2 = inputs.boxes.unbind(-1)
    assert inputs.boxes.shape == (2, NUM_OBJECTS, 4)
    assert min(x1.min(), y1.min()) >= 0
    assert x2.max() <= 70
    assert y2.max() <= 50
    assert (x2 - x1).min() >= 7
    assert (y2 - y1).min() >= 5
    assert set(inputs.labels.flatten().tolist()) <= {1, 2, 3}
    assert all(map(torch.equal, make_inputs(case, 2, "cpu")[0::2], inputs[0::2]))
    assert not torch.equal(make_inputs(case, 2, "cpu", seed=1).boxes, inputs.boxes)


def test_weights_by_kind():
    """He's variance for layers, half of it for scores, a tenth for deltas; batch norm near the identity."""
    net = nn.Module()
    net.bn1, net.bn3 = nn.BatchNorm2d(2000), nn.BatchNorm2d(2000)
    net.conv, net.cls_logits, net.bbox_pred = (nn.Linear(400, 100) for _ in range(3))
    net.roi_heads = nn.Module()
    net.roi_heads.box_predictor = nn.Module()
    net.roi_heads.box_predictor.cls_score = nn.Linear(400, 3)
    wrapped = nn.Module()
    wrapped.body, wrapped.roi_heads = net, net.roi_heads
    spread_weights(wrapped)
    std = (2 / 400) ** 0.5
    for layer, factor in ((net.conv, 1.0), (net.cls_logits, 0.5), (net.bbox_pred, 0.1)):
        assert layer.weight.std().item() == pytest.approx(factor * std, rel=0.03)
        assert layer.bias.std().item() == pytest.approx(0.05, rel=0.3)
    assert net.bn1.running_var.min() >= 0.8
    assert net.bn1.running_var.max() <= 1.2
    assert net.bn1.weight.mean().item() == pytest.approx(1.0, abs=0.02)
    assert net.bn3.weight.mean().item() == pytest.approx(0.25, abs=0.01)
    assert net.roi_heads.box_predictor.cls_score.bias[0] == 4
