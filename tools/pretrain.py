"""Train a classifier, from CIFAR-10 to ImageNet; its checkpoint is what a detector starts from (`model.weights`).

    python tools/pretrain.py --cfg configs/cifar_resnet20.yaml
    python tools/pretrain.py --cfg configs/imagenet_resnet50.yaml --out runs/r50 --data-root /data --set train.amp=bf16
    python tools/pretrain.py --cfg configs/imagenet_resnet50.yaml --out runs/r50 --data-root /data --resume
    torchrun --nproc-per-node 8 tools/pretrain.py --cfg configs/imagenet_resnet50.yaml

The run's folder holds config.yaml, metrics.jsonl and curves.png (training and test error), TensorBoard events, last.pt,
best.pt, metrics_val.json and metrics.json (of the test set where there is one, with the last weights).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from backbones.classification import build_classifier
from configs.classification import ClassificationConfig
from configs.loading import dump_config, load_config
from datasets.classification import build_splits
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import load_checkpoint, save_checkpoint
from tools.runtime.classification import describe, format_errors, make_normalize, recalibrate_over, test_sets
from tools.runtime.distributed import say
from tools.runtime.guards import classification_warnings
from tools.runtime.loop import fit, how_to_resume
from tools.runtime.plan import State, make_plan
from tools.runtime.resume import data_state, refuse_another_training
from tools.runtime.run_folder import RunFolder, provenance
from tools.runtime.start import Job, training, write_final_figures
from tools.runtime.tasks.classification import ClassificationTask
from tools.runtime.training import place


def main(args: argparse.Namespace) -> None:
    overrides = cli.config_overrides(args)
    if args.init_from is not None:
        overrides = [*overrides, f"model.weights={cli.absolute(args.init_from)}"]
    config = load_config(args.cfg, overrides, ClassificationConfig)
    with training(args) as job:
        train(config, job)


def train(config: ClassificationConfig, job: Job) -> None:
    """The whole run, from the data to the figures of the test set."""
    splits = distributed.main_first(lambda: build_splits(config.data, job.data_root))
    class_names = splits.train.class_names
    for warning in classification_warnings(splits) if distributed.is_main() else ():
        say(f"warning: {warning}")
    checkpoint = job.checkpoint("classifier")
    if checkpoint is not None:
        refuse_another_training(job.run.last, checkpoint["config"], config, checkpoint["class_names"], class_names)
    torch.manual_seed(config.seed)
    net = build_classifier(config.model, len(class_names))
    normalize = make_normalize(config, net, splits.train, checkpoint, job.data_root).to(job.device)
    place(net, job.device, channels_last=config.train.channels_last, winograd=config.train.winograd)
    task = ClassificationTask(config, net, normalize, splits, job.device)
    describe(config, net, splits, task.schedule, job.device, job.run)
    header = provenance(job.data_root) + dump_config(config)
    data = data_state(splits.train) if distributed.is_main() else None
    plan = make_plan(task, job.run, job.device, header=header, stop=job.stop, checkpoint=checkpoint, data=data)
    state = fit(task, plan)
    try:
        finish(task, job.run, state)
    except cli.Interrupted:
        raise cli.Interrupted(how_to_resume(job.run, state.iteration)) from None


def finish(task: ClassificationTask, run: RunFolder, state: State) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the figures."""
    config, net, metrics, how = task.recipe, task.net, state.metrics, "running batch norm"
    if config.train.recalibrate:
        metrics, how = recalibrated(task, run, state), "batch norm recalibrated"
    if metrics:
        say(f"\nlast weights (iteration {state.iteration}, {how}): {format_errors(metrics)}")
    more = {"iteration": state.iteration, "batch_norm": how}
    write_final_figures(run, {name: {**values, **more} for name, values in (metrics or {}).items()})
    net.train()


def recalibrated(task: ClassificationTask, run: RunFolder, state: State) -> dict[str, Any]:
    """The errors with batch norm's true statistics, which become those of last.pt; what resumes stays beside them."""
    config, net = task.recipe, task.net
    averages = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    recalibrate_over(task.splits.train, config, net, task.normalize, task.device)
    metrics = test_sets(config, net, task.normalize, task.splits, task.device)
    run.log(state.iteration, metrics, prefix="recalibrated")
    if run.writes:
        content = load_checkpoint(run.last)
        content["training"].setdefault("weights", content["model"])
        content["model"] = net.state_dict()
        content["training"]["metrics"] = metrics
        if config.train.ema_decay:
            content["training"]["ema"] = averages
        save_checkpoint(run.last, content)
    return metrics


def make_parser() -> argparse.ArgumentParser:
    return cli.make_training_parser(__doc__)


if __name__ == "__main__":
    cli.run(main, make_parser())
