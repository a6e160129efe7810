"""Convert other projects' weights into a checkpoint of this project.

    python tools/convert_weights.py --source msra R-101.pkl resnet101_msra.pt
    python tools/convert_weights.py --source akamaster resnet20.th cifar_resnet20.safetensors

The net is found out from the file; its preprocessing and stride style go into the checkpoint with the weights. Reading
never executes code from the file.

Sources: torchvision, a ResNet or VGG state dict (V1 or V2 weights); msra, the released ResNets in Caffe2's or
detectron2's form (.pkl); caffe-vgg16, the torch-converted file; akamaster, CIFAR ResNets of pytorch_resnet_cifar10.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbones.conversion import SOURCES, convert
from backbones.weights import BOTTLENECK_NETS, read_weights_file, write_safetensors
from configs.errors import UserError
from configs.files import refuse_overwriting
from tools.runtime.checkpoint import save_checkpoint
from tools.runtime.cli import make_parser, run


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--source", required=True, choices=SOURCES, help="the project that the file comes from")
    parser.add_argument("input", type=Path, metavar="IN", help="the file: .pth, .pt, .th, .pkl or .safetensors")
    parser.add_argument("output", type=Path, metavar="OUT", help="checkpoint to write: .pt or .safetensors")
    return parser


def main(args: argparse.Namespace) -> None:
    """Read, convert, check, write."""
    if args.output.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"{args.output}: name the output .pt or .safetensors")
    refuse_overwriting(args.output, [args.input])
    checkpoint = convert(read_weights_file(args.input), args.source, args.input)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.suffix == ".safetensors":
        write_safetensors(checkpoint, args.output)
    else:
        save_checkpoint(args.output, checkpoint)
    model = checkpoint["config"]["model"]
    stride = ""
    if model["backbone"] in BOTTLENECK_NETS:
        stride = f", stride in the {'1x1' if model['stride_in_1x1'] else '3x3'}"
    pixels = checkpoint["preprocessing"]
    print(
        f"{args.output}: {model['backbone']}, {model['num_classes'] or 'no'} classes{stride}, "
        f"{pixels['channel_order'].upper()} pixels minus {pixels['mean']} over {pixels['std']}"
    )


if __name__ == "__main__":
    run(main, build_parser())
