"""Ensembles of detectors: one set of RoIs, the mean of what all say of it (He et al. 2016, App. B).

Shapes: B images, R RoIs an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from configs.detection import DetectionConfig
from configs.errors import UserError
from detection.boxes import gather_boxes
from detection.checkpoint import load_detector
from detection.model import Detector
from detection.nms import nms
from detection.rpn import Proposals
from detection.scoring import Scored

SAME_BOX_IOU = 1.0 - 1e-4
"""Boxes that overlap by more are one box but for rounding."""


def unite_proposals(members: Sequence[Proposals]) -> tuple[Tensor, Tensor]:
    """The RoIs of all members, each once, and which are valid: (B, R, 4), (B, R).

    In the members' order; of boxes that several propose the first is kept. R is that of the fullest image on the CPU;
    elsewhere it is the number of all proposals, so that nobody waits for the device: few boxes are proposed twice.
    """
    boxes = torch.cat([member.boxes for member in members], dim=1)
    valid = torch.cat([member.valid for member in members], dim=1)
    count = boxes.shape[1]
    order = torch.arange(count, 0, -1, dtype=torch.float32, device=boxes.device).repeat(len(boxes), 1)
    kept = nms(boxes, order, valid, torch.zeros_like(order, dtype=torch.int64), SAME_BOX_IOU, count)
    if kept.device.type == "cpu":
        kept = kept[:, : max(1, int((kept >= 0).sum(1).max()))]
    found = kept >= 0
    return gather_boxes(boxes, kept.clamp(min=0)) * found[..., None], found


def average(members: Sequence[Scored]) -> Scored:
    """The mean scores and the mean boxes; a class-agnostic member has one box for all classes."""
    if len(members) == 1:
        return members[0]
    scores = torch.stack([member.scores for member in members]).mean(0)
    columns = max(member.boxes.shape[2] for member in members)
    boxes = torch.stack([member.boxes.expand(-1, -1, columns, -1) for member in members]).mean(0)
    return Scored(scores, boxes, members[0].valid)


def load_ensemble(
    paths: Sequence[Path | str], *, overrides: Sequence[str] = (), device: torch.device | str = "cpu"
) -> tuple[list[Detector], DetectionConfig]:
    """The detectors of some checkpoints, each built from its own stored config, and the config of the first.

    Args:
        paths: files of `tools/train_det.py` or `tools/convert_weights.py`, or names of the zoo; one will do.
        overrides: `key.path=value` changes of each stored config.
        device: where the detectors go.

    Raises:
        UserError: a file is not a detector, or knows other classes than the first.
    """
    loaded = [load_detector(path, overrides=overrides, device=device) for path in paths]
    detectors = [detector for detector, _ in loaded]
    check_class_names([detector.class_names for detector in detectors], paths)
    return detectors, loaded[0][1]


def check_class_names(class_names: Sequence[list[str]], paths: Sequence[Path | str]) -> None:
    """That all members know the same classes in the same order.

    Raises:
        UserError: names the two files and what differs.
    """
    first = class_names[0]
    for names, path in zip(class_names[1:], paths[1:], strict=True):
        if names == first:
            continue
        differing = sorted(set(first) ^ set(names))
        what = f"{', '.join(differing[:5])} in one of them only" if differing else "they are in another order"
        raise UserError(f"{path}: other classes than {paths[0]}'s ({what}): an ensemble's members share their classes")
