"""Deepen a trained net by identity layers: the solution by construction (He et al. 2016, Sec. 1).

    python tools/deepen.py --cfg configs/cifar5k_plain20.yaml --weights runs/cifar5k_plain20/last.pt \\
        --units 5 5 5 --out runs/cifar5k_plain32_start.pt

The deeper net gives the same outputs; FILE is a checkpoint from which tools/pretrain.py trains on (model.weights). The
command says how far the outputs are from the shallow net's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from backbones.analysis import cost
from backbones.classification import load_classifier
from backbones.constructed import deepen
from backbones.pretrained import read_classifier
from backbones.resnet import ResNet
from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.classification import build_splits, centre_batches, spread
from tools.runtime import cli
from tools.runtime.checkpoint import save_checkpoint

IMAGES = 2000
"""Training images that say what the new batch norms of a plain net have to put back, spread over the set."""


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    data_root = cli.find_data_root(args.data_root)
    config = load_config(args.cfg, cli.config_overrides(args), ClassificationConfig)
    shallow = load_classifier(args.weights, config.model, data_root)
    net, normalize = shallow.net.to(device), shallow.normalize.to(device)
    if not isinstance(net, ResNet):
        raise UserError(f"{args.weights}: only residual nets and their plain twins can be deepened")
    images = spread(build_splits(config.data, data_root).train, IMAGES)
    batches = [normalize(batch.to(device).images) for batch in centre_batches(images, config.data, batch_size=100)]
    try:
        deep = deepen(net, args.units, batches)
    except ValueError as error:
        raise UserError(f"{args.weights}: {error}") from None
    content, _ = read_classifier(args.weights)
    table = deep.spec.model_dump(mode="json", exclude={"plain", "shortcut", "stride_in_1x1"})
    described = {"plain": deep.spec.plain, "shortcut": deep.spec.shortcut, "stride_in_1x1": deep.spec.stride_in_1x1}
    kept = {key: value for key, value in content.items() if key not in ("training", "model", "config")}
    model = {**content["config"]["model"], **described, "backbone": table}
    checkpoint = {**kept, "config": {**content["config"], "model": model}, "model": deep.cpu().state_dict()}
    save_checkpoint(args.out, checkpoint)
    with torch.no_grad():
        before, after = net.cpu()(batches[0].cpu()), deep(batches[0].cpu())
    print(f"{args.out}: {cost(net).parameters:,} parameters have become {cost(deep).parameters:,}")
    print(f"logits differ by at most {(after - before).abs().max():.1e} where the largest is {before.abs().max():.1f}")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True)
    parser.add_argument(
        "--weights", required=True, type=cli.weights_argument, metavar="W", help="a checkpoint of tools/pretrain.py"
    )
    parser.add_argument("--units", required=True, nargs="+", type=int, metavar="N", help="of each new stage")
    parser.add_argument(
        "--out", required=True, type=cli.output_file, metavar="FILE", help="the checkpoint that is written"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
