"""Other projects' detectors: torchvision's own models compute the same; detectron2's names and orders by hand."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from backbones.weights import Preprocessing
from configs.errors import UserError
from configs.loading import load_config
from datasets.batch import Batch
from datasets.class_lists import COCO, VOC
from detection.checkpoint import load_strictly
from detection.conversion import (
    DETECTRON2_PIXELS,
    TORCHVISION_CATEGORIES,
    convert_detector,
    detectron2_name,
    torchvision_name,
)
from detection.model import Detector, build_detector
from detection.scoring import Scorer

ZOO = Path(__file__).resolve().parents[2] / "configs" / "zoo"
SIZE = (96, 160)
"""P5 is 3 x 5, so P6 is 2 x 3 and its anchors' distance is not 64 pixels."""
MODELS = torchvision.models.detection


@functools.cache
def torchvision_model(version: str) -> nn.Module:
    """A random model whose scores and boxes are far from trivial, and whose batch norm has statistics."""
    torch.manual_seed(0)
    make = MODELS.fasterrcnn_resnet50_fpn_v2 if version == "v2" else MODELS.fasterrcnn_resnet50_fpn
    model = make(
        weights=None, weights_backbone=None, min_size=SIZE[0], max_size=SIZE[1], rpn_post_nms_top_n_test=60
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.6, 0.9)
            nn.init.normal_(module.bias, std=0.1)
    for layer, std in (("rpn.head.cls_logits", 0.05), ("rpn.head.bbox_pred", 0.05)):
        nn.init.normal_(model.get_submodule(layer).weight, std=std)
    predictor = model.roi_heads.box_predictor
    hidden = []
    handle = predictor.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        model([image().float() / 255])
    handle.remove()
    spread = hidden[0].std(dim=0).norm()  # of the scores, whatever the layers before made of the image
    nn.init.normal_(predictor.cls_score.weight, std=float(2.0 / spread))
    nn.init.normal_(predictor.bbox_pred.weight, std=float(1.0 / spread))
    with torch.no_grad():
        predictor.cls_score.bias.copy_(-predictor.cls_score(hidden[0]).mean(0))
    return model


def image() -> Tensor:
    """(3, H, W) uint8."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 6, 10, generator=generator)
    return (nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0] * 255).to(torch.uint8)


def batch_of(pixels: Tensor) -> Batch:
    size = torch.tensor([pixels.shape[-2:]])
    nothing = torch.zeros(1, 8)
    return Batch(
        images=pixels[None],
        image_sizes=size,
        original_sizes=size,
        boxes=torch.zeros(1, 8, 4),
        labels=nothing.long(),
        valid=nothing.bool(),
        index=torch.tensor([0]),
    )


def converted(state: dict, name: str, overrides: tuple[str, ...] = ()) -> Detector:
    """The detector that a zoo config and converted weights make."""
    config = load_config(ZOO / f"{name}.yaml", overrides)
    checkpoint = convert_detector(state, name.partition("_")[0], config, Path("file"))
    stored = type(config).model_validate(checkpoint["config"])
    preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])
    detector = build_detector(stored.model, checkpoint["class_names"], preprocessing=preprocessing)
    load_strictly(detector, checkpoint["model"], "file")
    return detector.eval()


FEW = ("model.rpn.post_nms_top_n_test=60",)
NARROW = ("model.box.fc_width=32",)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_torchvisions_detections(version):
    model = torchvision_model(version)
    name = f"torchvision_r50_fpn{'_v2' if version == 'v2' else ''}_coco"
    detector = converted(model.state_dict(), name, FEW)
    with torch.no_grad():
        theirs = model([image().float() / 255])[0]
        found = detector(batch_of(image()))
    named = torch.tensor([TORCHVISION_CATEGORIES[label] != "N/A" for label in theirs["labels"]])
    assert 10 < named.sum() < len(named)  # outputs without a class were among the best, and are not reported
    valid = found.valid[0]
    assert [COCO[label - 1] for label in found.labels[0][valid]] == [
        TORCHVISION_CATEGORIES[label] for label in theirs["labels"][named]
    ]
    torch.testing.assert_close(found.scores[0][valid], theirs["scores"][named], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[0][valid], theirs["boxes"][named], atol=0.01, rtol=0)
    assert not found.scores[0][~valid].any()
    with torch.no_grad():
        faster = detector.optimize_for_inference()(batch_of(image()))
    torch.testing.assert_close(faster.boxes[faster.valid], found.boxes[found.valid], atol=0.01, rtol=0)
    torch.testing.assert_close(faster.scores[faster.valid], found.scores[found.valid], atol=1e-4, rtol=0)


def test_unused_outputs_stay_in_the_softmax_of_every_kind_of_test():
    detector = converted(torchvision_model("v1").state_dict(), "torchvision_r50_fpn_coco", FEW)
    batch = batch_of(image())
    with torch.no_grad():
        features = detector.features(batch)
        rois = torch.tensor([[[8.0, 8.0, 90.0, 80.0]]])
        scored = Scorer(detector, features, batch.image_sizes)(rois, torch.ones(1, 1, dtype=torch.bool))
        logits, _ = detector.roi_heads(detector.roi_maps(features), rois, batch.image_sizes)
    assert scored.scores.shape == (1, 1, 80)
    assert scored.boxes.shape == (1, 1, 80, 4)
    torch.testing.assert_close(scored.scores, logits.softmax(-1)[..., 1:81])
    assert scored.scores.sum() + logits.softmax(-1)[..., 0].sum() < 0.999


def test_frozen_batch_norm_of_the_published_v1_has_no_epsilon():
    """torchvision overwrites it with 0 where it loads the published file, whose batch norm was frozen."""
    state = {k: v.clone() for k, v in torchvision_model("v1").state_dict().items() if "num_batches" not in k}
    state["backbone.body.bn1.running_var"][:32] = 1e-6
    renamed = {old_name(key): value for key, value in state.items()}  # the file is older than torchvision 0.13
    assert "rpn.head.conv.weight" in renamed
    assert "backbone.fpn.inner_blocks.0.weight" in renamed
    detector = converted(renamed, "torchvision_r50_fpn_coco")
    theirs = FrozenBatchNorm2d(64, eps=0.0)
    theirs.load_state_dict({k.rpartition(".")[2]: v for k, v in state.items() if k.startswith("backbone.body.bn1.")})
    x = torch.randn(1, 64, 3, 3)
    torch.testing.assert_close(detector.backbone.body.bn1(x), theirs(x), rtol=1e-5, atol=1e-5)


def old_name(key: str) -> str:
    """torchvision's before 0.13."""
    key = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key)
    return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


def test_torchvision_fine_tuned_on_other_classes():
    state = dict(torchvision_model("v1").state_dict())
    for layer, rows in (("cls_score", 3), ("bbox_pred", 12)):
        for part in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{layer}.{part}"
            state[key] = state[key][:rows]
    detector = converted(state, "torchvision_r50_fpn_coco", ("data.classes=[cat, dog]",))
    assert detector.class_names == ["cat", "dog"]
    assert torch.equal(
        detector.roi_heads.box_predictor.cls_score.weight, state["roi_heads.box_predictor.cls_score.weight"]
    )
    with pytest.raises(UserError, match=r"2 classes and background, but data.classes names 20"):
        converted(state, "torchvision_r50_fpn_coco", ("data.classes=voc",))


# ---------------------------------------------------------------------------------------------- detectron2


def detectron2_state(name: str, classes: int) -> dict[str, np.ndarray]:
    """Random weights of a zoo config's detector under detectron2's names, with its own order of classes and anchors."""
    config = load_config(ZOO / f"{name}.yaml", NARROW)
    with torch.device("meta"):
        detector = build_detector(config.model, ["x"] * classes, preprocessing=DETECTRON2_PIXELS)
    rng = np.random.default_rng(0)
    names = {ours: theirs for theirs, ours in detectron2_names(detector).items()}
    state = {}
    for ours, value in detector.state_dict().items():
        shape = list(value.shape)
        if "bbox_pred" in ours and ours.startswith("roi_heads"):
            shape[0] -= 4
        state[names[ours]] = rng.standard_normal(shape, np.float32)
    return state


def detectron2_names(detector: Detector) -> dict[str, str]:
    """detectron2's name of each weight -> ours, written out here once more from its modules."""
    names = {}
    for ours in detector.state_dict():
        theirs = ours.replace("backbone.body.conv1.", "backbone.body.stem.conv1.")
        theirs = theirs.replace("backbone.body.bn1.", "backbone.body.stem.conv1.norm.")
        for stage in (1, 2, 3, 4):
            theirs = theirs.replace(f"layer{stage}.", f"res{stage + 1}.")
        theirs = theirs.replace("roi_heads.box_head.conv5.", "roi_heads.res5.")
        for number in (1, 2, 3):
            theirs = theirs.replace(f".bn{number}.", f".conv{number}.norm.")
        theirs = theirs.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        bottom_up = any(part in ours for part in ("fpn", "body")) and detector.backbone.fpn is not None
        theirs = theirs.replace("backbone.body.", "backbone.bottom_up." if bottom_up else "backbone.")
        for level in range(4):
            theirs = theirs.replace(f"fpn.inner_blocks.{level}.0.", f"fpn_lateral{level + 2}.")
            theirs = theirs.replace(f"fpn.layer_blocks.{level}.0.", f"fpn_output{level + 2}.")
        theirs = theirs.replace("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv.")
        theirs = theirs.replace("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits.")
        theirs = theirs.replace("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas.")
        theirs = theirs.replace("box_head.fc6.", "box_head.fc1.").replace("box_head.fc7.", "box_head.fc2.")
        names[theirs] = ours
    return names


@pytest.mark.parametrize(
    "name", ["detectron2_r50_fpn_coco", "detectron2_r50_dc5_coco", "detectron2_r50_c4_voc", "detectron2_r101_c4_coco"]
)
def test_detectron2s_names_and_orders(name):
    classes = 20 if name.endswith("voc") else 80
    state = detectron2_state(name, classes)
    config = load_config(ZOO / f"{name}.yaml", NARROW)
    extras = {
        "pixel_mean": np.array([[[103.53]], [[116.28]], [[123.675]]], np.float32),
        "pixel_std": np.ones((3, 1, 1), np.float32),
    }
    content = {"model": {**state, **extras}, "__author__": "Detectron2 Model Zoo"}
    checkpoint = convert_detector(content, "detectron2", config, Path("model_final.pkl"))
    weights = checkpoint["model"]
    assert checkpoint["class_names"] == (VOC if classes == 20 else COCO)
    assert checkpoint["preprocessing"]["channel_order"] == "bgr"
    assert checkpoint["preprocessing"]["std"] == [1.0, 1.0, 1.0]
    scores = state["roi_heads.box_predictor.cls_score.weight"]
    found = weights["roi_heads.box_predictor.cls_score.weight"].numpy()
    np.testing.assert_array_equal(found[0], scores[-1])
    np.testing.assert_array_equal(found[1:], scores[:-1])
    boxes = weights["roi_heads.box_predictor.bbox_pred.bias"].numpy()
    assert not boxes[:4].any()
    np.testing.assert_array_equal(boxes[4:], state["roi_heads.box_predictor.bbox_pred.bias"])
    deltas = state["proposal_generator.rpn_head.anchor_deltas.bias"].reshape(-1, 4)
    per_level = len(deltas) // 3
    for size in range(per_level):
        for ratio in range(3):  # detectron2: for each size the ratios
            np.testing.assert_array_equal(
                weights["rpn.head.bbox_pred.bias"].view(-1, 4)[ratio * per_level + size], deltas[size * 3 + ratio]
            )


def test_detectron2s_other_files():
    assert detectron2_name("backbone.fpn_lateral3.norm.weight") == "backbone.fpn.inner_blocks.1.1.weight"
    assert detectron2_name("proposal_generator.rpn_head.conv.conv1.bias") == "rpn.head.conv.1.0.bias"
    assert detectron2_name("roi_heads.box_head.conv2.norm.bias") == "roi_heads.box_head.convs.1.1.bias"
    assert detectron2_name("sem_seg_head.p2.0.weight") is None
    assert torchvision_name("roi_heads.box_head.5.weight") == "roi_heads.box_head.fc6.weight"
    assert torchvision_name("roi_heads.box_head.2.1.running_var") == "roi_heads.box_head.convs.2.1.running_var"


@pytest.fixture(scope="module")
def c4() -> dict[str, np.ndarray]:
    return detectron2_state("detectron2_r50_c4_voc", 20)


@pytest.mark.parametrize(
    ("change", "overrides", "words"),
    [
        ({}, ("data.classes=coco",), "20 classes and background, but data.classes names 80"),
        ({}, ("data.classes=auto",), "the weights' own classes are needed"),
        ({}, ("model.backbone=resnet101",), "of the config's detector is missing"),
        (
            {},
            ("model.anchors.sizes=[32, 64]",),
            "rpn.head.cls_logits.weight is 15x1024x1x1 in the file and 6x1024x1x1 in",
        ),
        ({"backbone.extra.weight": np.zeros(3)}, (), "backbone.extra.weight is not part of the config's detector"),
        (
            {"proposal_generator.anchor_generator.cell_anchors.0": np.array([[-8, -8, 8, 8]] * 15, np.float32)},
            (),
            "its anchors of level 0 have the sizes [16]",
        ),
        ({"roi_heads.box_predictor.cls_score.weight": None}, (), "cls_score.weight is missing: not a Faster R-CNN"),
    ],
)
def test_what_differs_is_named(c4, change, overrides, words):
    model = {key: value for key, value in {**c4, **change}.items() if value is not None}
    config = load_config(ZOO / "detectron2_r50_c4_voc.yaml", overrides)
    with pytest.raises(UserError) as caught:
        convert_detector({"model": model, "__author__": "x"}, "detectron2", config, Path("model_final.pkl"))
    assert words in str(caught.value)
    assert str(caught.value).startswith("model_final.pkl: ") or "data.classes" in words or "own classes" in words


def test_a_classifier_is_no_detector():
    config = load_config(ZOO / "detectron2_r50_c4_voc.yaml")
    with pytest.raises(UserError, match=r"no detector in detectron2's form \(the file begins with stem"):
        convert_detector({"model": {"stem.conv1.weight": np.zeros(3)}}, "detectron2", config, Path("R-50.pkl"))
