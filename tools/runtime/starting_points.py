"""What a training of one's own starts from: a published detector where it can be had and pays, else random weights."""

from __future__ import annotations

from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.request import urlopen

import yaml

from backbones.fetch import Remote, by_hand, locate
from configs.errors import UserError
from detection.zoo import CONFIGS, ZOO
from tools.runtime.suggest import Machine

SCRATCH = "scratch"
ON_CPU, ON_GPU = "torchvision://fasterrcnn_resnet50_fpn", "torchvision://fasterrcnn_resnet50_fpn_v2"
FEW_IMAGES = 150
"""Without a GPU a published detector, which is five times as slow as the small one, pays for sets up to this size."""
_TIMEOUT = 3.0


@dataclass(frozen=True)
class Start:
    """Where the weights come from."""

    name: str | None
    """Of the zoo, for --init-from; None: random weights."""
    reason: str
    """For a person, one line."""
    model: dict[str, Any] | None = None
    """The config's model section that fits the weights; None: the small detector's."""


def choose_start(wanted: str, machine: Machine, images: int) -> Start:
    """The start that was asked for, or the one that suits.

    Args:
        wanted: auto, scratch, or a name of the zoo.
        machine: what there is to train with.
        images: of the training set.

    Raises:
        UserError: there is no such detector.
    """
    if wanted == SCRATCH:
        return Start(None, "random weights, as asked")
    if wanted != "auto":
        if wanted not in ZOO:
            raise UserError(f"--start {wanted}: give auto, scratch, or one of {', '.join(ZOO)}")
        reason = f"{wanted} (docs/zoo.md), as asked"
        if not available(wanted):
            todo = by_hand(_remote(wanted))
            reason += f": it cannot be downloaded now: before the training, {todo}, or take --start scratch"
        return Start(wanted, reason, zoo_model(wanted))
    name = ON_CPU if machine.gpu_gib is None else ON_GPU
    if machine.gpu_gib is None and images > FEW_IMAGES:
        return Start(
            None,
            f"random weights: {images} images are enough for a small detector, and {name} takes long without a GPU "
            "(--start takes it all the same)",
        )
    if not available(name):
        return Start(
            None,
            f"random weights, for {name} cannot be downloaded now; it would help much where images are few: "
            f"{by_hand(_remote(name))}, and call init_data.py again with --overwrite",
        )
    return Start(name, f"{name}, published with {ZOO[name].published} (docs/zoo.md)", zoo_model(name))


def available(name: str) -> bool:
    """Whether a detector's file is in the cache or can be downloaded; nothing is read of it yet."""
    remote = _remote(name)
    if remote.path.is_file():
        return True
    try:
        with urlopen(remote.url, timeout=_TIMEOUT) as response:
            return response.status == 200
    except (OSError, ValueError, HTTPException):  # no network, no such name, an answer that is none
        return False


def _remote(name: str) -> Remote:
    return locate(f"{name.partition('://')[0]}://{ZOO[name].file}")


def zoo_model(name: str) -> dict[str, Any]:
    """The model section of a published detector's config, without what belongs to its own classes and thresholds."""
    model = yaml.safe_load((CONFIGS / ZOO[name].config).read_text(encoding="utf-8"))["model"]
    for key in ("unused_outputs", "score_thresh", "nms_thresh", "detections_per_img"):
        model.get("box", {}).pop(key, None)
    return model
