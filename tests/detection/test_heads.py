"""The heads: convolutions before the pooling against those behind it, fully connected layers and siblings by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)

from backbones.batch_norm import fold_batch_norm
from backbones.staged import Stage
from backbones.zoo import build_backbone
from configs.detection import BoxConfig
from detection.heads import BoxPredictor, Conv5Head, FcHead, _average
from detection.roi_features import RoiFeatures
from detection.roi_heads import RoiHeads
from tests.detection.test_roi_align import random_rois


def c4_heads(pool: str, pool_size: int, stride_in_1x1: bool, norm: str = "frozen") -> RoiHeads:
    torch.manual_seed(0)
    net = build_backbone("resnet50", norm=norm, stride_in_1x1=stride_in_1x1)
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "bn1.bias", "downsample.1.bias")):
            torch.nn.init.normal_(value, std=0.5)  # offsets that a wrong order would show
    config = BoxConfig(pool=pool, pool_size=pool_size, smooth_l1_beta=1.0)
    head = Conv5Head(net.pop_stage("conv5"), 2048, pool_size)
    return RoiHeads(config, RoiFeatures(config, [16]), head, BoxPredictor(2048, 3))


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize(("pool_size", "stride_in_1x1"), [(14, False), (14, True), (7, False)])
def test_convolutions_before_the_pooling_equal_those_behind(pool_size, stride_in_1x1, folded):
    """Values, and the gradients of the map and of every weight; RoIs that leave the map among them."""
    heads = c4_heads("roi_align", pool_size, stride_in_1x1)
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 1024, 9, 13, generator=generator)
    rois = random_rois(generator, 4)
    heads.eval()
    if folded:
        fold_batch_norm(heads.box_head)

    def run(split: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = feature.clone().requires_grad_()
        if split:
            hidden = heads.hidden([x], rois).flatten(0, 1)
        else:
            hidden = heads.box_head(heads.features([x], rois))
        weights = [] if folded else list(heads.box_head.parameters())
        return hidden, list(torch.autograd.grad(hidden.square().mean(), [x, *weights]))

    assert heads.box_head.can_split()
    (hidden, gradients), (expected, expected_gradients) = run(True), run(False)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
    with torch.no_grad():  # overwrites what was pooled
        torch.testing.assert_close(heads.hidden([feature], rois).flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_mean_of_a_map_is_the_same_in_bfloat16():
    maps = torch.arange(48.0).reshape(2, 4, 2, 3)  # of each map the mean of six in a row
    expected = torch.arange(8.0).reshape(2, 4) * 6 + 2.5
    assert torch.equal(_average(maps), expected)
    assert torch.equal(_average(maps.bfloat16()), expected.bfloat16())


def test_conv5_is_the_nets_last_stage_and_the_mean_of_its_map():
    """14x14 bins keep the stride of 2; 7x7 ones are computed at stride 1: both end at 7x7."""
    for pool_size in (14, 7):
        torch.manual_seed(0)
        conv5 = build_backbone("resnet18", norm="frozen").pop_stage("conv5").eval()
        head = Conv5Head(conv5, 512, pool_size)
        pooled = torch.randn(2, 256, pool_size, pool_size)
        assert conv5(pooled).shape == (2, 512, 7, 7)
        assert torch.equal(head(pooled), conv5(pooled).flatten(2).mean(-1))
        assert not head.can_split()  # basic units begin with a 3x3 convolution


def fc_head(channels: int, pool_size: int, width: int, **options) -> FcHead:
    return FcHead(channels, BoxConfig(pool_size=pool_size, fc_width=width, **options))


def test_two_layers_are_torchvisions():
    ours, theirs = fc_head(3, 4, 6), TwoMLPHead(3 * 16, 6)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(5, 3, 4, 4)
    assert torch.equal(ours(features), theirs(features))
    assert ours.out_channels == 6


def test_convolutions_and_one_layer_are_torchvisions():
    """Its V2 head, layer by layer; batch norm with statistics."""
    ours = fc_head(3, 4, 6, num_fcs=1, num_convs=2, norm="batch").eval()
    theirs = FastRCNNConvFCHead((3, 4, 4), [3, 3], [6], norm_layer=nn.BatchNorm2d).eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    ours_values, theirs_values = list(ours.state_dict().values()), theirs.state_dict()
    assert [v.shape for v in ours_values] == [v.shape for v in theirs_values.values()]
    theirs.load_state_dict(dict(zip(theirs_values, ours_values, strict=True)))
    features = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(ours(features), theirs(features))
    biased = fc_head(3, 4, 6, num_convs=1)
    assert biased.convs[0][0].bias is not None
    assert len(biased.convs[0]) == 1


def test_dropout_is_for_training_alone():
    torch.manual_seed(0)
    head = fc_head(2, 2, 4000, num_fcs=1, dropout=0.75)
    features = torch.randn(1, 2, 2, 2)
    whole = head.eval()(features)
    dropped = head.train()(features)
    alive = whole > 0
    share = (dropped[alive] > 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.05)
    kept = dropped > 0
    torch.testing.assert_close(dropped[kept], 4 * whole[kept])


@pytest.mark.parametrize("agnostic", [False, True])
def test_siblings_are_torchvisions_and_start_small(agnostic):
    """N(0, 0.01) and N(0, 0.001), no biases (Fast R-CNN, Sec. 4); three classes and the background."""
    torch.manual_seed(0)
    ours = BoxPredictor(512, 3, class_agnostic=agnostic)
    assert ours.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert ours.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not ours.cls_score.bias.any()
    assert not ours.bbox_pred.bias.any()
    theirs = FastRCNNPredictor(512, 4)
    if agnostic:
        theirs.bbox_pred = nn.Linear(512, 4)
    theirs.load_state_dict(ours.state_dict())
    hidden = torch.randn(6, 512)
    for found, expected in zip(ours(hidden), theirs(hidden), strict=True):
        assert torch.equal(found, expected)


def test_answers_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        logits, deltas = BoxPredictor(8, 3)(torch.randn(2, 8))
    assert (logits.dtype, deltas.dtype) == (torch.float32, torch.float32)


def test_the_last_stage_of_any_net_is_a_head():
    """One that is no `Stage` of residual units runs as it is."""
    for conv5 in (nn.Sequential(nn.Conv2d(4, 6, 1)), nn.Conv2d(4, 6, 1), Stage(nn.Conv2d(4, 6, 1))):
        head = Conv5Head(conv5, 6, 7)
        assert not head.can_split()
        assert head(torch.randn(3, 4, 7, 7)).shape == (3, 6)
