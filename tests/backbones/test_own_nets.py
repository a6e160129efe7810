"""Nets of one's own as tables: pooling, residual functions of any depth, vectors, dropout inside the units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones.batch_norm import conv_bn
from backbones.views import dense_logits
from backbones.zoo import build_backbone
from configs.errors import UserError

STEM = {"kernel": 3, "width": 8, "stride": 1, "pool": False}


def own(**changes):
    table = {
        "stem": STEM,
        "stages": [{"units": 1, "width": 8}, {"units": 1, "width": 12, "stride": 2}],
        "unit": "basic",
        "num_classes": 3,
    }
    return build_backbone({**table, **changes})


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling_before_a_stage_and_behind_the_stem(kind):
    pool = {"kind": kind, "size": 3, "stride": 2, "padding": 1}
    net = own(
        stem={**STEM, "pool": pool},
        stages=[{"units": 1, "width": 8}, {"units": 2, "width": 8, "pool": {"kind": kind, "size": 2}}],
    ).eval()
    assert net.stage_strides == {"conv1": 1, "conv2": 2, "conv3": 4}
    assert {"layer2.0.conv1.weight", "layer2.1.conv1.weight"} <= net.state_dict().keys()
    x = torch.randn(1, 3, 20, 28)
    maps = net.forward_stages(x, ["conv1", "conv2", "conv3"])
    function = F.max_pool2d if kind == "max" else F.avg_pool2d
    assert torch.equal(maps["conv2"], net.layer1[0](function(maps["conv1"], 3, 2, 1)))
    assert torch.equal(maps["conv3"], net.layer2[2](net.layer2[1](function(maps["conv2"], 2))))
    assert maps["conv3"].shape == (1, 8, 5, 7)


@pytest.mark.parametrize("kernels", [[3], [5, 1], [3, 3, 3], [1, 3, 1, 3, 1]])
@pytest.mark.parametrize("plain", [True, False])
def test_residual_functions_of_any_number_of_layers(kernels, plain):
    net = own(unit=kernels, plain=plain).eval()
    unit = net.layer1[0]
    x = torch.rand(2, 8, 9, 11)
    expected = x
    for number, kernel in enumerate(kernels, start=1):
        conv, bn = unit.get_submodule(f"conv{number}"), unit.get_submodule(f"bn{number}")
        assert conv.kernel_size == (kernel, kernel)
        expected = bn(F.conv2d(expected, conv.weight, padding=kernel // 2))
        expected = F.relu(expected) if number < len(kernels) else expected
    assert torch.allclose(unit(x), F.relu(expected if plain else expected + x), atol=1e-6)
    net.train()(torch.randn(2, 3, 16, 16)).sum().backward()


def test_one_layer_is_linear_before_its_relu():
    """He et al. 2016, Sec. 3.2: y = Wx + x."""
    unit = own(unit=[3]).eval().layer1[0]
    x, y = torch.randn(1, 8, 6, 6), torch.randn(1, 8, 6, 6)

    def residual(x: torch.Tensor) -> torch.Tensor:
        return conv_bn(*unit.pairs()[-1], unit._inner(x))

    assert torch.allclose(residual(x + y) + residual(torch.zeros_like(x)), residual(x) + residual(y), atol=1e-5)


def test_two_layers_of_3x3_are_the_basic_unit():
    torch.manual_seed(0)
    basic = own(unit="basic").eval()
    torch.manual_seed(0)
    table = own(unit=[3, 3]).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(basic(x), table(x))


def test_fixed_pooling_before_the_classifier():
    net = own(classifier_pool={"kind": "average", "size": 2}, input_size=[14, 10]).eval()
    assert net.fc.in_features == 12 * 3 * 2  # a map of 7 x 5: whole windows only
    x = torch.randn(2, 3, 14, 10)
    last = net.forward_stages(x, ["conv3"])["conv3"]
    assert torch.equal(net(x), net.fc(F.avg_pool2d(last, 2).flatten(1)))
    larger = torch.randn(2, 3, 40, 30)
    assert net(larger).shape == (2, 3)
    assert torch.equal(dense_logits(net, larger, 14), net(larger))


def test_vectors_go_through_fully_connected_units():
    """Each layer against a matrix product."""
    table = {
        "vector_inputs": 20,
        "stem": {"kernel": 1, "width": 16, "stride": 1, "pool": False},
        "stages": [{"units": 2, "width": 16}],
        "unit": [1, 1],
        "num_classes": 4,
    }
    torch.manual_seed(0)
    net = build_backbone(table).eval()
    assert net.head is None

    def layer(x, conv, bn):
        x = x @ conv.weight.flatten(1).T
        return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias

    x = torch.randn(5, 20)
    hidden = F.relu(layer(x, net.conv1, net.bn1))
    for unit in net.layer1:
        inner = F.relu(layer(hidden, unit.conv1, unit.bn1))
        hidden = F.relu(layer(inner, unit.conv2, unit.bn2) + hidden)
    assert torch.allclose(net(x), net.fc(hidden), atol=1e-5)
    assert torch.equal(net(x.view(5, 1, 4, 5)), net(x))
    with pytest.raises(UserError, match=r"vectors of 20 numbers .* an input has 24"):
        net(torch.zeros(2, 3, 4, 2))
    net.train()(x).sum().backward()
    assert all(value.grad is not None for value in net.parameters())


@pytest.mark.parametrize("unit", ["basic", "bottleneck", [3, 3, 3]])
def test_dropout_is_before_the_last_convolution_of_each_unit(unit):
    torch.manual_seed(0)
    net = own(unit=unit, unit_dropout=0.5)
    number = 2 if unit == "basic" else 3
    before, after = [], []
    for stage in (net.layer1, net.layer2):
        stage[0].dropout.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
        stage[0].get_submodule(f"conv{number}").register_forward_pre_hook(lambda _, inputs: after.append(inputs[0]))
    x = torch.randn(4, 3, 16, 16)
    net.train()(x)
    net.eval()(x)
    for taken, given in zip(before[:2], after[:2], strict=True):
        assert taken.min() == 0  # behind the ReLU
        assert 0.4 < (given[taken > 0] == 0).float().mean() < 0.6
    assert torch.equal(before[2], after[2])
    assert net.state_dict().keys() == own(unit=unit).state_dict().keys()


def test_a_named_net_takes_dropout_inside_its_units():
    net = build_backbone("cifar_resnet20", unit_dropout=0.3)
    assert [unit.dropout.p for unit in net.layer3] == [0.3] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": [2, 3]}, "odd"),
        ({"unit": []}, "at least one"),
        ({"unit": [3], "unit_dropout": 0.2}, "only one"),
        ({"classifier_pool": {"size": 2}}, "input_size"),
        ({"input_size": [8, 8]}, "input_size"),
        ({"classifier_pool": {"size": 9}, "input_size": [8, 8]}, "does not fit on the last map, 4x4"),
        ({"vector_inputs": 8}, "vector_inputs"),
        ({"stages": [{"units": 1, "width": 4}], "shortcut": "A"}, "widths that grow"),
        ({"stages": [{"units": 1, "width": 4, "pool": {"size": 2, "padding": 2}}]}, "padding"),
        ({"stages": [{"units": 1, "width": 4, "pool": {"kind": "mean"}}]}, "kind"),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(UserError) as caught:
        own(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_nets_parameters_all_train():
    net = own(stages=[{"units": 2, "width": 8, "pool": {"kind": "average"}}], unit=[3, 3, 3], shortcut="C")
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in net.parameters())
    assert isinstance(net.layer1[0], nn.AvgPool2d)
