"""Convert a data set between the layouts of VOC, COCO and YOLO; reads all that init_data.py reads.

    python tools/convert_data.py my_photos my_photos_coco --to coco
    python tools/convert_data.py export/ cells --to yolo --split .8,.2

Parts stay as they are, unless --split makes new ones. What the new format cannot hold is said. Nothing is written over.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.errors import UserError, counted
from datasets.convert import convert, losses
from datasets.records import Records, join
from datasets.split import PARTS, group_keys, split_parts
from datasets.survey import class_table
from tools.runtime import cli
from tools.runtime.own_data import read_own_data


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="IN", help="the data set, in any layout of docs/own_data.md")
    add("out", type=cli.output_folder, metavar="OUT", help="a new folder")
    add("--to", required=True, choices=("voc", "coco", "yolo"), help="the format")
    add("--split", metavar="SHARES", help="make new parts: shares of train and val, and of test: .8,.2 or .7,.2,.1")
    add("--split-by", metavar="PATTERN", help="regular expression: images with equal first groups stay together")
    add("--seed", type=cli.seed_number, default=0, metavar="N", help="another one makes another division (0)")
    return parser


def main(args: argparse.Namespace) -> None:
    shares = _shares(args.split)
    if args.out.resolve().is_relative_to(args.folder.resolve()):
        raise UserError(
            f"{args.out}: lies in the data set that is read, of which it would be a part: name another folder"
        )
    own = read_own_data(args.folder)
    parts = dict(own.records)
    if shares:
        parts = _divided(list(parts.values()), shares, args.split_by, args.seed, own.layout.root)
    elif args.split_by or args.seed:
        raise UserError("--split-by and --seed need --split, for example --split .8,.2")
    elif "all" in parts:
        parts = {"train": parts["all"]}
    convert(parts, args.out, args.to)
    print(f"read       {own.layout.name}, in {own.layout.root}")
    print(f"written    {args.to}, in {args.out}")
    print("\n".join(class_table(parts)))
    for text in own.notes:
        print(f"note       {text}")
    if own.num_unlabelled:
        print(
            f"note       {own.num_unlabelled} of {counted(own.num_images, 'image')} without annotation: written as "
            "images without objects; if they are only not labelled yet, take them out"
        )
    for text in losses(parts, args.to):
        print(f"lost       {text}")


def _shares(text: str | None) -> list[float]:
    """The shares of `--split`; none where it is not given."""
    if text is None:
        return []
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) == 1:
        shares.append(1 - shares[0])
    if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--split {text}: give two or three shares that add up to 1: .8,.2 or .7,.2,.1")
    return shares


def _divided(
    parts: list[Records], shares: list[float], pattern: str | None, seed: int, root: Path
) -> dict[str, Records]:
    """All images in new parts."""
    whole = join(parts)
    keys = group_keys(whole.image_paths.tolist(), pattern, root)
    numbers = split_parts(keys, shares, seed=seed, source=str(root))
    return {PARTS[k]: whole.subset(np.flatnonzero(numbers == k)) for k in range(len(shares))}


if __name__ == "__main__":
    cli.run(main, make_parser())
