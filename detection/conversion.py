"""Other projects' detectors as this project's checkpoints: torchvision's and detectron2's Faster R-CNN.

A file says what its weights are called; what it does not say (anchors, sizes, thresholds, classes) comes from a config,
one of `configs/zoo/` as a rule. Nothing is guessed: every name and shape is compared with the detector that the config
builds, and what a file does tell of anchors and pixels is compared or taken.

| | torchvision | detectron2 | here |
|---|---|---|---|
| background | first output | last output | first output |
| anchors of a position | ratio by ratio | size by size | ratio by ratio |
| boxes of the background | four unused deltas | none | four unused deltas |
| pixels | RGB, mean and std | BGR, mean | both |
| COCO's classes | 90 ids, 10 of them unused | 80 | 80, the unused outputs behind them |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from backbones.conversion import BATCH_NORM_EPS, add_statistics, residual_name
from backbones.weights import FORMAT, IMAGENET, Preprocessing, check_keys
from configs.detection import DataConfig, DetectionConfig, ModelConfig
from configs.errors import UserError, counted
from datasets.class_lists import CLASS_LISTS, COCO
from detection.anchors import base_anchors, sizes_of_levels
from detection.model import build_detector

DETECTRON2_PIXELS = Preprocessing((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")
"""detectron2's default, with MSRA's ImageNet weights: what its COCO and VOC models were trained with."""
TORCHVISION_CATEGORIES: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
"""Names of torchvision's 91 outputs: COCO's ids, 0 for background; "N/A" where COCO has no such id."""


class Converted(NamedTuple):
    """A source's detector under this project's names."""

    state: dict[str, Tensor]
    preprocessing: Preprocessing
    unused_outputs: int
    """See `BoxConfig.unused_outputs`."""


# ---------------------------------------------------------------------------------------------- torchvision


def from_torchvision(content: Mapping[str, Any], model: ModelConfig, class_names: list[str], path: Path) -> Converted:
    """torchvision's `fasterrcnn_resnet50_fpn` and `_v2`, published or fine-tuned; also its models of other ResNets.

    Of the published V1 file, and of all whose batch norm was frozen, the batch norm divides by sqrt(variance) without
    an epsilon (torchvision overwrites it with 0): the scale is corrected for ours.
    """
    content = content.get("model", content)  # the checkpoints of torchvision's references
    tensors = {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}
    state = {torchvision_name(key): value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    if len(tensors) == len(state) and "roi_heads.box_head.fc7.weight" in state:
        _remove_epsilon(state)
    outputs = _outputs(state, path)
    if outputs == len(TORCHVISION_CATEGORIES) and class_names == COCO:
        named = [row for row, name in enumerate(TORCHVISION_CATEGORIES) if name != "N/A"]
        order = named + [row for row, name in enumerate(TORCHVISION_CATEGORIES) if name == "N/A"]
        return Converted(_reorder_classes(state, torch.tensor(order)), IMAGENET, outputs - len(named))
    _check_classes(outputs, class_names, path)
    return Converted(state, IMAGENET, 0)


def torchvision_name(key: str) -> str:
    """Our name for one of torchvision's, of any version (0.13 put one more level into FPN and RPN)."""
    if match := re.fullmatch(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", key):
        return f"{match[1]}.0.{match[2]}"
    if match := re.fullmatch(r"rpn\.head\.conv\.(weight|bias)", key):
        return f"rpn.head.conv.0.0.{match[1]}"
    if match := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.([01]\.\w+)", key):
        return f"roi_heads.box_head.convs.{match[1]}.{match[2]}"
    # The first fully connected layer is behind four convolutions and the flattening; a ReLU follows each.
    if match := re.fullmatch(r"roi_heads\.box_head\.(\d+)\.(weight|bias)", key):
        return f"roi_heads.box_head.fc{6 + (int(match[1]) - 5) // 2}.{match[2]}"
    return key


def _remove_epsilon(state: dict[str, Tensor]) -> None:
    """Makes w / sqrt(variance) of a scale w, which here is divided by sqrt(variance + epsilon); in place."""
    for key in [key for key in state if key.endswith("running_var")]:
        variance = state[key].double()
        weight = key.replace("running_var", "weight")
        state[weight] = (state[weight].double() * ((variance + BATCH_NORM_EPS) / variance).sqrt()).float()


# ---------------------------------------------------------------------------------------------- detectron2

_DETECTRON2_NAMES = (
    (r"backbone\.fpn_lateral(\d)\.norm\.(\w+)", r"backbone.fpn.inner_blocks.{level}.1.\2"),
    (r"backbone\.fpn_output(\d)\.norm\.(\w+)", r"backbone.fpn.layer_blocks.{level}.1.\2"),
    (r"backbone\.fpn_lateral(\d)\.(\w+)", r"backbone.fpn.inner_blocks.{level}.0.\2"),
    (r"backbone\.fpn_output(\d)\.(\w+)", r"backbone.fpn.layer_blocks.{level}.0.\2"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.head.conv.\1.0.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"roi_heads\.box_predictor\.(\w+\.\w+)", r"roi_heads.box_predictor.\1"),
)
_DETECTRON2_DROPPED = re.compile(
    r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*|.*\.num_batches_tracked|roi_heads\.mask_head\..*"
)
"""What is not a Faster R-CNN's weight: its settings, counters, and the masks of a Mask R-CNN."""


def from_detectron2(content: Mapping[str, Any], model: ModelConfig, class_names: list[str], path: Path) -> Converted:
    """detectron2's Faster R-CNN (and Mask R-CNN without its masks): C4, DC5 and FPN, of the zoo or of one's own.

    {"model": {"backbone.stem.conv1.weight": array, ...}, "__author__": ...}, or the `model_final.pth` of its training.
    """
    weights = content.get("model", content)
    if content.get("__author__") == "Caffe2" or "blobs" in content or not isinstance(weights, Mapping):
        raise UserError(f"{path}: Detectron's format, not detectron2's: take a file of detectron2's zoo")
    tensors = {
        key: torch.as_tensor(value).float() for key, value in weights.items() if isinstance(value, np.ndarray | Tensor)
    }
    state = {}
    for key, value in tensors.items():
        if not _DETECTRON2_DROPPED.fullmatch(key):
            state[detectron2_name(key) or key] = value
    add_statistics(state, variance=1.0)  # the first versions' files lack them, and detectron2 takes 0 and 1
    outputs = _outputs(state, path)
    _check_classes(outputs, class_names, path)
    _check_anchors(tensors, model, path)
    _reorder_anchors(state, model)
    state = _reorder_classes(state, torch.tensor([outputs - 1, *range(outputs - 1)]))
    return Converted(state, _detectron2_pixels(tensors), 0)


def detectron2_name(key: str) -> str | None:
    """Our name for one of detectron2's; None: it has none here."""
    for pattern, name in _DETECTRON2_NAMES:
        if match := re.fullmatch(pattern, key):
            level = str(int(match[1]) - 2) if "{level}" in name else ""
            return match.expand(name.replace("{level}", level))
    if match := re.fullmatch(r"roi_heads\.box_head\.fc(\d)\.(\w+)", key):
        return f"roi_heads.box_head.fc{5 + int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"roi_heads\.box_head\.conv(\d)\.(norm\.)?(\w+)", key):
        return f"roi_heads.box_head.convs.{int(match[1]) - 1}.{1 if match[2] else 0}.{match[3]}"
    if key.startswith("roi_heads.res5."):
        name = residual_name(key.removeprefix("roi_heads."))
        return name and name.replace("layer4.", "roi_heads.box_head.conv5.")
    if key.startswith("backbone."):
        name = residual_name(key)
        return name and f"backbone.body.{name}"
    return None


def _detectron2_pixels(tensors: Mapping[str, Tensor]) -> Preprocessing:
    """What the file says of its pixels; the mean's order tells BGR from RGB, for red is the brightest."""
    if "pixel_mean" not in tensors:
        return DETECTRON2_PIXELS
    mean = tuple(round(value, 4) for value in tensors["pixel_mean"].flatten().tolist())
    std = tuple(round(value, 4) for value in tensors.get("pixel_std", torch.ones(3)).flatten().tolist())
    return Preprocessing(mean, std, "rgb" if mean[0] > mean[2] else "bgr")


def _check_anchors(tensors: Mapping[str, Tensor], model: ModelConfig, path: Path) -> None:
    """Refuses a config whose anchors are others than the file's, where the file holds them."""
    for level, level_sizes in enumerate(sizes_of_levels(model.anchors)):
        theirs = tensors.get(f"proposal_generator.anchor_generator.cell_anchors.{level}")
        if theirs is None:
            continue
        ours = base_anchors(level_sizes, model.anchors.aspect_ratios)[_anchor_order(model)]
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-3):
            found = sorted({round(float(side)) for side in ((theirs[:, 2:] - theirs[:, :2]).prod(1)).sqrt()})
            raise UserError(
                f"{path}: its anchors of level {level} have the sizes {found}, model.anchors has {level_sizes} with "
                f"the ratios {model.anchors.aspect_ratios}: set model.anchors as it was trained"
            )


def _anchor_order(model: ModelConfig) -> Tensor:
    """For each anchor of a position in detectron2's order (size by size) its place in ours (ratio by ratio)."""
    per_level = len(sizes_of_levels(model.anchors)[0])
    return torch.arange(per_level * len(model.anchors.aspect_ratios)).view(-1, per_level).T.flatten()


def _reorder_anchors(state: dict[str, Tensor], model: ModelConfig) -> None:
    """The RPN's channels in our order of anchors; in place. Other numbers of them are left for the check of shapes."""
    order = _anchor_order(model).argsort()
    for name, numbers in (("cls_logits", 1), ("bbox_pred", 4)):
        for part in ("weight", "bias"):
            key = f"rpn.head.{name}.{part}"
            if key in state and len(state[key]) == numbers * len(order):
                state[key] = state[key].unflatten(0, (-1, numbers))[order].flatten(0, 1)


# ---------------------------------------------------------------------------------------------- both

SOURCES: dict[str, Callable[[Mapping[str, Any], ModelConfig, list[str], Path], Converted]] = {
    "torchvision": from_torchvision,
    "detectron2": from_detectron2,
}


def is_detector(content: Mapping[str, Any]) -> bool:
    """Whether a foreign file's content is a detector's and not a classifier's."""
    weights = content.get("model", content)
    return isinstance(weights, Mapping) and any("roi_heads." in str(key) for key in weights)


def convert_detector(
    content: Mapping[str, Any],
    source: str,
    config: DetectionConfig,
    path: Path,
    *,
    card: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A detector checkpoint of this project from another project's weights.

    Args:
        content: what `weights.read_weights_file` gave.
        source: a key of `SOURCES`.
        config: of the detector that the file holds; `configs/zoo/` has the published ones.
        path: the file, for messages.
        card: what is known of the weights (source, licence, published figures), kept in the checkpoint.

    Returns:
        {"format", "kind": "detector", "config", "class_names", "preprocessing", "model", "card"}.

    Raises:
        UserError: not such a detector, or one that differs from the config's; names the first difference.
    """
    if not is_detector(content):
        some = ", ".join(map(str, list(content.get("model", content))[:3]))
        raise UserError(f"{path}: no detector in {source}'s form (the file begins with {some})")
    names = stored_class_names(config.data)
    converted = SOURCES[source](content, config.model, names, path)
    box = config.model.box.model_copy(update={"unused_outputs": converted.unused_outputs})
    config = config.model_copy(update={"model": config.model.model_copy(update={"box": box})})
    with torch.device("meta"):
        detector = build_detector(config.model, names, preprocessing=converted.preprocessing)
    own = detector.state_dict()
    counters = {key: torch.zeros((), dtype=torch.int64) for key in own if key.endswith("num_batches_tracked")}
    state = {**counters, **{key: value.float().contiguous() for key, value in converted.state.items()}}
    check_keys(own, state, "the config's detector", path)
    return {
        "format": FORMAT,
        "kind": "detector",
        "config": config.model_dump(mode="json"),
        "class_names": names,
        "preprocessing": converted.preprocessing.to_dict(),
        "model": {key: state[key] for key in own},
        "card": dict(card or {"source": source}),
    }


def stored_class_names(data: DataConfig) -> list[str]:
    """The names that `data.classes` gives without a look at any data.

    Raises:
        UserError: auto, or a name that is not one of the lists.
    """
    if isinstance(data.classes, list):
        return list(data.classes)
    if data.classes not in CLASS_LISTS:
        raise UserError(
            f"data.classes {data.classes}: the weights' own classes are needed, in their order: a list of names, or "
            f"{', '.join(CLASS_LISTS)}"
        )
    return list(CLASS_LISTS[data.classes])


def _outputs(state: Mapping[str, Tensor], path: Path) -> int:
    """Class outputs, the background's among them."""
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    if scores is None:
        raise UserError(f"{path}: roi_heads.box_predictor.cls_score.weight is missing: not a Faster R-CNN")
    return len(scores)


def _check_classes(outputs: int, class_names: list[str], path: Path) -> None:
    if outputs != len(class_names) + 1:
        raise UserError(
            f"{path}: {counted(outputs - 1, 'class')} and background, but data.classes names {len(class_names)}: give "
            "the file's own classes, in their order: --set data.classes=voc, or a list of names"
        )


def _reorder_classes(state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The two siblings' rows in another order; the background's missing deltas (detectron2) become zeros."""
    state = dict(state)
    for part in ("weight", "bias"):
        scores, boxes = (f"roi_heads.box_predictor.{layer}.{part}" for layer in ("cls_score", "bbox_pred"))
        if scores in state:
            state[scores] = state[scores][order]
        if boxes in state and len(state[boxes]) > 4:  # four rows: one box for all classes
            rows = state[boxes].unflatten(0, (-1, 4))
            if len(rows) == len(order) - 1:
                rows = torch.cat((rows, torch.zeros_like(rows[:1])))
            state[boxes] = rows[order].flatten(0, 1) if len(rows) == len(order) else state[boxes]
    return state
