"""VGG against torchvision's, and what detection needs of it."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from backbones.zoo import build_backbone


def random_state(net):
    """A state dict for a net on the meta device: cheap to make, which matters at 138 million parameters."""
    state = {}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
        elif key.endswith(("running_var", ".1.weight")):
            state[key] = torch.empty(value.shape).uniform_(0.5, 1.5)
        else:
            bound = (3 / value[0].numel()) ** 0.5 if value.dim() > 1 else 0.1
            state[key] = torch.empty(value.shape).uniform_(-bound, bound)
    return state


def pair(name, **options):
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(num_classes=5), build_backbone(name, num_classes=5, **options)
    state = random_state(theirs)
    theirs.load_state_dict(state, strict=True, assign=True)
    # The big classifier is shared; the running statistics of the features must not be.
    own = {key: value.clone() if key.startswith("features") else value for key, value in state.items()}
    ours.load_state_dict(own, strict=True, assign=True)
    return ours, theirs


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn", "vgg19"])
def test_torchvisions_weights_give_torchvisions_results(name):
    ours, theirs = pair(name)
    x = torch.randn(2, 3, 64, 96)
    weights = torch.randn(2, 5)
    logits, gradients = [], []
    for net in (ours, theirs):
        parameters = [p.requires_grad_() for p in net.parameters()]
        torch.manual_seed(1)  # for dropout
        logits.append(net.train()(x))
        # fc6 and fc7 are left out: half a gigabyte of gradients each time
        wanted = [p for p in parameters if p.numel() < 1e7]
        gradients.append(torch.autograd.grad((logits[-1] * weights).sum(), wanted))
        with torch.no_grad():
            logits.append(net.eval()(x))
    for mine, other in zip((*logits[:2], *gradients[0]), (*logits[2:], *gradients[1]), strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm()
    for key, value in theirs.state_dict().items():
        if "running" in key:
            assert torch.allclose(ours.state_dict()[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_taps_are_the_last_relus_before_each_pooling(name):
    with torch.device("meta"):
        net = build_backbone(name, norm="frozen")
        net.pop_classifier()
    net.load_state_dict(random_state(net), assign=True)
    x = torch.randn(1, 3, 64, 96)
    pools = [index for index, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d)]
    with torch.no_grad():
        maps = net.forward_stages(x, net.stage_channels)
        for number, pool in enumerate(pools, start=1):
            expected = net.features[:pool](x.clone())
            tap = maps[f"conv{number}"]
            assert torch.allclose(tap, expected, rtol=1e-4, atol=1e-5)
            stride = net.stage_strides[f"conv{number}"]
            assert tap.shape == (1, net.stage_channels[f"conv{number}"], 64 // stride, 96 // stride)
    assert net.stage_strides["conv5"] == 16
    assert torch.equal(net.forward_stages(x, ["conv3"])["conv3"], maps["conv3"])


def test_frozen_stages_neither_learn_nor_collect_statistics():
    with torch.device("meta"):
        net = build_backbone("vgg16_bn")
        net.pop_classifier()
    net.load_state_dict(random_state(net), assign=True)
    for parameter in net.parameters():
        parameter.requires_grad_()
    net.freeze_stages(2)
    net.train()
    before = {key: value.clone() for key, value in net.features.state_dict().items()}
    maps = net.forward_stages(torch.randn(2, 3, 32, 32), ["conv2", "conv3"])
    assert [value.requires_grad for value in maps.values()] == [False, True]
    maps["conv3"].sum().backward()
    frozen_end = 14  # conv1_1 .. conv2_2 with batch norm, ReLU and pooling
    for name, parameter in net.features.named_parameters():
        assert parameter.requires_grad == (int(name.split(".")[0]) >= frozen_end)
    for name, value in net.features.state_dict().items():
        if "running" in name:
            in_conv3 = frozen_end <= int(name.split(".")[0]) < 24
            assert torch.equal(value, before[name]) != in_conv3, name


def test_the_classifier_that_is_taken_out_holds_fc6_and_fc7():
    with torch.device("meta"):
        net = build_backbone("vgg16", num_classes=21, dropout=0.3)
        classifier = net.pop_classifier()
    assert (classifier[0].in_features, classifier[3].in_features) == (512 * 7 * 7, 4096)
    assert classifier[6].out_features == 21
    assert [classifier[2].p, classifier[5].p] == [0.3, 0.3]
    assert not any(key.startswith("classifier") for key in net.state_dict())
    with pytest.raises(ValueError, match="pop_classifier"):
        net.pop_stage("conv5")
