"""From one detector's classes to another's by name: COCO's rows of `train` or `tv` go to VOC's `train` and `tvmonitor`.

The paper fine-tunes its COCO model on VOC with fresh class layers (He et al. 2016, App. B); where the classes are known
already, their rows are a better start, and the detector finds them before its first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from configs.errors import UserError, examples
from detection.model import Detector

SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(names)
    for names in (
        ("aeroplane", "airplane"),
        ("diningtable", "dining table"),
        ("motorbike", "motorcycle"),
        ("pottedplant", "potted plant"),
        ("sofa", "couch"),
        ("tvmonitor", "tv", "tv or monitor"),
        ("hair drier", "hair dryer"),
        ("cell phone", "mobile phone"),
        ("cat", "domestic cat"),
        ("cow", "cattle"),
        ("cup", "cup or mug"),
        ("keyboard", "computer keyboard"),
        ("mouse", "computer mouse"),
        ("remote", "remote control"),
        ("skis", "ski"),
    )
)
"""Names of the same class in VOC, COCO and ImageNet DET."""


def same_classes(old_names: Sequence[str], new_names: Sequence[str]) -> dict[int, int]:
    """New label -> old label (both from 1) of the classes that have the same name in both lists.

    Case, blanks, hyphens and underscores do not matter; `SYNONYMS` are the same name.
    """
    old_labels: dict[str, int] = {}
    for label, name in enumerate(old_names, start=1):
        old_labels.setdefault(_plain(name), label)
    pairs = ((label, old_labels.get(_plain(name))) for label, name in enumerate(new_names, start=1))
    return {new: old for new, old in pairs if old is not None}


def _plain(name: str) -> str:
    """A spelling that all names of a class share."""
    for group in SYNONYMS:
        if name.lower().replace("_", " ").replace("-", " ") in group:
            name = min(group)
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


@torch.no_grad()
def transfer_classes(detector: Detector, state: Mapping[str, Tensor], old_names: Sequence[str]) -> list[str]:
    """Copies the class rows that another detector has under the same names; returns those names.

    The background's row comes along, and the boxes' layer whole where one box is shared by all classes. Classes that
    the other one does not know keep what they have.

    Args:
        detector: with fresh class layers; changed in place.
        state: weights of a detector of this project, of the classes `old_names` in their order.
        old_names: K names; outputs behind them (`BoxConfig.unused_outputs`) are left out.

    Raises:
        UserError: no class is the same, or the layers before the classes' are of another width.
    """
    labels = same_classes(old_names, detector.class_names)
    if not labels:
        raise UserError(
            f"none of the classes to start from ({examples(old_names, 4)}) is one of the new ones "
            f"({examples(detector.class_names, 4)}): start with fresh class layers"
        )
    new_rows = torch.tensor([0, *labels.keys()])
    old_rows = torch.tensor([0, *labels.values()])
    for layer, row_size in (("cls_score", 1), ("bbox_pred", 4)):
        for part in ("weight", "bias"):
            name = f"roi_heads.box_predictor.{layer}.{part}"
            new = detector.get_parameter(name)
            old = state[name].to(new.device)
            shared = row_size == 4 and len(new) == 4
            if new.shape[1:] != old.shape[1:] or shared != (row_size == 4 and len(old) == 4):
                raise UserError(
                    f"{name} is {tuple(old.shape)} in the weights to start from and {tuple(new.shape)} in the model: "
                    "heads, box.global_context or box.class_agnostic differ"
                )
            if shared:
                new.copy_(old)
            else:
                new.unflatten(0, (-1, row_size))[new_rows] = old.unflatten(0, (-1, row_size))[old_rows].to(new.dtype)
    return [detector.class_names[label - 1] for label in labels]
