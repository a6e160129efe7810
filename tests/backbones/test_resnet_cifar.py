"""The CIFAR nets' table (He et al. 2016, Sec. 4.2), and the numbers that are counted from it by hand."""

from __future__ import annotations

import pytest

from backbones.resnet_cifar import DEPTHS, NAME, cifar_spec
from backbones.zoo import build_backbone


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_table_by_hand(depth):
    """6n + 2 layers: the first one, 2n of each width, the classifier; weights, two numbers a channel of batch norm."""
    n = (depth - 2) // 6
    spec = cifar_spec(depth)
    assert [(stage.units, stage.width, stage.stride) for stage in spec.stages] == [(n, 16, 1), (n, 32, 2), (n, 64, 2)]
    assert (spec.stem.kernel, spec.stem.width, spec.stem.stride, spec.stem.pool) == (3, 16, 1, False)
    assert (spec.unit, spec.shortcut, spec.num_classes) == ("basic", "A", 10)
    assert 1 + sum(2 * stage.units for stage in spec.stages) + 1 == depth


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_parameters_by_hand(depth):
    """Shortcuts have none. Each layer: 9 * inputs * outputs, and 2 * outputs of batch norm."""
    n = (depth - 2) // 6
    layers = [(3, 16)] + [(16, 16)] * 2 * n
    for width in (32, 64):
        layers += [(width // 2, width)] + [(width, width)] * (2 * n - 1)
    expected = sum(9 * a * b + 2 * b for a, b in layers) + 64 * 10 + 10
    net = build_backbone(f"cifar_resnet{depth}")
    assert sum(value.numel() for value in net.parameters()) == expected
    assert list(net.stage_strides.values())[-3:] == [1, 2, 4]


@pytest.mark.parametrize("depth", [-4, 0, 2, 19, 21, 51])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 2 layers .* not {depth}"):
        cifar_spec(depth)


def test_names():
    assert NAME.fullmatch("cifar_resnet20")[1] == "20"
    assert not NAME.fullmatch("cifar_resnet")
    assert not NAME.fullmatch("resnet20")
