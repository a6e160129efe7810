"""Write a classification set as shards: tar files in WebDataset's layout, with an index.

    python tools/write_shards.py --cfg configs/imagenet_resnet50.yaml --split train --out data/imagenet_shards
    python tools/write_shards.py --index "data/other/train-{000000..000127}.tar"

The second form writes the index of shards that others made. Images stay as they are, byte for byte. A config takes the
shards as {format: webdataset, root: "imagenet_shards/train-{000000..000127}.tar"}; see docs/pretraining.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.classification import ClassificationConfig
from configs.errors import UserError, counted
from configs.loading import load_config
from datasets.shard_files import index_shards, write_shards
from datasets.shards import read_shards
from tools.runtime import cli


def main(args: argparse.Namespace) -> None:
    if args.index is not None:
        index = index_shards(args.index, None)
        print(f"{index}: {counted(len(read_shards(args.index)), 'image')}")
        return
    if args.cfg is None or args.out is None:
        raise UserError("give --cfg and --out, or --index")
    from datasets.classification import read_set  # imports torch
    from datasets.folders import ImageFiles

    config = load_config(args.cfg, cli.config_overrides(args), ClassificationConfig)
    source = getattr(config.data, args.split)
    if source is None:
        raise UserError(f"data.{args.split}: the config has no such set")
    data_root = cli.find_data_root(args.data_root)
    names = None if args.split == "train" else read_set(config.data.train, data_root).class_names
    images = read_set(source, data_root, names)
    if not isinstance(images, ImageFiles):
        raise UserError(f"data.{args.split}: a cifar10 set is read as a whole: it needs no shards")
    if len(images) and images.labels.min() < 0:
        raise UserError(f"data.{args.split}: has no labels, which shards need")
    order = np.arange(len(images))
    if args.shuffle is not None:
        order = np.random.default_rng(args.shuffle).permutation(order)
    for path in write_shards(images, args.out, args.name or args.split, per_shard=args.per_shard, order=order):
        print(path, flush=True)
    print(f"{counted(len(images), 'image')} of {counted(len(images.class_names), 'class')}")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, data_root=True)
    cli.add_set(parser)
    add = parser.add_argument
    add("--cfg", type=Path, metavar="FILE", help="config of a classifier, whose set is written")
    add("--split", choices=("train", "val", "test"), default="train", help="default: %(default)s")
    add("--out", type=cli.output_folder, metavar="DIR", help="the folder of the shards")
    add("--name", help="the shards are NAME-000000.tar, ... (default: the split)")
    add("--per-shard", type=cli.positive, default=1000, metavar="N", help="images in each (default: %(default)s)")
    add(
        "--shuffle",
        type=cli.seed_number,
        metavar="SEED",
        help="mix the images, for readers that read from front to back",
    )
    add("--index", metavar="SHARDS", help="only write the index of these shards, e.g. train-{000000..000127}.tar")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
