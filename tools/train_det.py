"""Train a detector, validate it, keep its last and best checkpoints, and test it.

    python tools/train_det.py --cfg configs/demo.yaml
    python tools/train_det.py --cfg my.yaml --out runs/mine --set optim.lr=0.01 train.amp=bf16
    python tools/train_det.py --cfg my.yaml --out runs/mine --resume
    torchrun --nproc-per-node 8 tools/train_det.py --cfg configs/frcnn_r101_coco.yaml

The run's folder holds config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt (of the best validation;
without a validation set, the last), metrics_val.json, metrics.json (of the test set, with the last weights),
detections, pictures and report/index.html.

`train.alternating` trains in four phases, as the papers did (docs/improvements.md); otherwise all trains at once.
Validations during the training use the plain test; the final one does what `test` in the config asks for.
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

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config
from datasets.batch import Batch
from datasets.detection import DetectionDataset
from datasets.loader import prefetch, train_loader
from detection.alternating import JOINT, PHASES, Alternating, Phase
from detection.checkpoint import FORMAT, load_strictly, read_detector_file
from detection.compilation import compile_regions
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
    describe,
    describe_schedule,
    make_detector,
    rehearse,
)
from tools.runtime.training import LossMonitor, autocast, average_statistics, seed_step


@dataclass
class State:
    """How far a training has come: what a checkpoint keeps beside the tensors."""

    iteration: int = 0
    """Updates done, in all phases."""
    phase: int = 1
    """The number of the phase that trains; joint training has one."""
    phase_start: int = 0
    """Updates done before it."""
    validated: int = 0
    """The iteration of the newest validation."""
    best: float | None = None
    """The best `train.best_metric` so far (for `loss`: the least)."""
    validations_without_better: int = 0
    metrics: dict[str, Any] | None = None
    """Of the newest validation."""


@dataclass
class Job:
    """What the phases of a run share."""

    config: DetectionConfig
    device: torch.device
    run: RunFolder
    stop: cli.StopRequest
    train_set: DetectionDataset
    val_set: DetectionDataset | None
    test_set: DetectionDataset | None
    detector: Detector
    alternating: Alternating | None
    """None: joint training, one phase."""
    state: State
    header: str
    """What stands in the run's config.yaml."""


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
    alternating = Alternating(detector) if config.train.alternating is not None else None
    describe(config, detector, train_set, val_set, test_set, device, run)
    if config.train.compile:
        compile_regions(detector)
    torch.backends.cudnn.benchmark = device.type == "cuda"

    state = state_of(checkpoint) if checkpoint else State()
    header = provenance(data_root) + dump_config(config)
    job = Job(config, device, run, stop, train_set, val_set, test_set, detector, alternating, state, header)
    phases = PHASES if alternating is not None else (JOINT,)
    for phase in phases[state.phase - 1 :]:
        train_phase(job, phase, checkpoint)
        checkpoint = None
    finish(job)


def train_phase(job: Job, phase: Phase, checkpoint: dict | None) -> None:
    """One phase from its start, or from a checkpoint of it, to its end; joint training has no other.

    Afterwards the detector has the weights that evaluate: the moving averages where there are some.
    """
    config = config_of_phase(job.config, phase)
    detector, device, run, state, stop = job.detector, job.device, job.run, job.state, job.stop
    if checkpoint is None:
        state.phase, state.phase_start = phase.number, state.iteration
        if job.alternating is not None:
            job.alternating.begin(phase)
    else:
        load_weights(checkpoint, job)
    learner = job.alternating.model(phase) if job.alternating is not None else detector.train()
    optimizer = build_optimizer(detector, config.optim)
    ema = Ema(detector, config.train.ema_decay) if config.train.ema_decay else None
    if checkpoint is not None:
        load_optimizer(optimizer, checkpoint["training"]["optimizer"])
        if ema is not None:
            ema.load_state_dict(checkpoint["model"])
    model = distributed.wrap(learner, device)
    if device.type == "cuda":
        rehearse(model, job.train_set, config, device)

    loader = train_loader(
        job.train_set,
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
    base_rate = scaled_rate(config.optim, config.train.batch_size)
    schedule = make_schedule(config.schedule, rate=base_rate, iterations_per_epoch=iterations_per_epoch)
    monitor = LossMonitor(device)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    validates = job.val_set is not None and phase.detects
    checkpoint_every = config.train.checkpoint_every or config.train.validate_every
    what, names_phase = "training", {}
    if job.alternating is not None:
        what, names_phase = f"phase {phase.number} of {len(PHASES)}", {"phase": phase.number}
        say(f"\n{what}: {phase.description}; {sum(map(torch.numel, parameters)):,} parameters train")
    describe_schedule(config, schedule.describe())

    def done() -> int:
        return state.iteration - state.phase_start

    def rate(iteration: int) -> float:
        return schedule.rate(iteration - state.phase_start)

    def image_name(index: int) -> str:
        return str(job.train_set.records.image_ids[index])

    def save(path: Path, *, for_resume: bool = True) -> None:
        average_statistics(detector, ema)
        if distributed.is_main():
            content = checkpoint_content(job, optimizer, ema)
            save_checkpoint(path, content if for_resume else without_training(content))

    with run, Progress(schedule.iterations, what, initial=done()) as progress:
        run.open(job.header, from_iteration=state.iteration)
        batches = Timed(prefetch(loader, device))
        clock, clock_iteration = time.perf_counter(), state.iteration
        while True:
            # -- what is due between two updates; a resumed run comes by here first
            if validates and state.validated < state.iteration and schedule.is_due(done(), config.train.validate_every):
                monitor.check(image_name, rate)
                average_statistics(detector, ema)
                try:
                    is_best = validate(job, phase, learner, ema)
                except cli.Interrupted:
                    save(run.last)
                    raise cli.Interrupted(how_to_resume(run, state.iteration)) from None
                if is_best:
                    save(run.best, for_resume=False)
                batches.take_seconds()
                clock, clock_iteration = time.perf_counter(), state.iteration
            exhausted = config.train.patience is not None and state.validations_without_better >= config.train.patience
            ends = exhausted or done() >= schedule.iterations
            interrupted = not ends and distributed.any_process(stop.requested)
            if ends or interrupted or schedule.is_due(done(), checkpoint_every):
                monitor.check(image_name, rate)
                save(run.last)
            if interrupted:
                raise cli.Interrupted(how_to_resume(run, state.iteration))
            if ends:
                break

            # -- one update
            seed_step(config.seed, state.iteration)
            set_rate(optimizer, rate(state.iteration))
            try:
                backward(model, optimizer, batches, monitor, config, device, state.iteration)
            except RuntimeError:
                if stop.requested and distributed.world_size() == 1:  # the signal ended the loader's workers too
                    continue
                raise
            skip = monitor.finish_step(state.iteration, parameters, config.optim.clip_norm)
            step_unless(optimizer, skip)
            if ema is not None:
                ema.update(done())
            state.iteration += 1

            # -- the only regular reading of values from the device
            if state.iteration % config.train.log_every == 0 or done() == schedule.iterations:
                values = monitor.read(image_name, rate)
                seconds = (time.perf_counter() - clock) / max(1, state.iteration - clock_iteration)
                data_seconds = batches.take_seconds() / max(1, state.iteration - clock_iteration)
                clock, clock_iteration = time.perf_counter(), state.iteration
                speed = {"seconds": seconds, "data_seconds": data_seconds}
                if device.type == "cuda":
                    speed["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
                at = {**names_phase, "epoch": schedule.epoch(done()), "rate": rate(state.iteration - 1)}
                run.log(state.iteration, {**at, **values, **speed}, prefix="train")
                progress.update(0, loss=values["loss"], rate=at["rate"], data=f"{100 * data_seconds / seconds:.0f}%")
            progress.update()
        progress.close()
    if exhausted:
        say(f"stopped early: no better {config.train.best_metric} in {config.train.patience} validations")
    if job.val_set is None and phase.is_final:  # nothing says that an earlier one was better
        save(run.best, for_resume=False)
    optimizer.zero_grad(set_to_none=True)
    if ema is not None:
        detector.load_state_dict(ema.state_dict())


def backward(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    monitor: LossMonitor,
    config: DetectionConfig,
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


def config_of_phase(config: DetectionConfig, phase: Phase) -> DetectionConfig:
    """The config as it holds in a phase: with the batch size, rate and schedule that the phase has of its own."""
    if config.train.alternating is None:
        return config
    own = config.train.alternating.detector if phase.detects else config.train.alternating.rpn
    optim = {"lr": own.lr, "reference_batch_size": own.reference_batch_size}
    return config.model_copy(
        update={
            "optim": config.optim.model_copy(update={name: value for name, value in optim.items() if value}),
            "train": config.train.model_copy(update={"batch_size": own.batch_size or config.train.batch_size}),
            "schedule": own.schedule or config.schedule,
        }
    )


def state_of(checkpoint: dict) -> State:
    """How far the run had come when the checkpoint was written."""
    if "optimizer" not in checkpoint["training"]:
        raise UserError("the checkpoint holds weights only: resume needs the run's last.pt")
    return State(**checkpoint["training"]["state"])


def load_weights(checkpoint: dict, job: Job) -> None:
    """Put the weights back as they were when the checkpoint was written."""
    training = checkpoint["training"]
    load_strictly(job.detector, training.get("weights", checkpoint["model"]), job.run.last)
    if job.alternating is not None:
        job.alternating.load_state_dict(training["alternating"])


# ---------------------------------------------------------------------------------------------- between the updates


def validate(job: Job, phase: Phase, learner: nn.Module, ema: Ema | None) -> bool:
    """Loss, metrics and pictures on the validation set into the run and the state; whether it is the best so far.

    The detector of phase 2 is none that could be used by itself, so it is validated but never the best.
    """
    config, run, state, val_set = job.config, job.run, job.state, job.val_set
    with ema.swapped_in() if ema is not None else nullcontext():
        outcome = run_detector(learner, val_set, config, job.device, what="validation", losses=True, stop=job.stop)
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
    is_best = is_best and phase.is_final
    state.best = value if is_best else state.best
    state.validations_without_better = 0 if is_best else state.validations_without_better + 1
    state.validated, state.metrics = state.iteration, metrics
    figures = ", ".join(f"{name} {_main_figure(metrics[name]):.4f}" for name in config.metrics)
    say(f"iteration {state.iteration}: validation loss {outcome.losses['loss']:.4f}, {figures}{' (best)' * is_best}")
    return is_best


def checkpoint_content(job: Job, optimizer: Optimizer, ema: Ema | None) -> dict:
    """Everything that a run needs to go on; the weights that evaluate stand under `model`."""
    weights = job.detector.state_dict()
    training = {"state": asdict(job.state), "iteration": job.state.iteration, "optimizer": optimizer.state_dict()}
    if ema is not None:
        training["weights"] = weights
    if job.alternating is not None:
        training["alternating"] = job.alternating.state_dict()
    return {
        "format": FORMAT,
        "kind": "detector",
        "config": job.config.model_dump(mode="json"),
        "class_names": list(job.detector.class_names),
        "preprocessing": job.detector.preprocessing.to_dict(),
        "model": weights if ema is None else ema.state_dict(),
        "training": training,
    }


def how_to_resume(run: RunFolder, iteration: int) -> str:
    return f"interrupted after {iteration} iterations; {run.last} is written: the same command with --resume goes on"


# ---------------------------------------------------------------------------------------------- after the loop


def finish(job: Job) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the results."""
    config, run, state = job.config, job.run, job.state
    if state.metrics is not None and run.writes:
        write_metrics(run.path / "metrics_val.json", state.metrics)
    final_set, what = (job.test_set, "test") if job.test_set is not None else (job.val_set, "validation")
    if final_set is None:
        say(f"no validation or test set is given: {run.last} is the result")
        return
    try:
        outcome = run_detector(job.detector, final_set, config, job.device, what=what, test=config.test, stop=job.stop)
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
        "--init-from",
        type=cli.weights_argument,
        metavar="W",
        help="start from a detector's weights, a file or a name of docs/zoo.md; classes may differ",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in RUN")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
