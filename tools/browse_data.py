"""See a data set as the network sees it: augmented and resized images with their boxes on a sheet, and statistics.

    python tools/browse_data.py --cfg my_photos.yaml
    python tools/browse_data.py --cfg my_photos.yaml --split val --out val.jpg --count 36

The training set is augmented as in the training: --epoch 1 shows the same images with other draws.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.errors import UserError, counted
from configs.files import refuse_overwriting
from configs.loading import load_config
from datasets.build import build_dataset
from datasets.detection import DetectionDataset
from datasets.survey import class_table, problems, size_lines
from datasets.target import SampleKey
from tools.runtime import cli


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, seed=True)
    add = parser.add_argument
    add("--split", choices=("train", "val", "test"), default="train", help="which part of the config's data (train)")
    add("--out", type=cli.output_file, default=Path("sheet.png"), metavar="FILE", help="the sheet (sheet.png)")
    add("--count", type=int, default=16, metavar="N", help="images on the sheet (16)")
    add("--epoch", type=int, default=0, metavar="N", help="of the draws of the augmentation (0)")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.count < 1 or args.epoch < 0:
        raise UserError(f"--count {args.count}, --epoch {args.epoch}: give at least 1 and 0")
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {args.out}: a sheet is a .png or .jpg file")
    config = load_config(args.cfg, cli.config_overrides(args))
    dataset = build_dataset(config.data, args.split, cli.find_data_root(args.data_root), seed=config.seed)
    records = dataset.records
    refuse_overwriting(args.out, [Path(path) for path in records.image_paths if Path(path).name == args.out.name])
    print(f"set        {args.split}: {counted(len(records), 'image')} of {records.source}")
    print("\n".join(size_lines(records, min(dataset.min_sizes), dataset.max_size)))
    print("\n".join(class_table({args.split: records})))
    if records.annotated and len(records.labels):
        print("objects by their size in the original images (square roots of the areas):")
        print("\n".join(histogram(records.boxes[:, 2:] - records.boxes[:, :2])))
    for text in problems(records, args.split):
        print(f"look at    {text}")
    write_sheet(args.out, dataset, args.count, args.epoch)
    print(f"sheet      {args.out}: {counted(min(args.count, len(dataset)), 'image')} as the network sees them")


def histogram(extents: np.ndarray) -> list[str]:
    """Lines with bars: how many objects there are by the square root of their area, in steps of a factor of 2.

    Args:
        extents: (M, 2) width and height, pixels of the original images.
    """
    sizes = np.sqrt(np.clip(extents, 0, None).prod(axis=1))
    steps = np.floor(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(steps)
    first = int(np.flatnonzero(counts)[0])
    widest = counts.max()
    return [
        f"  {2**step:5d} to {2 ** (step + 1):5d} pixels {counts[step]:7d} {'#' * round(40 * counts[step] / widest)}"
        for step in range(first, len(counts))
    ]


def write_sheet(path: Path, dataset: DetectionDataset, count: int, epoch: int) -> None:
    """Draw samples of the data set, spread over it, with their boxes."""
    from detection.drawing import draw_detections, sheet
    from tools.runtime.pictures import choose_images, write_picture

    pictures = []
    for index in choose_images(dataset.records, count):
        sample = dataset[SampleKey(epoch, index)]
        scale = max(1.0, 320 // min(sample.image.shape[:2]))
        target = sample.target
        pictures.append(
            draw_detections(sample.image, target.boxes, target.labels, None, dataset.class_names, scale=scale)
        )
    write_picture(path, sheet(pictures))


if __name__ == "__main__":
    cli.run(main, make_parser())
