"""The region proposal network (Faster R-CNN, Sec. 3.1): from feature maps to proposals, and its losses.

Shapes: B images, L levels of feature maps, A anchors at each position, N anchors in all, S sampled anchors,
P proposals an image, G padded ground-truth boxes.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from backbones.batch_norm import conv_bn_relu
from backbones.kernels import kernels_for
from configs.detection import RpnConfig
from detection.anchors import AnchorGenerator
from detection.boxes import decode_clipped, encode_boxes, gather_boxes
from detection.losses import box_loss, mean_count, objectness_loss
from detection.matching import inside_image, match
from detection.nms import nms
from detection.sampling import Iteration, random_keys, sample

SAMPLING_PURPOSE = 0
"""Tells the RPN's random keys from the detector's."""


class Proposals(NamedTuple):
    """Proposals of a batch, a fixed number an image, best first."""

    boxes: Tensor
    """(B, P, 4) float32 in pixels of the batch's images; zeros where not valid."""
    logits: Tensor
    """(B, P) float32 objectness."""
    valid: Tensor
    """(B, P) bool."""


class RpnHead(nn.Module):
    """3x3 convolutions and the sibling 1x1 convolutions for objectness and deltas; the same for all levels.

    Parameter names are torchvision's `RPNHead`'s, with which it shares its structure.
    """

    def __init__(self, in_channels: int, hidden_channels: int, num_anchors: int, num_convs: int) -> None:
        super().__init__()
        widths = [in_channels] + [hidden_channels] * num_convs
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, kernel_size=3, padding=1), nn.ReLU(inplace=True))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.cls_logits = nn.Conv2d(hidden_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(hidden_channels, 4 * num_anchors, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, N_l) and deltas (B, N_l, 4), float32, of each level's (B, C, H, W), in the anchors' order."""
        logits, deltas = [], []
        for feature in features:
            hidden = feature
            for block in self.conv:
                assert isinstance(block, nn.Sequential)
                hidden = conv_bn_relu(cast(nn.Conv2d, block[0]), None, hidden)
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4).float())
        return logits, deltas


class Rpn(nn.Module):
    """Head, anchors, proposals and losses."""

    def __init__(self, config: RpnConfig, in_channels: int, anchors: AnchorGenerator) -> None:
        super().__init__()
        self.config = config
        self.anchors = anchors
        self.head = RpnHead(in_channels, config.hidden_channels or in_channels, anchors.per_position, config.num_convs)

    def forward(self, features: list[Tensor], image_sizes: Tensor, *, training: bool) -> tuple[Proposals, RpnOutput]:
        """Proposals for images of `image_sizes` (B, 2), (H, W), and what the losses need.

        Args:
            features: L maps (B, C, H_l, W_l).
            image_sizes: (B, 2) int64 without padding.
            training: take the training numbers of proposals.
        """
        output = self.predict(features)
        return self.propose(output, image_sizes, training=training), output

    def predict(self, features: list[Tensor]) -> RpnOutput:
        """What the head says of each anchor, without proposals: all that the losses need."""
        logits, deltas = self.head(features)
        map_sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        anchors, codes = self.anchors(map_sizes, features[0].device)
        sizes = [level.shape[1] for level in logits]
        return RpnOutput(_joined(logits), _joined(deltas), sizes, anchors, codes)

    @torch.no_grad()
    def propose(self, output: RpnOutput, image_sizes: Tensor, *, training: bool) -> Proposals:
        """The best anchors of each level, moved by their deltas, cut to the image, and freed of duplicates by NMS."""
        config = self.config
        before = config.pre_nms_top_n_train if training else config.pre_nms_top_n_test
        after = config.post_nms_top_n_train if training else config.post_nms_top_n_test
        logits, index, levels = best_of_levels(output.logits, output.sizes, before)
        candidates, usable = decode_clipped(
            output.deltas, index, output.anchors[None], index, None, image_sizes, config.min_size
        )
        # An exported graph has a fixed number of proposals at every size of its images.
        count = after if torch.compiler.is_exporting() else min(after, logits.shape[1])
        kept = nms(
            candidates, logits, usable, levels, config.nms_thresh, count, is_sorted=len(output.sizes) == 1,
        )  # fmt: skip
        valid = kept >= 0
        kept = kept.clamp(min=0)
        return Proposals(gather_boxes(candidates, kept) * valid[..., None], logits.gather(1, kept), valid)

    def losses(
        self,
        output: RpnOutput,
        image_sizes: Tensor,
        boxes: Tensor,
        valid: Tensor,
        image_index: Tensor,
        *,
        seed: int,
        iteration: Iteration,
    ) -> dict[str, Tensor]:
        """Objectness and box losses, scalars.

        Args:
            output: of `predict`.
            image_sizes: (B, 2).
            boxes, valid: (B, G, 4) and (B, G) ground truth.
            image_index: (B,) int64; with `seed` and `iteration` it decides the sample.
        """
        config = self.config
        anchors = output.anchors
        usable = inside_image(anchors, image_sizes) if config.cross_boundary == "drop" else None
        matches = match(boxes, valid, anchors[None], usable)
        positive = (matches.iou >= config.fg_iou_thresh) | matches.is_best_of_object
        negative = (matches.iou < config.bg_iou_thresh) & ~positive
        if usable is not None:
            positive, negative = positive & usable, negative & usable
        keys = random_keys(seed, iteration, SAMPLING_PURPOSE, image_index, output.codes)
        chosen = sample(positive, negative, keys, config.batch_size_per_image, config.positive_fraction)

        count = mean_count(chosen.valid)
        chosen_anchors = anchors[chosen.index]
        objects = gather_boxes(boxes, matches.index.gather(1, chosen.index))
        # Where there is no object an anchor answers to itself: the deltas are finite zeros, and weigh nothing.
        targets = encode_boxes(torch.where(chosen.positive[..., None], objects, chosen_anchors), chosen_anchors)
        return {
            "loss_objectness": objectness_loss(
                output.logits.gather(1, chosen.index), chosen.positive, chosen.valid, count
            ),
            "loss_rpn_box_reg": config.box_loss_weight
            * box_loss(
                gather_boxes(output.deltas, chosen.index), targets, chosen.positive, count, config.smooth_l1_beta
            ),
        }


def best_of_levels(logits: Tensor, sizes: list[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best anchors of each level.

    Args:
        logits: (B, N) of all levels.
        sizes: N_l, how many are of each level.
        count: so many of each level, or all where there are fewer; M in all.

    Returns:
        (B, M) logits, those of a single level in descending order; (B, M) int64 which of the N they are; (B, M) int64
        the number of their level.
    """
    if len(sizes) > 1 and (kernels := kernels_for(logits, "detection.triton_selection")):
        return kernels.best_of_levels(logits, sizes, count)
    values, places, levels, first = [], [], [], 0
    for number, level in enumerate(logits.split(sizes, 1)):
        # `sym_min` because an exported graph's sizes are symbols; of numbers it is `min`.
        best, place = _best(level, cast(int, torch.sym_min(count, sizes[number])))
        values.append(best)
        places.append(place + first if number else place)
        levels.append(torch.full_like(place, number))
        first += sizes[number]
    return _joined(values), _joined(places), _joined(levels)


def _joined(levels: list[Tensor]) -> Tensor:
    """(B, N, ..): what each level has, (B, N_l, ..), in a row."""
    return torch.cat(levels, 1) if len(levels) > 1 else levels[0]


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest `count` of logits (B, N), and where they are, in descending order."""
    if logits.is_cuda and 4 * count >= logits.shape[1]:  # topk selects first, and then sorts: twice the launches
        values, index = logits.sort(dim=1, descending=True)
        return values[:, :count], index[:, :count]
    return logits.topk(count, dim=1)


class RpnOutput(NamedTuple):
    """What the head says of each anchor, level by level."""

    logits: Tensor
    """(B, N) float32."""
    deltas: Tensor
    """(B, N, 4) float32."""
    sizes: list[int]
    """N_l: how many anchors each level has."""
    anchors: Tensor
    """(N, 4) float32."""
    codes: Tensor
    """(N,) int64 (see `AnchorGenerator`)."""
