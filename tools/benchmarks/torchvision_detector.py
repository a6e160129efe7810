"""Faster R-CNN composed plainly of torchvision's public parts, as its users would: what `ours` is measured against.

Parameters bear the same names as this project's, so that one state dict loads into both.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign, RoIAlign, RoIPool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from configs.detection import ModelConfig, TestConfig
from configs.errors import UserError
from detection.anchors import sizes_of_levels

LEVEL_CHANNELS = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}


class UnroundedAnchors(AnchorGenerator):
    """torchvision's anchors without the rounding of their corners."""

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device="cpu") -> Tensor:
        scales = torch.as_tensor(scales, dtype=dtype, device=device)
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        heights, widths = (heights[:, None] * scales).flatten(), ((1 / heights)[:, None] * scales).flatten()
        return torch.stack((-widths, -heights, widths, heights), dim=1) / 2


class NarrowRpnHead(RPNHead):
    """torchvision's head with a hidden layer that is not as wide as the map."""

    def __init__(self, in_channels: int, hidden: int, num_anchors: int) -> None:
        super().__init__(hidden, num_anchors)
        first = self.conv[0]
        assert isinstance(first, nn.Sequential)
        first[0] = nn.Conv2d(in_channels, hidden, 3, padding=1)


class Backbone(nn.Module):
    """Body and, for FPN, neck; a dict of maps."""

    def __init__(self, body: nn.Module, fpn: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return maps if self.fpn is None else self.fpn(maps)


class VggBody(nn.Module):
    """conv1_1..conv5_3 without pool5."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(features)[:-1])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"0": self.features(images)}


class OneMapPooler(nn.Module):
    """RoIAlign or RoIPool from one map of stride 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        box = config.box
        self.pool = (
            RoIAlign(box.pool_size, 1 / 16, box.sampling_ratio, box.aligned)
            if box.pool == "roi_align"
            else RoIPool(box.pool_size, 1 / 16)
        )

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list) -> Tensor:
        return self.pool(features["0"], boxes)


class Conv5Head(nn.Module):
    """layer4 and the average pool."""

    def __init__(self, conv5: nn.Module) -> None:
        super().__init__()
        self.conv5 = conv5

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5(x).mean(dim=(2, 3))


class TorchvisionDetector(nn.Module):
    """Backbone, RPN and RoI heads, called in sequence on padded, normalised images."""

    def __init__(self, config: ModelConfig, num_classes: int, test: TestConfig) -> None:
        super().__init__()
        if config.stride_in_1x1:
            raise UserError("model.stride_in_1x1: torchvision's ResNets stride in the 3x3 convolution: set it to false")
        self.backbone, head, width, pooler, channels = _parts(config)
        sizes = sizes_of_levels(config.anchors)
        make_anchors = AnchorGenerator if config.anchors.rounded else UnroundedAnchors
        anchors = make_anchors(tuple(map(tuple, sizes)), (tuple(config.anchors.aspect_ratios),) * len(sizes))
        rpn, box = config.rpn, config.box
        hidden = rpn.hidden_channels or channels
        self.rpn = RegionProposalNetwork(
            anchors,
            NarrowRpnHead(channels, hidden, anchors.num_anchors_per_location()[0]),
            rpn.fg_iou_thresh, rpn.bg_iou_thresh, rpn.batch_size_per_image, rpn.positive_fraction,
            {"training": rpn.pre_nms_top_n_train, "testing": rpn.pre_nms_top_n_test},
            {"training": rpn.post_nms_top_n_train, "testing": rpn.post_nms_top_n_test},
            rpn.nms_thresh,
        )  # fmt: skip
        self.roi_heads = RoIHeads(
            pooler, head, FastRCNNPredictor(width, num_classes + 1),
            box.fg_iou_thresh, box.fg_iou_thresh, box.batch_size_per_image, box.positive_fraction,
            box.bbox_reg_weights, test.score_thresh, test.nms_thresh, test.detections_per_img,
        )  # fmt: skip

    def forward(self, images: Tensor, image_size: tuple[int, int], targets: list[dict] | None = None) -> object:
        """The dict of losses with `targets` (in training mode), else a list of dicts of detections."""
        sizes = [image_size] * len(images)
        features = self.backbone(images)
        proposals, rpn_losses = self.rpn(ImageList(images, sizes), features, targets)
        detections, box_losses = self.roi_heads(features, proposals, sizes, targets)
        return rpn_losses | box_losses if targets is not None else detections


def _parts(config: ModelConfig) -> tuple[nn.Module, nn.Module, int, nn.Module, int]:
    """Backbone, box head, the head's width, RoI pooler, channels of the RPN's maps."""
    box = config.box
    if not isinstance(config.backbone, str) or not hasattr(torchvision.models, config.backbone):
        raise UserError(
            f"model.backbone: {config.backbone!r} is not one of torchvision's nets, so torchvision cannot take part: "
            "name one of its nets, or leave torchvision out of --contestants"
        )
    if config.backbone.startswith("vgg"):
        body = VggBody(getattr(torchvision.models, config.backbone)().features)
        _freeze(*list(body.features)[: 5 if config.frozen_stages == 1 else 10 if config.frozen_stages else 0])
        head = TwoMLPHead(512 * box.pool_size**2, box.fc_width)
        return Backbone(body, None), head, box.fc_width, OneMapPooler(config), 512
    net = getattr(torchvision.models, config.backbone)(norm_layer=FrozenBatchNorm2d)
    _freeze(*[net.conv1, net.layer1, net.layer2, net.layer3, net.layer4][: config.frozen_stages])
    if config.neck == "fpn":
        names = list(LEVEL_CHANNELS)
        body = IntermediateLayerGetter(net, {name: str(level) for level, name in enumerate(names)})
        fpn = FeaturePyramidNetwork(list(LEVEL_CHANNELS.values()), config.fpn_channels, extra_blocks=LastLevelMaxPool())
        head = TwoMLPHead(config.fpn_channels * box.pool_size**2, box.fc_width)
        pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], box.pool_size, box.sampling_ratio)
        return Backbone(body, fpn), head, box.fc_width, pooler, config.fpn_channels
    if box.pool_size <= 7:
        for layer in net.layer4.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    body = IntermediateLayerGetter(net, {"layer3": "0"})
    return Backbone(body, None), Conv5Head(net.layer4), 2048, OneMapPooler(config), 1024


def _freeze(*modules: nn.Module) -> None:
    for module in modules:
        module.requires_grad_(False)
