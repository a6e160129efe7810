"""Convert other projects' weights into a checkpoint of this project.

    python tools/convert_weights.py --source msra R-101.pkl resnet101_msra.pt
    python tools/convert_weights.py --source akamaster resnet20.th cifar_resnet20.safetensors
    python tools/convert_weights.py --source detectron2 model_final_f97cb7.pkl r50_c4.pt \\
        --cfg configs/zoo/detectron2_r50_c4_coco.yaml
    python tools/convert_weights.py --source detectron2 model_final.pth mine.pt \\
        --cfg configs/zoo/detectron2_r50_c4_coco.yaml --set data.classes=[cat,dog]

A classifier's net is found out from the file. A detector needs --cfg for what its file does not say (anchors, sizes,
thresholds, classes); configs/zoo/ has the published ones, and --set adapts them. Preprocessing and stride style go into
the checkpoint with the weights. Reading never executes code from the file.

Sources: torchvision, a ResNet or VGG state dict, or Faster R-CNN on ResNet-FPN (V1 or V2); detectron2, Faster R-CNN as
C4, DC5 or FPN (.pkl of its zoo, .pth of its training), or a backbone of its zoo; msra, the released ResNets in Caffe2's
or detectron2's form (.pkl); caffe-vgg16, the torch-converted file; akamaster, CIFAR ResNets of pytorch_resnet_cifar10.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, counted
from tools.runtime import cli

SOURCES = ("torchvision", "msra", "caffe-vgg16", "detectron2", "akamaster")
SUFFIXES = (".pt", ".pth", ".safetensors")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--source", required=True, choices=SOURCES, help="the project that the file comes from")
    parser.add_argument("input", type=Path, metavar="IN", help="the file: .pth, .pt, .th, .pkl or .safetensors")
    parser.add_argument("output", type=cli.output_file, metavar="OUT", help="checkpoint to write: .pt or .safetensors")
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="of a detector: its config, as those in configs/zoo/")
    parser.add_argument("--overwrite", action="store_true", help="OUT may exist, and is replaced")
    cli.add_set(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    check_output(args.input, args.output, overwrite=args.overwrite)
    if args.overrides and args.cfg is None:
        raise UserError("--set changes a config: give --cfg, for a detector one of configs/zoo/")

    from backbones.weights import check_tensors, read_weights_file, write_safetensors
    from tools.runtime.checkpoint import save_checkpoint

    content = read_weights_file(args.input)
    checkpoint = convert(content, args)
    check_tensors(checkpoint["model"], args.input)
    if args.output.suffix == ".safetensors":
        write_safetensors(checkpoint, args.output)
    else:
        save_checkpoint(args.output, checkpoint)
    print(f"{args.output}: {describe(checkpoint)}")


def check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse an output of an unknown kind, or one that would replace a file.

    Raises:
        UserError: says which, and what to do.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output}: name the output .pt or .safetensors")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output}: is the input: give the checkpoint another name")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: there is such a file already: give another name, or --overwrite")


def convert(content: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint of a classifier or, where the file holds one, of a detector."""
    from backbones.conversion import convert as convert_classifier
    from configs.loading import load_config
    from detection import conversion
    from detection.zoo import card_of_file

    if args.source in conversion.SOURCES and conversion.is_detector(content):
        if args.cfg is None:
            raise UserError(
                f"{args.input}: a detector: give --cfg, its config, for anchors, sizes and classes: one of "
                f"{', '.join(f'configs/zoo/{path.name}' for path in zoo_configs(args.source))}"
            )
        config, card = load_config(args.cfg, args.overrides), card_of_file(args.input, args.source)
        return conversion.convert_detector(content, args.source, config, args.input, card=card)
    if args.cfg is not None:
        raise UserError(f"{args.input}: no detector in {args.source}'s form: --cfg is for detectors")
    return convert_classifier(content, "msra" if args.source == "detectron2" else args.source, args.input)


def zoo_configs(source: str) -> list[Path]:
    return sorted((Path(__file__).resolve().parents[1] / "configs" / "zoo").glob(f"{source}_*.yaml"))


def describe(checkpoint: dict[str, Any]) -> str:
    """What was written, in one line."""
    from backbones.weights import BOTTLENECK_NETS

    model, pixels = checkpoint["config"]["model"], checkpoint["preprocessing"]
    what = model["backbone"]
    if checkpoint["kind"] == "detector":
        form = "FPN" if model["neck"] == "fpn" else "DC5" if model["dilated_conv5"] else "C4"
        what = f"Faster R-CNN {what} {form}"
    classes = len(checkpoint["class_names"]) or model.get("num_classes") or 0
    stride = ""
    if model["backbone"] in BOTTLENECK_NETS:
        stride = f", stride in the {'1x1' if model['stride_in_1x1'] else '3x3'}"
    return (
        f"{what}, {counted(classes, 'class') if classes else 'no classes'}{stride}, "
        f"{pixels['channel_order'].upper()} pixels minus {pixels['mean']} over {pixels['std']}"
    )


if __name__ == "__main__":
    cli.run(main, make_parser())
