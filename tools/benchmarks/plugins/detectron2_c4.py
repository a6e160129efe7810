"""detectron2's C4 Faster R-CNN as a contestant: its own modules, unchanged, called as its `GeneralizedRCNN` calls them.

    python tools/benchmark.py infer --contestants ours --plugin tools/benchmarks/plugins/detectron2_c4.py

Needs detectron2 (a checkout on PYTHONPATH will do: its compiled part serves operators that C4 does not have). Its
normalisation is left out, since both sides get normalised images; its weights are ours under its names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.detection import ModelConfig, TestConfig
from configs.errors import UserError
from tools.benchmarks import contestants
from tools.benchmarks.cases import Case, Inputs

NAMES = (
    ("backbone.body.conv1.", "backbone.stem.conv1."),
    ("backbone.body.bn1.", "backbone.stem.conv1.norm."),
    *((f"backbone.body.layer{number}.", f"backbone.res{number + 1}.") for number in (1, 2, 3)),
    ("roi_heads.box_head.conv5.", "roi_heads.res5."),
    (".downsample.0.", ".shortcut."),
    (".downsample.1.", ".shortcut.norm."),
    *((f".bn{number}.", f".conv{number}.norm.") for number in (1, 2, 3)),
    ("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv."),
    ("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."),
)
"""Ours -> detectron2's."""
LOSSES = {
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_box_reg",
}


class Contestant(contestants.Contestant):
    """detectron2's detector with the case's options."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        self.optimizer = contestants.plain_sgd(self.model)

    def build(self, case: Case) -> nn.Module:
        try:
            from detectron2.modeling import build_model
        except ImportError as error:
            raise UserError(f"the plug-in detectron2_c4 needs detectron2: {error}") from None
        model = ModelConfig.model_validate(case.section())
        c4 = (model.neck, model.box.pool_size, model.box.pool) == ("none", 14, "roi_align")
        if not c4 or model.backbone not in ("resnet50", "resnet101", "resnet152"):
            raise UserError(f"--case {case.name}: the plug-in detectron2_c4 builds ResNets with conv5 on 14x14 bins")
        self.order = anchor_order(model)
        self.averages_over_what_is_asked = model.rpn.batch_size_per_image < 10**6
        return build_model(translate(model, case.num_classes, case.test))

    def load(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(rename(weights, self.order), strict=True)

    @torch.inference_mode()
    def detect(self, inputs: Inputs) -> contestants.Detected:
        with self.autocast():
            images, features = self._features(inputs)
            proposals, _ = self.model.proposal_generator(images, features, None)
            found, _ = self.model.roi_heads(images, features, proposals, None)
        found = self.model._postprocess(found, [{}] * len(found), images.image_sizes)
        return [
            (one.pred_boxes.tensor.cpu(), one.scores.cpu(), one.pred_classes.cpu() + 1)
            for one in (image["instances"] for image in found)
        ]

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import EventStorage

        targets = [
            Instances(inputs.image_size, gt_boxes=Boxes(boxes), gt_classes=labels - 1)
            for boxes, labels in zip(inputs.boxes, inputs.labels, strict=True)
        ]
        with EventStorage() as storage:  # its losses write statistics there
            images, features = self._features(inputs)
            proposals, rpn_losses = self.model.proposal_generator(images, features, targets)
            _, box_losses = self.model.roi_heads(images, features, proposals, targets)
            if not self.averages_over_what_is_asked:
                # It divides the RPN's losses by the size of the sample that was asked for, torchvision by that of the
                # sample that was found. Only where every anchor is asked for do the two differ.
                asked = self.model.proposal_generator.batch_size_per_image
                found = sum(storage.history(f"rpn/num_{kind}_anchors").latest() for kind in ("pos", "neg"))
                rpn_losses = {name: loss * (asked / found) for name, loss in rpn_losses.items()}
        theirs = rpn_losses | box_losses
        return {name: theirs[other] for name, other in LOSSES.items()}

    def _features(self, inputs: Inputs) -> tuple[object, dict[str, Tensor]]:
        from detectron2.structures import ImageList

        images = ImageList(inputs.images, [inputs.image_size] * len(inputs.images))
        return images, self.model.backbone(images.tensor)


def translate(model: ModelConfig, num_classes: int, test: TestConfig) -> object:
    """detectron2's config for ours."""
    from detectron2.config import get_cfg

    rpn, box = model.rpn, model.box
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.DEVICE", "cpu",
            "MODEL.BACKBONE.FREEZE_AT", model.frozen_stages,
            "MODEL.RESNETS.DEPTH", int(model.backbone.removeprefix("resnet")),
            "MODEL.RESNETS.NORM", "FrozenBN",
            "MODEL.RESNETS.STRIDE_IN_1X1", bool(model.stride_in_1x1),
            "MODEL.ANCHOR_GENERATOR.SIZES", [list(model.anchors.sizes)],
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [list(model.anchors.aspect_ratios)],
            "MODEL.ANCHOR_GENERATOR.OFFSET", float(model.anchors.offset),
            "MODEL.RPN.CONV_DIMS", [rpn.hidden_channels or -1] * rpn.num_convs,
            "MODEL.RPN.IOU_THRESHOLDS", [rpn.bg_iou_thresh, rpn.fg_iou_thresh],
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE", rpn.batch_size_per_image,
            "MODEL.RPN.POSITIVE_FRACTION", rpn.positive_fraction,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN", rpn.pre_nms_top_n_train,
            "MODEL.RPN.PRE_NMS_TOPK_TEST", rpn.pre_nms_top_n_test,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN", rpn.post_nms_top_n_train,
            "MODEL.RPN.POST_NMS_TOPK_TEST", rpn.post_nms_top_n_test,
            "MODEL.RPN.NMS_THRESH", rpn.nms_thresh,
            "MODEL.RPN.SMOOTH_L1_BETA", float(rpn.smooth_l1_beta),
            "MODEL.ROI_HEADS.NUM_CLASSES", num_classes,
            "MODEL.ROI_HEADS.IOU_THRESHOLDS", [box.fg_iou_thresh],
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", box.batch_size_per_image,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", box.positive_fraction,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", test.score_thresh,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST", test.nms_thresh,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2" if box.aligned else "ROIAlign",
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", box.pool_size,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", box.sampling_ratio,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", tuple(box.bbox_reg_weights),
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", float(box.smooth_l1_beta),
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", box.class_agnostic,
            "TEST.DETECTIONS_PER_IMAGE", test.detections_per_img,
        ]
    )  # fmt: skip
    cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = rpn.min_size  # merging would insist on a whole number
    return cfg


def anchor_order(model: ModelConfig) -> Tensor:
    """(A,) int64: which of our anchors (ratio by ratio) is each of detectron2's (size by size)."""
    sizes, ratios = len(model.anchors.sizes), len(model.anchors.aspect_ratios)
    return torch.arange(ratios * sizes).view(ratios, sizes).T.flatten()


def rename(weights: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """A state dict of ours as detectron2's: names, order of the anchors, and the background, its last class."""
    result = {}
    for name, value in weights.items():
        kind = name.rpartition(".")[0]
        if kind == "rpn.head.cls_logits":
            value = value[order]
        elif kind == "rpn.head.bbox_pred":
            value = value.unflatten(0, (-1, 4))[order].flatten(0, 1)
        elif kind == "roi_heads.box_predictor.cls_score":
            value = torch.cat((value[1:], value[:1]))
        elif kind == "roi_heads.box_predictor.bbox_pred" and len(value) > 4:
            value = value[4:]
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        result[name] = value
    return result
