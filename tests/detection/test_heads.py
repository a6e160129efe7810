"""The heads on the RoIs."""

from __future__ import annotations

import torch
from torch import nn

from backbones.staged import Stage
from backbones.zoo import build_backbone
from detection.heads import Conv5Head, FcHead


def test_conv5_splits_where_it_begins_with_two_constant_convolutions():
    features = torch.randn(2, 1024, 4, 4)
    for norm, splits in (("frozen", True), ("batch", False)):
        head = Conv5Head(build_backbone("resnet50", norm=norm).pop_stage("conv5"), 2048, 7).eval()
        assert head.can_split() is splits
    head = Conv5Head(build_backbone("resnet50", norm="frozen").pop_stage("conv5"), 2048, 7).eval()
    assert head.strides == (1, 1)
    with torch.no_grad():
        expected, found = head(features), head.after_pooling(*head.before_pooling(features))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_last_stage_of_any_net_is_a_head():
    for conv5 in (nn.Sequential(nn.Conv2d(4, 6, 1)), nn.Conv2d(4, 6, 1), Stage(nn.Conv2d(4, 6, 1))):
        head = Conv5Head(conv5, 6, 7)
        assert not head.can_split()
        assert head(torch.randn(3, 4, 7, 7)).shape == (3, 6)


def test_the_fully_connected_layers_in_order():
    head = FcHead(4, 2, 8, num_fcs=3, num_convs=1, norm="frozen").eval()
    assert [layer.in_features for layer in head.layers] == [16, 8, 8]
    assert [layer.out_features for layer in head.layers] == [8, 8, 8]
    x = torch.randn(5, 4, 2, 2)
    conv, norm = head.convs[0]
    expected = norm(conv(x)).relu().flatten(1)
    for layer in head.layers:
        expected = layer(expected).relu()
    torch.testing.assert_close(head(x), expected)
