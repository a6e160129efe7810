"""The study of He et al. 2016, Sec. 4, in one command: train configs over seeds, and draw the paper's figures.

    python tools/study.py --cfg configs/cifar_plain20.yaml configs/cifar_plain56.yaml configs/cifar_resnet20.yaml \\
        configs/cifar_resnet56.yaml --seeds 0 1 2 --out runs/cifar_study
    python tools/study.py --cfg configs/imagenet_plain18.yaml configs/imagenet_plain34.yaml \\
        configs/imagenet_resnet18.yaml configs/imagenet_resnet34a.yaml --views 10crop --out runs/imagenet_study

Each run is a folder OUT/<config>/seed<N> of tools/pretrain.py; what is finished stays, what was stopped goes on, so the
same command can be given again. Then OUT holds, as PNG and CSV: curves (training and test error by iteration, Figs. 1,
4, 6), table (parameters, and the last checkpoints' errors as mean and standard deviation over the seeds, Tables 2, 3,
6; also as Markdown), responses (standard deviations of the layers' responses in layer order and sorted, Fig. 7).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from backbones.classification import load_classifier
from backbones.views import VIEWS
from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.files import read_json
from configs.loading import load_config
from datasets.classification import build_splits
from tools.pretrain import train
from tools.runtime import cli, distributed
from tools.runtime.classification import evaluate
from tools.runtime.run_folder import write_json
from tools.runtime.start import carry_out
from tools.runtime.study import Run, write_results


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    data_root = cli.find_data_root(args.data_root)
    runs = plan(args.cfg, args.seeds, args.overrides, args.out)
    with distributed.processes(device), cli.StopRequest() as stop:
        for run in runs:
            check_config(run)
            start = partial(train, run.config)
            carry_out(run.folder, start, device=device, stop=stop, data_root=data_root)
        errors = [final_errors(run, args.views, data_root, device) for run in runs]
        if distributed.is_main():
            write_results(runs, errors, data_root, device, args.out)


def plan(configs: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], out: Path) -> list[Run]:
    """The runs of a study.

    Raises:
        UserError: a config is wrong, or two have one name.
    """
    names = [path.stem for path in configs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--cfg: two configs are called {twice}: their runs would have one folder")
    return [
        Run(
            path.stem,
            seed,
            load_config(path, [*overrides, f"seed={seed}"], ClassificationConfig),
            out / path.stem / f"seed{seed}",
        )
        for path in configs
        for seed in seeds
    ]


def check_config(run: Run) -> None:
    """Refuse a folder that holds the run of another config."""
    saved = run.folder / "config.yaml"
    if saved.is_file() and load_config(saved, (), ClassificationConfig) != run.config:
        raise UserError(f"{run.folder}: was made with another config or other --set values: choose another --out")


def final_errors(run: Run, views: str, data_root: Path, device: torch.device) -> dict[str, float]:
    """The last checkpoint's errors; those of other views than the centre are computed once and kept in the folder."""
    path = run.folder / ("metrics.json" if views == "center" else f"metrics_{views}.json")
    if not distributed.on_main(path.is_file):
        member = load_classifier(run.folder / "last.pt", run.config.model)
        splits = build_splits(run.config.data, data_root)
        images = splits.test if splits.test is not None else splits.val
        if images is None:
            raise UserError(f"{run.folder}: the config has neither data.test nor data.val: there is nothing to test on")
        nets = [(member.net.to(device), member.normalize.to(device))]
        values = evaluate(nets, images, run.config.data, device, view=views, batch_size=32, what=f"{run.name} {views}")
        distributed.on_main(lambda: write_json(path, values))
    return distributed.on_main(lambda: read_json(path, "file of metrics"))


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, data_root=True, device=True)
    parser.add_argument("--cfg", required=True, nargs="+", type=Path, metavar="FILE", help="configs, YAML")
    cli.add_set(parser)
    seeds = "one run for each (default: 0)"
    parser.add_argument("--seeds", nargs="+", type=cli.seed_number, default=[0], metavar="N", help=seeds)
    parser.add_argument("--views", choices=VIEWS, default="center", help="the test whose errors are in the table")
    parser.add_argument(
        "--out", required=True, type=cli.output_folder, metavar="DIR", help="folder of the runs and figures"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
