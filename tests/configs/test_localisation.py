"""Every localisation YAML loads, says what it is, builds its stage, and trains one step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.weights import IMAGENET
from configs.errors import UserError
from configs.loading import dump_config, load_config, parse_config
from configs.localisation import LocalisationConfig, LocalisationTestConfig
from detection.localisation import Candidates, build_localiser

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(path.name for path in CONFIGS.glob("*_loc*.yaml"))


def test_the_papers_rows_are_there():
    names = ("rpn_resnet101", "rcnn_resnet101", "rpn_vgg16")
    tiny = {"tiny_imagenet_loc_rpn.yaml", "tiny_imagenet_loc_rcnn.yaml"}
    assert {f"imagenet_loc_{name}.yaml" for name in names} | tiny <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_header_says_command_hardware_time_and_expectation(name):
    text = "\n".join(line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#"))
    assert f"configs/{name}" in text
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in text, word


@pytest.mark.parametrize("name", FILES)
def test_loads_builds_and_trains_one_step(name):
    config = load_config(CONFIGS / name, [], LocalisationConfig)
    assert parse_config(config.model_dump(mode="json"), [], LocalisationConfig, name) == config
    assert dump_config(config)
    model = config.model
    torch.manual_seed(0)
    net = build_localiser(model, 3, preprocessing=IMAGENET).train()
    side = 64
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 60.0]], [[0.0, 0.0, 0.0, 0.0]]])
    inputs = [images, torch.tensor([2, 0]), boxes, torch.tensor([[True], [False]]), torch.tensor([0, 1])]
    if model.stage == "rcnn":
        net.config = model.rcnn.model_copy(update={"warp_size": 64, "rois_per_image": 2})
        proposals = torch.tensor([[4.0, 8.0, 38.0, 60.0], [0.0, 0.0, 20.0, 20.0]])
        inputs.append(Candidates(proposals.repeat(2, 1, 1, 1), torch.full((2, 1, 2), 0.5)))
    losses = net(*inputs, seed=config.seed, iteration=0)
    total = sum(losses.values())
    assert torch.isfinite(total)
    assert total > 0
    total.backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_a_dense_validation_reads_what_a_dense_test_does():
    values = {"view": "center", "validation_view": "dense", "scales": [104], "hflip": False}
    assert LocalisationTestConfig(**values).scales == [104]
    config = load_config(CONFIGS / "tiny_imagenet_loc_rcnn.yaml", ["test={scales: [104]}", "test.view=center",
                         "test.validation_view=dense"], LocalisationConfig)  # fmt: skip
    assert config.test.scales == [104]


def test_the_recipe_is_the_papers():
    """He et al. 2016, App. C, number by number."""
    config = load_config(CONFIGS / "imagenet_loc_rpn_resnet101.yaml", [], LocalisationConfig)
    assert config.data.crop_size == 224
    assert config.data.augment.scale == (256, 480)
    assert config.train.batch_size == 256
    assert config.model.rpn.batch_size_per_image == 8
    assert config.test.proposals == 200
    assert config.test.scales == [224, 256, 384, 480, 640]
    rcnn = load_config(CONFIGS / "imagenet_loc_rcnn_resnet101.yaml", [], LocalisationConfig)
    assert rcnn.model.rcnn.warp_size == 224
    assert rcnn.train.batch_size * rcnn.model.rcnn.rois_per_image == 256
    assert (rcnn.optim.momentum, rcnn.model.stage) == (0.9, "rcnn")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.stage=rcnn", "stage: rcnn needs rcnn.proposals"),
        ("model.norm=frozen", "norm: frozen over weights: random ruins the model"),
        ("model.rpn.batch_size_per_image=7", "batch_size_per_image is even"),
        ("model.rpn.anchors.sizes=[[8],[16]]", "there is one level"),
        ("data.augment={crop: scale_jitter, scale: [32, 64]}", "below the crop of 96"),
        ("data.augment.area=[0.5,1.5]", "at most the whole image"),
        ("data.test_resize=32", "smaller than the crop of 96"),
        ("data.train.images=x", "belong to format imagenet_loc"),
        ("model.rpn.classification_loss_weight=0", "best_metric top1_error needs"),
        ("train.accumulate=3", "is not a multiple of train.accumulate"),
        ("test.scales=[]", "give at least one"),
        ("model.backbone=vgg16", "rpn.stage need a residual net"),
        ("model.rcnn.context=112", "leaves nothing of warp_size 224"),
        ("model.rcnn.sampling=roi", "sampling: roi takes one RoI of each image: set rois_per_image: 1, not 8"),
        ("data.train={format: imagenet_loc, root: x, split: test}", "train: split test has no boxes"),
        ("data.test={format: tiny_imagenet, root: x, split: test}", "split test is that of imagenet_loc"),
        ("data.val={format: imagenet_loc, root: x, split: val, meta: y}", "meta belongs to split test"),
        ("test={view: center, hflip: false}", "view center does not read hflip, which is for view dense"),
        ("test={view: center, scales: [104]}", "view center does not read scales, which is for view dense"),
    ],
)
def test_what_does_not_fit_is_refused(override, words):
    overrides = [override]
    if "classification" in override:
        overrides.append("train.best_metric=top1_error")
    if "norm" in override:
        overrides.append("model.weights=random")
    with pytest.raises(UserError, match=words):
        load_config(CONFIGS / "tiny_imagenet_loc_rpn.yaml", overrides, LocalisationConfig)
