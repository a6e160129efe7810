"""Test classifiers: centre crop, 10 crops, or fully-convolutional at several scales; of several, the averaged scores.

    python tools/test_cls.py --cfg configs/imagenet_resnet50.yaml --weights runs/imagenet_resnet50/last.pt
    python tools/test_cls.py --cfg configs/imagenet_resnet50.yaml --weights a.pt --views 10crop
    python tools/test_cls.py --cfg configs/imagenet_resnet50.yaml --weights a.pt b.pt c.pt --views multiscale --out DIR

The config says which images (data.test, else data.val), sizes and scales. What each file says about its net, its input
and its classes goes before the config. Prints top-1 and top-5 error; writes metrics.json with --out. Of ImageNet's test
images, whose labels nobody has (format imagenet_test), it writes submission.txt for the server instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from backbones.classification import Classifier, load_classifier
from backbones.views import VIEWS
from configs.classification import ClassificationConfig, ImageSourceConfig
from configs.errors import UserError, counted, examples
from configs.loading import load_config
from datasets.cifar import read_into_memory
from datasets.classification import ImageSet, build_splits, read_set
from datasets.folders import ImageFiles
from datasets.synsets import class_numbers, synset_wnids
from detection.evaluation.submissions import write_imagenet_cls
from tools.runtime import cli, distributed
from tools.runtime.classification import EVALUATION_BATCH, evaluate, rank_classes
from tools.runtime.distributed import say
from tools.runtime.run_folder import write_json
from tools.runtime.texts import differing
from tools.runtime.training import place

BATCH = {"center": EVALUATION_BATCH, "10crop": 32, "multiscale": 16}
"""Images at a time where `--batch-size` is not given."""


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args), ClassificationConfig)
    data_root = cli.find_data_root(args.data_root)
    device = cli.select_device(args.device)
    with distributed.processes(device):
        members = [load_classifier(weights, config.model, data_root) for weights in args.weights]
        check_members(members, args.weights)
        split = args.split or ("test" if config.data.test is not None else "val")
        numbers = read_numbers(config, split, data_root, members[0], args)
        images = read_images(config, split, data_root, members[0])
        nets = [(place(member.net, device, channels_last=True), member.normalize.to(device)) for member in members]
        how = {"view": args.views, "batch_size": args.batch_size or BATCH[args.views], "amp": config.train.amp}
        if numbers is None:
            report(evaluate(nets, images, config.data, device, what=args.views, **how), args, split)
            return
        classes = rank_classes(nets, images, config.data, device, **how)
        if distributed.is_main():
            write_imagenet_cls(args.out / "submission.txt", classes, numbers)
            say(f"{counted(len(images), 'image')} without labels ({split}), {args.views}")
            say(f"submission {args.out / 'submission.txt'}")


def check_members(members: list[Classifier], weights: list[str]) -> None:
    """See that the nets of an ensemble have the same classes.

    Raises:
        UserError: names the file that differs.
    """
    for member, path in zip(members[1:], weights[1:], strict=True):
        first = members[0]
        if count_classes(member) != count_classes(first):
            raise UserError(
                f"{path}: has {counted(count_classes(member), 'class')}, {weights[0]} {count_classes(first)}"
            )
        if member.class_names and first.class_names and member.class_names != first.class_names:
            which = differing(member.class_names, first.class_names)
            raise UserError(f"{path}: other classes than {weights[0]} ({which})")


def count_classes(member: Classifier) -> int:
    """Outputs of a net."""
    last = [module for module in member.net.modules() if isinstance(module, torch.nn.Linear)][-1]
    return last.out_features


def read_numbers(
    config: ClassificationConfig, split: str, data_root: Path, member: Classifier, args: argparse.Namespace
) -> list[int] | None:
    """ImageNet's numbers of the net's classes, for a set without labels; None for a set with labels.

    Raises:
        UserError: no --out for the submission, or the development kit does not know the classes.
    """
    source: ImageSourceConfig | None = getattr(config.data, split)
    if source is None or source.meta is None:
        return None
    if args.out is None:
        raise UserError(f"data.{split}: has no labels: give --out, the folder for submission.txt")
    meta = data_root / source.meta
    names = member.class_names or synset_wnids(meta)
    if len(names) != count_classes(member):
        raise UserError(
            f"{meta}: has {counted(len(names), 'class')}, the net {count_classes(member)}, whose file names none"
        )
    return class_numbers(meta, names)


def read_images(config: ClassificationConfig, split: str, data_root: Path, member: Classifier) -> ImageSet:
    """The set that is tested, its labels in the net's order.

    Raises:
        UserError: the config has no such set, or its classes are not the net's.
    """
    data = config.data
    if split == "val" and data.hold_out:
        images = build_splits(data, data_root).val
        assert images is not None, "data.hold_out makes one"
    else:
        source: ImageSourceConfig | None = getattr(data, split)
        if source is None:
            raise UserError(f"data.{split}: the config has no such set: give --split, or the set with --set")
        if source.format == "imagenet_test":
            return read_set(source, data_root, member.class_names)
        images = read_set(source, data_root)
        if images.class_names != member.class_names and set(images.class_names) <= set(member.class_names):
            images = read_set(source, data_root, member.class_names)
    if len(images.class_names) != count_classes(member):
        own = f"{counted(len(images.class_names), 'class')} {examples(images.class_names, 3)}"
        names = examples(member.class_names, 3) or "without names"
        raise UserError(f"data.{split}: has the {own}, the net {count_classes(member)} ({names})")
    if member.class_names and images.class_names != member.class_names:
        unknown = sorted(set(images.class_names) - set(member.class_names))
        if len(unknown) < len(images.class_names):  # else the set has other words for all of them
            raise UserError(
                f"data.{split}: has the class {unknown[0]}, which the net does not know, beside others of its"
            )
        say(f"the net calls its classes {member.class_names[0]}, ...; the set's {images.class_names[0]}, ... are taken "
            "for them in the order of their names")  # fmt: skip
    return read_into_memory(images) if data.in_memory and isinstance(images, ImageFiles) else images


def report(values: dict[str, float], args: argparse.Namespace, split: str) -> None:
    """Print the errors, and write metrics.json."""
    several = f", scores of {len(args.weights)} nets averaged" if len(args.weights) > 1 else ""
    say(f"{counted(int(values['images']), 'image')} ({split}), {args.views}{several}")
    say(f"top-1 error {100 * values['top1_error']:.2f} %, top-5 error {100 * values['top5_error']:.2f} %")
    if args.out is not None and distributed.is_main():
        weights = [str(path) for path in args.weights]
        write_json(args.out / "metrics.json", {**values, "split": split, "views": args.views, "weights": weights})
        say(f"results    {args.out / 'metrics.json'}")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument(
        "--weights", required=True, nargs="+", metavar="W",
        help="checkpoints of tools/pretrain.py or tools/convert_weights.py (paths, hf:// or https:// names), or "
        "torchvision:IMAGENET1K_V1",
    )  # fmt: skip
    parser.add_argument("--views", choices=VIEWS, default="center", help="what a net sees of an image")
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: test, else val")
    parser.add_argument("--batch-size", type=cli.positive, metavar="N", help="images at a time")
    parser.add_argument("--out", type=cli.output_folder, metavar="DIR", help="write metrics.json there")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
