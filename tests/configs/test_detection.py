"""Every detection YAML loads, says what it is, builds and trains one step; contradictions are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from configs.loading import load_config
from datasets.batch import Batch
from detection.alternating import PHASES
from detection.model import build_detector
from tests.configs.test_loading import message
from tools.runtime.optimizer import scaled_rate
from tools.runtime.tasks.alternating import config_of_phase

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTION = sorted(path.name for path in CONFIGS.glob("*.yaml") if "box" in yaml.safe_load(path.read_text())["model"])
MODELS = {load_config(CONFIGS / name).model.model_dump_json(): name for name in DETECTION}
"""One config for each detector that is built: some configs differ in nothing but the data and the schedule."""
REQUIRED = {
    "frcnn_r101_voc",
    "frcnn_r101_voc_paper",
    "frcnn_vgg16_voc",
    "frcnn_r101_voc12",
    "frcnn_vgg16_voc12",
    "frcnn_r101_coco",
    "frcnn_vgg16_coco",
    "frcnn_r101_c4_coco_modern",
    "frcnn_r101_fpn_coco_modern",
    "frcnn_r50_fpn_coco_modern",
    "demo",
    "bccd_r18_fpn",
    "frcnn_r101_coco_context",
    "frcnn_r101_coco_testdev",
    "frcnn_r101_voc_plus",
    "frcnn_r101_voc12_plus",
    "frcnn_r101_voc_alternating",
    "frcnn_r101_coco_alternating",
    "frcnn_r101_imagenet_det",
}


def test_the_published_recipes_are_there():
    assert {f"{name}.yaml" for name in REQUIRED} <= set(DETECTION)


@pytest.mark.parametrize("name", DETECTION)
def test_header_says_command_hardware_time_and_expectation(name):
    header = [line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"configs/{name}" in text
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in text, word


OF_101 = ("frcnn_r101_voc12.yaml", "frcnn_r101_fpn_coco_modern.yaml", "frcnn_r101_voc_paper.yaml")
"""Of the models on ResNet-101, which take a quarter of a minute each, those that are built in every run."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in OF_101 or load_config(CONFIGS / name).model.backbone != "resnet101"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(MODELS.values())
    ],
)  # fmt: skip
def test_builds_and_trains_one_step(name):
    # No ImageNet weights here, so batch norm trains; few RoIs and narrow fc layers keep the step short.
    overrides = [
        "model.weights=random",
        "model.norm=batch",
        "model.frozen_stages=0",
        "model.box.batch_size_per_image=4",
    ]
    config = load_config(CONFIGS / name)
    if config.model.box.fc_width > 256:
        overrides.append("model.box.fc_width=32")
    config = load_config(CONFIGS / name, overrides)
    torch.manual_seed(0)
    detector = build_detector(config.model, ["cat", "dog"], test=config.test).train()
    boxes = torch.zeros(2, 8, 4)
    boxes[0, 0] = torch.tensor([8.0, 4.0, 60.0, 40.0])
    batch = Batch(
        images=torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
        image_sizes=torch.tensor([[64, 96], [50, 80]]),
        original_sizes=torch.tensor([[64, 96], [50, 80]]),
        boxes=boxes,
        labels=torch.tensor([[1] + [0] * 7, [0] * 8]),
        valid=boxes[..., 2] > 0,
        index=torch.tensor([0, 1]),
    )
    losses = detector(batch, seed=config.seed, iteration=0)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    with torch.no_grad():
        detections = detector.eval()(batch)
    assert detections.boxes.shape == (2, config.test.detections_per_img, 4)


def test_recipes_are_those_of_the_interface():
    """The settings that tell the consensus recipe from the paper's."""
    consensus, paper = load_config(CONFIGS / "frcnn_r101_voc.yaml"), load_config(CONFIGS / "frcnn_r101_voc_paper.yaml")
    assert (consensus.model.box.pool, consensus.model.box.pool_size) == ("roi_align", 14)
    assert consensus.model.rpn.hidden_channels == 512
    assert consensus.model.rpn.post_nms_top_n_test == 300
    assert consensus.model.box.bg_iou_range == (0.0, 0.5)
    assert (consensus.test.nms_thresh, consensus.test.score_thresh) == (0.3, 0.001)
    assert consensus.optim.weight_decay == 1e-4
    assert (paper.model.box.pool, paper.model.rpn.cross_boundary) == ("roi_pool", "drop")
    assert paper.optim.weight_decay == 5e-4
    assert paper.model.rpn.smooth_l1_beta == pytest.approx(1 / 9)
    assert paper.model.box.smooth_l1_beta == 1.0
    for config in (consensus, paper):
        assert config.model.weights == "torchvision:IMAGENET1K_V1"
        assert len(config.model.anchors.sizes) * len(config.model.anchors.aspect_ratios) == 9


def test_vocs_models_can_start_from_cocos():
    """Equal shapes but for the class layers: `--init-from` finds a place for all the rest."""
    voc, voc12 = (load_config(CONFIGS / f"frcnn_r101_{name}_plus.yaml") for name in ("voc", "voc12"))
    for name in ("testdev", "context"):
        assert load_config(CONFIGS / f"frcnn_r101_coco_{name}.yaml").model == voc.model == voc12.model


def test_alternating_training_has_the_papers_rates():
    """He et al. 2016, App. A: 8 images in the RPN's steps, 16 in the detector's, all at 1e-3 and then 1e-4."""
    config = load_config(CONFIGS / "frcnn_r101_coco_alternating.yaml")
    for phase, images in zip(PHASES, (8, 16, 8, 16), strict=True):
        own = config_of_phase(config, phase)
        assert own.train.batch_size == images
        assert scaled_rate(own.optim, images) == 0.001
        assert (own.schedule.iterations, own.schedule.milestones) == (320000, [240000])
    paper = load_config(CONFIGS / "frcnn_r101_voc_paper.yaml")
    alternating = load_config(CONFIGS / "frcnn_r101_voc_alternating.yaml").model
    assert alternating.box.batch_size_per_image == 64  # of each of two images: Fast R-CNN, Sec. 2.3
    box = alternating.box.model_copy(update={"batch_size_per_image": 128})
    assert alternating.model_copy(update={"box": box}) == paper.model
    assert paper.model.box.pool_inclusive
    assert paper.model.rpn.min_size == 16


@pytest.mark.parametrize("name", [name for name in DETECTION if "coco" in name])
def test_cocos_best_is_that_of_cocos_own_metric(name):
    assert load_config(CONFIGS / name).train.best_metric == "coco.AP"


@pytest.mark.parametrize("name", ["coco_context", "coco_testdev", "voc_plus", "voc12_plus", "imagenet_det"])
def test_the_papers_test(name):
    """He et al. 2016, App. B."""
    config = load_config(CONFIGS / f"frcnn_r101_{name}.yaml")
    assert config.model.box.global_context
    assert (config.test.refine_rounds, config.test.refine_nms_thresh, config.test.vote_iou) == (1, 0.3, 0.5)
    assert config.test.scales == [200, 400, 600, 800, 1000]


def test_what_does_not_fit_together_is_told_in_the_schemas_words():
    assert message("data.train.0.root=null") == "my.yaml: data.train.0: format voc needs root"
    for values, expected in (
        ("{format: csv, images: a}", "format csv needs annotations"),
        ("{format: voc, root: a, image_set: b, images: c}", "or for a folder without"),
        ("{format: voc, root: a, image_set: b, image_list: c}", "image_list is for voc, yolo, labelme, supervisely"),
        ("{format: yolo, root: a, unlisted: true}", "unlisted is for voc, without image_set"),
        ("{format: generated, image_set: val, unlabelled: empty}", "unlabelled is not for format generated"),
        ("{format: voc, root: a, split: [0.5, 0.4]}", "split [0.5, 0.4]: give two or three shares"),
        ("{format: voc, root: a, split_by: x}", "split_by and split_seed need split"),
        (
            "{format: coco, images: a, annotations: b, root: c}",
            "format coco does not read root, which is for format voc",
        ),
        ("{format: labelme, root: a, image_set: b}", "format labelme does not read image_set"),
        ("{format: voc, root: a, annotations: b}", "format voc does not read annotations, which is for format coco or"),
        ("{format: yolo, root: a, zero_based: true}", "format yolo does not read zero_based, which is for format voc"),
        ("{format: voc, root: a, size: 3}", "format voc does not read size, which is for format generated"),
    ):
        assert expected in message(f"data.train.0={values}")
    assert "p 0.0 does not read hue: leave it out" in message("data.augment.photometric.hue=0.1")
    assert "refine_rounds 0 does not read refine_nms_thresh" in message("test.refine_nms_thresh=0.4")
    assert "scales [] does not read canonical_size" in message("test.canonical_size=96")
    assert "box.dropout is for fully connected layers" in message("model.box.dropout=0.5", "model.neck=none")
    assert "no RoI would be background" in message("model.box.bg_iou_range=[0.5,0.1]")
    assert "optim.betas.1 must be less than 1, not 1.0" in message("optim.betas=[0.9,1.0]")
    # Else a stored config, or a slip of the finger, fills the memory.
    assert "data.test_max_size must be at most 16384, not 1000000000" in message("data.test_max_size=1000000000")
    assert "model.box.pool_size must be at most 32, not 1000000" in message("model.box.pool_size=1000000")
    for split in ("0.8", "[0.5, 0.5]", "[0.7, 0.2, 0.1]"):
        load_config(CONFIGS / "demo.yaml", [f"data.train.0={{format: voc, root: a, split: {split}}}"])
    assert "give two or three shares" in message("data.train.0={format: voc, root: a, split: [0.25, 0.25, 0.25, 0.25]}")
    assert message("schedule.epochs=3").startswith("my.yaml: schedule: give either iterations or epochs, not both")
    assert "train.batch_size 2 is not a multiple of train.accumulate 4" in message("train.accumulate=4")
    assert "say how many in data.padded_sizes (32)" in message("train.graphs=true")
    assert "batch_size auto does not reckon" in message(
        "train.graphs=true", "data.padded_sizes=8", "train.batch_size=auto"
    )


def test_every_position_has_as_many_anchors_as_the_head_has_outputs():
    """With two sizes on the first level alone, logits of all others would answer for wrong anchors."""
    uneven = message("model.neck=fpn", "model.anchors.sizes=[[32,64],[64],[128],[256],[512]]")
    assert "give each level equally many: the RPN's head is one for all levels" in uneven
    for override in ("model.anchors.sizes=[]", "model.anchors.sizes=[[32],[]]", "model.anchors.aspect_ratios=[]"):
        assert "give at least one size (on each level) and one of aspect_ratios" in message(override)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("test.scales=[600]", "test: scales [600]: the multi-scale detector compares pairs of scales: give two or"),
        ("test={scales: [400, 600], tta: {scales: [600]}}", "test: scales and tta.scales exclude each other"),
        ("test.tta.scales=[600, 600]", "test.tta: scales [600, 600]: a size appears twice"),
        ("test.tta.merge=vote", "test.tta: merge: vote has nothing to merge: give hflip: true or scales"),
    ],
)
def test_ways_of_testing_that_exclude_each_other(override, expected):
    assert expected in message(override)
