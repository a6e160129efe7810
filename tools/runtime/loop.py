"""The training loop: `fit(task, plan)` is the only one there is.

A task (task.py) says what is learned: batches, losses, validation, what its checkpoint holds. A plan (plan.py) says
how: optimiser, length, where the run is written, how far it has come. All tasks share what must never differ between
them: when something is validated and saved, resumption, interruption, moving averages, losses that are not finite,
several processes, progress.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.weights import FORMAT
from configs.errors import UserError, counted
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import save_checkpoint, without_training
from tools.runtime.distributed import say, without_sync
from tools.runtime.optimizer import set_rate, step_unless
from tools.runtime.plan import Plan, State
from tools.runtime.progress import Progress, Timed
from tools.runtime.run_folder import RunFolder
from tools.runtime.task import Indexed, Task, Validation
from tools.runtime.training import average_statistics, seed_step


def fit(task: Task, plan: Plan) -> State:
    """Train to the end, from where the plan's state says; afterwards the net has the weights that evaluate (averages).

    Writes last.pt, best.pt, metrics.jsonl and TensorBoard events into the run's folder.

    Returns:
        The plan's state: how far it came, the newest validation's figures.

    Raises:
        Interrupted: a stop was requested; last.pt is written.
        NonFiniteLoss: a loss or a gradient was not finite.
    """
    state, run, schedule, train = plan.state, plan.run, task.schedule, task.recipe.train
    run.open(plan.header, from_iteration=state.iteration)
    checkpoint_every = train.checkpoint_every or train.validate_every
    batches = Timed(task.batches(state.iteration))
    if state.iteration - task.start >= schedule.iterations:
        done = f"{counted(schedule.iterations, 'iteration')} of the {plan.what}"
        say(f"complete   {done} made before: nothing is left to train, but a longer schedule would go on")
    with (
        plan.stop.deferred(),
        Progress(schedule.iterations, plan.what, initial=state.iteration - task.start) as progress,
    ):
        while True:
            done = state.iteration - task.start
            # -- what is due between two updates; a resumed run comes by here first
            if task.validates and state.validated < state.iteration and schedule.is_due(done, train.validate_every):
                _save_last(task, plan)  # a validation can be long
                _validate(task, plan)
                batches.restart()
            exhausted = train.patience is not None and state.validations_without_better >= train.patience
            ends = exhausted or task.finished() or done >= schedule.iterations
            step = _Step() if ends else _fetch(batches, train.accumulate, plan.stop)
            halted = distributed.any_process(step.failure is not None)
            if ends or halted or schedule.is_due(done, checkpoint_every):
                _save_last(task, plan)
            if halted:
                raise _reason(step, run, state.iteration)
            if ends:
                break

            # -- one update
            _update(task, plan, step.batches)
            state.iteration += 1
            batches.step_done()
            task.step_done(state.iteration)

            # -- the only regular reading of values from the device
            if state.iteration % train.log_every == 0 or done + 1 == schedule.iterations:
                progress.update(0, **_log(task, plan, batches))
            progress.update()
    if state.iteration - task.start < schedule.iterations:
        say(f"ended early after {counted(state.iteration, 'iteration')}: the validation gets no better")
    if not task.validates and task.is_final:  # nothing says that an earlier one was better
        _save(task, plan, run.best, for_resume=False)
    plan.optimizer.zero_grad(set_to_none=True)
    if plan.ema is not None:
        task.net.load_state_dict(plan.ema.state_dict())
    return state


# ---------------------------------------------------------------------------------------------- one update


class _Step(NamedTuple):
    """The batches of an update, or why there are none."""

    batches: list[Indexed] = []
    failure: Exception | None = None


def _fetch(batches: Iterator[Indexed], count: int, stop: cli.StopRequest) -> _Step:
    """The batches of the next update. What fails here fails before the update, so the last one can still be saved."""
    if stop.requested:
        return _Step(failure=cli.Interrupted())
    try:
        return _Step([next(batches) for _ in range(count)])
    except Exception as failure:
        # The signal that asks for a stop may have ended the loader's workers too.
        return _Step(failure=cli.Interrupted() if stop.requested else failure)


def _reason(step: _Step, run: RunFolder, iteration: int) -> Exception:
    """What to raise where an update cannot be made on some process."""
    if step.failure is None or isinstance(step.failure, cli.Interrupted):
        return cli.Interrupted(how_to_resume(run, iteration))
    return step.failure


def _update(task: Task, plan: Plan, parts: list[Indexed]) -> None:
    """One step of the optimiser with the gradients of all parts; waits for nothing."""
    recipe, iteration, model = task.recipe, plan.state.iteration, task.model
    seed_step(recipe.seed, iteration)
    set_rate(plan.optimizer, task.rate(iteration))
    for parameter in plan.parameters:  # as the optimiser's zero_grad, without its hooks and profiling
        parameter.grad = None
    for part, batch in enumerate(parts, 1):
        last = part == len(parts)
        with nullcontext() if last else without_sync(model):
            try:
                losses = task.gradients(batch, iteration, len(parts))
            except (RuntimeError, ValueError) as error:
                if (explained := _explained(task, batch, iteration, error)) is None:
                    raise
                raise explained from error
        plan.monitor.add(losses, batch.index)
        plan.replaced += getattr(batch, "replaced", 0)
    skip = plan.monitor.finish_step(iteration, plan.parameters, recipe.optim.clip_norm)
    step_unless(plan.optimizer, skip)
    if plan.ema is not None:
        plan.ema.update(iteration - task.start)


_COSTLY = (
    "train.batch_size", "data.max_size", "data.crop_size", "model.box.batch_size_per_image", "model.rcnn.rois_per_image"
)  # fmt: skip
"""Options of any training that decide on its memory: images, their sizes, RoIs of each."""


def _explained(task: Task, batch: Indexed, iteration: int, error: Exception) -> UserError | None:
    """What to change where an update failed because its batch is too large or too small; None for other causes."""
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return _out_of_memory(task, batch, iteration, error)
    if "more than 1 value per channel" in str(error):
        return UserError(
            f"iteration {iteration}: batch norm needs more than one value of each channel, and has one from "
            f"{_names_and_shapes(task, batch)}: raise train.batch_size or the size of the images"
        )
    return None


def _names_and_shapes(task: Task, batch: Indexed) -> str:
    images = ", ".join(task.image_name(index) for index in batch.index.tolist())
    shapes = (f"{name} {tuple(value.shape)}" for name, value in vars(batch).items() if isinstance(value, Tensor))
    return f"the images {images} ({', '.join(shapes)})"


def _out_of_memory(task: Task, batch: Indexed, iteration: int, error: Exception) -> UserError:
    """What was too large, and what may be made smaller."""
    costly = []
    for name in _COSTLY:
        with suppress(AttributeError):  # of another kind of training
            costly.append(f"{name} ({attrgetter(name)(task.recipe)})")
    return UserError(
        f"iteration {iteration}: the memory is too small for {_names_and_shapes(task, batch)}: raise "
        f"train.accumulate, lower {', '.join(costly)}, or set train.amp=bf16 ({' '.join(str(error).split())[:200]})"
    )


def _log(task: Task, plan: Plan, batches: Timed) -> dict[str, float | str]:
    """A line of the training's figures into the run; the ones for the progress bar."""
    iteration = plan.state.iteration
    losses, figures = plan.monitor.read(task.image_name, task.rate), task.figures()
    speed = batches.take_speed()
    if plan.device.type == "cuda":
        speed["memory_gib"] = torch.cuda.max_memory_allocated(plan.device) / 2**30
    rate = task.rate(iteration - 1)
    at = {**plan.constants, "epoch": task.schedule.epoch(iteration - task.start), "rate": rate}
    replaced = {"replaced": plan.state.replaced} if _count_replaced(task, plan) else {}
    plan.run.log(iteration, {**at, **losses, **figures, **replaced, **speed}, prefix="train")
    share = f"{100 * speed['data_seconds'] / max(speed['seconds'], 1e-9):.0f}%"
    return {"loss": losses["loss"], **figures, "rate": rate, "data": share}


def _count_replaced(task: Task, plan: Plan) -> bool:
    """Whether images may be replaced; the state's number of them is then that of all processes."""
    if getattr(getattr(task.recipe, "data", None), "on_error", None) != "skip":
        return False
    plan.state.replaced += sum(distributed.all_gather(plan.replaced))
    plan.replaced = 0
    return True


# ---------------------------------------------------------------------------------------------- between two updates


def _validate(task: Task, plan: Plan) -> None:
    """The figures on the validation set into the run and the state, and best.pt if they are the best so far.

    A stop that is requested meanwhile ends the run at once: last.pt is of this very iteration.
    """
    state, run = plan.state, plan.run
    try:
        with plan.stop.immediate(), plan.ema.swapped_in() if plan.ema is not None else nullcontext():
            found = task.validate(state.iteration)
    except cli.Interrupted:
        raise cli.Interrupted(how_to_resume(run, state.iteration)) from None
    for name, values in found.logs.items():
        run.log(state.iteration, values, prefix=name)
    if found.picture is not None:
        run.log_picture(state.iteration, "val/detections", found.picture)
    run.log_curves(state.iteration, "val_classes", found.curves)
    is_best = _is_better(found, state.best)
    state.best = found.value if is_best else state.best
    if found.value is not None:  # else nothing was measured, which is no reason to stop
        state.validations_without_better = 0 if is_best else state.validations_without_better + 1
    state.validated, state.metrics = state.iteration, found.metrics
    say(f"iteration {state.iteration}: {found.words}{' (best)' * is_best}")
    if is_best:
        _save(task, plan, run.best, for_resume=False)
    _save_last(task, plan)


def _is_better(found: Validation, best: float | None) -> bool:
    """Whether a validation's figure is better than the best so far; one that is not a number never is."""
    if found.value is None or math.isnan(found.value):
        return False
    sign = -1.0 if found.lower_is_better else 1.0
    return best is None or math.isnan(best) or sign * found.value > sign * best


def _save_last(task: Task, plan: Plan) -> None:
    """Write last.pt, unless it is as the run is now."""
    now = (plan.state.iteration, plan.state.validated)
    if plan.saved != now:
        _save(task, plan, plan.run.last)
        plan.saved = now


def _save(task: Task, plan: Plan, path: Path, *, for_resume: bool = True) -> None:
    """Write a checkpoint; all processes take part, one writes."""
    plan.monitor.check(task.image_name, task.rate)
    average_statistics(task.net, plan.ema)
    _count_replaced(task, plan)
    content = {"format": FORMAT, **task.checkpoint()}
    weights = task.net.state_dict()
    content["model"] = weights if plan.ema is None else plan.ema.state_dict()
    content["training"] = {
        "state": asdict(plan.state),
        "iteration": plan.state.iteration,
        "metrics": plan.state.metrics,
        "optimizer": plan.optimizer.state_dict(),
        "monitor": plan.monitor.state_dict(),
        "log_lines": plan.run.lines,
        "data": plan.data,
        **({"weights": weights} if plan.ema is not None else {}),
        **content.get("training", {}),
    }
    keep = task.recipe.train.keep_last if for_resume else None

    def write() -> None:
        plan.run.see_that_it_is_there()
        save_checkpoint(path, content if for_resume else without_training(content), keep=keep)

    distributed.on_main(write)


def how_to_resume(run: RunFolder, iteration: int) -> str:
    """What to tell a person whose run was stopped."""
    done = counted(iteration, "iteration")
    return f"interrupted after {done}; {run.last} is written: the same command with --resume goes on"
