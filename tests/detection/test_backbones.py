"""A detector on every net of the zoo, on a net of one's own, and on what `pretrain.py` wrote."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from backbones.comparators import COMPARATORS
from backbones.zoo import build_backbone
from configs.detection import ModelConfig
from configs.errors import UserError
from datasets.batch import Batch
from detection.model import build_detector, with_described_net

SMALL = {
    "weights": "random",
    "norm": "batch",
    "frozen_stages": 0,
    "anchors": {"sizes": [16, 32]},
    "rpn": {
        "hidden_channels": 8,
        "pre_nms_top_n_train": 50,
        "post_nms_top_n_train": 20,
        "pre_nms_top_n_test": 20,
        "post_nms_top_n_test": 8,
    },
    "box": {"pool_size": 7, "batch_size_per_image": 4, "fc_width": 16},
}
OWN = {
    "stem": {"kernel": 7, "width": 4, "stride": 2, "pool": {"kind": "average", "size": 2}},
    "stages": [{"units": 1, "width": 4}, {"units": 2, "width": 6, "pool": {}}, {"units": 1, "width": 8, "stride": 2}],
    "unit": [3, 3, 3],
    "unit_dropout": 0.1,
    "num_classes": 3,
}
NETS = {
    **{name: {"backbone": name} for name in ("resnet18", "resnet34", "resnet50", "vgg16", "vgg16_bn", "googlenet")},
    **{f"34{option}": {"backbone": "resnet34", "shortcut": option} for option in "AC"},
    "plain34": {"backbone": "resnet34", "plain": True},
    "plain50 in the 1x1": {"backbone": "resnet50", "plain": True, "stride_in_1x1": True},
    "cifar": {"backbone": "cifar_resnet8"},
    "own": {"backbone": OWN},
    **{name: {"backbone": {"net": name, "width": 1 / 16}} for name in COMPARATORS if name != "linear"},
}


def small_config(**changes) -> ModelConfig:
    return ModelConfig.model_validate({**SMALL, **changes})


def small_batch() -> Batch:
    boxes = torch.zeros(2, 3, 4)
    boxes[0, 0] = torch.tensor([8.0, 4.0, 50.0, 40.0])
    return Batch(
        images=torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        image_sizes=torch.tensor([[64, 64], [50, 60]]),
        original_sizes=torch.tensor([[64, 64], [50, 60]]),
        boxes=boxes,
        labels=torch.tensor([[1, 0, 0], [0, 0, 0]]),
        valid=boxes[..., 2] > 0,
        index=torch.tensor([0, 1]),
    )


def check_one_step(config: ModelConfig) -> None:
    torch.manual_seed(0)
    detector = build_detector(config, ["cat", "dog"]).train()
    total = sum(detector(small_batch(), seed=0, iteration=0).values())
    assert torch.isfinite(total)
    total.backward()
    without = [name for name, value in detector.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    with torch.no_grad():
        assert detector.eval()(small_batch()).boxes.shape[::2] == (2, 4)


LARGE = ("resnet18", "resnet34", "34C", "resnet50", "plain50 in the 1x1", "vgg16", "vgg16_bn")
"""Slow: drawing their weights takes seconds."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETS])
def test_one_step(name):
    check_one_step(small_config(**NETS[name]))


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "vgg19", "vgg19_bn"])
def test_the_large_nets_build(name):
    with torch.device("meta"):
        detector = build_detector(small_config(backbone=name), ["cat"])
    assert detector.backbone.strides == [16]


@pytest.mark.parametrize("name", ["34A", "plain34", "googlenet"])
def test_pyramids(name):
    sizes = [[8], [16], [32], [48], [64]]
    check_one_step(small_config(**NETS[name], neck="fpn", fpn_channels=8, anchors={"sizes": sizes}))


DC5 = {"dilated_conv5": True, "box": {**SMALL["box"], "pool_size": 7, "fc_width": 16}}


@pytest.mark.parametrize(
    "net",
    [
        {"backbone": {**OWN, "unit": [5, 3]}},  # its last stage strides in its units
        {"backbone": "cifar_resnet8"},
        {"backbone": "cifar_resnet8", "plain": True},
        pytest.param(NETS["34A"], marks=pytest.mark.slow),
        pytest.param(NETS["plain50 in the 1x1"], marks=pytest.mark.slow),
    ],
)
def test_the_last_stage_of_any_residual_net_dilates(net):
    before = build_detector(small_config(**net), ["cat"]).backbone.strides[-1]  # of the map of the last but one
    detector = build_detector(small_config(**net, **DC5), ["cat"])
    assert detector.backbone.strides == [before]
    check_one_step(small_config(**net, **DC5))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (NETS["googlenet"], "only residual nets and their plain twins dilate"),
        (NETS["nin"], "only residual nets and their plain twins dilate"),
        ({"backbone": {**OWN, "stages": OWN["stages"][:2]}}, "conv3 of this net strides by pooling"),
        (
            {"backbone": {**OWN, "stages": [*OWN["stages"], {"units": 1, "width": 8}]}},
            "conv5 of this net does not stride",
        ),
    ],
)
def test_dilation_that_a_net_cannot_have_is_said(net, words):
    with pytest.raises(UserError, match=rf"model\.dilated_conv5: {words}.*: set it to false"):
        build_detector(small_config(**net, **DC5), ["cat"])


def test_a_net_that_its_weights_name_is_not_silently_undilated():
    """The schema does not see that a checkpoint describes VGG."""
    config = small_config(backbone="resnet18", **DC5).model_copy(update={"backbone": "vgg16"})
    with torch.device("meta"), pytest.raises(UserError, match="only residual nets"):
        build_detector(config, ["cat"])


@pytest.mark.parametrize("pool_size", [7, 14])
def test_the_head_of_a_net_with_pooling_and_padded_shortcuts(pool_size):
    table = {**OWN, "shortcut": "A"}
    check_one_step(small_config(backbone=table, box={**SMALL["box"], "pool_size": pool_size}))


def save(path, net, **model) -> str:
    torch.save(
        {
            "format": 1,
            "kind": "classifier",
            "config": {"model": model},
            "class_names": [],
            "preprocessing": {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "channel_order": "rgb"},
            "model": net.state_dict(),
        },
        path,
    )
    return str(path)


@pytest.mark.parametrize(
    "model",
    [
        {"backbone": "resnet18", "plain": True, "shortcut": None},
        {"backbone": "resnet18", "plain": False, "shortcut": "A"},
        {"backbone": OWN, "plain": False, "shortcut": None},
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_checkpoint_says_which_net_it_is(tmp_path, model, named):
    torch.manual_seed(0)
    net = build_backbone(model["backbone"], plain=model["plain"], shortcut=model["shortcut"])
    weights = save(tmp_path / "last.pt", net, **model, stride_in_1x1=False)
    config = small_config(weights=weights, norm="frozen", backbone=model["backbone"] if named else None)
    detector = build_detector(config, ["cat"])
    assert detector.preprocessing.mean == (1.0, 2.0, 3.0)
    body = detector.backbone.body
    assert (body.spec.plain, body.spec.shortcut) == (model["plain"], model["shortcut"] or "B")
    assert torch.equal(body.layer1.get_submodule("0").conv1.weight, net.layer1.get_submodule("0").conv1.weight)

    resolved = with_described_net(config)
    assert resolved.backbone == model["backbone"]
    assert bool(resolved.plain) == model["plain"]
    (tmp_path / "last.pt").unlink()  # a detector's checkpoint needs the classifier's no more
    again = build_detector(resolved, ["cat"], preprocessing=detector.preprocessing)
    again.load_state_dict(detector.state_dict())


def test_auxiliary_classifiers_of_a_checkpoint_are_left_out(tmp_path):
    """As configs/imagenet_googlenet.yaml trains them; the detector may name the net without them."""
    with torch.device("meta"):
        whole = build_backbone({"net": "googlenet", "auxiliary": True})
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in whole.state_dict().items()}
    assert any(key.startswith("companions.") for key in state)
    net = SimpleNamespace(state_dict=lambda: state)
    weights = save(tmp_path / "last.pt", net, backbone={"net": "googlenet", "auxiliary": True})
    for backbone in ("googlenet", {"net": "googlenet", "auxiliary": True}):
        detector = build_detector(small_config(weights=weights, norm="frozen", backbone=backbone), ["cat"])
        assert not any("companions" in key for key in detector.state_dict())
        assert not any(value.any() for key, value in detector.backbone.named_parameters() if "conv" in key)


def test_an_explicit_option_that_the_weights_contradict_is_refused(tmp_path):
    net = build_backbone("resnet18", plain=True)
    weights = save(tmp_path / "last.pt", net, backbone="resnet18", plain=True)
    with pytest.raises(UserError, match="trained with plain: True"):
        build_detector(small_config(weights=weights, norm="frozen", backbone="resnet18", plain=False), ["cat"])
    with pytest.raises(UserError, match="weights of resnet18"):
        build_detector(small_config(weights=weights, norm="frozen", backbone="resnet34"), ["cat"])


def test_what_no_detector_can_stand_on_is_said():
    vectors = {
        "vector_inputs": 8,
        "stem": {"kernel": 1, "width": 4, "stride": 1, "pool": False},
        "stages": [{"units": 1, "width": 4}],
        "unit": [1, 1],
    }
    with pytest.raises(UserError, match="no feature maps"):
        build_detector(small_config(backbone=vectors), ["cat"])
    sizes = [[8], [16], [32], [48], [64]]
    with pytest.raises(UserError, match="none of stride 8"):
        build_detector(small_config(backbone="cifar_resnet8", neck="fpn", anchors={"sizes": sizes}), ["cat"])
    for net in (OWN, "cifar_resnet8", {"net": "nin", "width": 1 / 16}):  # VGG and PReLU-net have the layers for it
        with pytest.raises((UserError, ValueError), match=r"box\.dropout.* is for fully connected layers"):
            build_detector(small_config(backbone=net, box={**SMALL["box"], "dropout": 0.5}), ["cat"])
    with pytest.raises(UserError, match="do not say which"):
        build_detector(small_config(weights="torchvision:IMAGENET1K_V1"), ["cat"])
    with pytest.raises(ValueError, match="name a net"):
        small_config()
