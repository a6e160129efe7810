"""The comparators of Tables 3 to 6 against their published sizes, and torchvision's GoogLeNet."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.analysis import cost
from backbones.classification import classification_loss, wrong_answers
from backbones.comparators import COMPARATORS, Highway, MaxoutConv, PyramidPool
from backbones.staged import WithCompanions
from backbones.weights import as_classifier
from backbones.zoo import build_backbone
from configs.errors import UserError

CIFAR = ("highway19", "highway32", "fitnet19", "nin", "dsn", "maxout", "linear")


def size_of(name: str, side: int):
    with torch.device("meta"):
        return cost(build_backbone(name), (side, side))


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("highway19", 2.3e6, 0.02),  # 2.26M, 2.3 as printed
        ("highway32", 1.25e6, 0.01),
        ("nin", 0.97e6, 0.01),
        ("dsn", 0.97e6, 0.01),  # without the companions: NIN's
        ("googlenet", 6.8e6, 0.03),  # torchvision's 3x3 where the paper has 5x5
        # Their file has a maxout layer of 5 pieces, 322,500 parameters; with one piece it would be 64,500.
        ("fitnet19", 2.5e6 + 322_500 - 64_500, 0.01),
    ],
)
def test_parameters_are_the_published_ones(name, published, tolerance):
    assert size_of(name, 32).parameters == pytest.approx(published, rel=tolerance)


def test_highway19_by_hand():
    def conv(inputs, outputs, kernel=3):
        return inputs * outputs * kernel**2 + outputs

    groups = conv(3, 32) + 4 * 2 * conv(32, 32) + conv(32, 80) + 5 * 2 * conv(80, 80) + conv(80, 128)
    assert size_of("highway19", 32).parameters == groups + 5 * 2 * conv(128, 128) + conv(128, 100, 1) + 1010


def test_maxout_by_hand():
    # cifar10.yaml: 8x8, 8x8 and 5x5 kernels of 2 pieces, 500 units of 5 pieces on a 5x5 map
    convs = 3 * 64 * 192 + 192 + 96 * 64 * 384 + 384 + 192 * 25 * 384 + 384
    assert size_of("maxout", 32).parameters == convs + 192 * 25 * 2500 + 2500 + 500 * 10 + 10


@pytest.mark.parametrize(("model", "published"), [("a", 19.0e9), ("c", 53.5e9)])
def test_prelu_nets_cost_what_their_table_says(model, published):
    assert size_of(f"prelu_net_{model}", 224).multiply_adds == pytest.approx(published, rel=0.01)


def layers_with_weights(net: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules())


def test_depths_are_those_of_the_names():
    with torch.device("meta"):
        nets = {name: build_backbone(name) for name in ("highway19", "highway32", "fitnet19")}
        prelu = [layers_with_weights(build_backbone(f"prelu_net_{model}")) for model in "abc"]
    for name in ("highway19", "highway32"):
        gates = sum(isinstance(layer, Highway) for layer in nets[name].modules())
        assert layers_with_weights(nets[name]) - gates == int(name[-2:])
    assert layers_with_weights(nets["fitnet19"]) == 19
    assert prelu == [19, 22, 22]


@pytest.mark.parametrize("name", [*COMPARATORS, "googlenet"])
def test_goes_forward_and_backward(name):
    torch.manual_seed(0)
    net = build_backbone({"net": name, "width": 1 / 16} if name != "googlenet" else {"net": name}, num_classes=4)
    side = 32 if name in CIFAR else 64
    x, labels = torch.randn(2, 3, side, side), torch.tensor([1, 3])
    outputs = net(x)
    assert isinstance(outputs, WithCompanions) == (name == "dsn")
    classification_loss(outputs, labels).backward()
    without = [key for key, value in net.named_parameters() if value.grad is None]
    assert not without
    assert 0 <= int(wrong_answers(outputs.detach(), labels)) <= 2
    net.eval()
    maps = net.forward_stages(x, net.stage_channels)
    for stage, channels in net.stage_channels.items():
        expected = side // net.stage_strides[stage]
        assert maps[stage].shape[1] == channels
        assert all(abs(each - expected) <= 1 for each in maps[stage].shape[2:]), stage
    assert net(torch.randn(1, 3, 48, 80)).shape == (1, 4)


def test_a_highway_layer_by_hand():
    layer = Highway(1, 1)
    for conv, weight, bias in ((layer.conv, 2.0, 0.5), (layer.gate, 1.0, -2.0)):
        nn.init.constant_(conv.weight, weight)
        nn.init.constant_(conv.bias, bias)
    x = torch.tensor([3.0, -1.0])
    gate = 1 / (1 + torch.exp(2.0 - x))
    expected = torch.tensor([6.5, 0.0]) * gate + x * (1 - gate)
    assert torch.allclose(layer(x.view(2, 1, 1, 1)).flatten(), expected)


def test_maxout_takes_the_larger_piece():
    layer = MaxoutConv(1, 2, 1, 0)
    layer.conv.weight.data[:] = torch.tensor([1.0, -1.0, 2.0, 3.0]).view(4, 1, 1, 1)
    nn.init.zeros_(layer.conv.bias)
    x = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1)
    assert layer(x).flatten(1).tolist() == [[2.0, 6.0], [2.0, -4.0]]


def test_pyramid_pool_has_the_maximum_of_each_bin():
    x = torch.arange(49.0).view(1, 1, 7, 7)
    pooled = PyramidPool()(x)[0]
    assert pooled.shape == (63,)
    assert torch.equal(pooled[:49], x.flatten())
    assert pooled[-5:].tolist() == [24.0, 27.0, 45.0, 48.0, 48.0]


def test_a_bare_file_of_another_project_is_still_refused(tmp_path):
    with pytest.raises(UserError, match="neither a checkpoint"):
        as_classifier({"stem.weight": torch.zeros(1)}, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nin", {"plain": True}, "residual nets"),
        ({"net": "nin", "depth": 3}, {}, "width"),
        ({"net": "nin", "width": 0}, {}, "above 0"),
        ({"net": "googlenet", "auxiliary": 1}, {}, "true or false"),
        ({"net": "resnet18", "width": 2}, {}, "whole table"),
        ({"net": "ninn"}, {}, "did you mean nin"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(UserError) as caught:
        build_backbone(name, **options)
    assert words in str(caught.value)
