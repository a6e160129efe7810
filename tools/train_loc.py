"""Train ImageNet localisation (He et al. 2016, App. C): the per-class RPN, then the R-CNN on its proposals.

    python tools/train_loc.py --cfg configs/tiny_imagenet_loc_rpn.yaml
    torchrun --nproc-per-node 8 tools/train_loc.py --cfg configs/imagenet_loc_rpn_resnet101.yaml
    torchrun --nproc-per-node 8 tools/train_loc.py --cfg configs/imagenet_loc_rcnn_resnet101.yaml
    python tools/train_loc.py --cfg configs/tiny_imagenet_loc_rpn.yaml --resume

Both stages start from a classifier (`model.weights`, a checkpoint of tools/pretrain.py). The run's folder holds
config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt, metrics_val.json and metrics.json (of the test set
where there is one, with the last weights).
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
from torch import Tensor, nn

from configs.errors import UserError
from configs.loading import dump_config, load_config
from configs.localisation import LocalisationConfig
from datasets.loader import prefetch
from datasets.localisation import read_localisation
from datasets.localisation_views import LocalisationBatch, train_views
from datasets.records import Records
from detection.localisation import KIND, PerClassRpn, build_localiser, load_localiser, propose, suppress
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import FORMAT, load_checkpoint, save_checkpoint, without_training
from tools.runtime.distributed import say
from tools.runtime.ema import Ema
from tools.runtime.localisation import Members, figures, mean_boxes, predict, say_table, trivial_figures
from tools.runtime.optimizer import (
    build_optimizer,
    describe_rate,
    load_optimizer,
    scaled_rate,
    set_rate,
    step_unless,
)
from tools.runtime.progress import Progress, Timed
from tools.runtime.resume import refuse_another_training
from tools.runtime.run_folder import RunFolder, provenance, write_json
from tools.runtime.schedule import make_schedule
from tools.runtime.training import LossMonitor, autocast, average_statistics, count_parameters, seed_step


@dataclass
class State:
    """How far a training has come: what a checkpoint keeps beside the tensors."""

    iteration: int = 0
    """Updates done."""
    validated: int = 0
    """The iteration of the newest validation."""
    best: float | None = None
    """The lowest `train.best_metric` so far."""
    validations_without_better: int = 0
    metrics: dict[str, float] | None = None
    """Of the newest validation."""


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, cli.config_overrides(args), LocalisationConfig)
    device = cli.select_device(args.device)
    with distributed.processes(device), cli.StopRequest() as stop:
        run = RunFolder(args.out or Path("runs") / args.cfg.stem, writes=distributed.is_main())
        if args.overwrite and args.resume:
            raise UserError("--overwrite and --resume contradict each other: one removes the run, the other goes on")
        if args.overwrite:
            distributed.on_main(run.clear)
        train(config, run, cli.find_data_root(args.data_root), device, stop, resume=args.resume)


def train(
    config: LocalisationConfig,
    run: RunFolder,
    data_root: Path,
    device: torch.device,
    stop: cli.StopRequest,
    *,
    resume: bool = False,
) -> None:
    """The whole run, from the config to the figures of the test set."""
    distributed.on_main(lambda: run.check(resume=resume))
    train_set = read_localisation(config.data.train, data_root)
    sets = {
        split: read_localisation(source, data_root, train_set.class_names)
        for split, source in (("val", config.data.val), ("test", config.data.test))
        if source is not None
    }
    checkpoint = load_checkpoint(run.last, kind=KIND) if resume and run.last.exists() else None
    if checkpoint is not None:
        refuse_another_training(
            run.last, checkpoint["config"], config, checkpoint["class_names"], train_set.class_names
        )

    torch.manual_seed(config.seed)
    net = build_localiser(config.model, len(train_set.class_names), data_root=data_root)
    net.to(device, memory_format=torch.channels_last if config.train.channels_last else torch.preserve_format).train()
    proposer = load_proposer(config, data_root, train_set.class_names, device)
    optimizer = build_optimizer(net, config.optim)
    ema = Ema(net, config.train.ema_decay) if config.train.ema_decay else None
    state = State() if checkpoint is None else load_training(checkpoint, net, optimizer, ema)
    model = distributed.wrap(net, device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    members = members_of(net, proposer)
    schedule = make_schedule(
        config.schedule,
        rate=scaled_rate(config.optim, config.train.batch_size),
        iterations_per_epoch=len(train_set) / config.train.batch_size,
    )
    checkpoint_every = config.train.checkpoint_every or config.train.validate_every
    describe(config, net, train_set, sets, schedule.describe(), run)
    class_means = mean_boxes(train_set)

    def rate(iteration: int) -> float:
        return schedule.rate(iteration)

    def image_name(index: int) -> str:
        return str(train_set.image_paths[index])

    def save(path: Path, *, for_resume: bool = True) -> None:
        average_statistics(net, ema)
        if distributed.is_main():
            content: dict[str, Any] = {
                "format": FORMAT, "kind": KIND, "config": config.model_dump(mode="json"),
                "class_names": train_set.class_names, "mean_boxes": class_means.tolist(),
                "preprocessing": net.normalize.preprocessing.to_dict(),
                "model": net.state_dict() if ema is None else ema.state_dict(),
                "training": {"state": asdict(state), "optimizer": optimizer.state_dict(),
                             "iteration": state.iteration, "metrics": state.metrics},
            }  # fmt: skip
            if ema is not None:
                content["training"]["weights"] = net.state_dict()
            save_checkpoint(path, content if for_resume else without_training(content))

    monitor = LossMonitor(device)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    with run, Progress(schedule.iterations, "training", initial=state.iteration) as progress:
        run.open(provenance(data_root) + dump_config(config), from_iteration=state.iteration)
        loader = train_views(
            train_set, config.data, batch_size=config.train.batch_size, accumulate=config.train.accumulate,
            seed=config.seed, start_iteration=state.iteration, rank=distributed.rank(),
            world_size=distributed.world_size(), pin_memory=device.type == "cuda",
        )  # fmt: skip
        batches = Timed(prefetch(loader, device))
        clock, clock_iteration = time.perf_counter(), state.iteration
        while True:
            # -- what is due between two updates; a resumed run comes by here first
            if state.validated < state.iteration and schedule.is_due(state.iteration, config.train.validate_every):
                monitor.check(image_name, rate)
                average_statistics(net, ema)
                if validate(config, members, ema, sets, device, run, state):
                    save(run.best, for_resume=False)
                batches.take_seconds()
                clock, clock_iteration = time.perf_counter(), state.iteration
            patience = config.train.patience
            exhausted = patience is not None and state.validations_without_better >= patience
            ends = exhausted or state.iteration >= schedule.iterations
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
                backward(model, optimizer, batches, monitor, config, proposer, state.iteration, device)
            except RuntimeError:
                if stop.requested and distributed.world_size() == 1:  # the signal ended the loader's workers too
                    continue
                raise
            step_unless(optimizer, monitor.finish_step(state.iteration, parameters, config.optim.clip_norm))
            if ema is not None:
                ema.update(state.iteration)
            state.iteration += 1

            # -- the only regular reading of values from the device
            if state.iteration % config.train.log_every == 0 or state.iteration == schedule.iterations:
                values = monitor.read(image_name, rate)
                steps = max(1, state.iteration - clock_iteration)
                speed = {
                    "seconds": (time.perf_counter() - clock) / steps,
                    "data_seconds": batches.take_seconds() / steps,
                }
                clock, clock_iteration = time.perf_counter(), state.iteration
                epoch, now = schedule.epoch(state.iteration), rate(state.iteration - 1)
                run.log(state.iteration, {"epoch": epoch, "rate": now, **values, **speed}, prefix="train")
                progress.update(0, loss=values["loss"], rate=now)
            progress.update()
        progress.close()
        if exhausted:
            say(f"ended early after {state.iteration} iterations: the validation error falls no more")
        if "val" not in sets:  # nothing says that an earlier one was better
            save(run.best, for_resume=False)
        finish(config, members, ema, sets, class_means, device, run, state)


def backward(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[LocalisationBatch],
    monitor: LossMonitor,
    config: LocalisationConfig,
    proposer: PerClassRpn | None,
    iteration: int,
    device: torch.device,
) -> None:
    """The gradients of one step, summed up over its accumulated parts."""
    optimizer.zero_grad(set_to_none=True)
    for part in range(config.train.accumulate):
        batch = next(batches)
        last = part == config.train.accumulate - 1
        with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            losses = losses_of(model, batch, config, proposer, iteration, device)
            (sum(losses.values()) / config.train.accumulate).backward()
        monitor.add(losses, batch.index)


def losses_of(
    model: nn.Module,
    batch: LocalisationBatch,
    config: LocalisationConfig,
    proposer: PerClassRpn | None,
    iteration: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """The losses of a batch: of the RPN, or of the R-CNN on what the RPN proposes for the images' own classes."""
    inputs = [batch.images, batch.labels, batch.boxes, batch.valid, batch.index]
    with autocast(device, config.train.amp):
        if proposer is not None:
            with torch.no_grad():
                view = torch.zeros_like(batch.frames)  # the crop itself is the image: corner 0, scale 1
                view[:, 2:] = 1.0
                sizes = torch.full_like(batch.original_sizes, config.data.crop_size)
                best = config.model.rcnn.proposals_per_image
                found = propose([proposer], [(batch.images, view)], batch.labels[:, None], sizes, best, mirror=False)
                inputs.append(suppress(found, config.model.rcnn.nms_thresh))
        return model(*inputs, seed=config.seed, iteration=iteration)


# ---------------------------------------------------------------------------------------------- before the loop


def load_proposer(
    config: LocalisationConfig, data_root: Path, class_names: list[str], device: torch.device
) -> PerClassRpn | None:
    """The RPN of `model.rcnn.proposals` for stage rcnn; None for stage rpn.

    Raises:
        UserError: there is no such file, it is not of stage rpn, or its classes are others.
    """
    if config.model.stage == "rpn":
        return None
    given = Path(config.model.rcnn.proposals)
    path = given if given.is_file() or not (data_root / given).is_file() else data_root / given
    localiser = load_localiser(path, "rpn", device=device)
    if localiser.class_names != class_names:
        differing = sorted(set(localiser.class_names) ^ set(class_names)) or ["their order"]
        raise UserError(f"{path}: was trained on other classes than the data's ({', '.join(differing[:5])} differ)")
    return localiser.net.requires_grad_(False)


def members_of(net: nn.Module, proposer: PerClassRpn | None) -> Members:
    """What is validated and tested; the RPN predicts the classes where it has learned to."""
    rpn = proposer if proposer is not None else net
    return Members([rpn], [net] if proposer is not None else [], [(rpn.net, rpn.normalize)] if rpn.classifies else [])


def load_training(checkpoint: dict, net: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> State:
    """Put everything back as it was when the checkpoint was written."""
    training = checkpoint["training"]
    if "optimizer" not in training:
        raise UserError("the checkpoint holds weights only: resume needs the run's last.pt")
    net.load_state_dict(training.get("weights", checkpoint["model"]))
    load_optimizer(optimizer, training["optimizer"])
    if ema is not None:
        ema.load_state_dict(checkpoint["model"])
    return State(**training["state"])


def describe(
    config: LocalisationConfig,
    net: nn.Module,
    train_set: Records,
    sets: dict[str, Records],
    schedule: str,
    run: RunFolder,
) -> None:
    """Say what will be done."""
    name = config.model.backbone if isinstance(config.model.backbone, str) else "a net of one's own"
    kind = {"rpn": "per-class RPN", "rcnn": "R-CNN"}[config.model.stage]
    others = "".join(f", {len(records):,} to {split}" for split, records in sets.items())
    say(f"data       {len(train_set):,} images with {len(train_set.labels):,} objects to train on{others}")
    say(f"classes    {len(train_set.class_names)}: {', '.join(train_set.class_names[:10])}, ...")
    say(f"model      {kind} on {name}, weights {config.model.weights}: {count_parameters(net)[0]:,} parameters train")
    say(f"step       {config.train.batch_size} images, {config.optim.name}, "
        f"rate {describe_rate(config.optim, config.train.batch_size)}")  # fmt: skip
    say(f"schedule   {schedule}")
    say(f"run        {run.path}")


# ---------------------------------------------------------------------------------------------- validation and test


def validate(
    config: LocalisationConfig,
    members: Members,
    ema: Ema | None,
    sets: dict[str, Records],
    device: torch.device,
    run: RunFolder,
    state: State,
) -> bool:
    """The errors on the validation set into the run and the state; whether they are the lowest so far."""
    state.validated = state.iteration
    if "val" not in sets:
        return False
    with ema.swapped_in() if ema is not None else nullcontext():
        found = predict(members, sets["val"], config, device, view=config.test.validation_view, what="validation")
    metrics = figures(found, sets["val"])
    run.log(state.iteration, metrics, prefix="val")
    value = metrics[config.train.best_metric]
    is_best = state.best is None or value < state.best
    state.best = value if is_best else state.best
    state.validations_without_better = 0 if is_best else state.validations_without_better + 1
    state.metrics = metrics
    errors = ", ".join(f"{name} {100 * metrics[name]:.2f} %" for name in metrics if name.endswith("error"))
    say(f"iteration {state.iteration}: {errors}{' (best)' * is_best}")
    return is_best


def finish(
    config: LocalisationConfig,
    members: Members,
    ema: Ema | None,
    sets: dict[str, Records],
    class_means: Any,
    device: torch.device,
    run: RunFolder,
    state: State,
) -> None:
    """Test the last weights (not the best: that choice would need a further set), and write and print the figures."""
    final: dict[str, dict[str, Any]] = {}
    validated = state.validated == state.iteration and config.test.validation_view == config.test.view
    for split, records in sets.items():
        if split == "val" and validated and state.metrics is not None:
            values = state.metrics
        else:
            with ema.swapped_in() if ema is not None else nullcontext():
                values = figures(predict(members, records, config, device, view=config.test.view, what=split), records)
        values = {**values, **trivial_figures(class_means, records)}
        final[split] = {**values, "view": config.test.view, "iteration": state.iteration}
        say_table(values, f"{split}, {values['images']:,} images, last weights, view {config.test.view}")
    if final and run.writes:
        write_json(run.path / "metrics.json", final.get("test", final.get("val")))
        if "val" in final:
            write_json(run.path / "metrics_val.json", final["val"])
    say(f"weights    {run.last}")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (default: runs/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN exactly where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in RUN")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
