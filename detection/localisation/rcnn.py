"""The R-CNN on the RPN's proposals (He et al. 2016, App. C), the second stage of localisation.

Shapes: B images, R RoIs of an image, G padded ground-truth boxes, K classes. Classes count from 0 here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backbones.preprocess import Normalize
from backbones.weights import Preprocessing
from configs.localisation import PerClassRcnnConfig
from detection.boxes import gather_boxes
from detection.localisation.layers import Candidates, PerClassLayers, drop_companions, sample_losses
from detection.matching import match
from detection.roi_align import roi_align
from detection.sampling import PLACE_BITS, Sampled, random_keys, sample

ROI_PURPOSE, KIND_PURPOSE = 3, 4
"""Tell the random keys of this sampling, and of an RoI's kind, from a detector's and from the RPN's."""


class PerClassRcnn(nn.Module):
    """The R-CNN (Girshick et al. 2014): a whole classifier on each proposal's warped crop, ending in the siblings.

    Args:
        net: the classifier, a net of `backbones.zoo`, whose last layer makes room for the siblings.
        config: sample and losses.
        num_classes: K.
        preprocessing: the net's input.
    """

    delta_weights: Tensor

    def __init__(self, net: Any, config: PerClassRcnnConfig, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.net: Any = net
        drop_companions(net)
        self.normalize = Normalize(preprocessing)
        if hasattr(net, "fc"):
            classifier, net.fc = net.fc, nn.Identity()
        else:
            classifier, net.classifier[-1] = net.classifier[-1], nn.Identity()
        self.siblings = PerClassLayers(classifier.in_features, num_classes)
        self.siblings.start_from(classifier)
        self.register_buffer("delta_weights", torch.tensor(config.bbox_reg_weights), persistent=False)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        boxes: Tensor,
        valid: Tensor,
        index: Tensor,
        proposals: Candidates,
        *,
        seed: int,
        iteration: int,
    ) -> dict[str, Tensor]:
        """The losses of a sample of the proposals, scalars.

        Args:
            images, labels, boxes, valid, index: as for `PerClassRpn.forward`.
            proposals: of the image's own class (T = 1), in pixels of `images`.
        """
        config = self.config
        rois, usable = proposals.boxes[:, 0], proposals.scores[:, 0] > 0
        matches = match(boxes, valid, rois, usable)
        positive = matches.iou >= config.fg_iou_thresh
        codes = torch.arange(rois.shape[1], device=rois.device)
        keys = random_keys(seed, iteration, ROI_PURPOSE, index, codes)
        negative = usable & ~positive
        if config.sampling == "image":
            chosen = sample(positive, negative, keys, config.rois_per_image, config.positive_fraction)
        else:
            chosen = self._one_each(positive, negative, keys, seed, iteration, index)
        references = gather_boxes(rois, chosen.index)
        logits, deltas = self.answers(images, references, labels[:, None].expand(-1, references.shape[1]))
        objects = gather_boxes(boxes, matches.index.gather(1, chosen.index))
        own = chosen._replace(index=torch.arange(logits.shape[1], device=rois.device).expand_as(logits))
        return sample_losses(logits, deltas, references, objects, own, config, self.delta_weights)

    def _one_each(
        self, positive: Tensor, negative: Tensor, keys: Tensor, seed: int, iteration: int, index: Tensor
    ) -> Sampled:
        """One RoI of each image, positive with the probability `positive_fraction` where there are both kinds."""
        one = torch.zeros(1, dtype=torch.int64, device=index.device)
        hashed = random_keys(seed, iteration, KIND_PURPOSE, index, one) >> PLACE_BITS  # (B, 1), 32 bits
        share = hashed.double() / 2.0**32
        wanted = (share < self.config.positive_fraction) | ~negative.any(1, keepdim=True)
        return sample(positive & wanted, negative, keys, 1, 1.0)

    def answers(self, images: Tensor, rois: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R) and deltas (B, R, 4) of boxes (B, R, 4) in pixels of `images`, each for one class (B, R)."""
        size = self.config.warp_size
        crops = roi_align(self.normalize(images), self._with_context(rois.float()), 1.0, size, 1, 0, True)
        features = self.net(crops)[:, :, None, None]
        logits, deltas = self.siblings(features, classes.reshape(-1, 1))
        return logits.view_as(classes), deltas.view(*classes.shape, 4)

    def _with_context(self, rois: Tensor) -> Tensor:
        """The boxes (B, R, 4), so much larger that the warped crop has `context` pixels around them."""
        size, context = self.config.warp_size, self.config.context
        margin = (rois[..., 2:] - rois[..., :2]) * (context / (size - 2 * context))
        return torch.cat((rois[..., :2] - margin, rois[..., 2:] + margin), dim=-1)
