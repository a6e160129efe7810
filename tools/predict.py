"""Find objects in one's own images: pictures with boxes, and detections.json.

    python tools/predict.py --weights runs/demo/last.pt photo.jpg holiday/ 'more/*.png' --out found
    python tools/predict.py --weights a.pt --weights b.pt photo.jpg --out found --set test.tta.hflip=true

An INPUT is an image, a folder (searched with its subfolders), or a pattern in quotes. Class names and preprocessing
come from the checkpoint; several --weights are an ensemble. `--set test.refine_rounds=1` and its like switch on what
docs/improvements.md describes.

detections.json is a list of {"image_id": the file's name, from the folder that was given, "category",
"bbox": [xmin, ymin, xmax, ymax], "score"}; pixels count from 1 and both ends belong to the box, as in VOC.
Photos are turned as their camera's note (EXIF) says. A file that cannot be read is reported and left out.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from configs.detection import DetectionConfig
from configs.errors import UserError
from datasets.batch import Batch
from datasets.detection import DetectionDataset
from datasets.images import IMAGE_SUFFIXES, image_file_size, read_image
from datasets.loader import Collate
from datasets.records import make_records
from datasets.samplers import padded_size
from datasets.target import Sample, SampleKey
from detection.compilation import compile_regions
from detection.drawing import draw_detections
from detection.ensemble import load_ensemble
from detection.evaluation.data import Detections
from detection.evaluation.write import write_detections_json
from detection.inference import Inference
from detection.prediction import ImageDetections, to_numpy
from tools.runtime import cli
from tools.runtime.pictures import write_picture
from tools.runtime.progress import Progress
from tools.runtime.training import autocast

THREADS = 4
"""Images are read, resized and drawn so many at a time, while the network works."""


@dataclass(frozen=True)
class Input:
    """An image to look at."""

    path: Path
    name: str
    """What detections.json and the picture call it: its path from the folder that was given, or its file name."""


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    inputs = find_images(args.inputs, args.out)
    overrides = [f"test.score_thresh={args.threshold}", *args.overrides]
    detectors, config = load_ensemble(args.weights, overrides=overrides, device=device)
    torch.manual_seed(args.seed or 0)
    for detector in detectors:
        detector.optimize_for_inference(torch.bfloat16 if config.train.amp == "bf16" else torch.float32)
        if args.compile:
            compile_regions(detector, graphs=device.type == "cuda")
    inference = Inference(detectors, config.test)
    class_names = inference.class_names
    inputs, sizes, unreadable = readable(inputs)

    found: dict[int, ImageDetections] = {}
    cv2.setNumThreads(0)  # the pool's threads are the parallelism
    with ThreadPoolExecutor(THREADS) as pool, Progress(len(inputs), "predicting", unit="image") as progress:
        drawn: list[Future] = []
        dataset = make_dataset(inputs, sizes, class_names, config, inference.scales)
        for batch in batches(dataset, config, args.batch_size, pool, unreadable):
            with torch.no_grad(), autocast(device, config.train.amp):
                results = to_numpy(inference(batch.to(device)))
            for index, result in zip(batch.index.tolist(), results, strict=True):
                found[index] = _above(result, args.threshold)
                drawn.append(pool.submit(draw, inputs[index], found[index], class_names, args.out))
            progress.update(len(results))
        for future in drawn:
            future.result()

    for message in unreadable:
        print(f"left out: {message}", file=sys.stderr)
    if not found:
        raise UserError(f"none of the {len(unreadable)} images could be read; the first: {unreadable[0]}")
    save(args.out / "detections.json", inputs, found, class_names)
    count = sum(len(result.scores) for result in found.values())
    print(f"{count} objects in {len(found)} images: {args.out / 'detections.json'}, pictures in {args.out}")
    if unreadable:
        print(f"{len(unreadable)} files could not be read (listed above)")


def find_images(inputs: list[str], out: Path) -> list[Input]:
    """The images that the command line means, each once, under names of their own.

    Raises:
        UserError: an input names nothing, or a picture would overwrite its image.
    """
    found: dict[Path, str] = {}
    for text in inputs:
        path = Path(text)
        if path.exists():
            named = _images_in(path, out)
        elif glob.has_magic(text):
            named = {}
            for match in sorted(glob.glob(text, recursive=True)):
                named.update(_images_in(Path(match), out))
        else:
            raise UserError(f"{text}: there is no such image or folder")
        if not named:
            raise UserError(f"{text}: no images here ({', '.join(IMAGE_SUFFIXES)})")
        for file, name in named.items():
            found.setdefault(file.resolve(), name)
    names = list(found.values())
    clashing = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    images = [Input(path, "/".join(path.parts[1:]) if name in clashing else name) for path, name in found.items()]
    for image in images:
        if picture_path(out, image).resolve() == image.path:
            raise UserError(f"{image.path}: its picture would overwrite it: choose another folder with --out")
    return images


def _images_in(path: Path, out: Path) -> dict[Path, str]:
    """A file itself under its name; a folder's images under their paths from there, without those that lie in `out`."""
    if path.is_file():
        return {path: path.name}
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    return {file: file.relative_to(path).as_posix() for file in files if out.resolve() not in file.resolve().parents}


def readable(inputs: list[Input]) -> tuple[list[Input], list[tuple[int, int]], list[str]]:
    """The images whose headers can be read, their sizes (H, W), and what is wrong with the others."""
    kept, sizes, unreadable = [], [], []
    for image in inputs:
        try:
            sizes.append(image_file_size(image.path))
            kept.append(image)
        except UserError as error:
            unreadable.append(str(error))
    return kept, sizes, unreadable


def make_dataset(
    inputs: list[Input],
    sizes: list[tuple[int, int]],
    class_names: list[str],
    config: DetectionConfig,
    scales: Sequence[int],
) -> DetectionDataset:
    """The images as a data set that resizes as the evaluation does, at further `scales` too."""
    rows = [(str(image.path), image.name, size) for image, size in zip(inputs, sizes, strict=True)]
    records = make_records(
        images=rows, boxes=[], labels=[], counts=[0] * len(rows), class_names=class_names, source="input",
        annotation_file="{}", annotated=False,
    )  # fmt: skip
    data = config.data
    dataset = DetectionDataset(records, min_sizes=[data.test_min_size], max_size=data.test_max_size)
    return dataset.with_scales(scales)


def batches(
    dataset: DetectionDataset, config: DetectionConfig, batch_size: int, pool: ThreadPoolExecutor, unreadable: list[str]
) -> Iterator[Batch]:
    """Batches of images of equal padded sizes, padded as the evaluation pads; bad images are noted and left out."""
    divisor = config.data.size_divisor
    collate = Collate(divisor)
    padded = [
        [padded_size(size, divisor) for size in (dataset.evaluation_size(i), *dataset.scaled_evaluation_sizes(i))]
        for i in range(len(dataset))
    ]
    order = sorted(range(len(dataset)), key=lambda i: padded[i])
    ahead = batch_size + 2 * THREADS
    futures: dict[int, Future] = {}
    samples: list[Sample] = []
    for position, index in enumerate(order):
        for later in order[position : position + ahead]:
            if later not in futures:
                futures[later] = pool.submit(dataset.__getitem__, SampleKey(0, later, padded[later][0]))
        if samples and (len(samples) == batch_size or padded[samples[0].index] != padded[index]):
            yield collate(samples)
            samples = []
        try:
            samples.append(futures[index].result())
        except UserError as error:
            unreadable.append(str(error))
        futures[index] = None  # the image's memory is free again
    if samples:
        yield collate(samples)


def draw(image: Input, result: ImageDetections, class_names: list[str], out: Path) -> None:
    """Write the image with its boxes."""
    picture = draw_detections(read_image(image.path), result.boxes, result.labels, result.scores, class_names)
    write_picture(picture_path(out, image), picture)


def picture_path(out: Path, image: Input) -> Path:
    """Where an image's picture goes: under its own name; formats other than JPEG and PNG become PNG."""
    path = out / image.name
    return path if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.with_name(f"{path.name}.png")


def save(path: Path, inputs: list[Input], found: dict[int, ImageDetections], class_names: list[str]) -> None:
    """Write detections.json, the images in the order in which they were given."""
    order = sorted(found)
    names, results = [inputs[index].name for index in order], [found[index] for index in order]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_detections_json(path, Detections.from_images(names, results, class_names, frame="voc"))


def _above(result: ImageDetections, threshold: float) -> ImageDetections:
    keep = np.asarray(result.scores) >= threshold
    return ImageDetections(result.boxes[keep], result.scores[keep], result.labels[keep])


def fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True, seed=True)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, or pattern in quotes")
    # One each, or it would swallow the inputs behind it.
    parser.add_argument(
        "--weights", required=True, action="append", type=Path, metavar="W",
        help="last.pt or best.pt of a run; given several times: an ensemble",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the pictures and detections.json"
    )
    parser.add_argument("--threshold", type=fraction, default=0.5, metavar="P", help="least score (default: 0.5)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile and CUDA graphs: worth it for many images"
    )
    cli.add_set(parser, one_each=True)  # else it would swallow the inputs behind it
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser(), intermixed=True)
