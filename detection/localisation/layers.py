"""What the two per-class networks share: their sibling outputs, their losses, and boxes in views of an image.

Shapes: B images, T classes asked for in each, M candidate boxes of an (image, class) pair, N anchors or RoIs of an
image, S sampled ones, K classes. Classes count from 0 here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.localisation import PerClassRcnnConfig, PerClassRpnConfig
from detection.boxes import encode_boxes, gather_boxes
from detection.losses import box_loss, mean_count, objectness_loss
from detection.sampling import Sampled


class Candidates(NamedTuple):
    """Boxes for each class that was asked for."""

    boxes: Tensor
    """(B, T, M, 4) float32."""
    scores: Tensor
    """(B, T, M) float32 in [0, 1]; 0 where there is no box."""


def drop_companions(net: nn.Module) -> None:
    """Takes a net's auxiliary classifiers, which only train classifiers, out of it (GoogLeNet, DSN)."""
    if hasattr(net, "companions"):
        net.companions = nn.ModuleDict()


class PerClassLayers(nn.Module):
    """The sibling 1x1 convolutions: a binary logit and 4 deltas for each class and anchor.

    Class k's outputs are rows k * A to (k + 1) * A of `cls_logits`, and four times as many of `bbox_pred`. Of a
    thousand classes one is asked for in training and a few at test: their rows alone are multiplied.

    A class's weights are the sum of a part that all classes share and one of its own, which starts at zero (or
    from a classifier, `start_from`). The functions are the same as without; but only one image in K teaches a class's
    own part, and all teach the shared one.
    """

    def __init__(self, in_channels: int, num_classes: int, num_anchors: int = 1) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_logits = nn.Conv2d(in_channels, num_classes * num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_classes * num_anchors * 4, kernel_size=1)
        self.shared_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.shared_pred = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for layer, std in (
            (self.cls_logits, 0.0),
            (self.bbox_pred, 0.0),
            (self.shared_logits, 0.01),
            (self.shared_pred, 0.01),
        ):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(_bias(layer))

    @torch.no_grad()
    def start_from(self, classifier: nn.Linear) -> None:
        """The classes' own scores of one anchor become the classifier's, less the mean of all classes.

        A softmax does not feel that mean; a logistic score would.
        """
        self.cls_logits.weight.copy_((classifier.weight - classifier.weight.mean(0))[..., None, None])
        _bias(self.cls_logits).copy_(classifier.bias - classifier.bias.mean())

    def forward(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, N) and deltas (B, T, N, 4), float32, in the anchors' order.

        Args:
            features: (B, C, H, W).
            classes: (B, T) int64, 0..K-1.
        """
        logits = self._of_classes(self.cls_logits, self.shared_logits, features, classes)
        deltas = self._of_classes(self.bbox_pred, self.shared_pred, features, classes).unflatten(-1, (-1, 4))
        return logits.flatten(2).float(), deltas.flatten(2, 3).float()

    def _of_classes(self, own: nn.Conv2d, shared: nn.Conv2d, features: Tensor, classes: Tensor) -> Tensor:
        """(B, T, H * W, outputs of a class)."""
        weight = F.embedding(classes, own.weight.view(self.num_classes, -1)) + shared.weight.view(-1)
        bias = F.embedding(classes, _bias(own).view(self.num_classes, -1)) + _bias(shared)
        products = torch.bmm(weight.view(len(classes), -1, features.shape[1]), features.flatten(2))
        return products.unflatten(1, (-1, shared.out_channels)).transpose(2, 3) + bias[:, :, None]


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def sample_losses(
    logits: Tensor,
    deltas: Tensor,
    references: Tensor,
    objects: Tensor,
    chosen: Sampled,
    config: PerClassRpnConfig | PerClassRcnnConfig,
    weights: Tensor | None,
) -> dict[str, Tensor]:
    """Binary logistic loss of a sample and smooth L1 of its positives.

    Args:
        logits, deltas: (B, N) and (B, N, 4) of the image's own class.
        references, objects: (B, S, 4) boxes of the sample, and the objects that they answer to.
        chosen: the sample.
        config: of the losses.
        weights: (4,) multiplies the deltas, or None.
    """
    count = mean_count(chosen.valid)
    # What is not positive is its own target: finite deltas that weigh nothing. Boxes without extent would not be.
    positive = chosen.positive[..., None]
    objects = torch.where(positive, objects, references)
    targets = torch.where(positive, encode_boxes(objects, references, weights), 0.0)
    return {
        "loss_objectness": objectness_loss(logits.gather(1, chosen.index), chosen.positive, chosen.valid, count),
        "loss_box_reg": config.box_loss_weight
        * box_loss(gather_boxes(deltas, chosen.index), targets, chosen.positive, count, config.smooth_l1_beta),
    }


def to_original(boxes: Tensor, frames: Tensor) -> Tensor:
    """Boxes (B, T, M, 4) of views as boxes of the original images; `frames` (B, 4) as in `PerClassRpn.candidates`."""
    corner, scale = (part.repeat(1, 2)[:, None, None] for part in frames.split(2, dim=1))
    return boxes * scale + corner


def to_view(boxes: Tensor, frames: Tensor) -> Tensor:
    """The inverse of `to_original`."""
    corner, scale = (part.repeat(1, 2)[:, None, None] for part in frames.split(2, dim=1))
    return (boxes - corner) / scale
