"""What is measured: detectors at the shapes of the published configs, their random weights, and their inputs.

A case is a plain dictionary, so that no YAML and no config file is needed. Shapes: B images, G objects an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from configs.detection import ModelConfig, TestConfig
from configs.errors import UserError
from configs.files import read_json

SIZE_DIVISOR = 32
NUM_OBJECTS = 8
"""G: objects in each training image."""

_C4 = {
    "backbone": "resnet101",
    "anchors": {"sizes": [128, 256, 512]},
    "rpn": {"hidden_channels": 512},
    "box": {"pool_size": 14},
}
_VOC_TEST = TestConfig(score_thresh=0.001, nms_thresh=0.3)


@dataclass(frozen=True)
class Case:
    """A detector and the images it gets."""

    name: str
    model: dict[str, Any]
    """The section `model` of a config, without `weights`."""
    image_size: tuple[int, int]
    """(H, W) in pixels, before the padding to multiples of `SIZE_DIVISOR`."""
    num_classes: int = 20
    test: TestConfig = field(default_factory=TestConfig)
    """The thresholds of the detections."""

    def section(self) -> dict[str, Any]:
        """The whole section: frozen batch norm, conv1 and conv2 frozen, torchvision's constants in the losses."""
        model = {"weights": "unused", "norm": "frozen", "frozen_stages": 2, **self.model}
        model["box"] = {"smooth_l1_beta": 1 / 9, **model.get("box", {})}  # torchvision's is fixed
        return model

    def with_box(self, **changes: Any) -> Case:
        return replace(self, model={**self.model, "box": {**self.model.get("box", {}), **changes}})

    def with_rpn(self, **changes: Any) -> Case:
        return replace(self, model={**self.model, "rpn": {**self.model.get("rpn", {}), **changes}})

    def every_candidate(self) -> Case:
        """The same with every anchor and proposal in the losses: two random generators cannot differ."""
        everything = 10**6
        return self.with_rpn(batch_size_per_image=everything).with_box(
            batch_size_per_image=everything, positive_fraction=0.9
        )

    def small(self) -> Case:
        """The same network on a small image with few RoIs, all in the losses."""
        few = self.with_rpn(
            pre_nms_top_n_train=60, post_nms_top_n_train=12, pre_nms_top_n_test=60, post_nms_top_n_test=12
        )
        return replace(few.every_candidate(), image_size=(96, 128))

    def full(self) -> Case:
        """The case itself with all RoIs in the losses, and no more of them than a sample of the case has."""
        rois = ModelConfig.model_validate(self.section()).box.batch_size_per_image
        return self.with_rpn(post_nms_top_n_train=max(1, rois - NUM_OBJECTS)).every_candidate()


CASES = {
    case.name: case
    for case in (
        Case("r101_c4_voc", _C4, (600, 1000), test=_VOC_TEST),
        Case(
            "r101_c4_coco",
            {
                **_C4,
                "anchors": {"sizes": [32, 64, 128, 256, 512]},
                "rpn": {"hidden_channels": 1024, "post_nms_top_n_test": 1000},
                "box": {"pool_size": 14, "batch_size_per_image": 512},
            },
            (800, 1333),
            num_classes=80,
        ),
        Case(
            "r101_fpn_coco",
            {
                "backbone": "resnet101",
                "neck": "fpn",
                "anchors": {"sizes": [[32], [64], [128], [256], [512]]},
                "rpn": {"hidden_channels": 256, "pre_nms_top_n_train": 2000, "post_nms_top_n_train": 1000,
                        "pre_nms_top_n_test": 1000, "post_nms_top_n_test": 1000},
                "box": {"pool_size": 7, "sampling_ratio": 2, "aligned": False, "batch_size_per_image": 512},
            },
            (800, 1333),
            num_classes=80,
        ),
        Case(
            "vgg16_voc",
            {
                "backbone": "vgg16",
                "anchors": {"sizes": [128, 256, 512]},
                "box": {"pool_size": 7, "fc_width": 4096},
            },
            (600, 1000),
            test=_VOC_TEST,
        ),
        Case(
            "tiny",
            {
                "backbone": "resnet50",
                "anchors": {"sizes": [32, 64]},
                "rpn": {"hidden_channels": 32, "post_nms_top_n_train": 20, "post_nms_top_n_test": 10},
                "box": {"batch_size_per_image": 8},
            },
            (64, 96),
            test=TestConfig(score_thresh=0.001),
        ),
    )
}  # fmt: skip


def find_case(name: str) -> Case:
    """A case by its name, or from a JSON file.

    The file holds {"model": section, "image_size": [H, W], "num_classes": K}, and "test": section where the thresholds
    are not the defaults.

    Raises:
        UserError: there is no such case, or the file holds something else.
    """
    if name in CASES:
        return CASES[name]
    if not name.endswith(".json"):
        raise UserError(f"--case {name}: there are {', '.join(CASES)}; or give a JSON file")
    content = read_json(name, "case")
    try:
        test = TestConfig.model_validate(content.get("test", {}))
        case = Case(Path(name).stem, content["model"], tuple(content["image_size"]), content["num_classes"], test)
        ModelConfig.model_validate(case.section())
        return case
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--case {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except KeyError as error:
        raise UserError(f"--case {name}: {error} is missing: it needs model, image_size and num_classes") from None


class Inputs(NamedTuple):
    """What every contestant gets: normalised, padded images and their objects."""

    images: Tensor
    """(B, 3, H, W) float32, zeros at the right and the bottom."""
    image_size: tuple[int, int]
    """(H, W) of every image without the padding."""
    boxes: Tensor
    """(B, G, 4) float32."""
    labels: Tensor
    """(B, G) int64 in 1..K."""


def make_inputs(case: Case, batch_size: int, device: torch.device | str, seed: int = 0) -> Inputs:
    """Smooth random images with random objects of all sizes."""
    generator = torch.Generator().manual_seed(seed)
    height, width = case.image_size
    padded = [-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (height, width)]
    coarse = torch.randn(batch_size, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    images = torch.zeros(batch_size, 3, *padded)
    images[..., :height, :width] = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    images[..., :height, :width] += 0.3 * torch.randn(batch_size, 3, height, width, generator=generator)
    limits = torch.tensor([width, height], dtype=torch.float32)
    sides = limits * (0.1 + 0.6 * torch.rand(batch_size, NUM_OBJECTS, 2, generator=generator))
    corners = (limits - sides) * torch.rand(batch_size, NUM_OBJECTS, 2, generator=generator)
    labels = torch.randint(1, case.num_classes + 1, (batch_size, NUM_OBJECTS), generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=-1)
    return Inputs(images.to(device), case.image_size, boxes.to(device), labels.to(device))


@torch.no_grad()
def spread_weights(detector: nn.Module, seed: int = 0) -> None:
    """Random weights that behave like trained ones: activations of the order of 1, few scores above the background's.

    A fresh network of 101 layers under frozen batch norm would overflow, and give all boxes the same score.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in detector.state_dict().items():
        kind = name.rpartition(".")[2]
        if kind == "running_var" or (".bn" in name and kind == "weight") or ".downsample.1.weight" in name:
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.8)
            if ".bn3." in name and kind == "weight":
                value.mul_(0.25)
        elif value.dim() == 1 and kind in ("running_mean", "bias"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
        elif value.dim() >= 2:
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
            if ".fpn." in name:
                value.mul_(0.5)
            if "cls_logits" in name or "cls_score" in name:
                value.mul_(0.5)
            if "bbox_pred" in name:
                value.mul_(0.1)
    detector.get_parameter("roi_heads.box_predictor.cls_score.bias")[0] = 4.0
