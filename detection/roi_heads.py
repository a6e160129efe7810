"""The detector on the RoIs (Fast R-CNN): which proposals train, the losses, and the predictions.

Shapes: B images, P proposals an image, R RoIs an image, G padded ground-truth boxes, K classes,
D features of an RoI behind the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.detection import BoxConfig
from detection.boxes import encode_boxes, gather_boxes, large_enough
from detection.context import image_boxes, join_context
from detection.heads import Conv5Head, FcHead
from detection.losses import box_loss, classification_loss, mean_count
from detection.matching import match
from detection.roi_features import RoiFeatures
from detection.rpn import Proposals
from detection.sampling import Iteration, random_keys, sample

SAMPLING_PURPOSE = 1
"""Tells the detector's random keys from the RPN's."""


class TrainingRois(NamedTuple):
    """The sampled RoIs and what they should answer."""

    boxes: Tensor
    """(B, R, 4) float32."""
    labels: Tensor
    """(B, R) int64; 0 for background."""
    targets: Tensor
    """(B, R, 4) float32 deltas; zeros for background."""
    positive: Tensor
    """(B, R) bool."""
    valid: Tensor
    """(B, R) bool: false where an image had too few proposals."""


class RoiHeads(nn.Module):
    """RoI features, head, siblings, sampling and losses."""

    delta_weights: Tensor
    """(4,) float32: `box.bbox_reg_weights`."""

    def __init__(
        self, config: BoxConfig, features: RoiFeatures, box_head: Conv5Head | FcHead, box_predictor: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.box_head = box_head
        self.box_predictor = box_predictor
        weights = torch.tensor(config.bbox_reg_weights, dtype=torch.float32)
        self.register_buffer("delta_weights", weights, persistent=False)

    def forward(self, features: list[Tensor], rois: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and deltas (B, R, K + 1 or 1, 4) of RoIs (B, R, 4), float32.

        `image_sizes` (B, 2), (H, W), is what the global context is pooled from.
        """
        if not self.config.global_context:
            return self.predict(self.hidden(features, rois))
        hidden = self.hidden(features, torch.cat((rois, image_boxes(image_sizes)), dim=1))
        return self.predict(hidden[:, :-1], hidden[:, -1:])

    def predict(self, hidden: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and deltas (B, R, K + 1 or 1, 4), float32, by the two siblings.

        Args:
            hidden: (B, R, D) of `hidden`.
            context: (B, 1, D), the same of the whole image; with global context only.
        """
        if context is not None:
            hidden = join_context(hidden, context)
        logits, deltas = self.box_predictor(hidden.flatten(0, 1))
        return logits.unflatten(0, hidden.shape[:2]), deltas.unflatten(0, hidden.shape[:2]).unflatten(-1, (-1, 4))

    def hidden(self, features: list[Tensor], rois: Tensor, pool: RoiFeatures | None = None) -> Tensor:
        """(B, R, D): the head's answers to the pooled RoIs (B, R, 4), with conv5's first convolutions before the
        pooling where that computes the same with less. `pool`: in the place of its own pooling."""
        head, config, pool = self.box_head, self.config, pool or self.features
        if isinstance(head, Conv5Head) and config.pool == "roi_align" and head.can_split():
            pixels = features[0].shape[0] * features[0].shape[2] * features[0].shape[3]
            # An exported graph serves all sizes, and pools all bins: runtimes' RoIAlign knows no step.
            any_size = torch.compiler.is_exporting()
            # The split runs them on every pixel of the map in place of the bins that the stride reads, one in four.
            if not any_size and pixels < rois.shape[0] * rois.shape[1] * (config.pool_size // 2) ** 2:
                maps = head.before_pooling(features[0])
                parts = (pool([m], rois, step) for m, step in zip(maps, head.strides, strict=True))
                return head.after_pooling(*parts).unflatten(0, rois.shape[:2])
        return head(pool(features, rois)).unflatten(0, rois.shape[:2])

    @torch.no_grad()
    def select(
        self,
        proposals: Proposals,
        boxes: Tensor,
        labels: Tensor,
        valid: Tensor,
        image_index: Tensor,
        *,
        seed: int,
        iteration: Iteration,
    ) -> TrainingRois:
        """A sample of the proposals with its targets.

        Args:
            proposals: of the RPN.
            boxes, labels, valid: (B, G, 4), (B, G), (B, G) ground truth.
            image_index: (B,) int64; with `seed` and `iteration` it decides the sample.
        """
        config = self.config
        candidates, usable = proposals.boxes, proposals.valid
        num_proposals, num_objects = candidates.shape[1], boxes.shape[1]
        codes = torch.arange(num_proposals, device=boxes.device)
        if config.add_ground_truth:
            candidates = torch.cat((candidates, boxes), dim=1)
            usable = torch.cat((usable, valid), dim=1)
            # Far from the proposals' codes: an object's code must not depend on the number of proposals.
            codes = torch.cat((codes, torch.arange(num_objects, device=boxes.device) + (1 << 24)))
        usable = usable & large_enough(candidates, 1e-6)
        matches = match(boxes, valid, candidates, usable)
        low, high = config.bg_iou_range
        positive = (matches.iou >= config.fg_iou_thresh) & usable
        # An image without objects has the overlap -1 everywhere: all background, whatever the lower bound.
        background = ((matches.iou >= low) | (matches.iou < 0)) & (matches.iou < high)
        negative = background & usable & ~positive
        keys = random_keys(seed, iteration, SAMPLING_PURPOSE, image_index, codes)
        chosen = sample(positive, negative, keys, config.batch_size_per_image, config.positive_fraction)

        rois = gather_boxes(candidates, chosen.index)
        object_index = matches.index.gather(1, chosen.index)
        roi_labels = torch.where(chosen.positive, labels.gather(1, object_index), 0)
        # Background answers to itself: its deltas are finite zeros, and weigh nothing. An empty place gets the box
        # (1, 2, 3, 4): any with an extent would do, or its deltas would be infinite and its gradient no number.
        rois = torch.where(chosen.valid[..., None], rois, torch.ones_like(rois).cumsum(-1))
        objects = torch.where(chosen.positive[..., None], gather_boxes(boxes, object_index), rois)
        return TrainingRois(
            rois, roi_labels, encode_boxes(objects, rois, self.delta_weights), chosen.positive, chosen.valid
        )

    def losses(self, logits: Tensor, deltas: Tensor, rois: TrainingRois) -> dict[str, Tensor]:
        """Classification and box losses, scalars, of `forward`'s answers to the RoIs of `select`."""
        count = mean_count(rois.valid)
        if deltas.shape[2] > 1:
            index = rois.labels[..., None, None].expand(-1, -1, 1, 4)
            deltas = deltas.gather(2, index)
        return {
            "loss_classifier": classification_loss(
                logits.flatten(0, 1), rois.labels.flatten(), rois.valid.flatten(), count
            ),
            "loss_box_reg": self.config.box_loss_weight
            * box_loss(deltas.squeeze(2), rois.targets, rois.positive, count, self.config.smooth_l1_beta),
        }
