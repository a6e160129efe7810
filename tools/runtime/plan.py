"""How a task is trained: a `Plan` of optimiser, run folder and state, from the start or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer

from backbones.weights import first_line
from configs.errors import UserError
from detection.checkpoint import load_strictly
from tools.runtime import cli
from tools.runtime.ema import Ema
from tools.runtime.optimizer import build_optimizer, load_optimizer
from tools.runtime.resume import say_what_changed
from tools.runtime.run_folder import RunFolder
from tools.runtime.task import Task
from tools.runtime.training import LossMonitor


@dataclass
class State:
    """How far a training has come: what a checkpoint keeps beside the tensors."""

    iteration: NonNegativeInt = 0
    """Updates done, in all phases."""
    phase: PositiveInt = 1
    """The number of the phase that trains; joint training has one."""
    phase_start: NonNegativeInt = 0
    """Updates done before it."""
    validated: int = 0
    """The iteration of the newest validation."""
    best: float | None = None
    """The best `train.best_metric` so far."""
    validations_without_better: int = 0
    metrics: dict[str, Any] | None = None
    """What the newest validation found."""
    replaced: NonNegativeInt = 0
    """Images that could not be read, whose places others took (`data.on_error` is skip), on all processes."""

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any] | None) -> State:
        """How far the run had come when the checkpoint was written; None: the start.

        Raises:
            UserError: the checkpoint is not meant for resumption.
        """
        if checkpoint is None:
            return cls()
        training = checkpoint.get("training")
        if not isinstance(training, Mapping) or "optimizer" not in training:
            raise UserError("the checkpoint holds weights only: resume needs the run's last.pt")
        stored: Any = training.get("state")
        types = get_type_hints(cls, include_extras=True)
        try:  # what another version of this project keeps besides is passed over
            known = {name: value for name, value in stored.items() if name in types}
            return cls(**{name: TypeAdapter(types[name]).validate_python(known[name], strict=True) for name in known})
        except (AttributeError, ValidationError) as error:
            raise UserError(
                f"last.pt: training.state is damaged ({first_line(error)}): resume from an older one"
            ) from None


@dataclass
class Plan:
    """How a task is trained; see `make_plan`."""

    run: RunFolder
    device: torch.device
    stop: cli.StopRequest
    optimizer: Optimizer
    parameters: list[nn.Parameter]
    ema: Ema | None
    state: State
    monitor: LossMonitor
    header: str
    """Goes into the run's config.yaml."""
    what: str
    """A word for the progress bar."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Goes into every line of the log."""
    data: dict[str, str] = field(default_factory=dict)
    """`tools.runtime.resume.data_state` of the training set."""
    saved: tuple[int, int] | None = None
    """(Iteration, iteration of the newest validation) that last.pt is of; None: nothing was written yet."""
    replaced: int = 0
    """Images of this process to be added to the state's `replaced`."""


def make_plan(
    task: Task,
    run: RunFolder,
    device: torch.device,
    *,
    header: str = "",
    stop: cli.StopRequest | None = None,
    state: State | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    what: str = "training",
    constants: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of a task, from its start or from a checkpoint of it.

    Args:
        task: its net is on `device`; a checkpoint's weights are put into it here.
        run: where the run is written.
        device: where it trains.
        header: goes into config.yaml.
        stop: asked between the updates; None: nothing stops the training.
        state: how far it has come (of the checkpoint where there is one).
        checkpoint: of `tools.runtime.checkpoint.load_checkpoint`, to go on from.
        what: a word for the progress bar.
        constants: values for every line of the log.
        data: `tools.runtime.resume.data_state` of the training set, kept in the checkpoints.

    Raises:
        UserError: the checkpoint does not fit.
    """
    optimizer = build_optimizer(task.net, task.recipe.optim)
    decay = task.recipe.train.ema_decay
    ema = Ema(task.net, decay) if decay else None
    monitor, state = LossMonitor(device), state or State.of(checkpoint)
    if checkpoint is not None:
        with _damage_told(run.last):
            training = checkpoint["training"]
            load_strictly(task.net, training.get("weights", checkpoint["model"]), run.last)
            load_optimizer(optimizer, training["optimizer"])
            if ema is not None:
                ema.load_state_dict(training.get("ema", checkpoint["model"]))
            monitor.load_state_dict(training.get("monitor"))
            run.lines = TypeAdapter(NonNegativeInt | None).validate_python(training.get("log_lines"), strict=True)
            task.load(training)
        say_what_changed(run.last, training.get("data"), data or {})
    return Plan(
        run=run,
        device=device,
        stop=stop or cli.StopRequest(),
        optimizer=optimizer,
        parameters=[one for one in task.net.parameters() if one.requires_grad],
        ema=ema,
        state=state,
        monitor=monitor,
        header=header,
        what=what,
        constants=dict(constants or {}),
        data=dict(data or {}),
        saved=(state.iteration, state.validated) if _is_as(checkpoint, task) else None,
    )


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What a checkpoint with parts missing or of a wrong type raises is without limit; here it becomes one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: what it holds for --resume is damaged ({type(error).__name__}: {first_line(error)}): resume from "
            "an older one (last_1.pt, ...), or start a new run from it with --init-from"
        ) from error


def _is_as(checkpoint: Mapping[str, Any] | None, task: Task) -> bool:
    """Whether last.pt would be written again as it is; then the older one, which goes to make room, stays."""
    return checkpoint is not None and checkpoint.get("config") == task.checkpoint()["config"]
