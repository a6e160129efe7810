"""Test ImageNet localisation: a per-class RPN, an R-CNN on its proposals, ensembles of both (He et al. 2016, App. C).

    python tools/test_loc.py --cfg configs/tiny_imagenet_loc_rpn.yaml --weights runs/tiny_imagenet_loc_rpn/last.pt
    python tools/test_loc.py --cfg configs/imagenet_loc_rpn_resnet101.yaml --out DIR \\
        --weights runs/imagenet_loc_rpn_resnet101/last.pt --rcnn runs/imagenet_loc_rcnn_resnet101/last.pt \\
        --classifier runs/imagenet_resnet101/last.pt

The config says which images (data.test, else data.val), scales and views. Classes are predicted by the classifiers
(checkpoints of tools/pretrain.py, scores averaged), else by the RPNs that learned to. Several RPNs join their
proposals; several R-CNNs average the scores and boxes of all proposals. Prints the localisation errors beside those of
trivial predictors; writes metrics.json and predictions.json with --out. Of ImageNet's test images, whose labels nobody
has (split: test), it writes submission.txt for the benchmark's server and submission.csv for Kaggle instead of
metrics.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from backbones.classification import Classifier, load_classifier
from configs.errors import UserError, counted
from configs.loading import load_config
from configs.localisation import LocalisationConfig, LocalisationSourceConfig
from datasets.localisation import read_localisation
from datasets.records import Records
from datasets.synsets import class_numbers, kaggle_numbers
from detection.ensemble import check_class_names
from detection.evaluation.submissions import write_imagenet_loc, write_kaggle_loc
from detection.localisation import Localiser, PerClassRpn, load_localiser
from tools.runtime import cli, distributed
from tools.runtime.distributed import say
from tools.runtime.localisation import (
    Members,
    Predictions,
    figures,
    predict,
    say_table,
    trivial_figures,
    write_predictions,
)
from tools.runtime.run_folder import write_json
from tools.runtime.texts import differing


class Numbers(NamedTuple):
    """What the classes of a submission are called, in the order of the labels."""

    kit: list[int] | None
    """By the development kit; None: the kit is not there."""
    kaggle: list[int]


def main(args: argparse.Namespace) -> None:
    overrides = [*cli.config_overrides(args), *([f"test.view={args.view}"] if args.view else [])]
    config = load_config(args.cfg, overrides, LocalisationConfig)
    data_root = cli.find_data_root(args.data_root)
    device = cli.select_device(args.device)
    with distributed.processes(device):
        rpns = [load_localiser(path, "rpn", device=device) for path in args.weights]
        rcnns = [load_localiser(path, "rcnn", device=device) for path in args.rcnn]
        check_class_names([member.class_names for member in (*rpns, *rcnns)], [*args.weights, *args.rcnn])
        split = args.split or ("test" if config.data.test is not None else "val")
        source = getattr(config.data, split)
        if source is None:
            raise UserError(f"data.{split}: the config has no such set: give --split, or the set with --set")
        numbers = read_numbers(source, data_root, rpns[0].class_names, args) if source.split == "test" else None
        records = read_localisation(source, data_root, rpns[0].class_names)
        members = Members(
            [member.net for member in rpns],
            [member.net for member in rcnns],
            load_classifiers(args.classifier, rpns, config, data_root, device),
        )
        if numbers is not None and not members.classifiers:
            raise UserError(f"data.{split}: has no labels: give --classifier, which predicts the classes")
        found = predict(members, records, config, device, view=config.test.view, batch_size=args.batch_size)
        if numbers is not None:
            write_submission(args.out, found, records, numbers)
            return
        values = {**figures(found, records), **trivial_figures(np.array(rpns[0].mean_boxes), records)}
        stages = f"{len(rpns)} RPN{', ' + str(len(rcnns)) + ' R-CNN' if rcnns else ''}"
        say_table(values, f"{split}, {counted(int(values['images']), 'image')}, {stages}, view {config.test.view}")
        if args.out is not None and distributed.is_main():
            names = {key: [str(path) for path in getattr(args, key)] for key in ("weights", "rcnn", "classifier")}
            write_json(args.out / "metrics.json", {**values, "split": split, "view": config.test.view, **names})
            write_predictions(args.out / "predictions.json", found, records)
            say(f"results    {args.out / 'metrics.json'}, {args.out / 'predictions.json'}")


def read_numbers(
    source: LocalisationSourceConfig, data_root: Path, class_names: list[str], args: argparse.Namespace
) -> Numbers:
    """The numbers of the classes for a set without labels, from the development kit's meta.mat or Kaggle's list.

    Raises:
        UserError: no --out for the submission, or the file does not know the classes.
    """
    if args.out is None:
        raise UserError("--out: give the folder for submission.txt and submission.csv: the test set has no labels")
    root = data_root / source.root
    if source.meta is not None:
        meta = data_root / source.meta
    else:
        meta, listed = root / "ILSVRC2012_devkit_t12/data/meta.mat", root.parent / "LOC_synset_mapping.txt"
        meta = listed if listed.is_file() and not meta.is_file() else meta
    kit = class_numbers(meta, class_names) if meta.suffix == ".mat" else None
    return Numbers(kit, kaggle_numbers(meta, class_names))


def write_submission(folder: Path, found: Predictions, records: Records, numbers: Numbers) -> None:
    """Write what the benchmark's server takes, where the kit is there, what Kaggle takes, and predictions.json."""
    if not distributed.is_main():
        return
    labels, boxes, files = found.labels[:, 1:], found.boxes[:, 1:], [folder / "submission.csv"]
    write_kaggle_loc(files[0], records.image_ids.tolist(), labels, boxes, numbers.kaggle)
    if numbers.kit is not None:
        files = [folder / "submission.txt", *files]
        write_imagenet_loc(files[0], labels, boxes, numbers.kit)
    write_predictions(folder / "predictions.json", found, records)
    say(f"{counted(len(records), 'image')} without labels\nsubmission {', '.join(map(str, files))}")


def load_classifiers(
    paths: list[str],
    rpns: list[Localiser[PerClassRpn]],
    config: LocalisationConfig,
    data_root: Path,
    device: torch.device,
) -> list[Classifier]:
    """The networks that predict the classes.

    Raises:
        UserError: a classifier's classes are not the localiser's.
    """
    if not paths:
        return [
            Classifier(rpn.net.net, rpn.net.normalize, rpn.class_names, rpn.config.data.crop_size)
            for rpn in rpns
            if rpn.net.classifies
        ]
    loaded = []
    for path in paths:
        member = load_classifier(path, config.model, data_root)
        if member.class_names != rpns[0].class_names:
            which = differing(member.class_names, rpns[0].class_names)
            raise UserError(f"{path}: other classes than the localiser's ({which})")
        loaded.append(member._replace(net=member.net.to(device), normalize=member.normalize.to(device)))
    return loaded


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument(
        "--weights", required=True, nargs="+", type=cli.weights_argument, metavar="W",
        help="checkpoints of stage rpn of train_loc.py",
    )  # fmt: skip
    parser.add_argument(
        "--rcnn", nargs="+", type=cli.weights_argument, default=[], metavar="W", help="checkpoints of stage rcnn"
    )
    parser.add_argument(
        "--classifier", nargs="+", default=[], metavar="W", help="checkpoints of tools/pretrain.py that predict classes"
    )
    parser.add_argument("--view", choices=("center", "dense"), help="what a net sees of an image (default: test.view)")
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: test, else val")
    parser.add_argument("--batch-size", type=cli.positive, metavar="N", help="images at a time")
    parser.add_argument(
        "--out", type=cli.output_folder, metavar="DIR", help="write metrics.json and predictions.json there"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
