"""What a net or a detector costs: parameters, multiply-adds and memory, part by part.

    python tools/cost.py resnet50
    python tools/cost.py --cfg configs/cifar_nin.yaml --size 32
    python tools/cost.py --cfg configs/frcnn_r101_voc.yaml

A net costs what one image does (--size, default: the config's crop, else 224); a detector what an image of the test's
size and all its proposals do; its net is what the checkpoint in model.weights says, where that is there. Multiply-adds
are those of convolutions and fully connected layers, as in the papers. Activations are what layers put out, in float32:
about what training keeps of an image. Nothing is computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from backbones.analysis import PartCost, part_cost, stage_costs
from backbones.classification import build_classifier
from backbones.weights import IMAGENET
from backbones.zoo import build_backbone
from configs.classification import ClassificationConfig
from configs.detection import ModelConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.class_lists import CLASS_LISTS
from detection.model import build_detector, with_described_net
from detection.roi_heads import RoiHeads
from tools.runtime import cli
from tools.runtime.texts import net_name


def main(args: argparse.Namespace) -> None:
    if (args.net is None) == (args.cfg is None):
        raise UserError("give the name of a net, or --cfg")
    if args.net is not None:
        with torch.device("meta"):
            net = build_backbone(args.net, stride_in_1x1=args.stride_in_1x1, shortcut=args.shortcut, plain=args.plain)
        parts = stage_costs(net, image_size(args.size, 224))
    elif is_detector(args.cfg):
        parts = detector_costs(args)
    else:
        config = load_config(args.cfg, cli.config_overrides(args), ClassificationConfig)
        with torch.device("meta"):
            net = build_classifier(config.model, args.classes or count_classes(config))
        parts = stage_costs(net, image_size(args.size, config.data.crop_size))
    if args.json:
        print(json.dumps([part._asdict() for part in [*parts, total(parts)]], indent=1))
    else:
        print(format_parts(parts))


def is_detector(path: Path) -> bool:
    """Whether a config is a detector's, whose data are lists of sources; of a file that cannot be read, False.

    Raises:
        UserError: it is a localiser's.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "stage" in content["model"]:
            raise UserError(
                f"{path}: is a localiser's: it costs what its net does: cost.py {content['model']['backbone']}"
            )
        return isinstance(content["data"]["train"], list)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return False  # loading it says what is wrong


def count_classes(config: ClassificationConfig) -> int:
    """What a net's table says of its classes, else what its set has."""
    backbone = config.model.backbone
    own = backbone.get("num_classes") if isinstance(backbone, dict) else None
    return own or {"cifar10": 10, "tiny_imagenet": 200}.get(config.data.train.format, 1000)


def image_size(size: list[int] | None, default: int) -> tuple[int, int]:
    """(H, W) of --size with one or two numbers."""
    size = size or [default]
    return size[0], size[-1]


def detector_costs(args: argparse.Namespace) -> list[PartCost]:
    """Stages that are shared, neck, RPN, and the head on all proposals of the test."""
    config = load_config(args.cfg, cli.config_overrides(args))
    model = described(config.model, cli.find_data_root(None))
    model = model.model_copy(update={"weights": "random", "norm": "batch", "frozen_stages": 0})
    data = config.data
    names = CLASS_LISTS.get(data.classes, ["1"]) if isinstance(data.classes, str) else data.classes
    size = args.size or [data.test_min_size, data.test_max_size]
    with torch.device("meta"):
        detector = build_detector(
            model, [str(number) for number in range(args.classes or len(names))], preprocessing=IMAGENET
        )
    detector.eval()
    body, heads = detector.backbone.body, detector.roi_heads
    images = torch.empty(1, 3, size[0], size[-1], device="meta")
    shared = list(body.stage_channels).index(detector.backbone.stages[-1]) + 1
    parts = stage_costs(body, (size[0], size[-1]), classifier=False)[:shared]
    features = detector.backbone(images)
    if detector.backbone.fpn is not None:
        maps = body.forward_stages(images, detector.backbone.stages)
        fpn = detector.backbone.fpn
        parts.append(part_cost("fpn", fpn, lambda: fpn(maps)["pool"]))
    parts.append(part_cost("rpn", detector.rpn.head, lambda: torch.cat(detector.rpn.head(features)[0], 1)))
    count, side = config.model.rpn.post_nms_top_n_test, config.model.box.pool_size
    whole = int(config.model.box.global_context)
    rois = torch.empty(count + whole, features[0].shape[1], side, side, device="meta")
    parts.append(part_cost(f"head, {count} RoIs", heads, lambda: heads.box_predictor(hidden(heads, rois))[0]))
    return parts


def described(model: ModelConfig, data_root: Path) -> ModelConfig:
    """The same with the net of the checkpoint that it starts from; where that is not there, the net that it names."""
    try:
        return with_described_net(model, data_root)
    except UserError:
        if model.backbone is None:
            raise
        print(f"model.weights: {model.weights} cannot be had: the net is {net_name(model.backbone)}", file=sys.stderr)
        return model


def hidden(heads: RoiHeads, rois: torch.Tensor) -> torch.Tensor:
    """The vectors that the siblings read; with global context twice as long, by that of the last RoI, the image."""
    vectors = heads.box_head(rois)
    if not heads.config.global_context:
        return vectors
    return torch.cat((vectors[:-1], vectors[-1:].expand(len(vectors) - 1, -1)), 1)


def total(parts: list[PartCost]) -> PartCost:
    return PartCost(
        "total",
        sum(part.parameters for part in parts),
        sum(part.multiply_adds for part in parts),
        sum(part.activations for part in parts),
        parts[-1].output,
    )


def format_parts(parts: list[PartCost]) -> str:
    lines = [f"{'part':<18}{'parameters':>14}{'multiply-adds':>18}{'weights MiB':>13}{'activations MiB':>17}  output"]
    for part in [*parts, total(parts)]:
        weights, activations = (4 * number / 2**20 for number in (part.parameters, part.activations))
        output = " x ".join(map(str, part.output))
        counts = f"{part.name:<18}{part.parameters:>14,}{part.multiply_adds:>18,}"
        lines.append(f"{counts}{weights:>13.1f}{activations:>17.1f}  {output}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("net", nargs="?", metavar="NET", help="a net's name: resnet50, vgg16, nin, ...")
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="a classifier's or a detector's config, YAML")
    cli.add_set(parser)
    parser.add_argument("--size", type=cli.positive, nargs="+", metavar="PIXELS", help="side, or height and width")
    parser.add_argument("--classes", type=cli.positive, metavar="K", help="outputs, where the config does not say")
    parser.add_argument("--shortcut", choices=("A", "B", "C"), help="NET: a residual net's shortcuts")
    parser.add_argument("--plain", action="store_true", default=None, help="NET: without shortcuts")
    parser.add_argument("--stride-in-1x1", action="store_true", default=None, help="NET: as in the paper")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
