"""The assembly: backbone, neck, RPN and detector, composed here and nowhere else.

    images -> Normalize -> Backbone (conv1..conv4, or P2..P6) -> Rpn -> proposals -> RoiHeads -> postprocess

He et al. 2016, App. A; Ren et al. 2015; Girshick 2015; Lin et al. 2017 for the pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.batch_norm import NORMS, fold_batch_norm
from backbones.convolution import pack
from backbones.preprocess import Normalize
from backbones.pretrained import described_net, load_backbone_weights
from backbones.resnet import ResNet
from backbones.staged import Stage, StagedNet
from backbones.weights import Preprocessing
from backbones.zoo import build_backbone
from configs.detection import ModelConfig, TestConfig
from configs.errors import UserError
from datasets.batch import Batch
from detection.anchors import AnchorGenerator
from detection.heads import BoxPredictor, Conv5Head, FcHead
from detection.postprocess import BatchDetections, only_classes, select_candidates, suppress, to_original
from detection.pyramid import EverySecondPixel, Pyramid
from detection.roi_features import RoiFeatures
from detection.roi_heads import RoiHeads
from detection.rpn import Proposals, Rpn, RpnOutput
from detection.sampling import Iteration

FPN_STRIDES = (4, 8, 16, 32)
"""Strides of P2..P5, which are those of conv2..conv5 of the ImageNet nets."""


class Backbone(nn.Module):
    """Feature maps of an image: one of stride 16, or the pyramid P2..P6.

    `body` is any module that is a `StagedNet`.
    """

    def __init__(self, body: StagedNet, stages: tuple[str, ...], fpn: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.stages = stages
        self.fpn = fpn
        self.strides = [body.stage_strides[stage] for stage in stages]
        if fpn is not None:
            self.strides.append(self.strides[-1] * 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float32 -> maps (B, C, H / stride, W / stride), finest first."""
        maps = self.body.forward_stages(images, self.stages)
        if self.fpn is not None:
            maps = self.fpn({stage: maps[stage] for stage in self.stages})
        return list(maps.values())


class Detector(nn.Module):
    """Faster R-CNN on batches (`datasets.batch.Batch`).

    Args:
        backbone, rpn, roi_heads: its parts.
        class_names: K names.
        preprocessing: what its weights expect of an image.
        test: the thresholds of its detections; None: the defaults. What else a test may ask for (refinement, sizes)
            is done by `detection.inference.Inference`.
    """

    def __init__(
        self,
        backbone: Backbone,
        rpn: Rpn,
        roi_heads: RoiHeads,
        class_names: list[str],
        preprocessing: Preprocessing,
        test: TestConfig | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.test = test or TestConfig()
        self.card: dict[str, str] = {}
        """What is known of published weights in it: source, licence, figures. Checkpoints keep it."""

    def forward(
        self, batch: Batch, *, seed: int | None = None, iteration: Iteration | None = None
    ) -> dict[str, Tensor] | BatchDetections:
        """Losses where `seed` and `iteration` are given (they decide the samples), detections otherwise.

        Losses are scalars; their sum is what is minimised. They are normalised over all processes. Detections are in
        pixels of the original images.
        """
        if iteration is None or seed is None:
            return self.detect(batch)
        return self.losses(batch, seed=seed, iteration=iteration)

    def features(self, batch: Batch) -> list[Tensor]:
        """The batch's feature maps, (B, C, H / stride, W / stride) each."""
        return self.backbone(self.normalize(batch.images, batch.image_sizes))

    def roi_maps(self, features: list[Tensor]) -> list[Tensor]:
        """The maps that RoIs are pooled from: P6 serves the RPN only (Lin et al. 2017, Sec. 4.1)."""
        return features[:-1] if self.backbone.fpn is not None else features

    def losses(self, batch: Batch, *, seed: int, iteration: Iteration) -> dict[str, Tensor]:
        """Approximate joint training (Faster R-CNN, Sec. 3.2): the four losses of one step."""
        features = self.features(batch)
        output = self.rpn.predict(features)
        proposals = self.rpn.propose(output, batch.image_sizes, training=True)
        draw = {"seed": seed, "iteration": iteration}
        return self.rpn_losses(output, batch, **draw) | self.roi_losses(features, proposals, batch, **draw)

    def rpn_losses(self, output: RpnOutput, batch: Batch, *, seed: int, iteration: Iteration) -> dict[str, Tensor]:
        """The RPN's two losses, from what its head says."""
        draw = {"image_index": batch.index, "seed": seed, "iteration": iteration}
        return self.rpn.losses(output, batch.image_sizes, batch.boxes, batch.valid, **draw)

    def roi_losses(
        self, features: list[Tensor], proposals: Proposals, batch: Batch, *, seed: int, iteration: Iteration
    ) -> dict[str, Tensor]:
        """The detector's two losses on some proposals, of its own RPN or of another network's."""
        draw = {"image_index": batch.index, "seed": seed, "iteration": iteration}
        rois = self.roi_heads.select(proposals, batch.boxes, batch.labels, batch.valid, **draw)
        logits, deltas = self.roi_heads(self.roi_maps(features), rois.boxes, batch.image_sizes)
        return self.roi_heads.losses(logits, deltas, rois)

    def detect(
        self, batch: Batch, proposals: Proposals | None = None, *, test: TestConfig | None = None
    ) -> BatchDetections:
        """Final boxes, scores and labels of the batch's images.

        Args:
            batch: the images.
            proposals: what is scored; None: the proposals of its own RPN.
            test: thresholds in place of its own.
        """
        features = self.features(batch)
        taken: Proposals = self.rpn(features, batch.image_sizes, training=False)[0] if proposals is None else proposals
        logits, deltas = self.roi_heads(self.roi_maps(features), taken.boxes, batch.image_sizes)
        test, weights = test or self.test, self.roi_heads.delta_weights
        candidates = select_candidates(
            logits, deltas, taken.boxes, taken.valid, batch.image_sizes, weights, test.score_thresh
        )
        kept = suppress(candidates, test.nms_thresh, test.detections_per_img)
        found = to_original(kept, batch.image_sizes, batch.original_sizes)
        return only_classes(found, len(self.class_names)) if self.roi_heads.config.unused_outputs else found

    def optimize_for_inference(self, dtype: torch.dtype = torch.float32) -> Detector:
        """The same detector, in place, prepared for speed; it cannot train or be saved afterwards.

        Every batch norm is folded into its convolution, weights lie channels_last, and convolutions and fully connected
        layers compute in `dtype` without autocast. Boxes stay in float32 whatever `dtype` is. Where the weights are on
        the CPU, convolutions are packed for it (`backbones.convolution.pack`).
        """
        fold_batch_norm(self)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(dtype)
        self.normalize.dtype = dtype
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's overloads lack this one
        pack(self)
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.own_inputs()
        return self


def build_detector(
    config: ModelConfig,
    class_names: list[str],
    *,
    test: TestConfig | None = None,
    data_root: Path | None = None,
    preprocessing: Preprocessing | None = None,
) -> Detector:
    """The detector that a config describes.

    Args:
        config: the section `model`.
        class_names: K names; label k is `class_names[k - 1]`.
        test: the section `test`, whose thresholds its detections obey; None: the default ones.
        data_root: where weights files are looked for.
        preprocessing: of a checkpoint that will be loaded over this: the backbone's own weights are then not looked
            for. None: the backbone's weights are loaded, and bring it along.
    """
    if preprocessing is None:
        config = with_described_net(config, data_root)
    if config.backbone is None:
        raise UserError("model.backbone: name a net: the checkpoint that is loaded does not say which one it is of")
    net = build_backbone(
        config.backbone, norm=config.norm, stride_in_1x1=config.stride_in_1x1, shortcut=config.shortcut,
        plain=config.plain,
    )  # fmt: skip
    if preprocessing is None:
        if config.box.dropout and config.neck == "none" and not config.dilated_conv5 and net.head == "conv":
            raise UserError(
                "model.box.dropout: is for fully connected layers, and this net's head has none: set it to 0"
            )
        preprocessing = load_backbone_weights(
            net, config.backbone, config.weights, stride_in_1x1=bool(config.stride_in_1x1), data_root=data_root
        )
    net.freeze_stages(config.frozen_stages)
    classifier = net.pop_classifier()
    if net.head is None:
        raise UserError("model.backbone: this net has no feature maps for a detector: give one with convolutions")
    if config.neck == "fpn":
        backbone, box_head, channels = _fpn_parts(config, net)
    elif config.dilated_conv5:
        backbone, box_head, channels = _dc5_parts(config, net)
    elif net.head == "fc":
        backbone, box_head, channels = _vgg_parts(config, net, classifier)
    else:
        backbone, box_head, channels = _c4_parts(config, net)
    anchors = AnchorGenerator(config.anchors, backbone.strides)
    roi_strides = backbone.strides[:-1] if backbone.fpn is not None else backbone.strides
    width = box_head.out_channels * (2 if config.box.global_context else 1)
    outputs = len(class_names) + config.box.unused_outputs
    predictor = BoxPredictor(width, outputs, class_agnostic=config.box.class_agnostic)
    roi_heads = RoiHeads(config.box, RoiFeatures(config.box, roi_strides), box_head, predictor)
    return Detector(backbone, Rpn(config.rpn, channels, anchors), roi_heads, class_names, preprocessing, test)


def with_described_net(
    config: ModelConfig, data_root: Path | None = None, described: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The same config with the net written out that it leaves to the checkpoint in `weights`.

    Args:
        config: the section `model`.
        data_root: where weights files are looked for.
        described: the section `model` of the checkpoint that a run goes on from; None: that of `weights`.

    Raises:
        UserError: neither the config nor the checkpoint says which net; or the checkpoint cannot be read.
    """
    open_keys = [key for key in ("backbone", "shortcut", "plain", "stride_in_1x1") if getattr(config, key) is None]
    if not open_keys:
        return config
    described = described_net(config.weights, data_root) if described is None else described
    if config.backbone not in (None, described.get("backbone")):  # another net: loading says what differs
        return config
    update = {key: described[key] for key in open_keys if described.get(key) is not None}
    config = config.model_copy(update=update)
    if config.backbone is None:
        raise UserError(f"model.backbone: name a net: weights {config.weights} do not say which one they are of")
    return config


def _c4_parts(config: ModelConfig, net: StagedNet) -> tuple[Backbone, Conv5Head, int]:
    *_, shared, last = net.stage_channels  # conv4 and conv5 of the ImageNet nets
    head = Conv5Head(net.pop_stage(last), net.stage_channels[last], config.box.pool_size)
    return Backbone(net, (shared,)), head, net.stage_channels[shared]


def _dc5_parts(config: ModelConfig, net: StagedNet) -> tuple[Backbone, FcHead, int]:
    *_, before, last = net.stage_channels  # conv4 and conv5 of the ImageNet nets
    if not isinstance(net, ResNet):
        raise UserError("model.dilated_conv5: only residual nets and their plain twins dilate: set it to false")
    if not net.dilate_stage(last):
        strides = net.stage_strides
        reason = "strides by pooling" if strides[last] > strides[before] else "does not stride"
        raise UserError(f"model.dilated_conv5: {last} of this net {reason}, so nothing is dilated: set it to false")
    channels = net.stage_channels[last]
    return Backbone(net, (last,)), FcHead(channels, config.box), channels


def _vgg_parts(config: ModelConfig, net: StagedNet, classifier: nn.Module) -> tuple[Backbone, FcHead, int]:
    last = next(reversed(net.stage_channels))
    channels = net.stage_channels[last]
    head = FcHead(channels, config.box)
    # fc6 and fc7 are the classifier's own where they have its shape (Fast R-CNN, Sec. 2.2).
    linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    for layer, source in zip(head.layers[:2], linear, strict=False):
        if layer.weight.shape == source.weight.shape:
            layer.load_state_dict(source.state_dict())
    return Backbone(net, (last,)), head, channels


def _fpn_parts(config: ModelConfig, net: StagedNet) -> tuple[Backbone, FcHead, int]:
    channels = config.fpn_channels
    deepest = {stride: stage for stage, stride in net.stage_strides.items()}
    if missing := [stride for stride in FPN_STRIDES if stride not in deepest]:
        raise UserError(
            f"model.neck: fpn needs maps of strides 4, 8, 16 and 32, and this net has none of stride {missing[0]}: it "
            f"has {', '.join(f'{stage} of {stride}' for stage, stride in net.stage_strides.items())}"
        )
    stages = tuple(deepest[stride] for stride in FPN_STRIDES)
    widths = [net.stage_channels[stage] for stage in stages]
    norm = None if config.fpn_norm == "none" else NORMS[config.fpn_norm]
    fpn = Pyramid(widths, channels, extra_blocks=EverySecondPixel(), norm_layer=norm)
    return Backbone(net, stages, fpn), FcHead(channels, config.box), channels
