"""Find objects in one's own images and videos: pictures with boxes, and detections.json.

    python tools/predict.py --weights runs/demo/last.pt photo.jpg holiday/ 'more/*.png' --out found
    python tools/predict.py --weights a.pt --weights b.pt clip.mp4 --out found --set test.tta.hflip=true
    python tools/predict.py --weights W 0 --out found --threshold 0.6 --threshold person=0.8

An INPUT is an image, a video, a folder (searched with its subfolders), a pattern in quotes, an http(s) address, or a
camera's index (until Ctrl-C). Class names and preprocessing come from the checkpoint; several --weights are an
ensemble. `--set test.refine_rounds=1` and similar options switch on what docs/improvements.md describes. A file of
tools/export.py is taken as it is, on the CPU.

detections.json is a list of {"image_id", "category", "bbox": [xmin, ymin, xmax, ymax], "score"}: pixels count from 1
and both ends belong to the box, as in VOC; image_id is the file's name from the folder that was given, of a video's
frame clip.mp4#000017. detections.jsonl has a line for each image, written as soon as it is done. Photos are turned as
their camera's note (EXIF) says. A file that cannot be read is reported and left out.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.runtime import cli

LOOKED_AT = 20
"""Images and frames that are looked at again for the best score where nothing was found."""


def main(args: argparse.Namespace) -> None:
    import cv2  # here, so that --help is there at once
    import torch

    from configs.errors import UserError, counted
    from configs.files import noting_written
    from detection.inputs import find_files, is_video
    from detection.predictor import Predictor
    from tools.runtime.earlier import earlier_results
    from tools.runtime.prediction import Drawing, PredictionFiles, picture_paths, predict_images, predict_video

    cameras = [int(text) for text in args.inputs if text.isdecimal() and not Path(text).exists()]
    files = find_files([text for text in args.inputs if not text.isdecimal() or Path(text).exists()], ignore=args.out)
    pictures = picture_paths(args.out, files)
    threshold, by_class = split_thresholds(args.threshold)
    predictor = Predictor(
        args.weights, args.device, threshold, args.overrides,
        class_thresholds=by_class, compile=args.compile, graphs=args.graphs,
    )  # fmt: skip
    own_seed = predictor.config.seed if predictor.config else 0
    torch.manual_seed(own_seed if args.seed is None else args.seed)
    cv2.setNumThreads(0)  # the pools' threads are the parallelism
    drawing = None if args.no_pictures else Drawing(not args.no_names, args.thickness)
    with (
        noting_written() as written,
        PredictionFiles(args.out, predictor.class_names, coco=args.coco, csv=args.csv) as results,
    ):
        images = [(file, name) for file, name in files if not is_video(file)]
        unreadable = predict_images(predictor, images, results, pictures, drawing, args.batch_size)
        if len(unreadable) == len(files) and not cameras:
            few = len(files) == 1
            raise UserError(
                f"{'' if few else f'none of {len(files)} images could be read; the first: '}{unreadable[0]}"
            )
        for file, name in files:
            if is_video(file):
                predict_video(predictor, file, name, results, pictures[file], drawing, args.batch_size)
        for camera in cameras:
            name = f"camera{camera}"
            predict_video(predictor, camera, name, results, args.out / f"{name}.mp4", drawing, args.batch_size)

    for message in unreadable:
        print(f"left out: {message}", file=sys.stderr)
    where = args.out / "detections.json"
    drawn = "" if drawing is None else f", pictures in {args.out}"
    print(f"{counted(results.objects, 'object')} in {results.looked_at()}: {where}{drawn}")
    if not results.objects and files and (reason := why_nothing(args, files, predictor.least_threshold)):
        print(reason)
    if unreadable:
        print(f"{counted(len(unreadable), 'file')} could not be read (listed above)")
    if older := earlier_results(args.out, written):
        print(f"{args.out} also holds {counted(len(older), 'file')} of earlier calls, such as {older[0].name}")


def why_nothing(args: argparse.Namespace, files: list[tuple[str, str]], least: float) -> str | None:
    """The best score, from `least` on, in some of the images and frames, where none reached its threshold."""
    from detection.inputs import file_input, is_video
    from detection.predictor import Predictor
    from tools.runtime.guards import nothing_found

    predictor = Predictor(args.weights, args.device, least, args.overrides)
    images = (file_input(file, name) for file, name in files if not is_video(file))
    found = chain(
        predictor.detect(islice(images, LOOKED_AT), on_unreadable=lambda message: None),
        *(predictor.stream(file) for file, _ in files if is_video(file)),
    )
    scores = [pair for one in islice(found, LOOKED_AT) for pair in zip(one.scores.tolist(), one.names, strict=True)]
    threshold, by_class = split_thresholds(args.threshold)
    name = max(scores)[1] if scores else ""
    own = f"{name}=" if name in by_class else ""
    return nothing_found([score for score, _ in scores], by_class.get(name, threshold), least, own)


def split_thresholds(given: list[tuple[str, float]]) -> tuple[float, dict[str, float]]:
    """The threshold for all classes (named "") and those for single classes; the last of a kind counts."""
    by_class = dict(given)
    return by_class.pop("", 0.5), by_class


def threshold(text: str) -> tuple[str, float]:
    """0.5 -> ("", 0.5); cat=0.3 -> ("cat", 0.3)."""
    name, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 0 to 1, or CLASS=number")
    return name, value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 20.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 20")
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True, seed=True)
    add = parser.add_argument
    add(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern in quotes, address, or camera's index"
    )
    # One each, or it would swallow the inputs behind it.
    add(
        "--weights", required=True, action="append", metavar="W",
        help="last.pt or best.pt of a run, an exported file, or a name of the zoo; several times: an ensemble",
    )  # fmt: skip
    add("--out", required=True, type=cli.place, metavar="DIR", help="folder of the pictures and detections.json")
    add(
        "--threshold", type=threshold, action="append", default=[], metavar="[CLASS=]P",
        help="least score (default: 0.5); CLASS=P for one class, given several times for several",
    )  # fmt: skip
    add("--batch-size", type=cli.positive, default=8, metavar="N", help="images at a time (default: 8)")
    add("--compile", action="store_true", help="torch.compile: worth it for many images")
    add("--graphs", action="store_true", help="on a GPU, launch a batch as one CUDA graph for each padded size")
    add("--coco", action="store_true", help="write detections_coco.json too, COCO results")
    add("--csv", action="store_true", help="write detections.csv too, a table")
    add("--no-pictures", action="store_true", help="write no pictures and no video")
    add("--no-names", action="store_true", help="draw boxes without names and scores")
    add(
        "--thickness", type=positive_float, default=1.0, metavar="X",
        help="of lines and letters, relative to what suits the picture's size (default: 1)",
    )  # fmt: skip
    cli.add_set(parser, one_each=True)  # else it would swallow the inputs behind it
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser(), intermixed=True)
