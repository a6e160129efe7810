"""Residual nets against torchvision's, and what detection needs of them: taps, frozen stages, parts taken out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from backbones.resnet import pad_shortcut
from backbones.zoo import build_backbone

NAMES = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def randomise(net):
    """Random batch norms, so that no wrong place for a number can hide behind zeros and ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


def build_with(theirs, name, **options):
    """Our net with a copy of their weights, strictly loaded."""
    with torch.device("meta"):
        ours = build_backbone(name, num_classes=7, **options)
    ours.load_state_dict({key: value.clone() for key, value in theirs.state_dict().items()}, assign=True)
    return ours


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def assert_same(ours, theirs, x):
    """Logits in train and eval mode, running statistics and gradients."""
    ours.train()
    theirs.train()
    weights = torch.randn(len(x), 7)
    logits = [net(x) for net in (ours, theirs)]
    assert relative(*logits) < 1e-5
    for each in logits:
        (each * weights).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, expected[name].grad) < 1e-5, name
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-7), name
    with torch.no_grad():
        assert relative(ours.eval()(x), theirs.eval()(x)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_weights_give_torchvisions_results(name):
    torch.manual_seed(1)
    theirs = randomise(getattr(torchvision.models, name)(num_classes=7))
    ours = build_with(theirs, name)
    assert_same(ours, theirs, torch.randn(2, 3, 64, 48))


def test_the_msra_variant_is_torchvisions_with_the_stride_moved():
    torch.manual_seed(1)
    theirs = randomise(torchvision.models.resnet50(num_classes=7))
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    ours = build_with(theirs, "resnet50", stride_in_1x1=True)
    assert_same(ours, theirs, torch.randn(2, 3, 64, 48))


def test_option_a_in_numbers():
    x = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(1, 2, 3, 5)
    out = pad_shortcut(x, channels=5, stride=2)
    zeros = torch.zeros(2, 3)
    first = torch.tensor([[0.0, 2.0, 4.0], [10.0, 12.0, 14.0]])
    assert torch.equal(out[0], torch.stack([zeros, first, first + 15, zeros, zeros]))


def test_an_option_a_unit_recomputed():
    torch.manual_seed(0)
    unit = randomise(build_backbone("cifar_resnet20")).eval().layer2[0]
    x = torch.randn(2, 16, 9, 12)
    out = F.relu(unit.bn1(F.conv2d(x, unit.conv1.weight, stride=2, padding=1)))
    out = unit.bn2(F.conv2d(out, unit.conv2.weight, padding=1))
    out[:, 8:24] += x[:, :, ::2, ::2]
    assert torch.allclose(unit(x), F.relu(out), atol=1e-6)


def test_taps_are_torchvisions_layers_at_their_strides():
    torch.manual_seed(0)
    theirs = randomise(torchvision.models.resnet18()).eval()
    ours = build_backbone("resnet18").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 160)
    with torch.no_grad():
        maps = ours.forward_stages(x, ["conv1", "conv2", "conv3", "conv4", "conv5"])
        expected = {"conv1": theirs.relu(theirs.bn1(theirs.conv1(x)))}
        out = theirs.maxpool(expected["conv1"])
        for number in (1, 2, 3, 4):
            out = getattr(theirs, f"layer{number}")(out)
            expected[f"conv{number + 1}"] = out
    assert list(maps) == list(expected)
    for name, value in expected.items():
        assert torch.allclose(maps[name], value, atol=1e-6), name
        height, width = 64 // ours.stage_strides[name], 160 // ours.stage_strides[name]
        assert maps[name].shape == (1, ours.stage_channels[name], height, width)


def test_nothing_behind_the_deepest_stage_is_computed():
    net = build_backbone("cifar_resnet20")
    reached = []
    for name in ("layer1", "layer2", "layer3"):
        getattr(net, name).register_forward_hook(lambda *_, name=name: reached.append(name))
    maps = net.forward_stages(torch.randn(1, 3, 8, 8), ["conv3", "conv1"])
    assert list(maps) == ["conv1", "conv3"]
    assert reached == ["layer1", "layer2"]
    with pytest.raises(ValueError, match="conv4"):
        net.forward_stages(torch.randn(1, 3, 8, 8), ["conv5"])


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_frozen_stages_neither_learn_nor_collect_statistics(norm, count):
    torch.manual_seed(0)
    net = build_backbone("resnet18", norm=norm, num_classes=3)
    net.freeze_stages(count)
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    stages = [[net.conv1, net.bn1], [net.layer1], [net.layer2], [net.layer3], [net.layer4]]
    x = torch.randn(2, 3, 64, 64)
    maps = net.forward_stages(x, net.stage_channels)
    assert [value.requires_grad for value in maps.values()] == [index >= count for index in range(5)]
    net(x).sum().backward()
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1).step()
    for index, modules in enumerate(stages):
        for module in modules:
            assert all(p.requires_grad == (index >= count) for p in module.parameters())
            for name, value in module.state_dict().items():
                if index < count:
                    prefix = next(key for key, each in net.named_modules() if each is module)
                    assert torch.equal(value, before[f"{prefix}.{name}"])
    if norm == "batch":
        assert net.layer4[0].bn1.num_batches_tracked.item() == (0 if count == 5 else 2)


def test_a_stage_taken_out_is_the_rest_of_the_net():
    torch.manual_seed(0)
    net = build_backbone("resnet18", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 96)
    whole = net.forward_stages(x, ["conv4", "conv5"])
    logits = net(x)
    conv5 = net.pop_stage("conv5")
    classifier = net.pop_classifier()
    assert not any(key.startswith(("layer4", "fc")) for key in net.state_dict())
    conv4 = net.forward_stages(x, ["conv4"])["conv4"]
    assert torch.equal(conv5(conv4), whole["conv5"])
    assert torch.equal(classifier(conv5(conv4).mean((2, 3))), logits)
    with pytest.raises(ValueError, match="pop_stage"):
        net(x)


def test_a_frozen_stage_stays_frozen_where_it_is_taken_to():
    net = build_backbone("resnet18")
    net.freeze_stages(5)
    head = nn.Sequential(net.pop_stage("conv5")).train()
    assert not any(module.training for module in head[0].modules())


def test_activation_checkpointing_changes_memory_and_nothing_else():
    torch.manual_seed(0)
    plain = build_backbone("cifar_resnet20", dropout=0.0)
    saving = build_backbone("cifar_resnet20", activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 16, 16)
    kept = []
    for net in (plain, saving):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = net(x).square().sum()
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < kept[0] / 3
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7), name
    for (name, ours), theirs in zip(saving.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name  # the running statistics were counted once


def test_1202_layers_fit_with_activation_checkpointing():
    net = build_backbone("cifar_resnet1202", activation_checkpointing=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        loss = net(torch.randn(2, 3, 8, 8)).sum()
    inputs = 2 * 200 * (16 * 64 + 32 * 16 + 64 * 4)
    assert sum(sizes) < 1.1 * inputs + 10_000  # the units' inputs, the stem and the classifier
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_copy_and_another_type_follow(tmp_path):
    net = build_backbone("cifar_resnet20", norm="frozen").eval()
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    assert torch.equal(copy.deepcopy(net)(x), expected)
    torch.save(net, tmp_path / "net.pt")
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(x), expected)
    assert torch.allclose(net.double()(x.double()), expected.double(), rtol=1e-4, atol=1e-5)
    twin = build_backbone("cifar_resnet20").double().eval()
    twin.load_state_dict(net.state_dict())
    assert torch.allclose(net(x.double()), twin(x.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_a_dilated_stage_is_the_same_net_at_more_places(stride_in_1x1):
    """Exactly so where the 1x1 strides; where the 3x3 does, its first unit looks further than before."""
    torch.manual_seed(0)
    net = build_backbone("resnet50", stride_in_1x1=stride_in_1x1).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        coarse = net.forward_stages(x, ["conv5"])["conv5"]
        net.dilate_stage("conv5")
        fine = net.forward_stages(x, ["conv5"])["conv5"]
    assert net.stage_strides["conv5"] == net.stage_strides["conv4"] == 16
    assert fine.shape[-2:] == (4, 6)
    assert torch.allclose(fine[:, :, ::2, ::2], coarse, rtol=1e-4, atol=1e-4) == stride_in_1x1
