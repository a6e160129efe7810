"""Write a detector as a file that runs without this project, and check it against PyTorch.

    python tools/export.py --weights runs/demo/best.pt --format onnx demo.onnx
    python tools/export.py --weights W --format torch_export --batch 8 detector.pt2
    python tools/export.py --weights W --format openvino --int8 --calibrate photos/ detector.xml

The graph takes `images` (B, 3, H, W) uint8 RGB, resized and padded with zeros, and `image_sizes` (B, 2) int64, (H, W)
without the padding, and gives `boxes`, `scores`, `labels`, `valid`. H and W are any multiples of the padding; B is what
--batch says. Class names, sizes, thresholds and licence are inside, and in a model card beside the file.
docs/deploying.md shows how to run it, in 20 lines for each format.

The file is written only if it gives PyTorch's boxes and scores at three sizes, and nothing of an empty image. INT8,
which cannot be equal, is written with the figures of how far it is away.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, counted
from tools.runtime import cli

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "openvino": ".xml"}
MOST_PHOTOS = 300
"""Of a folder; more change neither the calibration nor the check."""


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="torch|torchvision|copyreg")  # about their own insides
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    from datasets.images import read_image
    from datasets.listing import list_images
    from detection.checkpoint import load_detector, read_detector_file
    from detection.export import describe
    from detection.export_check import export_detector
    from detection.exported import prepare

    folder = args.calibrate or args.images
    files = list_images(folder)[:MOST_PHOTOS] if folder else []
    if folder and not files:
        raise UserError(f"{folder}: no images here")
    detector, config = load_detector(args.weights, overrides=args.overrides)
    card = {"weights": origin(args.weights), **read_detector_file(args.weights).get("card", {})}
    metadata = describe(detector, config, args.batch, card, "int8" if args.int8 else "float32")
    calibration = None
    if args.int8:
        groups = [files[at : at + args.batch] for at in range(0, len(files), args.batch)]
        calibration = [
            prepare([read_image(file) for file in group], metadata["preprocessing"], args.batch) for group in groups
        ]
    photos = [read_image(file) for file in files[: 3 * args.batch]]
    print(f"exporting {args.out}: tracing and comparing with PyTorch take half a minute and more", flush=True)
    found = export_detector(detector, config, metadata, args.format, args.out, calibration, photos)
    print(
        f"compared with PyTorch on {counted(found.detections, 'detection')}, at three sizes and in an empty image: "
        f"boxes differ by at most {found.boxes:.2g} px, scores by {found.scores:.2g}"
        + (f", {found.unmatched} have no counterpart" if found.unmatched else "")
    )
    if not found.detections:
        print("there was nothing to compare: give photographs with objects by --images DIR", file=sys.stderr)
    print(f"written   {args.out}, its model card {args.out}.md")


def origin(weights: str) -> str:
    """What a file says it was made of: a name of the zoo, or the checkpoint's folder and file, never a whole path."""
    return weights if "://" in weights else "/".join(Path(weights).resolve().parts[-2:])


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what does not fit together, before anything is loaded."""
    if args.out.suffix != FORMATS[args.format]:
        raise UserError(f"{args.out}: the name of a file of --format {args.format} ends with {FORMATS[args.format]}")
    if args.int8 and args.format != "openvino":
        raise UserError(f"--int8 goes with --format openvino, not with {args.format}")
    if args.int8 != (args.calibrate is not None):
        raise UserError("--int8 and --calibrate go together: INT8 is fitted to a folder of photos like yours")
    for folder in (args.calibrate, args.images):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("out", type=cli.output_file, metavar="OUT", help="the file: .onnx, .pt2 or .xml")
    add("--weights", required=True, metavar="W", help="last.pt or best.pt of a run, or a name of the zoo")
    add("--format", required=True, choices=tuple(FORMATS), help="what kind of file")
    add("--batch", type=cli.positive, default=1, metavar="B", help="images that the graph takes at a time (default: 1)")
    add("--int8", action="store_true", help="openvino: 8-bit weights and activations, by NNCF")
    add("--calibrate", type=Path, metavar="DIR", help="photos like those to come, for --int8 (some hundred)")
    add("--images", type=Path, metavar="DIR", help="photos for the check (default: made-up pictures)")
    cli.add_set(parser, one_each=True)  # else it would swallow OUT
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
