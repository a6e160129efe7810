"""One detector on one batch as a function from RoIs to scores and boxes.

Refinement, multi-scale testing and ensembles all ask detectors about RoIs, some of them several times; feature maps and
the image's context are computed once.

Shapes: B images, R RoIs an image, K classes, D features of an RoI.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detection.boxes import clip_boxes, decode_boxes
from detection.context import image_boxes
from detection.model import Detector


class Scored(NamedTuple):
    """What is said of RoIs; (RoI, class) pairs of good scores become detections."""

    scores: Tensor
    """(B, R, K) float32, without the background."""
    boxes: Tensor
    """(B, R, K, 4) float32, or (B, R, 1, 4) of a class-agnostic detector, cut to the image."""
    valid: Tensor
    """(B, R) bool."""


class Scorer:
    """Scores and boxes of RoIs by one detector.

    Args:
        detector: in eval mode.
        features: its maps of the batch (`Detector.features`).
        image_sizes: (B, 2), (H, W) of the batch.
    """

    def __init__(self, detector: Detector, features: list[Tensor], image_sizes: Tensor) -> None:
        self.roi_heads = detector.roi_heads
        self.classes = slice(1, 1 + len(detector.class_names))
        """Outputs of the classes; the background comes before, what `box.unused_outputs` counts behind."""
        self.maps = detector.roi_maps(features)
        self.image_sizes = image_sizes
        self._context: Tensor | None = None

    def __call__(self, rois: Tensor, valid: Tensor) -> Scored:
        """What the detector says of RoIs (B, R, 4) in pixels of the batch's images; `valid` (B, R) bool."""
        logits, deltas = self.roi_heads.predict(*self._hidden_and_context(rois, valid))
        if deltas.shape[2] > 1:
            deltas = deltas[:, :, self.classes]
        boxes = decode_boxes(deltas, rois[:, :, None], self.roi_heads.delta_weights)
        boxes = clip_boxes(boxes.flatten(1, 2), self.image_sizes).view_as(boxes)
        return Scored(logits.softmax(-1)[..., self.classes], boxes, valid)

    def hidden(self, rois: Tensor, valid: Tensor) -> Tensor:
        """(B, R, D): the features behind the head; of RoIs that are not valid anything finite."""
        return self.roi_heads.hidden(self.maps, rois)

    def _hidden_and_context(self, rois: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, R, D) and, with global context, (B, 1, D): the first RoIs take the image's box along."""
        if not self.roi_heads.config.global_context or self._context is not None:
            return self.hidden(rois, valid), self._context
        whole = image_boxes(self.image_sizes)
        both = self.hidden(torch.cat((rois, whole), dim=1), torch.cat((valid, valid.new_ones(len(valid), 1)), dim=1))
        self._context = both[:, -1:]
        return both[:, :-1], self._context
