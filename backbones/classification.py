"""Training of a classifier: its loss, its rate's two events, the mean that is subtracted.

He et al. 2016, Sec. 3.4 (ImageNet) and 4.2 (CIFAR). B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.augmentation import MixedLabels
from backbones.preprocess import Normalize
from backbones.pretrained import is_version, load_backbone_weights, read_classifier
from backbones.staged import WithCompanions
from backbones.weights import Preprocessing, load_checked
from backbones.zoo import Net, build_backbone
from configs.classification import ClassifierConfig
from configs.errors import UserError


def measure_mean(batches: Iterable[Tensor]) -> Tensor:
    """The mean image (3, H, W) float32, in units of uint8, of all images in `batches` (B, 3, H, W) uint8 of one size.

    Raises:
        ValueError: no batch came.
    """
    count, total = 0, torch.zeros(())
    for images in batches:
        total = total + images.sum(0, dtype=torch.int64)
        count += len(images)
    if not count:
        raise ValueError("measure_mean: there is no image to take the mean of")
    return (total.double() / count).float()


def classification_loss(
    logits: Tensor | WithCompanions, labels: Tensor, *, smoothing: float = 0.0, mixed: MixedLabels | None = None
) -> Tensor:
    """Cross entropy, () float32; of auxiliary classifiers too, by their weight.

    Args:
        logits: (B, K), any dtype; or what a net with auxiliary classifiers says in training.
        labels: (B,) int64.
        smoothing: share of the label that is spread over all K classes (Szegedy et al. 2016).
        mixed: the labels of what the images were mixed with; the targets are then mixed likewise.
    """
    if isinstance(logits, WithCompanions):
        options = {"smoothing": smoothing, "mixed": mixed}
        others = sum(classification_loss(companion, labels, **options) for companion in logits.companions)
        return classification_loss(logits.logits, labels, **options) + logits.weight * others
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if mixed is None:
        return loss
    return mixed.share * loss + (1.0 - mixed.share) * F.cross_entropy(logits, mixed.others, label_smoothing=smoothing)


def wrong_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the highest logits are not the label's, () int64 on the device; logits (B, K), labels (B,)."""
    return (logits.argmax(1) != labels).sum()


# ---------------------------------------------------------------------------------------------- the rate's events


@dataclass
class WarmupUntilError:
    """A low rate until the training error is below a threshold (He et al. 2016, Sec. 4.2, for 110 layers).

    The rate's factor is a pure function of the iteration and of `event`.
    """

    threshold: float | None
    """Training error, a fraction; None: never a low rate."""
    low: float
    """The factor before the event."""
    event: int | None = None
    """The first iteration with the full rate; None: still to come."""

    @property
    def waiting(self) -> bool:
        """Whether the event is still to come."""
        return self.threshold is not None and self.event is None

    def update(self, error: float, iteration: int) -> None:
        """Take in the training error of the iterations before `iteration`, the next one."""
        if self.threshold is not None and self.waiting and error < self.threshold:
            self.event = iteration

    def factor(self, iteration: int) -> float:
        """What the rate of an iteration is multiplied by."""
        if self.threshold is None or (self.event is not None and iteration >= self.event):
            return 1.0
        return self.low


@dataclass
class Plateau:
    """The rate falls where the validation error has stopped falling (He et al. 2016, Sec. 3.4).

    The rate's factor is a pure function of the iteration and of `events`.
    """

    gamma: float
    patience: int
    """So many validations in a row without a new lowest error are a plateau."""
    threshold: float
    """An error is a new lowest one when it is lower by more than this, a fraction."""
    steps: int
    """The plateau after so many steps is the end."""
    events: list[int] = field(default_factory=list)
    """Iterations from which on the rate is multiplied by gamma once more."""
    lowest: float = float("inf")
    since: int = 0
    """Validations since the lowest error or the last step."""
    finished: bool = False

    def update(self, error: float, iteration: int) -> None:
        """Take in the validation error before `iteration`, the next one."""
        if error < self.lowest - self.threshold:
            self.lowest, self.since = error, 0
            return
        self.since += 1
        if self.since >= self.patience:
            self.since = 0
            if len(self.events) < self.steps:
                self.events.append(iteration)
            else:
                self.finished = True

    def factor(self, iteration: int) -> float:
        """What the rate of an iteration is multiplied by."""
        return self.gamma ** sum(event <= iteration for event in self.events)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: all that has happened."""
        return {key: value for key, value in asdict(self).items() if key in ("events", "lowest", "since", "finished")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


# ---------------------------------------------------------------------------------------------- nets


class Classifier(NamedTuple):
    """A trained net and all that it takes to use it."""

    net: nn.Module
    normalize: Normalize
    class_names: list[str]
    """In the order of the labels; empty where the file does not say."""
    crop_size: int | None
    """Side of the training crop, pixels; None where the file does not say."""


def build_classifier(model: ClassifierConfig, num_classes: int) -> Net:
    """The randomly initialised net of a config.

    Raises:
        UserError: no such net.
    """
    return build_backbone(
        model.backbone,
        norm=model.norm,
        stride_in_1x1=model.stride_in_1x1,
        shortcut=model.shortcut,
        plain=model.plain,
        num_classes=num_classes,
        dropout=model.dropout,
        unit_dropout=model.unit_dropout,
        activation_checkpointing=model.activation_checkpointing,
    )


def load_classifier(weights: str | Path, model: ClassifierConfig, data_root: Path | None = None) -> Classifier:
    """The net of a checkpoint, in eval mode on the CPU.

    Args:
        weights: a checkpoint of tools/pretrain.py or tools/convert_weights.py or a torchvision state dict, each a path
            or a name of `backbones.fetch`; or torchvision:IMAGENET1K_V1 (or _V2).
        model: what the file does not say about the net (a torchvision state dict says nothing).
        data_root: torchvision's files are looked for in `data_root/weights/` too.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    if is_version(str(weights)):
        net = build_classifier(model, 1000)
        preprocessing = load_backbone_weights(
            net, model.backbone, str(weights), stride_in_1x1=model.stride_in_1x1, data_root=data_root,
            for_classification=True,
        )  # fmt: skip
        return Classifier(net.eval(), Normalize(preprocessing), [], None)
    content, path = read_classifier(weights)
    stored = content["config"].get("model", {})
    described = ("backbone", "shortcut", "plain", "stride_in_1x1", "dropout", "unit_dropout")
    known = {key: stored[key] for key in described if key in stored}
    model = model.model_copy(update=known)
    state = content["model"]
    last = next((key for key in ("fc.bias", "classifier.6.bias") if key in state), None)
    if last is None:
        raise UserError(f"{path}: has no classifier (neither fc nor classifier.6): it serves a detector only")
    net = build_classifier(model, len(state[last]))
    name = model.backbone if isinstance(model.backbone, str) else "the net"
    load_checked(net, state, name, path, for_classification=True)
    normalize = Normalize(Preprocessing.from_dict(content["preprocessing"]), content.get("mean_image"))
    crop_size = content["config"].get("data", {}).get("crop_size")
    return Classifier(net.eval(), normalize, list(content.get("class_names", [])), crop_size)
