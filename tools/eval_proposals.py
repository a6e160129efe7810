"""Average recall of region proposals: those of a checkpoint's RPN, or saved ones of any detector.

    python tools/eval_proposals.py --cfg configs/demo.yaml --weights runs/demo/last.pt --save proposals.json
    python tools/eval_proposals.py --format voc --gt VOCdevkit/VOC2007 --proposals proposals.json
    python tools/eval_proposals.py --format coco --gt instances_val2017.json --proposals proposals.json --counts 1000

Saved proposals are a JSON list of {"image_id", "bbox", "score"}: for COCO [x, y, width, height], for VOC [xmin, ymin,
xmax, ymax] in its 1-based inclusive pixels, as in detections.json, which is read too (categories do not count). Those
with the highest scores come first. docs/evaluation.md tells what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.errors import UserError, counted
from configs.files import refuse_overwriting, write_text
from detection.evaluation import boxes as frames
from detection.evaluation import results
from detection.evaluation.data import GroundTruth
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.proposals import COUNTS, Recall, proposal_recall
from tools.runtime import cli

if TYPE_CHECKING:
    import torch

    from configs.detection import DetectionConfig
    from datasets.detection import DetectionDataset
    from detection.model import Detector

Scored = tuple[np.ndarray, np.ndarray]
"""(P, 4) continuous boxes of one image and their (P,) scores, best first."""


def main(args: argparse.Namespace) -> None:
    counts = sorted(set(args.counts))
    inputs = [each for each in (args.proposals, args.gt, args.cfg, args.weights) if isinstance(each, Path)]
    for output in filter(None, (args.save, args.out)):
        refuse_overwriting(output, inputs)
    if args.weights is not None and (args.proposals or args.gt or args.format):
        raise UserError("--proposals, --gt and --format go without --weights: leave one of the two out")
    if args.zero_based and args.format != "voc":
        raise UserError("--zero-based goes with --format voc: leave it out, or give that too")
    if args.weights is not None:
        truth, found = of_checkpoint(args, counts[-1])
    elif args.proposals is not None and args.gt is not None and args.format is not None:
        if args.format == "voc":
            truth = read_voc_ground_truth(args.gt, args.image_set, zero_based=args.zero_based)
        else:
            truth = read_coco_ground_truth(args.gt)
        found = read_proposals(args.proposals, truth)
    else:
        raise UserError("give --cfg and --weights, or --format, --gt and --proposals")
    if args.save is not None:
        write_proposals(args.save, truth, found)
        print(f"proposals  {args.save}")
    recall = proposal_recall(truth, [boxes for boxes, _ in found], counts)
    if args.out is not None:
        write_text(args.out, json.dumps(recall, indent=1) + "\n")
    print(format_recall(recall))


def of_checkpoint(args: argparse.Namespace, count: int) -> tuple[GroundTruth, list[Scored]]:
    """The objects of a config's set and the proposals of a checkpoint's RPN for them, at least `count` where it can."""
    from configs.loading import load_config
    from tools.test_det import load_one, load_split

    if args.cfg is None:
        raise UserError("--weights needs --cfg, which says on which images")
    device = cli.select_device(args.device)
    overrides = cli.config_overrides(args)
    config = load_config(args.cfg, overrides)
    rpn = config.model.rpn
    if rpn.post_nms_top_n_test < count:
        more = [f"model.rpn.post_nms_top_n_test={count}"]
        more += [f"model.rpn.pre_nms_top_n_test={2 * count}"] if rpn.pre_nms_top_n_test < 2 * count else []
        config = load_config(args.cfg, [*more, *overrides])
    detector = load_one(args.weights, config).to(device).eval()
    split = args.split or ("test" if config.data.test else "val")
    dataset = load_split(config, split, cli.find_data_root(args.data_root), detector.class_names, args.weights)
    if not dataset.records.annotated:
        raise UserError(f"data.{split} has no annotations: there is nothing to recall")
    return GroundTruth.from_records(dataset.records), run_rpn(detector, dataset, config, device)


def run_rpn(
    detector: Detector, dataset: DetectionDataset, config: DetectionConfig, device: torch.device
) -> list[Scored]:
    """The RPN's proposals for each image, in pixels of the original images."""
    import torch

    from datasets.batch import prefetch
    from datasets.detection_loader import eval_loader
    from detection.boxes import size_ratios
    from tools.runtime.progress import Progress

    batch_size, pinned = config.train.batch_size or 1, device.type == "cuda"
    loader = eval_loader(dataset, config.data, batch_size=batch_size, pin_memory=pinned)
    found: dict[int, Scored] = {}
    with torch.no_grad(), Progress(len(dataset), "proposals", unit="image") as progress:
        for batch in prefetch(loader, device):
            proposals, _ = detector.rpn(detector.features(batch), batch.image_sizes, training=False)
            ratios = size_ratios(batch.image_sizes, batch.original_sizes)
            boxes, scores = (proposals.boxes * ratios).cpu().numpy(), proposals.logits.sigmoid().cpu().numpy()
            for row, (index, valid) in enumerate(zip(batch.index.tolist(), proposals.valid.cpu().numpy(), strict=True)):
                found[index] = (boxes[row][valid], scores[row][valid])
            progress.update(len(batch.index))
    return [found[index] for index in range(len(dataset))]


def read_proposals(path: Path, truth: GroundTruth) -> list[Scored]:
    """Saved proposals by image, best first.

    Raises:
        UserError: no such list, a value of another type, or an image that the ground truth does not have.
    """
    images, boxes, scores = results.read_proposals(path, truth)
    order = np.lexsort((-scores, images))  # stable: equal scores in the file's order
    cuts = np.searchsorted(images[order], np.arange(1, len(truth.image_ids)))
    return list(zip(np.split(boxes[order], cuts), np.split(scores[order], cuts), strict=True))


def write_proposals(path: Path, truth: GroundTruth, found: Sequence[Scored]) -> None:
    """The list that `read_proposals` reads, in the frame of the ground truth."""
    convert = frames.continuous_to_voc if truth.frame == "voc" else frames.continuous_to_coco
    items = [
        {"image_id": image_id, "bbox": [round(each, 3) for each in box], "score": float(f"{score:.9g}")}
        for image_id, (boxes, scores) in zip(truth.image_ids, found, strict=True)
        for box, score in zip(convert(boxes.astype(np.float64)).tolist(), scores.tolist(), strict=True)
    ]
    write_text(path, json.dumps(items))


def format_recall(recall: dict[str, Recall]) -> str:
    """The table as text, in per cent."""
    names = ("all", "small", "medium", "large", "recall50")
    titles = {"recall50": "at IoU .5"}
    lines = [f"{'':<10}" + "".join(f"{titles.get(name, name):>11}" for name in names)]
    for title, values in recall.items():
        cells = (values[name] for name in names)
        lines.append(f"{title:<10}" + "".join(f"{'-' if each is None else f'{100 * each:.1f}':>11}" for each in cells))
    return "\n".join(lines) + f"\n{counted(int(next(iter(recall.values()))['objects'] or 0), 'object')}"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, data_root=True, device=True)
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="config, YAML: the images, and the RPN's options")
    cli.add_set(parser)
    parser.add_argument(
        "--weights", type=cli.weights_argument, metavar="W", help="last.pt or best.pt of a run, or a name"
    )
    parser.add_argument("--split", choices=("test", "val"), help="default: test, where the config has it, else val")
    parser.add_argument("--format", choices=("voc", "coco"), help="of saved proposals and their ground truth")
    parser.add_argument("--gt", type=Path, help="VOC folder or COCO annotation file")
    parser.add_argument("--image-set", default="test", metavar="NAME", help="VOC: ImageSets/Main/NAME.txt")
    parser.add_argument("--zero-based", action="store_true", help="VOC: the XML counts pixels from 0")
    parser.add_argument("--proposals", type=Path, metavar="FILE", help="saved proposals")
    parser.add_argument(
        "--counts", type=cli.positive, nargs="+", default=list(COUNTS), metavar="N", help="best N an image"
    )
    parser.add_argument("--save", type=cli.output_file, metavar="FILE", help="write the proposals here")
    parser.add_argument("--out", type=cli.output_file, metavar="FILE", help="write the recall here, as JSON")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
