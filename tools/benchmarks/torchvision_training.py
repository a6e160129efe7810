"""Train torchvision's own FasterRCNN with the size, data, steps and seed of a detector's config, to stand beside ours.

    python tools/benchmarks/torchvision_training.py --cfg configs/bccd_r18_fpn.yaml --out runs/bccd_torchvision
    python tools/benchmarks/torchvision_training.py --cfg configs/bccd_r18_fpn.yaml --out runs/bccd_torchvision --resume

Model, losses, sampling, anchors and postprocessing are torchvision's, as its users get them; the images, their
augmentation, the order of the batches, the optimiser, the schedule and the evaluator are this project's, so that
nothing but the detector differs. One process; ResNet with neck: fpn from random weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from backbones.weights import IMAGENET
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config
from datasets.batch import Batch, prefetch
from datasets.detection import DetectionDataset
from datasets.detection_loader import eval_loader
from detection.anchors import sizes_of_levels
from detection.evaluation.data import Detections
from detection.evaluation.evaluate import format_table
from detection.model import Detector
from detection.prediction import ImageDetections
from detection.sampling import Iteration
from tools.runtime import cli, distributed
from tools.runtime.distributed import say
from tools.runtime.evaluation import merged, score, write_results
from tools.runtime.loop import fit
from tools.runtime.plan import make_plan
from tools.runtime.progress import Progress
from tools.runtime.resume import refuse_another_training
from tools.runtime.run_folder import provenance
from tools.runtime.setup import build_datasets
from tools.runtime.start import Job, training
from tools.runtime.tasks.detection import DetectionTask
from tools.runtime.training import autocast

KIND = "torchvision_detector"


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args))
    with training(args) as job:
        train(config, job)


def train(config: DetectionConfig, job: Job) -> None:
    """The whole run, from the data to the test set's table."""
    refuse_what_it_has_not(config)
    train_set, val_set, test_set = build_datasets(config, job.data_root)
    final_set = test_set or val_set
    if final_set is None:
        raise UserError("data.test: give a test or validation set: a training alone compares nothing")
    checkpoint = job.checkpoint(KIND)
    class_names = train_set.class_names
    if checkpoint is not None:
        refuse_another_training(job.run.last, checkpoint["config"], config, checkpoint["class_names"], class_names)
    torch.manual_seed(config.seed)
    net = build(config, len(class_names)).to(job.device)
    task = TorchvisionTask(config, net, train_set, job.device)
    say(f"model      torchvision's FasterRCNN: {sum(parameter.numel() for parameter in net.parameters()):,} parameters")
    say(f"run        {job.run.path}")
    header = provenance(job.data_root) + dump_config(config)
    state = fit(task, make_plan(task, job.run, job.device, header=header, stop=job.stop, checkpoint=checkpoint))
    detections = detect(net, final_set, config, job.device)
    metrics = score(final_set.records, detections, config.metrics)
    say(f"\n{len(final_set)} images, last weights (iteration {state.iteration}):\n\n{format_table(metrics)}")
    with job.run.noting():
        write_results(job.run.path, final_set.records, detections, metrics, report=False)


def refuse_what_it_has_not(config: DetectionConfig) -> None:
    """Raise UserError where the config asks for what this script or torchvision's FasterRCNN does not do."""
    model, backbone = config.model, config.model.backbone
    if not (isinstance(backbone, str) and backbone.startswith("resnet") and model.neck == "fpn"):
        raise UserError("model: torchvision_training.py builds ResNets (resnet18, ...) with neck: fpn")
    if model.weights != "random" or model.norm != "batch":
        raise UserError("model: torchvision_training.py trains from weights: random with norm: batch")
    if model.rpn.hidden_channels not in (None, model.fpn_channels):
        raise UserError("model.rpn.hidden_channels: torchvision's head is as wide as fpn_channels: make them equal")
    if distributed.world_size() > 1:
        raise UserError("torchvision_training.py runs in one process: leave torchrun out")


def build(config: DetectionConfig, num_classes: int) -> FasterRCNN:
    """torchvision's FasterRCNN with the config's sizes and thresholds."""
    model, rpn, box, test = config.model, config.model.rpn, config.model.box, config.test
    body = getattr(torchvision.models, cast(str, model.backbone))()
    width = body.inplanes // 8
    layers = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(body, layers, [width, 2 * width, 4 * width, 8 * width], model.fpn_channels)
    sizes = tuple(tuple(level) for level in sizes_of_levels(model.anchors))
    return FasterRCNN(
        backbone,
        min_size=config.data.test_min_size, max_size=config.data.test_max_size,
        rpn_anchor_generator=AnchorGenerator(sizes, (tuple(model.anchors.aspect_ratios),) * len(sizes)),
        rpn_pre_nms_top_n_train=rpn.pre_nms_top_n_train, rpn_pre_nms_top_n_test=rpn.pre_nms_top_n_test,
        rpn_post_nms_top_n_train=rpn.post_nms_top_n_train, rpn_post_nms_top_n_test=rpn.post_nms_top_n_test,
        rpn_nms_thresh=rpn.nms_thresh, rpn_fg_iou_thresh=rpn.fg_iou_thresh, rpn_bg_iou_thresh=rpn.bg_iou_thresh,
        rpn_batch_size_per_image=rpn.batch_size_per_image, rpn_positive_fraction=rpn.positive_fraction,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], box.pool_size, box.sampling_ratio),
        box_head=TwoMLPHead(model.fpn_channels * box.pool_size**2, box.fc_width),
        box_predictor=FastRCNNPredictor(box.fc_width, num_classes + 1),
        box_score_thresh=test.score_thresh, box_nms_thresh=test.nms_thresh,
        box_detections_per_img=test.detections_per_img,
        box_fg_iou_thresh=box.fg_iou_thresh, box_bg_iou_thresh=box.fg_iou_thresh,
        box_batch_size_per_image=box.batch_size_per_image, box_positive_fraction=box.positive_fraction,
        bbox_reg_weights=box.bbox_reg_weights,
        _skip_resize=True,  # batches have their sizes already; at test the resize is by a factor of 1
    )  # fmt: skip


class TorchvisionTask(DetectionTask):
    """torchvision's detector on our batches."""

    def __init__(
        self, config: DetectionConfig, net: FasterRCNN, train_set: DetectionDataset, device: torch.device
    ) -> None:
        super().__init__(config, cast(Detector, net), train_set, None, device)

    def losses(self, batch: Batch, iteration: Iteration) -> dict[str, Tensor]:
        """torchvision's four losses; it draws its samples from torch's generator, seeded for each step."""
        targets = [
            {"boxes": boxes[valid], "labels": labels[valid]}
            for boxes, labels, valid in zip(batch.boxes, batch.labels, batch.valid, strict=True)
        ]
        with autocast(self.device, self.recipe.train.amp):
            return self.model(unpadded(batch), targets)

    def checkpoint(self) -> dict[str, Any]:
        """What tells it from a detector of ours."""
        classes = list(self.train_set.class_names)
        return {
            "kind": KIND,
            "config": self.recipe.model_dump(mode="json"),
            "class_names": classes,
            "preprocessing": IMAGENET.to_dict(),  # what torchvision's transform does
        }


def unpadded(batch: Batch) -> list[Tensor]:
    """The images as torchvision wants them: (3, H, W) float32 in [0, 1], each of its own size."""
    return [
        image[:, :height, :width].float() / 255
        for image, (height, width) in zip(batch.images, batch.image_sizes.tolist(), strict=True)
    ]


def detect(net: nn.Module, dataset: DetectionDataset, config: DetectionConfig, device: torch.device) -> Detections:
    """torchvision's detections on a data set, in pixels of the original images."""
    found: dict[int, ImageDetections] = {}
    loader = eval_loader(dataset, config.data, batch_size=config.train.batch_size)
    net.eval()
    with torch.no_grad(), Progress(len(dataset), "test", unit="image") as progress:
        for batch in prefetch(loader, device):
            scales = (batch.original_sizes / batch.image_sizes).flip(1).repeat(1, 2)
            for index, scale, each in zip(batch.index.tolist(), scales, net(unpadded(batch)), strict=True):
                boxes = (each["boxes"] * scale).cpu().numpy()
                found[index] = ImageDetections(boxes, each["scores"].cpu().numpy(), each["labels"].cpu().numpy())
            progress.update(len(batch.index))
    return merged(found, dataset.records, dataset.class_names)


def make_parser() -> argparse.ArgumentParser:
    return cli.make_training_parser(__doc__)


if __name__ == "__main__":
    cli.run(main, make_parser())
