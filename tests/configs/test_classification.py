"""Every classification YAML loads, says what it is, and builds the net of the paper's row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.classification import build_classifier
from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.loading import load_config, parse_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PREFIXES = ("cifar", "imagenet", "tiny_imagenet")
FILES = sorted(
    path.name for path in CONFIGS.glob("*.yaml") if path.name.startswith(PREFIXES) and "_loc" not in path.name
)
PARAMETERS = {
    "cifar_resnet20": 269_722, "cifar_resnet32": 464_154, "cifar_resnet44": 658_586, "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962, "cifar_resnet1202": 19_421_274, "cifar_plain20": 269_722, "cifar_plain56": 853_018,
    "imagenet_plain18": 11_689_512 - 173_824, "imagenet_resnet50": 25_557_032, "imagenet_resnet101": 44_549_160,
    "imagenet_resnet152": 60_192_808, "imagenet_resnet34b": 21_797_672, "imagenet_vgg16": 138_357_544,
    "imagenet_resnet50_modern": 25_557_032,
}  # fmt: skip
"""He et al. 2016, Table 6; for ImageNet torchvision's numbers (plain-18: ResNet-18 without its three projections)."""
TABLES = {
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),
    *(f"cifar_plain{depth}" for depth in (20, 32, 44, 56, 110)),
    *(f"imagenet_{name}" for name in ("plain18", "plain34", "resnet18", "resnet34a", "resnet34b", "resnet34c")),
    *(f"imagenet_{name}" for name in ("resnet50", "resnet101", "resnet152", "vgg16")),
}


def test_the_rows_of_the_papers_tables_are_there():
    assert {f"{name}.yaml" for name in TABLES} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_header_says_command_hardware_time_and_expectation(name):
    text = "\n".join(line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#"))
    assert f"configs/{name}" in text
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in text, word


@pytest.mark.parametrize("name", FILES)
def test_loads_and_builds(name):
    config = load_config(CONFIGS / name, [], ClassificationConfig)
    with torch.device("meta"):
        net = build_classifier(config.model, 10 if name.startswith("cifar") else 1000)
    stem = name.removesuffix(".yaml")
    if stem in PARAMETERS:
        assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[stem]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("imagenet")])
def test_imagenet_has_one_layout(name):
    """That of `prepare_data.py imagenet` and of the localisation configs; the validation images in one flat folder."""
    data = load_config(CONFIGS / name, [], ClassificationConfig).data
    assert (data.train.format, data.train.root) == ("folders", "ILSVRC/Data/CLS-LOC/train")
    assert (data.val.format, data.val.root) == ("imagenet_val", "ILSVRC/Data/CLS-LOC/val")
    text = (CONFIGS.parent / "tools/prepare_data.py").read_text()
    assert data.val.ground_truth.removeprefix("ILSVRC/") in text


def test_the_recipes_are_the_papers():
    """Sec. 3.4 and 4.2, number by number."""
    cifar = load_config(CONFIGS / "cifar_resnet110.yaml", [], ClassificationConfig)
    assert (cifar.optim.lr, cifar.optim.momentum, cifar.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (cifar.schedule.iterations, cifar.schedule.milestones, cifar.schedule.gamma) == (64000, [32000, 48000], 0.1)
    assert (cifar.schedule.warmup_until_error, cifar.schedule.warmup_until_factor) == (0.8, 0.1)
    assert (cifar.train.batch_size, cifar.data.augment.pad, cifar.data.mean) == (128, 4, "pixel")
    resnet20 = load_config(CONFIGS / "cifar_resnet20.yaml", [], ClassificationConfig)
    assert resnet20.schedule.warmup_until_error is None
    imagenet = load_config(CONFIGS / "imagenet_resnet50.yaml", [], ClassificationConfig)
    assert (imagenet.optim.lr, imagenet.optim.reference_batch_size, imagenet.train.batch_size) == (0.1, 256, 256)
    assert (imagenet.optim.momentum, imagenet.optim.weight_decay) == (0.9, 1e-4)
    assert (imagenet.data.augment.scale, imagenet.data.crop_size, imagenet.data.augment.lighting) == (
        (256, 480),
        224,
        0.1,
    )
    assert (imagenet.data.mean, imagenet.data.test_scales) == ("pixel", [224, 256, 384, 480, 640])
    assert imagenet.schedule.iterations == 600_000
    assert imagenet.model.stride_in_1x1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.warmup_iterations=5", "either warmup_until_error or warmup_iterations"),
        ("data.augment={crop: random_resized, area: [0.5,0.2]}", "area: 0.5 is greater than 0.2"),
        ("data.augment={crop: random_resized, area: [0.5,2]}", "at most the whole image"),
        ("data.augment.area=[0.5,0.9]", "data.augment: crop pad does not read area, which is for crop random_resized"),
        ("data.test_resize=16", "test_resize 16 is smaller than the crop of 32"),
        ("data.test_crop_size=24", "mean: pixel needs crops of one size"),
        ("data.test_scales=[]", "give at least one"),
        ("data.train={format: imagenet_val, root: x}", "ground_truth belongs to format imagenet_val"),
        ("data.train={format: folders, root: x, split: train}", "has no split"),
        (
            "schedule={iterations: 9, policy: cosine, milestones: [5]}",
            "schedule: policy cosine does not read milestones, which is for policy multistep: "
            "leave it out, or give its default, []",
        ),
        ("schedule.plateau_steps=2", "policy multistep does not read plateau_steps, which is for policy plateau"),
        ("schedule={iterations: 9, policy: constant, gamma: 0.5}", "gamma, which is for policy multistep or plateau"),
        ("schedule={iterations: 9, warmup_factor: 0.5}", "warmup_iterations 0 does not read warmup_factor"),
        ("schedule={iterations: 9, warmup_until_factor: 0.5}", "warmup_until_error None does not read"),
        (
            "data={train: {format: folders, root: x}, mean_images: 5}",
            "does not read mean_images, which is for mean pixel",
        ),
        ("train={batch_size: 2, recalibrate: false, recalibrate_images: 4}", "recalibrate False does not read"),
        ("data.reduced_decode=true", "not with crop: pad"),
        ("data.on_error=skip", "not with crop: pad"),
        ("train.accumulate=3", "not a multiple of train.accumulate 3"),
        ("train.best_metric=voc12.mAP", "top1_error"),
        ("modle.backbone=x", "did you mean model?"),
    ],
)
def test_contradictions_are_refused(override, words):
    with pytest.raises(UserError) as error:
        load_config(CONFIGS / "cifar_resnet110.yaml", [override], ClassificationConfig)
    assert words in str(error.value)


def test_the_resolved_config_reads_back():
    from configs.loading import dump_config, parse_yaml

    config = load_config(CONFIGS / "imagenet_resnet50_modern.yaml", [], ClassificationConfig)
    assert parse_config(parse_yaml(dump_config(config), "x"), [], ClassificationConfig, "x") == config
