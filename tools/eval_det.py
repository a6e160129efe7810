"""Score saved detections, of any detector, against VOC or COCO ground truth; no model, no torch.

  python tools/eval_det.py --format voc --gt VOCdevkit/VOC2007 --dt results/ --out metrics.json --report report/
  python tools/eval_det.py --format coco --gt instances_val2017.json --dt detections.json
  python tools/eval_det.py --cfg my_photos.yaml --split val --dt runs/my_photos/detections.json

VOC: --gt holds Annotations/ and ImageSets/Main/NAME.txt; --dt is a folder of comp4_det_test_<class>.txt or a JSON list
of {"image_id", "category", "bbox": [xmin, ymin, xmax, ymax], "score"} in VOC's 1-based inclusive pixels.
COCO: the standard annotation and results files; predict.py's list is taken too, joined by file and class names.
ImageNet DET: --gt is the folder ILSVRC, --image-set val2 or another list; --dt as for VOC.
--cfg: a part of a config's data, of any format and also where `split` makes the part; --dt as train_det.py, test_det.py
and predict.py write it.
docs/evaluation.md tells what the numbers mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError
from configs.files import refuse_overwriting
from datasets.class_lists import IMAGENET_DET
from datasets.imagenet_det import read_imagenet_det
from detection.evaluation.data import GroundTruth
from detection.evaluation.evaluate import PROTOCOLS, USUAL, evaluate, format_table, write_metrics
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.results import read_detections
from tools.runtime import cli


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--format", choices=("voc", "coco", "imagenet_det"), help="of the ground truth and the detections")
    add("--gt", type=Path, help="ground truth: VOC or ILSVRC folder, or COCO annotation file")
    add("--cfg", type=Path, metavar="FILE", help="in place of --format and --gt: a config with the ground truth's data")
    add("--split", choices=("train", "val", "test"), help="of --cfg (default: test, where the config has it, else val)")
    cli.add_data_root(parser)
    cli.add_set(parser)
    add("--dt", required=True, type=Path, help="detections: comp4 folder, VOC list or COCO results")
    sets = "VOC: ImageSets/Main/NAME.txt (default: test); ImageNet DET: ImageSets/DET"
    add("--image-set", default="test", metavar="NAME", help=sets)
    add("--zero-based", action="store_true", help="VOC: the XML counts pixels from 0")
    add("--backend", default="auto", choices=("auto", "hotcoco", "pycocotools"), help="computes COCO's numbers")
    add("--out", type=cli.output_file, metavar="FILE", help="write metrics.json here")
    add("--report", type=cli.output_folder, metavar="DIR", help="write a page that explains the numbers here")
    add("--images", type=Path, metavar="DIR", help="report: folder of the images (VOC: default GT/JPEGImages)")
    add("--compare", type=Path, metavar="DT", help="report: another run's detections, shown side by side")
    add("--names", nargs=2, metavar=("THIS", "OTHER"), help="report: what to call the two runs")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.compare and not args.report:
        raise UserError("--compare shows another run in the report: give --report DIR too")
    unread = {
        "--images and --names go with --report": (args.images or args.names) and not args.report,
        "--split and --set go with --cfg": (args.split or args.overrides) and not args.cfg,
        "--zero-based goes with --format voc": args.zero_based and args.format != "voc",
    }
    if rule := next((rule for rule, is_broken in unread.items() if is_broken), None):
        raise UserError(f"{rule}: leave it out, or give that too")
    for output in filter(None, (args.out, args.report)):
        refuse_overwriting(output, list(filter(None, (args.gt, args.cfg, args.dt, args.compare))))
    truth = read_ground_truth(args)
    detections = read_detections(args.dt, truth, args.image_set)
    protocols = PROTOCOLS if args.format == "imagenet_det" else USUAL
    metrics = evaluate(truth, detections, protocols, backend=args.backend)
    print(format_table(metrics))
    if args.out:
        write_metrics(args.out, metrics)
    if args.report:
        from detection.evaluation.report import Run, write_report

        names = args.names or run_names(args.dt, args.compare)
        runs = [Run(names[0], detections, metrics)]
        if args.compare:
            other = read_detections(args.compare, truth, args.image_set)
            runs.append(Run(names[1], other, evaluate(truth, other, protocols, backend=args.backend)))
        images = args.images or (args.gt / "JPEGImages" if args.format == "voc" else None)
        print(f"report: {write_report(args.report, truth, runs, images=images)}")


def run_names(this: Path, other: Path | None) -> tuple[str, str]:
    """What the report calls the runs: their files' names; the folder's where all runs' files have that name."""
    if other is None:
        return this.resolve().parent.name if this.name == "detections.json" else this.stem, ""
    if this.stem != other.stem:
        return this.stem, other.stem
    return f"{this.resolve().parent.name}/{this.stem}", f"{other.resolve().parent.name}/{other.stem}"


def read_ground_truth(args: argparse.Namespace) -> GroundTruth:
    """The ground truth that --format, --gt and --image-set name, or --cfg and --split.

    Raises:
        UserError: neither is given, or both are.
    """
    if (args.cfg is None) == (args.format is None and args.gt is None):
        raise UserError("give --format and --gt, or --cfg: one of the two says what the ground truth is")
    if args.cfg is not None:
        return read_part(args)
    if args.format is None or args.gt is None:
        raise UserError("--format and --gt belong together: the kind of ground truth, and where it lies")
    if args.format == "coco":
        return read_coco_ground_truth(args.gt)
    if args.format == "imagenet_det":
        return GroundTruth.from_records(read_imagenet_det(args.gt, args.image_set).with_classes(IMAGENET_DET))
    return read_voc_ground_truth(args.gt, args.image_set, zero_based=args.zero_based)


def read_part(args: argparse.Namespace) -> GroundTruth:
    """The ground truth of a part of --cfg's data, as the training reads it."""
    from configs.loading import load_config
    from datasets.build import build_records

    data = load_config(args.cfg, args.overrides).data
    split = args.split or ("test" if data.test else "val")
    records = build_records(data, split, cli.find_data_root(args.data_root))
    if not records.annotated:
        raise UserError(f"{args.cfg}: data.{split} has no annotations: there is nothing to compare with")
    return GroundTruth.from_records(records)


if __name__ == "__main__":
    cli.run(main, make_parser())
