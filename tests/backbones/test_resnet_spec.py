"""The table of residual nets: depths, sizes of maps by hand, and rows that make no net."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from backbones.resnet_spec import RESNETS, PoolSpec, ResNetSpec, StemSpec

STAGES = [{"units": 1, "width": 8}, {"units": 2, "width": 16, "stride": 2}]


def spec(**values: object) -> ResNetSpec:
    return ResNetSpec.model_validate({"stages": STAGES, "unit": "basic", **values})


@pytest.mark.parametrize("name", RESNETS)
def test_names_count_the_layers_with_weights(name):
    """Table 1: the stem, the convolutions of the units, and the classifier."""
    row = RESNETS[name]
    assert 2 + len(row.kernels) * sum(stage.units for stage in row.stages) == int(name.removeprefix("resnet"))
    assert [(stage.width, stage.stride) for stage in row.stages] == [(64, 1), (128, 2), (256, 2), (512, 2)]


def test_maps_by_hand():
    """33 x 40 pixels: 17 x 20 after the stem, 9 x 10 after its pooling, 5 x 5 after the stage that strides."""
    row = spec(classifier_pool={"kind": "average", "size": 2}, input_size=[33, 40], stem={"width": 8})
    assert row.last_map() == (5, 5)
    pooled = [STAGES[0], {**STAGES[1], "stride": 1, "pool": {"size": 3, "stride": 2}}]
    row = spec(classifier_pool={"size": 2}, input_size=[33, 40], stem={"width": 8}, stages=pooled)
    assert row.last_map() == (4, 4)  # (9 - 3) // 2 + 1, (10 - 3) // 2 + 1
    assert PoolSpec(size=3, stride=2, padding=1).output_size(17) == 9
    assert StemSpec(pool=False).pooling is None


def test_pooling_layers_by_hand():
    """Windows of 2 at a stride of 2 drop the fifth column; a padded maximum at a stride of 1 keeps the size."""
    x = torch.arange(10.0).reshape(1, 1, 2, 5)
    assert PoolSpec(size=2).build()(x).tolist() == [[[[6, 8]]]]
    assert PoolSpec(kind="average", size=2).build()(x).tolist() == [[[[3, 5]]]]
    assert PoolSpec(size=3, stride=1, padding=1).build()(x).tolist() == [[[[6, 7, 8, 9, 9]] * 2]]


def test_kernels_and_strides():
    assert spec(unit=[3, 3, 3]).kernels == (3, 3, 3)
    assert spec(unit="bottleneck").kernels == (1, 3, 1)
    assert spec().downsamples
    flat = {"stem": {"kernel": 1, "stride": 1, "pool": False}, "stages": STAGES[:1]}
    assert not spec(**flat).downsamples


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stages": []}, "give at least one stage"),
        ({"unit": [2, 3]}, "sizes of convolutions are odd"),
        ({"unit": [3], "unit_dropout": 0.5}, "unit has only one"),
        ({"input_size": [32, 32]}, "input_size belongs to a classifier_pool"),
        ({"classifier_pool": {"size": 9}, "input_size": [32, 32]}, "does not fit on the last map, 4x4 pixels"),
        ({"vector_inputs": 4}, "vector_inputs: give stem"),
        ({"shortcut": "A", "stages": [{"units": 1, "width": 32}]}, "give widths that grow"),
        ({"stem": {"pool": {"size": 3, "padding": 2}}}, "padding 2 is more than half of the window of 3"),
    ],
)
def test_rows_that_make_no_net(values, words):
    with pytest.raises(ValidationError, match=words):
        spec(**values)
