"""Fuse saved detections of several detectors, of any kind, into one file; no model, no torch.

  python tools/fuse_det.py --dt a/detections.json b/detections.json --out fused.json
  python tools/fuse_det.py --dt a.json b.json c.json --weights 2 1 1 --method wbf --iou 0.55 --out fused.json
  python tools/eval_det.py --format coco --gt instances_val2017.json --dt fused.json

Files are COCO results or VOC lists, as every script here writes them (docs/evaluation.md); the result has their form.
Needs the library ensemble-boxes: pip install -e .[fusion]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, counted
from configs.files import refuse_overwriting
from detection.evaluation.fusion import METHODS, fuse
from detection.evaluation.results import read_detections_together
from detection.evaluation.write import write_detections_json
from tools.runtime import cli


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--dt", required=True, nargs="+", type=Path, metavar="FILE", help="detections of each detector, JSON")
    add("--out", required=True, type=cli.output_file, metavar="FILE", help="write the fused detections here")
    add("--method", choices=list(METHODS), default="wbf", help="weighted box fusion, NMS, ... (default: wbf)")
    add("--iou", type=float, default=0.55, metavar="X", help="boxes that overlap by more are one (default: 0.55)")
    add("--weights", nargs="+", type=float, metavar="W", help="of the detectors, in their order (default: equal)")
    return parser


def main(args: argparse.Namespace) -> None:
    if len(args.dt) < 2:
        raise UserError("--dt: give the files of two or more detectors")
    if args.weights is not None and (len(args.weights) != len(args.dt) or min(args.weights) <= 0):
        raise UserError(f"--weights: give {len(args.dt)} positive numbers, one for each file of --dt")
    refuse_overwriting(args.out, args.dt)
    if not 0 < args.iou < 1:
        raise UserError(f"--iou: {args.iou} is not between 0 and 1")
    parts = read_detections_together(args.dt)
    fused = fuse(parts, method=args.method, iou=args.iou, weights=args.weights)
    category_ids = {name: json.loads(name) for name in fused.class_names} if fused.frame == "coco" else None
    write_detections_json(args.out, fused, category_ids)
    counts = " + ".join(str(len(part)) for part in parts)
    print(f"{args.out}: {counts} detections on {counted(len(fused.image_ids), 'image')} -> {len(fused)}")


if __name__ == "__main__":
    cli.run(main, make_parser())
