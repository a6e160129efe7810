"""What is wrong with a config, in one line: path, value and fix."""

from __future__ import annotations

import pytest

from configs.detection import AlternatingConfig, DetectionConfig, SourceConfig
from configs.errors import UserError
from configs.loading import parse_config
from configs.messages import section_at
from tests.configs.test_loading import message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=1", "unknown key optim.lrr: did you mean optim.lr?"),
        ("train.lr=1", "unknown key train.lr: did you mean optim.lr"),
        ("data.train.0.rot=a", "unknown key data.train.0.rot: did you mean data.train.0.root?"),
        ("data.augment.photometric.q=1", "data.augment.photometric has p, brightness, contrast, saturation, hue"),
        ("foo=1", "unknown key foo: the config has seed, data, model,"),
        ("optim.lr=abc", "optim.lr must be a number, not 'abc'"),
        ("optim.lr=-1", "optim.lr must be greater than 0, not -1"),
        ("optim.lr=.nan", "optim.lr must be a finite number, not nan"),
        ("seed=1.5", "seed must be a whole number, not 1.5"),
        ("seed=4294967296", "seed must be less than 4294967296, not 4294967296"),
        ("test.refine_rounds=1000000000", "test.refine_rounds must be at most 100, not 1000000000"),
        ("model.box.num_fcs=1000000000", "model.box.num_fcs must be at most 100, not 1000000000"),
        ("train.batch_size=1000001", "train.batch_size must be at most 1000000, not 1000001"),
        ("seed=1e308", "seed must be a smaller whole number, not 1e+308"),
        ("train.channels_last=perhaps", "train.channels_last must be true or false, not 'perhaps'"),
        ("model.backbone=resnet11", "not 'resnet11': did you mean resnet101?"),
        ("data.classes=[1, 2]", "data.classes.0 must be text, not 1: put it in quotes"),
        ("data.min_size=[0]", "data.min_size.0 must be greater than 0, not 0"),
        ("data.min_size=a", "data.min_size must be a whole number or a list, not 'a'"),
        ("model.rpn.nms_thresh=2", "model.rpn.nms_thresh must be at most 1, not 2"),
        ("model.box.bg_iou_range=[1]", "model.box.bg_iou_range.1 is missing"),
        ("model=3", "model must be a mapping of keys to values, not 3"),
        ("train=", "train must be a mapping of keys to values, not null"),
        ("test.vote_iou=0", "test.vote_iou must be greater than 0, not 0"),
        ("test.refine_round=1", "unknown key test.refine_round: did you mean test.refine_rounds?"),
        ("metrics=[voc7]", "must be one of voc07, voc12, coco, imagenet_det, not 'voc7': did you mean voc07?"),
    ],
)
def test_message_names_path_value_and_fix(override, expected):
    text = message(override)
    assert expected in text
    assert text.startswith(f"--set {override}: ")


def test_several_mistakes_stay_one_line():
    with pytest.raises(UserError) as error:
        parse_config({}, [], DetectionConfig, "my.yaml")
    assert (
        str(error.value)
        == "my.yaml: data is missing; my.yaml: model is missing; my.yaml: optim is missing (and 2 more)"
    )


def test_the_section_at_a_path():
    assert section_at(DetectionConfig, ("data", "train", 0)) is SourceConfig
    assert section_at(DetectionConfig, ()) is DetectionConfig
    assert section_at(DetectionConfig, ("train", "alternating")) is AlternatingConfig
    for path in (("seed",), ("seed", "x"), ("nothing",), ("data", "nothing", "x")):
        assert section_at(DetectionConfig, path) is None
