"""Train a detector, validate it, keep its last and best checkpoints, and test it.

    python tools/train_det.py --cfg configs/demo.yaml
    python tools/train_det.py --cfg my.yaml --out runs/mine --set optim.lr=0.01 train.amp=bf16
    python tools/train_det.py --cfg my.yaml --out runs/mine --resume
    torchrun --nproc-per-node 8 tools/train_det.py --cfg configs/frcnn_r101_coco.yaml

The run's folder holds config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt (of the best validation;
without a validation set, the last), metrics_val.json, metrics.json (of the test set, with the last weights),
detections, pictures and report/index.html.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.optim import Optimizer

from configs.errors import UserError
from configs.loading import dump_config, load_config
from configs.schema import Config
from datasets.batch import Batch
from datasets.detection import DetectionDataset
from datasets.loader import prefetch, train_loader
from detection.checkpoint import FORMAT, load_strictly, read_detector_file
from detection.drawing import sheet
from detection.evaluation.evaluate import format_table, write_metrics
from detection.model import Detector
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import save_checkpoint, without_training
from tools.runtime.distributed import say
from tools.runtime.ema import Ema
from tools.runtime.evaluation import run_detector, score, write_results
from tools.runtime.optimizer import build_optimizer, load_optimizer, scaled_rate, set_rate, step_unless
from tools.runtime.pictures import choose_images, draw_image, write_pictures
from tools.runtime.progress import Progress, Timed
from tools.runtime.resume import refuse_another_training
from tools.runtime.run_folder import RunFolder, provenance
from tools.runtime.schedule import make_schedule
from tools.runtime.setup import (
    build_datasets,
    check_validation,
    compile_regions,
    describe,
    make_detector,
    rehearse,
)
from tools.runtime.training import LossMonitor, autocast, average_statistics, seed_step


@dataclass
class State:
    """How far a training has come: what a checkpoint keeps beside the tensors."""

    iteration: int = 0
    """Updates done."""
    validated: int = 0
    """The iteration of the newest validation."""
    best: float | None = None
    """The best `train.best_metric` so far (for `loss`: the least)."""
    validations_without_better: int = 0
    metrics: dict[str, Any] | None = None
    """Of the newest validation."""


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    with distributed.processes(device), cli.StopRequest() as stop:
        train(args, device, stop)


def train(args: argparse.Namespace, device: torch.device, stop: cli.StopRequest) -> None:
    """The whole run, from the config to the test set's table."""
    if args.overwrite and args.resume:
        raise UserError("--overwrite and --resume contradict each other: one removes the run, the other continues it")
    config = load_config(args.cfg, cli.config_overrides(args))
    data_root = cli.find_data_root(args.data_root)
    run = RunFolder(args.out or Path("runs") / args.cfg.stem, writes=distributed.is_main())
    if args.overwrite:
        distributed.on_main(run.clear)
    distributed.on_main(lambda: run.check(resume=args.resume))

    # Data before the model: what is missing is said at once.
    train_set, val_set, test_set = distributed.main_first(lambda: build_datasets(config, data_root))
    check_validation(config, train_set, val_set, test_set)

    checkpoint = read_detector_file(run.last) if args.resume and run.last.exists() else None
    if checkpoint is not None:
        refuse_another_training(
            run.last, checkpoint["config"], config, checkpoint["class_names"], train_set.class_names
        )
    torch.manual_seed(config.seed)  # the new layers
    detector = distributed.main_first(  # who goes first may download weights
        lambda: make_detector(config, train_set.class_names, data_root, checkpoint, args.init_from)
    )
    detector.to(device, memory_format=torch.channels_last if config.train.channels_last else torch.preserve_format)
    detector.train()
    optimizer = build_optimizer(detector, config.optim)
    ema = Ema(detector, config.train.ema_decay) if config.train.ema_decay else None
    state = load_training(checkpoint, detector, optimizer, ema) if checkpoint else State()
    if config.train.compile:
        compile_regions(detector)
    model = distributed.wrap(detector, device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        rehearse(model, train_set, config, device)

    loader = train_loader(
        train_set,
        config.data,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        seed=config.seed,
        start_iteration=state.iteration,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
    )
    iterations_per_epoch = loader.batch_sampler.orders.epoch_length / config.train.batch_size
    rate = scaled_rate(config.optim, config.train.batch_size)
    schedule = make_schedule(config.schedule, rate=rate, iterations_per_epoch=iterations_per_epoch)
    monitor = LossMonitor(device)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    checkpoint_every = config.train.checkpoint_every or config.train.validate_every
    describe(config, detector, train_set, val_set, test_set, schedule.describe(), device, run)

    def image_name(index: int) -> str:
        return str(train_set.records.image_ids[index])

    def save(path: Path, *, for_resume: bool = True) -> None:
        average_statistics(detector, ema)
        if distributed.is_main():
            content = checkpoint_content(config, detector, optimizer, ema, state)
            save_checkpoint(path, content if for_resume else without_training(content))

    with run, Progress(schedule.iterations, "training", initial=state.iteration) as progress:
        run.open(provenance(data_root) + dump_config(config), from_iteration=state.iteration)
        batches = Timed(prefetch(loader, device))
        clock, clock_iteration = time.perf_counter(), state.iteration
        while True:
            # -- what is due between two updates; a resumed run comes by here first
            if val_set is not None and state.validated < state.iteration and schedule.is_due(
                state.iteration, config.train.validate_every
            ):  # fmt: skip
                monitor.check(image_name, schedule.rate)
                average_statistics(detector, ema)
                try:
                    is_best = validate(config, detector, ema, val_set, device, run, state, stop)
                except cli.Interrupted:
                    save(run.last)
                    raise cli.Interrupted(how_to_resume(run, state.iteration)) from None
                if is_best:
                    save(run.best, for_resume=False)
                batches.take_seconds()
                clock, clock_iteration = time.perf_counter(), state.iteration
            exhausted = config.train.patience is not None and state.validations_without_better >= config.train.patience
            ends = exhausted or state.iteration >= schedule.iterations
            interrupted = not ends and distributed.any_process(stop.requested)
            if ends or interrupted or schedule.is_due(state.iteration, checkpoint_every):
                monitor.check(image_name, schedule.rate)
                save(run.last)
            if interrupted:
                raise cli.Interrupted(how_to_resume(run, state.iteration))
            if ends:
                break

            # -- one update
            seed_step(config.seed, state.iteration)
            set_rate(optimizer, schedule.rate(state.iteration))
            try:
                backward(model, optimizer, batches, monitor, config, device, state.iteration)
            except RuntimeError:
                if stop.requested and distributed.world_size() == 1:  # the signal ended the loader's workers too
                    continue
                raise
            skip = monitor.finish_step(state.iteration, parameters, config.optim.clip_norm)
            step_unless(optimizer, skip)
            if ema is not None:
                ema.update(state.iteration)
            state.iteration += 1

            # -- the only regular reading of values from the device
            if state.iteration % config.train.log_every == 0 or state.iteration == schedule.iterations:
                values = monitor.read(image_name, schedule.rate)
                seconds = (time.perf_counter() - clock) / max(1, state.iteration - clock_iteration)
                data_seconds = batches.take_seconds() / max(1, state.iteration - clock_iteration)
                clock, clock_iteration = time.perf_counter(), state.iteration
                speed = {"seconds": seconds, "data_seconds": data_seconds}
                if device.type == "cuda":
                    speed["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
                epoch, rate = schedule.epoch(state.iteration), schedule.rate(state.iteration - 1)
                run.log(state.iteration, {"epoch": epoch, "rate": rate, **values, **speed}, prefix="train")
                progress.update(0, loss=values["loss"], rate=rate, data=f"{100 * data_seconds / seconds:.0f}%")
            progress.update()
        progress.close()
        if exhausted:
            say(f"stopped early: no better {config.train.best_metric} in {config.train.patience} validations")
        if val_set is None:  # nothing says that an earlier one was better
            save(run.best, for_resume=False)
        finish(config, detector, ema, val_set, test_set, device, run, state, stop)


def backward(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    monitor: LossMonitor,
    config: Config,
    device: torch.device,
    iteration: int,
) -> None:
    """The gradients of one step, summed up over its accumulated parts."""
    optimizer.zero_grad(set_to_none=True)
    for part in range(config.train.accumulate):
        batch = next(batches)
        last = part == config.train.accumulate - 1
        with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            with autocast(device, config.train.amp):
                losses = model(batch, seed=config.seed, iteration=iteration)
            total = sum(losses.values())
            (total / config.train.accumulate).backward()
        monitor.add(losses, batch.index)


def load_training(checkpoint: dict, detector: Detector, optimizer: Optimizer, ema: Ema | None) -> State:
    """Put everything back as it was when the checkpoint was written."""
    training = checkpoint["training"]
    if "optimizer" not in training:
        raise UserError("the checkpoint holds weights only: resume needs the run's last.pt")
    load_strictly(detector, training.get("weights", checkpoint["model"]), "last.pt")
    load_optimizer(optimizer, training["optimizer"])
    if ema is not None:
        ema.load_state_dict(checkpoint["model"])
    return State(**training["state"])


# ---------------------------------------------------------------------------------------------- between the updates


def validate(
    config: Config,
    detector: Detector,
    ema: Ema | None,
    val_set: DetectionDataset,
    device: torch.device,
    run: RunFolder,
    state: State,
    stop: cli.StopRequest,
) -> bool:
    """Loss, metrics and pictures on the validation set into the run and the state; whether it is the best so far."""
    with ema.swapped_in() if ema is not None else nullcontext():
        outcome = run_detector(detector, val_set, config, device, what="validation", losses=True, stop=stop)
    metrics = score(val_set.records, outcome.detections, config.metrics)
    summary = {**outcome.losses, **{name: _without_classes(metrics[name]) for name in config.metrics}}
    run.log(state.iteration, summary, prefix="val")
    if run.writes:
        pictures = [draw_image(val_set.records, outcome.detections, i) for i in choose_images(val_set.records, 8)]
        run.log_picture(state.iteration, "val/detections", sheet(pictures))

    protocol, _, name = config.train.best_metric.partition(".")
    value = outcome.losses["loss"] if protocol == "loss" else metrics[protocol][name]
    sign = -1.0 if protocol == "loss" else 1.0
    is_best = value is not None and (state.best is None or sign * value > sign * state.best)
    state.best = value if is_best else state.best
    state.validations_without_better = 0 if is_best else state.validations_without_better + 1
    state.validated, state.metrics = state.iteration, metrics
    figures = ", ".join(f"{name} {_main_figure(metrics[name]):.4f}" for name in config.metrics)
    say(f"iteration {state.iteration}: validation loss {outcome.losses['loss']:.4f}, {figures}{' (best)' * is_best}")
    return is_best


def checkpoint_content(config: Config, detector: Detector, optimizer: Optimizer, ema: Ema | None, state: State) -> dict:
    """Everything that a run needs to go on; the weights that evaluate stand under `model`."""
    weights = detector.state_dict()
    training = {"state": asdict(state), "iteration": state.iteration, "optimizer": optimizer.state_dict()}
    if ema is not None:
        training["weights"] = weights
    return {
        "format": FORMAT,
        "kind": "detector",
        "config": config.model_dump(mode="json"),
        "class_names": list(detector.class_names),
        "preprocessing": detector.preprocessing.to_dict(),
        "model": weights if ema is None else ema.state_dict(),
        "training": training,
    }


def how_to_resume(run: RunFolder, iteration: int) -> str:
    return f"interrupted after {iteration} iterations; {run.last} is written: the same command with --resume goes on"


# ---------------------------------------------------------------------------------------------- after the loop


def finish(
    config: Config,
    detector: Detector,
    ema: Ema | None,
    val_set: DetectionDataset | None,
    test_set: DetectionDataset | None,
    device: torch.device,
    run: RunFolder,
    state: State,
    stop: cli.StopRequest,
) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the results."""
    if state.metrics is not None and run.writes:
        write_metrics(run.path / "metrics_val.json", state.metrics)
    final_set, what = (test_set, "test") if test_set is not None else (val_set, "validation")
    if final_set is None:
        say(f"no validation or test set is given: {run.last} is the result")
        return
    try:
        with ema.swapped_in() if ema is not None else nullcontext():
            outcome = run_detector(detector, final_set, config, device, what=what, stop=stop)
    except cli.Interrupted:
        raise cli.Interrupted(how_to_resume(run, state.iteration)) from None
    metrics = score(final_set.records, outcome.detections, config.metrics) if final_set.records.annotated else None
    if not run.writes:
        return
    if metrics is not None:
        say(f"\n{what} set, {len(final_set)} images, last weights (iteration {state.iteration}):\n")
        say(format_table(metrics))
    files = write_results(run.path, final_set.records, outcome.detections, metrics)
    write_pictures(run.pictures, final_set.records, outcome.detections)
    say(f"\nresults   {', '.join(str(path) for path in files)}")
    say(f"pictures  {run.pictures} (all on one: {run.pictures / 'overview.png'})")
    say(f"weights   {run.last}")


def _without_classes(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "per_class"}


def _main_figure(values: dict[str, Any]) -> float:
    value = values.get("mAP", values.get("AP"))
    return float("nan") if value is None else value


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<name of the config>)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the run in RUN exactly where it stopped")
    start.add_argument(
        "--init-from", type=Path, metavar="W", help="start from a detector's weights; classes may differ"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in RUN")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
