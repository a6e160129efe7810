"""The per-class region proposal network (He et al. 2016, App. C), the first stage of localisation.

Shapes: B images, T classes asked for in each, A anchors at each position, N anchors in all, G padded ground-truth
boxes, K classes. Classes count from 0 here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.googlenet import GoogLeNet
from backbones.preprocess import Normalize
from backbones.resnet import ResNet
from backbones.weights import Preprocessing
from configs.errors import UserError
from configs.localisation import PerClassRpnConfig
from detection.anchors import AnchorGenerator
from detection.boxes import decode_boxes, gather_boxes
from detection.localisation.layers import Candidates, PerClassLayers, drop_companions, sample_losses, to_original
from detection.losses import classification_loss, mean_count, objectness_loss
from detection.matching import match
from detection.sampling import Sampled, random_keys, sample

ANCHOR_PURPOSE = 2
"""Tells this sampling's random keys from a detector's and from the R-CNN's."""
RIGHT_IOU = 0.5
"""A box is right from this overlap on (the benchmark's rule)."""


class PerClassRpn(nn.Module):
    """The per-class region proposal network on a map of a classifier, and its losses.

    Args:
        net: the classifier, a net of `backbones.zoo`; its last layer is dropped where it does not train along.
        config: anchors, sample and losses.
        num_classes: K.
        preprocessing: the net's input.
    """

    def __init__(self, net: Any, config: PerClassRpnConfig, num_classes: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.net: Any = net
        self.normalize = Normalize(preprocessing)
        stages = list(net.stage_channels)
        self.last = stages[-1]
        self.stage = config.stage or self.last
        if self.stage not in stages:
            raise UserError(f"model.rpn.stage is {self.stage}, but the net has {', '.join(stages)}")
        drop_companions(net)
        if self.classifies and not (isinstance(net, ResNet | GoogLeNet) and net.pools_globally):
            raise UserError("model.rpn.classification_loss_weight: this net's classifier cannot train along: give 0")
        if not config.classification_loss_weight:
            net.pop_classifier()
            for behind in stages[stages.index(self.stage) + 1 :]:
                net.pop_stage(behind)
        channels = net.stage_channels[self.stage]
        self.anchors = AnchorGenerator(config.anchors, [net.stage_strides[self.stage]])
        self.conv: nn.Module = nn.Identity()
        if config.hidden_channels:
            conv = nn.Conv2d(channels, config.hidden_channels, 3, padding=1)
            self.conv = nn.Sequential(conv, nn.ReLU(inplace=True))
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.constant_(conv.get_parameter("bias"), 0.0)
        self.siblings = PerClassLayers(config.hidden_channels or channels, num_classes, self.anchors.per_position)

    @property
    def classifies(self) -> bool:
        """Whether `net` is a trained classifier too."""
        return self.config.classification_loss_weight > 0

    def forward(
        self, images: Tensor, labels: Tensor, boxes: Tensor, valid: Tensor, index: Tensor, *, seed: int, iteration: int
    ) -> dict[str, Tensor]:
        """The losses, scalars.

        Args:
            images: (B, 3, H, W) uint8 RGB.
            labels: (B,) int64, 0..K-1: only the outputs of the image's own class learn.
            boxes, valid: (B, G, 4) and (B, G): its objects.
            index: (B,) int64, what the images are in their set; with `seed` and `iteration` it decides the sample.
        """
        config = self.config
        stages = [self.stage, self.last] if self.classifies else [self.stage]
        maps = self.net.forward_stages(self.normalize(images), stages)
        feature = maps[self.stage]
        logits, deltas = (part[:, 0] for part in self.siblings(self.conv(feature), labels[:, None]))
        anchors, codes = self.anchors([tuple(feature.shape[-2:])], feature.device)
        matches = match(boxes, valid, anchors[None])
        positive = (matches.iou >= config.fg_iou_thresh) | matches.is_best_of_object
        # An IoU of -1 says that the crop shows no object: of its anchors nothing is known.
        negative = (matches.iou >= 0) & (matches.iou < config.bg_iou_thresh) & ~positive
        keys = random_keys(seed, iteration, ANCHOR_PURPOSE, index, codes)
        size = config.batch_size_per_image
        if config.shortage == "fill":
            chosen = sample(positive, negative, keys, size, 0.5)
        else:
            chosen = sample_evenly(positive, negative, keys, size)
        objects = gather_boxes(boxes, matches.index.gather(1, chosen.index))
        losses = sample_losses(logits, deltas, anchors[chosen.index], objects, chosen, config, None)
        if config.score == "box":
            found = match(boxes, valid, decode_boxes(deltas.detach(), anchors))
            known = found.iou >= 0
            losses["loss_objectness"] = objectness_loss(logits, found.iou >= RIGHT_IOU, known, mean_count(known))
        if self.classifies:
            scores = self.net.fc(self.net.dropout(F.adaptive_avg_pool2d(maps[self.last], 1).flatten(1))).float()
            everyone = torch.ones_like(labels, dtype=torch.bool)
            loss = classification_loss(scores, labels, everyone, mean_count(everyone))
            losses["loss_classifier"] = config.classification_loss_weight * loss
        return losses

    def candidates(self, images: Tensor, frames: Tensor, classes: Tensor, count: int, *, mirror: bool) -> Candidates:
        """The best `count` boxes of each class in pixels of the original images; neither clipped nor suppressed.

        Args:
            images: (B, 3, H, W) uint8 RGB, any H and W.
            frames: (B, 4) float32: x, y of the view's corner in the original image, its pixels for each of the view's.
            classes: (B, T) int64.
            count: at most so many.
            mirror: look at the mirror images.
        """
        pixels = self.normalize(images.flip(-1) if mirror else images)
        feature = self.net.forward_stages(pixels, [self.stage])[self.stage]
        logits, deltas = self.siblings(self.conv(feature), classes)
        anchors, _ = self.anchors([tuple(feature.shape[-2:])], feature.device)
        best, index = logits.flatten(0, 1).topk(min(count, logits.shape[2]), dim=1)
        boxes = decode_boxes(gather_boxes(deltas.flatten(0, 1), index), anchors[index]).unflatten(0, classes.shape)
        if mirror:
            x1, y1, x2, y2 = boxes.unbind(-1)
            boxes = torch.stack((images.shape[-1] - x2, y1, images.shape[-1] - x1, y2), dim=-1)
        return Candidates(to_original(boxes, frames), best.sigmoid().unflatten(0, classes.shape))


def sample_evenly(positive: Tensor, negative: Tensor, keys: Tensor, size: int) -> Sampled:
    """At most `size / 2` positives and as many negatives as positives, for each image; see `sampling.sample`.

    The 1:1 of the paper, which wants no image's negatives to outnumber its positives: one without positives has no
    sample.
    """
    chosen = sample(positive, negative, keys, size, 0.5)
    places = torch.arange(chosen.index.shape[1], device=keys.device)  # positives come first
    return chosen._replace(valid=chosen.valid & (places < 2 * chosen.positive.sum(1, keepdim=True)))
