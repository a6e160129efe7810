"""The weights that a net starts from: where they come from, and strict loading.

Sources (`model.weights`): `random`; `torchvision:IMAGENET1K_V1` or `_V2`; or a path or a name of `backbones.fetch`: a
classifier checkpoint of this project (of tools/pretrain.py or tools/convert_weights.py), a bare torchvision state dict
(.pth, .safetensors), or one of detectron2's own backbones (`detectron2://ImageNetPretrained/MSRA/R-50.pkl`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from backbones.conversion import convert
from backbones.fetch import Remote, fetch, is_name, obtain
from backbones.weights import IMAGENET, Preprocessing, as_classifier, check_net, load_checked, read_weights_file
from configs.errors import UserError


def load_backbone_weights(
    net: nn.Module,
    backbone: str | dict[str, Any],
    weights: str,
    *,
    stride_in_1x1: bool,
    data_root: Path | None = None,
    for_classification: bool = False,
) -> Preprocessing:
    """Loads `weights` into `net` strictly and returns the preprocessing that belongs to them.

    Args:
        net: as `build_backbone(backbone)` built it, with its classifier and all stages.
        backbone: the net's name in the zoo, or its table.
        weights: see the module's first lines. `random` leaves the net as it is and returns `IMAGENET`.
        stride_in_1x1: the style that the net was built with; it must be the one that the weights were trained with.
        data_root: torchvision's files are looked for in `data_root/weights/` before torch hub's cache.
        for_classification: the classifier must fit too. Else (for a detector, which drops or replaces it) those of
            its layers load that fit, and the others stay as they are.

    Raises:
        UserError: in one line: the file, the key, the likely cause.
    """
    if weights == "random":
        return IMAGENET
    name = backbone if isinstance(backbone, str) else "the net"
    if is_version(weights):
        path = _torchvision_file(name, weights.removeprefix("torchvision:"), data_root)
        checkpoint = as_classifier(read_weights_file(path), path)
    else:
        checkpoint, path = _given_classifier(weights, data_root)
    check_net(checkpoint["config"].get("model", {}), net, name, stride_in_1x1, path)
    load_checked(net, checkpoint["model"], name, path, for_classification)
    return Preprocessing.from_dict(checkpoint["preprocessing"])


def is_version(weights: str) -> bool:
    """Whether this is `torchvision:IMAGENET1K_V1` or its like: a version of the weights of whichever net it is."""
    return weights.startswith("torchvision:") and not is_name(weights)


def _given_classifier(weights: str, data_root: Path | None) -> tuple[dict[str, Any], Path]:
    """The classifier checkpoint at a path or of a name of `backbones.fetch`, and its file."""
    return read_classifier(weights if is_name(weights) else _given_file(weights, data_root))


def read_classifier(weights: str | Path) -> tuple[dict[str, Any], Path]:
    """The classifier checkpoint in a file or of a name of `backbones.fetch`, as `as_classifier`, and its file.

    Raises:
        UserError: it cannot be had or read, or is no classifier's.
    """
    path = fetch(weights) if is_name(weights) else Path(weights)
    content = read_weights_file(path)
    if str(weights).startswith("detectron2://"):
        content = convert(content, "msra", path)
    return as_classifier(content, path), path


def _given_file(weights: str, data_root: Path | None) -> Path:
    """The path that the config gives, as it stands or relative to `data_root`."""
    candidates = [Path(weights)] + ([data_root / weights] if data_root is not None else [])
    for path in candidates:
        if path.exists():
            return path  # the reader says what is wrong with it
    raise UserError(
        f"model.weights: there is no file {' or '.join(map(str, candidates))}; give random, torchvision:IMAGENET1K_V1 "
        "(or _V2), or the path or the address of a checkpoint"
    )


def _torchvision_file(name: str, version: str, data_root: Path | None) -> Path:
    """The file of torchvision's weights, downloaded if it is nowhere."""
    try:
        enum = torchvision.models.get_model_weights(name)
    except ValueError:
        raise UserError(f"torchvision has no weights for {name}: give a path or weights: random") from None
    if version not in enum.__members__:
        raise UserError(f"torchvision:{version}: torchvision's weights of {name} are {' and '.join(enum.__members__)}")
    url = enum[version].url
    file_name = url.rsplit("/", 1)[-1]
    if data_root is not None and (data_root / "weights" / file_name).is_file():
        return data_root / "weights" / file_name
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    prefix = re.search(r"-([0-9a-f]{8,})\.", file_name)
    checksum = ("sha256", prefix[1]) if prefix else None
    return obtain(Remote(f"torchvision:{version}", url, cache / file_name, checksum))


def described_net(weights: str, data_root: Path | None = None) -> dict[str, Any]:
    """What the checkpoint at `weights` says about its net: backbone, shortcut, plain, stride_in_1x1.

    Empty for `random`, for torchvision's weights, and for files without a description.

    Raises:
        UserError: the file is missing, cannot be read, or is no classifier's.
    """
    if weights == "random" or is_version(weights):
        return {}
    stored = _given_classifier(weights, data_root)[0]["config"].get("model", {})
    described = {key: stored.get(key) for key in ("backbone", "shortcut", "plain", "stride_in_1x1")}
    return {key: value for key, value in described.items() if value is not None}
