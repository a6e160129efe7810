"""ImageNet localisation: a per-class RPN, then an R-CNN on its proposals (He et al. 2016, App. C).

The class is given (the true one, or predicted ones); what is sought is its box. Both networks have K binary logistic
outputs and K x 4 deltas, of which only those of the classes that are asked for are computed.

Shapes: B images, T classes asked for in each, A anchors at each position, N anchors in all, M candidate boxes of an
(image, class) pair, S sampled ones, G padded ground-truth boxes, K classes. Classes count from 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.classification import Normalize, build_classifier
from backbones.weights import Preprocessing, load_backbone_weights, read_weights_file
from configs.errors import UserError
from configs.loading import parse_config
from configs.localisation import LocalisationConfig, LocaliserConfig, PerClassRcnnConfig, PerClassRpnConfig
from detection.anchors import AnchorGenerator
from detection.boxes import clip_boxes, decode_boxes, encode_boxes, gather_boxes, large_enough, pairwise_iou
from detection.checkpoint import FORMAT, load_strictly
from detection.losses import box_loss, classification_loss, mean_count, objectness_loss
from detection.matching import match
from detection.nms import nms
from detection.roi_align import roi_align
from detection.sampling import Sampled, random_keys, sample

KIND = "localiser"
"""What a checkpoint says that it holds."""
ANCHOR_PURPOSE, ROI_PURPOSE = 2, 3
"""Tell these samplings' random keys from a detector's."""
RIGHT_IOU = 0.5
"""A box is right from this overlap on (the benchmark's rule)."""
MIN_SIZE = 1e-2
"""Boxes that leave less than this of width or height in the image count as none, pixels."""
WARPED_CROPS = 256
"""Crops that go through the R-CNN at a time at test."""


class Candidates(NamedTuple):
    """Boxes for each class that was asked for."""

    boxes: Tensor
    """(B, T, M, 4) float32."""
    scores: Tensor
    """(B, T, M) float32 in [0, 1]; 0 where there is no box."""


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
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def start_from(self, classifier: nn.Linear) -> None:
        """The classes' own scores of one anchor become the classifier's, less the mean of all classes.

        A softmax does not feel that mean; a logistic score would.
        """
        self.cls_logits.weight.copy_((classifier.weight - classifier.weight.mean(0))[..., None, None])
        self.cls_logits.bias.copy_(classifier.bias - classifier.bias.mean())

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
        bias = F.embedding(classes, own.bias.view(self.num_classes, -1)) + shared.bias
        products = torch.bmm(weight.view(len(classes), -1, features.shape[1]), features.flatten(2))
        return products.unflatten(1, (-1, shared.out_channels)).transpose(2, 3) + bias[:, :, None]


def sample_evenly(positive: Tensor, negative: Tensor, keys: Tensor, size: int) -> Sampled:
    """At most `size / 2` positives and as many negatives as positives, for each image; see `sampling.sample`.

    The 1:1 of the paper, which wants no image's negatives to outnumber its positives: one without positives has no
    sample.
    """
    chosen = sample(positive, negative, keys, size, 0.5)
    places = torch.arange(chosen.index.shape[1], device=keys.device)  # positives come first
    return chosen._replace(valid=chosen.valid & (places < 2 * chosen.positive.sum(1, keepdim=True)))


# ---------------------------------------------------------------------------------------------- stage 1


class PerClassRpn(nn.Module):
    """The per-class region proposal network on a map of a classifier, and its losses.

    Args:
        net: the classifier; its last layer is dropped where it does not train along.
        config: anchors, sample and losses.
        num_classes: K.
        preprocessing: the net's input.
    """

    def __init__(
        self, net: nn.Module, config: PerClassRpnConfig, num_classes: int, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.net, self.normalize = net, Normalize(preprocessing)
        stages = list(net.stage_channels)
        self.last = stages[-1]
        self.stage = config.stage or self.last
        if self.stage not in stages:
            raise UserError(f"model.rpn.stage is {self.stage}, but the net has {', '.join(stages)}")
        if not config.classification_loss_weight:
            net.pop_classifier()
            for behind in stages[stages.index(self.stage) + 1 :]:
                net.pop_stage(behind)
        channels = net.stage_channels[self.stage]
        self.anchors = AnchorGenerator(config.anchors, [net.stage_strides[self.stage]])
        self.conv: nn.Module = nn.Identity()
        if config.hidden_channels:
            self.conv = nn.Sequential(nn.Conv2d(channels, config.hidden_channels, 3, padding=1), nn.ReLU(inplace=True))
            nn.init.kaiming_normal_(self.conv[0].weight, nonlinearity="relu")
            nn.init.zeros_(self.conv[0].bias)
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
        losses = _losses(logits, deltas, anchors[chosen.index], objects, chosen, config, None)
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


def _losses(
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
    # What is no positive answers to itself: finite deltas that weigh nothing. So would boxes without extent.
    positive = chosen.positive[..., None]
    objects = torch.where(positive, objects, references)
    targets = torch.where(positive, encode_boxes(objects, references, weights), 0.0)
    return {
        "loss_objectness": objectness_loss(logits.gather(1, chosen.index), chosen.positive, chosen.valid, count),
        "loss_box_reg": config.box_loss_weight
        * box_loss(gather_boxes(deltas, chosen.index), targets, chosen.positive, count, config.smooth_l1_beta),
    }


# ---------------------------------------------------------------------------------------------- stage 2


class PerClassRcnn(nn.Module):
    """The R-CNN (Girshick et al. 2014): a whole classifier on each proposal's warped crop, ending in the siblings.

    Args:
        net: the classifier, whose last layer makes room for the siblings.
        config: sample and losses.
        num_classes: K.
        preprocessing: the net's input.
    """

    def __init__(
        self, net: nn.Module, config: PerClassRcnnConfig, num_classes: int, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.net, self.normalize = net, Normalize(preprocessing)
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
        chosen = sample(positive, usable & ~positive, keys, config.rois_per_image, config.positive_fraction)
        references = gather_boxes(rois, chosen.index)
        logits, deltas = self.answers(images, references, labels[:, None].expand(-1, references.shape[1]))
        objects = gather_boxes(boxes, matches.index.gather(1, chosen.index))
        own = chosen._replace(index=torch.arange(logits.shape[1], device=rois.device).expand_as(logits))
        return _losses(logits, deltas, references, objects, own, config, self.delta_weights)

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


# ---------------------------------------------------------------------------------------------- test


def to_original(boxes: Tensor, frames: Tensor) -> Tensor:
    """Boxes (B, T, M, 4) of views as boxes of the original images; `frames` (B, 4) as in `PerClassRpn.candidates`."""
    corner, scale = (part.repeat(1, 2)[:, None, None] for part in frames.split(2, dim=1))
    return boxes * scale + corner


def to_view(boxes: Tensor, frames: Tensor) -> Tensor:
    """The inverse of `to_original`."""
    corner, scale = (part.repeat(1, 2)[:, None, None] for part in frames.split(2, dim=1))
    return (boxes - corner) / scale


def propose(
    members: Sequence[PerClassRpn],
    views: Sequence[tuple[Tensor, Tensor]],
    classes: Tensor,
    image_sizes: Tensor,
    count: int,
    *,
    mirror: bool,
) -> Candidates:
    """The best `count` boxes of each class over all views and members, in the original images and cut to them.

    Args:
        members: one RPN or several, whose boxes are joined.
        views: images (B, 3, H, W) uint8 and frames (B, 4) of each scale.
        classes: (B, T) int64.
        image_sizes: (B, 2) int64, (H, W) of the original images.
        count: M.
        mirror: take each view's mirror image too.
    """
    parts = [
        member.candidates(images, frames, classes, count, mirror=flip)
        for member in members
        for images, frames in views
        for flip in ((False, True) if mirror else (False,))
    ]
    boxes = torch.cat([part.boxes for part in parts], 2)
    scores, index = torch.cat([part.scores for part in parts], 2).flatten(0, 1).sort(dim=1, descending=True)
    boxes = gather_boxes(boxes.flatten(0, 1), index[:, :count]).unflatten(0, classes.shape)
    clipped = clip_boxes(boxes.flatten(1, 2), image_sizes).unflatten(1, boxes.shape[1:3])
    scores = scores[:, :count].unflatten(0, classes.shape)
    return Candidates(clipped, scores * large_enough(clipped, MIN_SIZE))


def suppress(candidates: Candidates, iou_threshold: float, count: int | None = None) -> Candidates:
    """The candidates without those that overlap a better one by more, best first.

    Args:
        candidates: M of each class.
        iou_threshold: more than this is too much.
        count: the best so many of what is left; None: M. Free places score 0.
    """
    boxes, scores = candidates.boxes.flatten(0, 1), candidates.scores.flatten(0, 1)
    count = min(count or scores.shape[1], scores.shape[1])
    kept = nms(boxes, scores, scores > 0, torch.zeros_like(scores, dtype=torch.int64), iou_threshold, count)
    there, kept = kept >= 0, kept.clamp(min=0)
    shape = candidates.scores.shape[:2]
    boxes = gather_boxes(boxes, kept) * there[..., None]
    return Candidates(boxes.unflatten(0, shape), (scores.gather(1, kept) * there).unflatten(0, shape))


def rescore(
    members: Sequence[PerClassRcnn],
    images: Tensor,
    frames: Tensor,
    classes: Tensor,
    image_sizes: Tensor,
    proposals: Candidates,
) -> Candidates:
    """New scores and boxes of the proposals: the means of all members' (He et al. 2016, App. B and C).

    Args:
        members: one R-CNN or several.
        images, frames: the view that crops are taken from, (B, 3, H, W) uint8 and (B, 4).
        classes: (B, T) int64.
        image_sizes: (B, 2), (H, W) of the original images.
        proposals: in pixels of the original images.
    """
    rois = to_view(proposals.boxes, frames)
    asked = classes[..., None].expand_as(proposals.scores).flatten(1)
    boxes, scores = torch.zeros_like(proposals.boxes), torch.zeros_like(proposals.scores)
    step = max(1, WARPED_CROPS // len(images))
    for member in members:
        parts = [
            member.answers(images, part, of)
            for part, of in zip(rois.flatten(1, 2).split(step, 1), asked.split(step, 1), strict=True)
        ]
        logits, deltas = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        moved = decode_boxes(deltas.view_as(rois), rois, member.delta_weights)
        boxes += to_original(moved, frames) / len(members)
        scores += logits.sigmoid().view_as(scores) / len(members)
    clipped = clip_boxes(boxes.flatten(1, 2), image_sizes).unflatten(1, boxes.shape[1:3])
    return Candidates(clipped, scores * (proposals.scores > 0))


def merge(candidates: Candidates, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """One box for each class, (B, T, 4), and its score, (B, T): the candidates' agreement.

    Each candidate stands for itself and those that overlap it by at least `iou_threshold`; the one with the highest sum
    of their scores wins, and the box is their score-weighted mean. Its score is the highest of theirs. At a threshold
    of 1 it is the candidate with the highest score.
    """
    boxes, scores = candidates.boxes.flatten(0, 1), candidates.scores.flatten(0, 1)
    if iou_threshold >= 1:
        agree = torch.eye(scores.shape[1], device=scores.device).expand(len(scores), -1, -1)
    else:
        agree = (pairwise_iou(boxes, boxes) >= iou_threshold).float()
    weights = agree * scores[:, None]
    winner = weights.sum(2).argmax(1)[:, None, None].expand(-1, 1, scores.shape[1])
    weights = weights.gather(1, winner)[:, 0]
    mean = (weights[..., None] * boxes).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-12)
    shape = candidates.scores.shape[:2]
    return mean.unflatten(0, shape), weights.amax(1).unflatten(0, shape)


# ---------------------------------------------------------------------------------------------- nets


def build_localiser(
    model: LocaliserConfig,
    num_classes: int,
    *,
    data_root: Path | None = None,
    preprocessing: Preprocessing | None = None,
) -> PerClassRpn | PerClassRcnn:
    """The network of a config's stage.

    Args:
        model: the network, and the classifier's weights that it starts from.
        num_classes: K.
        data_root: where relative paths of weights start.
        preprocessing: given where a checkpoint's weights will replace all; those of `model.weights` are not read then.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    net = build_classifier(model, num_classes)
    if preprocessing is None:
        name = model.backbone if isinstance(model.backbone, str) else "the net"
        preprocessing = load_backbone_weights(
            net, name, model.weights, stride_in_1x1=model.stride_in_1x1, data_root=data_root
        )
    if model.stage == "rpn":
        return PerClassRpn(net, model.rpn, num_classes, preprocessing)
    return PerClassRcnn(net, model.rcnn, num_classes, preprocessing)


class Localiser(NamedTuple):
    """A trained network and what its checkpoint says."""

    net: PerClassRpn | PerClassRcnn
    config: LocalisationConfig
    class_names: list[str]
    mean_boxes: list[list[float]]
    """Of each class, as shares of width and height: the trivial prediction of the training set."""


def load_localiser(path: Path | str, stage: str, *, device: torch.device | str = "cpu") -> Localiser:
    """The network of a checkpoint of tools/train_loc.py, in eval mode.

    Args:
        path: the file.
        stage: rpn or rcnn: which one it must be.
        device: where it goes.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    content = read_weights_file(path)
    if content.get("kind") != KIND or content.get("format") != FORMAT:
        kind = content.get("kind")
        what = f"a {kind}'s checkpoint" if kind else "none of this project's checkpoints"
        raise UserError(f"{path}: {what}: give last.pt or best.pt of a run of tools/train_loc.py")
    config = parse_config(content["config"], [], LocalisationConfig, f"{path} (stored config)", stored=True)
    if config.model.stage != stage:
        raise UserError(f"{path}: of stage {config.model.stage}, where stage {stage} is needed")
    preprocessing = Preprocessing.from_dict(content["preprocessing"])
    net = build_localiser(config.model, len(content["class_names"]), preprocessing=preprocessing)
    load_strictly(net, content["model"], path)
    return Localiser(net.to(device).eval(), config, list(content["class_names"]), content["mean_boxes"])
