"""Train a classifier, from CIFAR-10 to ImageNet; its checkpoint is what a detector starts from (`model.weights`).

    python tools/pretrain.py --cfg configs/cifar_resnet20.yaml
    python tools/pretrain.py --cfg configs/imagenet_resnet50.yaml --out runs/r50 --data-root /data --set train.amp=bf16
    python tools/pretrain.py --cfg configs/imagenet_resnet50.yaml --out runs/r50 --data-root /data --resume
    torchrun --nproc-per-node 8 tools/pretrain.py --cfg configs/imagenet_resnet50.yaml

The run's folder holds config.yaml, metrics.jsonl (the curves of training and test error), TensorBoard events, last.pt,
best.pt, metrics_val.json and metrics.json (of the test set where there is one, with the last weights).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from backbones.batch_norm import recalibrate
from backbones.classification import (
    Plateau,
    WarmupUntilError,
    build_classifier,
    classification_loss,
    wrong_answers,
)
from backbones.preprocess import Normalize
from configs.classification import ClassificationConfig
from configs.errors import UserError
from configs.loading import dump_config, load_config
from datasets.classification import ImageFiles, ImageSet, Splits, build_splits, centre_batches, spread
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import FORMAT, load_checkpoint, save_checkpoint, without_training
from tools.runtime.classification import (
    TrainBatch,
    TrainingError,
    compiled,
    describe,
    evaluate,
    make_normalize,
    train_feed,
)
from tools.runtime.distributed import say
from tools.runtime.ema import Ema
from tools.runtime.optimizer import build_optimizer, load_optimizer, scaled_rate, set_rate, step_unless
from tools.runtime.progress import Progress, Timed
from tools.runtime.resume import refuse_another_training
from tools.runtime.run_folder import RunFolder, write_json
from tools.runtime.schedule import make_schedule
from tools.runtime.training import LossMonitor, autocast, average_statistics, seed_step

WARMUP_WINDOW = 50
"""Iterations whose training error is compared with `schedule.warmup_until_error`."""


@dataclass
class State:
    """How far a training has come: what a checkpoint keeps beside the tensors."""

    warmup: WarmupUntilError
    plateau: Plateau
    error: TrainingError
    iteration: int = 0
    """Updates done."""
    validated: int = 0
    """The iteration of the newest validation."""
    best: float | None = None
    """The lowest `train.best_metric` so far."""
    validations_without_better: int = 0
    metrics: dict[str, Any] | None = None
    """Of the newest validation: set -> figures."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        kept = {name: getattr(self, name) for name in _PLAIN}
        events = {"warmup_event": self.warmup.event, "plateau": self.plateau.state_dict()}
        return {**kept, **events, "error": self.error.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.warmup.event = state["warmup_event"]
        self.plateau.load_state_dict(state["plateau"])
        self.error.load_state_dict(state["error"])


_PLAIN = ("iteration", "validated", "best", "validations_without_better", "metrics")


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args), ClassificationConfig)
    device = cli.select_device(args.device)
    with distributed.processes(device), cli.StopRequest() as stop:
        run = RunFolder(args.out or Path("runs") / args.cfg.stem, writes=distributed.is_main())
        if args.overwrite and args.resume:
            raise UserError("--overwrite and --resume contradict each other: one removes the run, the other goes on")
        if args.overwrite:
            distributed.on_main(run.clear)
        train(config, run, cli.find_data_root(args.data_root), device, stop, resume=args.resume)


def train(
    config: ClassificationConfig,
    run: RunFolder,
    data_root: Path,
    device: torch.device,
    stop: cli.StopRequest,
    *,
    resume: bool = False,
) -> None:
    """The whole run, from the config to the figures of the test set."""
    distributed.on_main(lambda: run.check(resume=resume))
    splits = build_splits(config.data, data_root)
    class_names = splits.train.class_names
    checkpoint = load_checkpoint(run.last, kind="classifier") if resume and run.last.exists() else None
    if checkpoint is not None:
        refuse_another_training(run.last, checkpoint["config"], config, checkpoint["class_names"], class_names)

    torch.manual_seed(config.seed)
    net = build_classifier(config.model, len(class_names))
    normalize = make_normalize(config, net, splits.train, checkpoint, data_root).to(device)
    net.to(device, memory_format=torch.channels_last if config.train.channels_last else torch.preserve_format).train()
    optimizer = build_optimizer(net, config.optim)
    ema = Ema(net, config.train.ema_decay) if config.train.ema_decay else None
    state = fresh_state(config, device)
    if checkpoint is not None:
        load_training(checkpoint, net, optimizer, ema, state)
    model = distributed.wrap(compiled(net) if config.train.compile else net, device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True

    # The plateau's steps are events, not milestones: the schedule below is then constant.
    plan = config.schedule
    schedule = make_schedule(
        plan.model_copy(update={"policy": "constant"}) if plan.policy == "plateau" else plan,
        rate=scaled_rate(config.optim, config.train.batch_size),
        iterations_per_epoch=len(splits.train) / config.train.batch_size,
    )
    checkpoint_every = config.train.checkpoint_every or config.train.validate_every
    describe(config, net, splits, schedule.describe(), device, run)

    def rate(iteration: int) -> float:
        return schedule.rate(iteration) * state.warmup.factor(iteration) * state.plateau.factor(iteration)

    def image_name(index: int) -> str:
        return str(splits.train.path(index)) if isinstance(splits.train, ImageFiles) else f"number {index}"

    def save(path: Path, *, for_resume: bool = True) -> None:
        average_statistics(net)
        progress_state = state.state_dict()
        if distributed.is_main():
            content = checkpoint_content(config, net, normalize, class_names)
            if ema is not None:
                content["model"] = ema.state_dict()
                content["training"]["weights"] = net.state_dict()
            content["training"] |= {"state": progress_state, "optimizer": optimizer.state_dict()}
            content["training"] |= {"iteration": state.iteration, "metrics": state.metrics}
            save_checkpoint(path, content if for_resume else without_training(content))

    monitor = LossMonitor(device)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with run, Progress(schedule.iterations, "training", initial=state.iteration) as progress:
        run.open(dump_config(config), from_iteration=state.iteration)
        batches = Timed(train_feed(splits.train, config, normalize, device, state.iteration))
        clock, clock_iteration = time.perf_counter(), state.iteration
        while True:
            # -- what is due between two updates; a resumed run comes by here first
            if state.validated < state.iteration and schedule.is_due(state.iteration, config.train.validate_every):
                monitor.check(image_name, rate)
                average_statistics(net)
                if validate(config, net, normalize, ema, splits, device, run, state):
                    save(run.best, for_resume=False)
                batches.take_seconds()
                clock, clock_iteration = time.perf_counter(), state.iteration
            patience = config.train.patience
            exhausted = patience is not None and state.validations_without_better >= patience
            ends = exhausted or state.plateau.finished or state.iteration >= schedule.iterations
            interrupted = not ends and distributed.any_process(stop.requested)
            if ends or interrupted or schedule.is_due(state.iteration, checkpoint_every):
                monitor.check(image_name, rate)
                save(run.last)
            if interrupted:
                raise cli.Interrupted(
                    f"interrupted after {state.iteration} iterations; {run.last} is written: "
                    "the same command with --resume goes on"
                )
            if ends:
                break

            # -- one update
            seed_step(config.seed, state.iteration)
            set_rate(optimizer, rate(state.iteration))
            try:
                wrong = backward(model, optimizer, batches, monitor, config, device)
            except RuntimeError:
                if stop.requested and distributed.world_size() == 1:  # the signal ended the loader's workers too
                    continue
                raise
            skip = monitor.finish_step(state.iteration, parameters, config.optim.clip_norm)
            step_unless(optimizer, skip)
            state.error.add(wrong, config.train.batch_size)
            if ema is not None:
                ema.update(state.iteration)
            state.iteration += 1

            # -- the only regular reading of values from the device
            if state.warmup.waiting and state.iteration % WARMUP_WINDOW == 0:
                state.warmup.update(state.error.take("warmup"), state.iteration)
            if state.iteration % config.train.log_every == 0 or state.iteration == schedule.iterations:
                values = {**monitor.read(image_name, rate), "top1_error": state.error.take("log")}
                seconds = (time.perf_counter() - clock) / max(1, state.iteration - clock_iteration)
                data_seconds = batches.take_seconds() / max(1, state.iteration - clock_iteration)
                clock, clock_iteration = time.perf_counter(), state.iteration
                speed = {"seconds": seconds, "data_seconds": data_seconds}
                epoch, now = schedule.epoch(state.iteration), rate(state.iteration - 1)
                run.log(state.iteration, {"epoch": epoch, "rate": now, **values, **speed}, prefix="train")
                progress.update(0, loss=values["loss"], error=values["top1_error"], rate=now)
            progress.update()
        progress.close()
        if exhausted or state.plateau.finished:
            say(f"ended early after {state.iteration} iterations: the validation error falls no more")
        if splits.val is None and splits.test is None:  # nothing says that an earlier one was better
            save(run.best, for_resume=False)
        finish(config, net, normalize, ema, splits, device, run, state)


def backward(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[TrainBatch],
    monitor: LossMonitor,
    config: ClassificationConfig,
    device: torch.device,
) -> Tensor:
    """The gradients of one step, summed up over its accumulated parts; and how many answers were wrong, ()."""
    train = config.train
    optimizer.zero_grad(set_to_none=True)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    for part in range(train.accumulate):
        batch = next(batches)
        last = part == train.accumulate - 1
        with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            with autocast(device, train.amp):
                logits = model(batch.images)
            loss = classification_loss(logits, batch.labels, smoothing=train.label_smoothing, mix=batch.mix)
            (loss / train.accumulate).backward()
        monitor.add({"cross_entropy": loss}, batch.index)
        wrong += wrong_answers(logits.detach(), batch.labels)
    return wrong


# ---------------------------------------------------------------------------------------------- before the loop


def fresh_state(config: ClassificationConfig, device: torch.device) -> State:
    """The state before the first update."""
    plan = config.schedule
    return State(
        WarmupUntilError(plan.warmup_until_error, plan.warmup_until_factor),
        Plateau(plan.gamma, plan.plateau_patience, plan.plateau_threshold, plan.plateau_steps),
        TrainingError(device),
    )


def load_training(
    checkpoint: dict, net: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, state: State
) -> None:
    """Put everything back as it was when the checkpoint was written."""
    training = checkpoint["training"]
    if "optimizer" not in training:
        raise UserError("the checkpoint holds weights only: resume needs the run's last.pt")
    net.load_state_dict(training.get("weights", checkpoint["model"]))
    load_optimizer(optimizer, training["optimizer"])
    if ema is not None:
        ema.load_state_dict(training.get("ema", checkpoint["model"]))
    state.load_state_dict(training["state"])


# ---------------------------------------------------------------------------------------------- between the updates


def validate(
    config: ClassificationConfig,
    net: nn.Module,
    normalize: Normalize,
    ema: Ema | None,
    splits: Splits,
    device: torch.device,
    run: RunFolder,
    state: State,
) -> bool:
    """The errors on the validation and test sets into the run and the state; whether they are the lowest so far."""
    state.validated = state.iteration
    with ema.swapped_in() if ema is not None else nullcontext():
        metrics = test_sets(config, net, normalize, splits, device)
    if not metrics:
        return False
    for name, values in metrics.items():
        run.log(state.iteration, values, prefix=name)
    watched = metrics.get("val", metrics.get("test"))
    if config.schedule.policy == "plateau":
        state.plateau.update(watched["top1_error"], state.iteration)
    value = watched[config.train.best_metric]
    is_best = state.best is None or value < state.best
    state.best = value if is_best else state.best
    state.validations_without_better = 0 if is_best else state.validations_without_better + 1
    state.metrics = metrics
    say(f"iteration {state.iteration}: {format_errors(metrics)}{' (best)' * is_best}")
    return is_best


def test_sets(
    config: ClassificationConfig, net: nn.Module, normalize: Normalize, splits: Splits, device: torch.device
) -> dict[str, dict[str, float]]:
    """Name -> errors of the centre crops, for the validation and test sets that there are."""
    sets = {"val": splits.val, "test": splits.test}
    return {
        name: evaluate([(net, normalize)], images, config.data, device, amp=config.train.amp, what=name)
        for name, images in sets.items()
        if images is not None
    }


def format_errors(metrics: dict[str, dict[str, float]]) -> str:
    """The errors in per cent."""
    return ", ".join(
        f"{name} error {100 * values['top1_error']:.2f} % (top 5 {100 * values['top5_error']:.2f} %)"
        for name, values in metrics.items()
    )


def checkpoint_content(
    config: ClassificationConfig, net: nn.Module, normalize: Normalize, class_names: list[str]
) -> dict[str, Any]:
    """A classifier's checkpoint, `training` still empty."""
    content = {
        "format": FORMAT,
        "kind": "classifier",
        "config": config.model_dump(mode="json"),
        "class_names": list(class_names),
        "preprocessing": normalize.preprocessing.to_dict(),
        "stride_in_1x1": config.model.stride_in_1x1,
        "model": net.state_dict(),
        "training": {},
    }
    if normalize.mean_image is not None:
        content["mean_image"] = normalize.mean_image.cpu()
    return content


# ---------------------------------------------------------------------------------------------- after the loop


def finish(
    config: ClassificationConfig,
    net: nn.Module,
    normalize: Normalize,
    ema: Ema | None,
    splits: Splits,
    device: torch.device,
    run: RunFolder,
    state: State,
) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the figures."""
    metrics, how = state.metrics, "running batch norm"
    if config.train.recalibrate:
        raw = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        averages = {name: tensor.clone() for name, tensor in ema.state_dict().items()} if ema is not None else None
        if averages is not None:
            net.load_state_dict(averages)
        recalibrate_over(splits.train, config, net, normalize, device)
        metrics, how = test_sets(config, net, normalize, splits, device), "batch norm recalibrated"
        run.log(state.iteration, metrics, prefix="recalibrated")
        if run.writes:
            content = load_checkpoint(run.last)
            content["model"] = net.state_dict()
            content["training"] |= {"weights": raw, "metrics": metrics}
            if averages is not None:
                content["training"]["ema"] = averages
            save_checkpoint(run.last, content)
    if metrics and run.writes:
        final = {name: {**values, "iteration": state.iteration, "batch_norm": how} for name, values in metrics.items()}
        write_json(run.path / "metrics.json", final.get("test", final.get("val")))
        if "val" in final:
            write_json(run.path / "metrics_val.json", final["val"])
        say(f"\nlast weights (iteration {state.iteration}, {how}): {format_errors(metrics)}")
    say(f"weights    {run.last}")


def recalibrate_over(
    train_set: ImageSet, config: ClassificationConfig, net: nn.Module, normalize: Normalize, device: torch.device
) -> None:
    """Give batch norm the true statistics over the training set's centre crops, or a sample of them."""
    sample = spread(train_set, config.train.recalibrate_images)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = centre_batches(sample, config.data, batch_size=config.train.batch_size, **share)
    with autocast(device, config.train.amp):
        recalibrate(net, (normalize(batch.to(device).images) for batch in loader), device)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN exactly where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in RUN")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
