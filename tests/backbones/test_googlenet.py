"""GoogLeNet against torchvision's, its auxiliary classifiers and its stages."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from backbones.analysis import cost
from backbones.pretrained import load_backbone_weights
from backbones.weights import GOOGLENET
from backbones.zoo import build_backbone


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_googlenet_is_torchvisions(norm, tmp_path):
    """Its file, with untrained auxiliary heads, loads; logits are equal where it normalises its input anew."""
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(aux_logits=True, init_weights=False, transform_input=True).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = build_backbone("googlenet", norm=norm).eval()
    preprocessing = load_backbone_weights(ours, "googlenet", str(tmp_path / "googlenet.pth"), stride_in_1x1=False)
    assert preprocessing == GOOGLENET
    pixels = torch.randint(0, 256, (2, 3, 96, 64)).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = theirs((pixels / 255 - mean[:, None, None]) / std[:, None, None])
        assert torch.allclose(ours((pixels - 127.5) / 127.5), expected, rtol=1e-3, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_googlenets_auxiliary_classifiers():
    torch.manual_seed(0)
    net = build_backbone({"net": "googlenet", "auxiliary": True}, num_classes=3)
    assert sum(each.numel() for each in net.parameters()) > cost(net).parameters
    outputs = net(torch.randn(2, 3, 64, 64))
    assert [each.shape for each in outputs.companions] == [(2, 3), (2, 3)]
    net.pop_classifier()
    assert not any(name.startswith("companions") for name, _ in net.named_parameters())


def test_googlenets_stages_freeze_and_come_out():
    net = build_backbone("googlenet", num_classes=3)
    net.freeze_stages(2)
    net.train()
    assert not net.conv2.bn.training
    assert net.inception3a.training
    x = torch.randn(2, 3, 64, 64)
    net.eval()
    maps = net.forward_stages(x, ["conv4", "conv5"])
    conv5 = net.pop_stage("conv5")
    assert torch.equal(conv5(maps["conv4"]), maps["conv5"])
    with pytest.raises(ValueError, match="pop_stage"):
        net.forward_stages(x, ["conv5"])
