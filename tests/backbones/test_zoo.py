"""The table of nets against the published figures (He et al. 2016, Table 1, Sec. 4.2; Simonyan & Zisserman)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.analysis import cost
from backbones.zoo import NAMES, build_backbone
from configs.common import BACKBONES
from configs.errors import UserError

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet1202": 19_421_274,
}
MULTIPLY_ADDS = {
    "resnet18": 1.8e9,
    "resnet34": 3.6e9,
    "resnet50": 3.8e9,
    "resnet101": 7.6e9,
    "resnet152": 11.3e9,
    "vgg16": 15.3e9,
    "vgg19": 19.6e9,
}


def test_the_configs_know_every_name():
    assert set(BACKBONES) == set(NAMES)


def build_without_data(name, **options):
    with torch.device("meta"):
        return build_backbone(name, **options)


@pytest.mark.parametrize(("name", "published"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, published):
    assert sum(parameter.numel() for parameter in build_without_data(name).parameters()) == published


@pytest.mark.parametrize(("name", "published"), MULTIPLY_ADDS.items())
def test_multiply_adds_are_those_of_table_1(name, published):
    assert cost(build_without_data(name, stride_in_1x1=True)).multiply_adds == pytest.approx(published, rel=0.02)


def test_stride_in_the_3x3_costs_more_than_in_the_1x1():
    # torchvision's published 4.09 GFLOPS of its resnet50, which it counts as multiply-adds
    assert cost(build_without_data("resnet50")).multiply_adds == pytest.approx(4.09e9, rel=0.002)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "cifar_resnet20"])
def test_plain_nets_are_the_residual_nets_without_shortcuts(name):
    plain, residual = build_without_data(name, plain=True), build_without_data(name)
    shapes = {key: value.shape for key, value in residual.state_dict().items() if "downsample" not in key}
    assert {key: value.shape for key, value in plain.state_dict().items()} == shapes


def test_a_plain_unit_adds_nothing_to_its_output():
    net = build_backbone("cifar_resnet20", plain=True).eval()
    unit = net.layer1[0]
    nn.init.zeros_(unit.bn2.weight)
    assert not unit(torch.rand(1, 16, 5, 7)).any()
    residual = build_backbone("cifar_resnet20").eval().layer1[0]
    nn.init.zeros_(residual.bn2.weight)
    x = torch.rand(1, 16, 5, 7)
    assert torch.equal(residual(x), x)


def test_shortcut_options_differ_by_their_projections():
    def projections(option):
        state = build_without_data("resnet34", shortcut=option).state_dict()
        return sum(key.endswith("downsample.0.weight") for key in state)

    assert [projections(option) for option in "ABC"] == [0, 3, 16]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("plain", [False, True])
def test_every_parameter_gets_a_gradient(name, shortcut, plain):
    torch.manual_seed(0)
    net = build_backbone(name, shortcut=shortcut, plain=plain, num_classes=3, dropout=0.2)
    net(torch.randn(2, 3, 40, 56)).square().sum().backward()
    without = [key for key, value in net.named_parameters() if value.grad is None or not value.grad.any()]
    assert not without


def test_a_net_of_ones_own_is_a_table():
    table = {
        "stem": {"kernel": 5, "width": 8, "stride": 1, "pool": False},
        "stages": [{"units": 1, "width": 8, "stride": 1}, {"units": 2, "width": 12, "stride": 3}],
        "unit": "bottleneck",
        "shortcut": "C",
        "num_classes": 4,
    }
    net = build_backbone(table)
    assert net.stage_channels == {"conv1": 8, "conv2": 32, "conv3": 48}
    assert net.stage_strides == {"conv1": 1, "conv2": 1, "conv3": 3}
    assert net.conv1.kernel_size == (5, 5)
    maps = net.forward_stages(torch.randn(2, 3, 12, 30), ["conv2", "conv3"])
    assert maps["conv3"].shape == (2, 48, 4, 10)
    assert net(torch.randn(2, 3, 12, 30)).shape == (2, 4)
    assert sum(key.endswith("downsample.0.weight") for key in net.state_dict()) == 3


def test_a_named_net_equals_its_table():
    row = build_without_data("resnet50").spec.model_dump()
    own = build_without_data(row)
    assert own.spec == build_without_data("resnet50").spec


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet51", {}, "resnet50"),
        ("cifar_resnet21", {}, "6n + 2"),
        ("resnet50", {"shortcut": "D"}, "shortcut"),
        ({"unit": "basic", "stages": []}, {}, "at least one stage"),
        ({"unit": "basic", "stages": [{"units": 0, "width": 4, "stride": 1}]}, {}, "stages.0.units"),
        ({"unit": "basic", "stages": [{"units": 10**30, "width": 4, "stride": 1}]}, {}, "stages.0.units"),
        ("cifar_resnet600002", {}, "units"),
        ({"unit": "basic", "stage": []}, {}, "stage"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(UserError) as caught:
        build_backbone(name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dropout_stands_before_the_classifier():
    torch.manual_seed(0)
    net = build_backbone("cifar_resnet20", dropout=0.5)
    seen = []
    net.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(4, 3, 32, 32)
    net.train()(x)
    net.eval()(x)
    assert 0.3 < (seen[0] == 0).float().mean() < 0.7
    assert (seen[1] == 0).float().mean() < 0.1
