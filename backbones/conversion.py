"""Other projects' classifier weights as this project's checkpoints.

Each source is a function from a file's content to `Converted`; `convert` finds out which net it is, checks every key
and shape against that net, and adds the preprocessing and the stride style that the weights were trained with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor

from backbones.weights import (
    BOTTLENECK_NETS,
    CAFFE_VGG,
    FORMAT,
    IMAGENET,
    MSRA,
    Preprocessing,
    as_classifier,
    check_keys,
    detect_net,
)
from backbones.zoo import build_backbone
from configs.errors import UserError

BATCH_NORM_EPS = 1e-5
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Converted(NamedTuple):
    """A source's weights under this project's names."""

    state: dict[str, Tensor]
    preprocessing: Preprocessing
    stride_in_1x1: bool = False
    shortcut: str = "B"


def from_torchvision(content: dict[str, Any], path: Path) -> Converted:
    """torchvision's ResNets, VGG nets (V1 and V2 have the same form) and GoogLeNet: the names are ours already."""
    classifier = as_classifier(content, path)
    return Converted(classifier["model"], Preprocessing.from_dict(classifier["preprocessing"]))


def from_caffe_vgg16(content: dict[str, Any], path: Path) -> Converted:
    """Caffe's VGG-16 in the torch-converted file: torchvision's names, but BGR pixels minus a mean, 0..255."""
    return Converted(as_classifier(content, path)["model"], CAFFE_VGG)


def from_akamaster(content: dict[str, Any], path: Path) -> Converted:
    """CIFAR ResNets of akamaster/pytorch_resnet_cifar10 and its copies, trained with torchvision's mean and std.

    {"state_dict": {"module.conv1.weight", ..., "module.layer1.0.shortcut.0.weight" (option B only),
    "module.linear.weight"}}. Option A pads channels on both sides there, as in `resnet.pad_shortcut`.
    """
    state = _tensors(content.get("state_dict", content), path)
    for old, new in (("module.", ""), ("linear.", "fc."), (".shortcut.", ".downsample.")):
        state = {key.replace(old, new, 1): value for key, value in state.items()}
    return Converted(state, IMAGENET, shortcut="B" if any("downsample" in key for key in state) else "A")


def from_msra(content: dict[str, Any], path: Path) -> Converted:
    """The released ResNets of He et al. 2016 in Caffe2's form or in detectron2's renamed form.

    Caffe2: conv1_w, res_conv1_bn_s, res2_0_branch2a_w, res2_0_branch2a_bn_s, res2_0_branch1_w, fc1000_w, ...
    detectron2: stem.conv1.weight, stem.conv1.norm.weight, res2.0.conv1.weight, res2.0.shortcut.weight, ...
    Their batch norm is a mere scale s and offset b, the statistics being merged into them. Ours is then weight = s,
    bias = b, mean 0 and variance 1 - eps, so that dividing by sqrt(variance + eps) is dividing by 1.
    """
    if content.get("__author__") == "torchvision":
        raise UserError(f"{path}: torchvision's weights renamed, not MSRA's: convert torchvision's own file")
    tensors = _tensors(content.get("blobs", content.get("model", content)), path)
    state = {name: value for key, value in tensors.items() if (name := residual_name(key))}
    add_statistics(state, variance=1.0 - BATCH_NORM_EPS)
    if "conv1.bias" in state and "bn1.running_mean" in state:
        # ResNet-50's first convolution has a bias: s * (conv + bias) + b is batch norm with the mean -bias.
        state["bn1.running_mean"] = state["bn1.running_mean"] - state.pop("conv1.bias")
    return Converted(state, MSRA, stride_in_1x1=True)


def add_statistics(state: dict[str, Tensor], *, variance: float) -> None:
    """Give each batch norm that has none the mean 0 and this variance, in place."""
    for key in [key for key in state if re.search(r"(bn\d|downsample\.1)\.weight$", key)]:
        layer = key.removesuffix("weight")
        state.setdefault(f"{layer}running_mean", torch.zeros_like(state[key]))
        state.setdefault(f"{layer}running_var", torch.full_like(state[key], variance))


_MSRA_SUFFIXES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}
_MSRA_LAYERS = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}


def residual_name(key: str) -> str | None:
    """Our name for one of Caffe2's or detectron2's in a ResNet; None for what is not a ResNet's (momenta, counters)."""
    key = key.removeprefix("backbone.").removeprefix("bottom_up.")
    if match := re.fullmatch(r"(.+?)_(w|b|bn_s|bn_b|bn_rm|bn_riv)", key):  # Caffe2's, into detectron2's form
        layer, suffix = match[1].removeprefix("res_"), _MSRA_SUFFIXES[match[2]]
        if branch := re.fullmatch(r"(res\d)_(\d+)_(branch\w+)", layer):
            layer = f"{branch[1]}.{branch[2]}.{_MSRA_LAYERS.get(branch[3], branch[3])}"
        key = f"{layer}.{suffix}"
    if match := re.fullmatch(r"(?:stem\.)?(?:fc1000|pred|fc|linear)\.(weight|bias)", key):
        return f"fc.{match[1]}"
    if match := re.fullmatch(r"(?:stem\.)?conv1\.(norm\.)?(\w+)", key):
        return f"{'bn1' if match[1] else 'conv1'}.{match[2]}"
    if match := re.fullmatch(r"res(\d)\.(\d+)\.(?:conv(\d)|shortcut)\.(norm\.)?(\w+)", key):
        stage, unit, number, norm, suffix = match.groups()
        layer = f"{'bn' if norm else 'conv'}{number}" if number else f"downsample.{1 if norm else 0}"
        return f"layer{int(stage) - 1}.{unit}.{layer}.{suffix}"
    return None


SOURCES: dict[str, Callable[[dict[str, Any], Path], Converted]] = {
    "torchvision": from_torchvision,
    "msra": from_msra,
    "caffe-vgg16": from_caffe_vgg16,
    "akamaster": from_akamaster,
}


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The arrays among the values, as float32 tensors.

    Raises:
        UserError: the content is not a mapping from names to arrays.
    """
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"{path}: not weights by name: a part is a {type(content).__name__} or has keys that are not texts"
        )
    return {
        key: torch.as_tensor(value).float()
        for key, value in content.items()
        if isinstance(value, np.ndarray | Tensor) and np.prod(value.shape) >= 1 and len(value.shape) >= 1
    }


def convert(content: dict[str, Any], source: str, path: Path) -> dict[str, Any]:
    """A classifier checkpoint of this project from another project's weights.

    Args:
        content: what `weights.read_weights_file` gave.
        source: a key of `SOURCES`.
        path: the file, for messages.

    Returns:
        {"format", "kind": "classifier", "config": {"model": ...}, "class_names", "preprocessing", "model"}.
        class_names is empty where they are not known.

    Raises:
        UserError: no net of the zoo, or a key or a shape that does not fit it.
    """
    converted = SOURCES[source](content, path)
    state = converted.state
    name = detect_net(state)
    if name is None:
        some = ", ".join(map(str, list(content)[:3]))
        raise UserError(f"{path}: no net of this project's in {source}'s form (the file begins with {some})")
    model = {
        "backbone": name,
        "stride_in_1x1": converted.stride_in_1x1 and name in BOTTLENECK_NETS,
        "shortcut": converted.shortcut,
        "plain": False,
    }
    classifier = "classifier.6" if name.startswith("vgg") else "fc"
    classes = len(state[f"{classifier}.weight"]) if f"{classifier}.weight" in state else 0
    with torch.device("meta"):
        shortcut = None if name.startswith("vgg") else converted.shortcut
        net = build_backbone(name, num_classes=classes or 1, shortcut=shortcut)
    own = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    if not classes:
        own = {key: value for key, value in own.items() if not key.startswith(f"{classifier}.")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    check_keys(own, state, name, path)
    return {
        "format": FORMAT,
        "kind": "classifier",
        "config": {"model": {**model, "num_classes": classes}},
        "class_names": _class_names(name, classes),
        "preprocessing": converted.preprocessing.to_dict(),
        "model": state,
    }


def _class_names(name: str, classes: int) -> list[str]:
    if classes == 1000:
        return list(torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    if classes == len(CIFAR10_CLASSES) and name.startswith("cifar"):
        return list(CIFAR10_CLASSES)
    return []
