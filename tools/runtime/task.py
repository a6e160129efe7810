"""What a training needs to know of what it trains: a `Task`, and what its validation found.

The tasks that there are: tools/runtime/tasks/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from configs.common import OptimConfig, TrainConfig
from tools.runtime.schedule import Schedule
from tools.runtime.training import total


class Validation(NamedTuple):
    """What a validation found."""

    metrics: dict[str, Any]
    """Kept in the checkpoint."""
    logs: Mapping[str, Mapping[str, Any]]
    """Name of a set -> its figures, for metrics.jsonl."""
    value: float | None
    """The figure that chooses best.pt; None: this validation chooses nothing, and does not count for
    `train.patience`."""
    lower_is_better: bool
    words: str
    """The figures for people."""
    picture: np.ndarray | None = None
    """(H, W, 3) uint8 RGB."""
    curves: Mapping[str, np.ndarray] = {}
    """Name of a class -> (3, T) true and false detections and missed objects at T thresholds evenly over [0, 1]."""


class Indexed(Protocol):
    """A batch that says which images of the training set it holds."""

    @property
    def index(self) -> Tensor:
        """(B,) int64: positions in the training set."""
        ...


class Recipe(Protocol):
    """The parts of a config that every training has."""

    @property
    def seed(self) -> int: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def train(self) -> TrainConfig: ...


RecipeType = TypeVar("RecipeType", bound=Recipe)


class Task(Protocol[RecipeType]):
    """What is learned, by a config of some type."""

    recipe: RecipeType
    net: nn.Module
    """What is saved, and whose parameters train."""
    model: nn.Module
    """What `losses` calls: the net, or the net as it is distributed over processes or as a phase sees it."""
    schedule: Schedule
    validates: bool
    """Whether there is anything to validate on."""
    is_final: bool = True
    """Whether the net is whole afterwards: no other phase follows."""
    start: int = 0
    """The iteration at which the schedule begins."""

    def batches(self, start_iteration: int) -> Iterator[Indexed]:
        """Batches on the device without end, `train.accumulate` for each iteration."""
        ...

    def losses(self, batch: Any, iteration: int) -> Mapping[str, Tensor]:
        """Name -> () loss of a batch."""
        ...

    def gradients(self, batch: Any, iteration: int, parts: int) -> Mapping[str, Tensor]:
        """The losses of a batch, one of `parts` of a step, whose gradients are added to the parameters'."""
        losses = self.losses(batch, iteration)
        (total(losses) / parts).backward()
        return losses

    def validate(self, iteration: int) -> Validation:
        """The figures of the net as it is now."""
        ...

    def checkpoint(self) -> dict[str, Any]:
        """What the file says about the net, and under `training` what the task needs to go on; on all processes."""
        ...

    def image_name(self, index: int) -> str:
        """What to call an image of the training set."""
        ...

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration."""
        return self.schedule.rate(iteration - self.start)

    def load(self, training: Mapping[str, Any]) -> None:
        """Go on from what `checkpoint` gave under `training`."""

    def step_done(self, iteration: int) -> None:
        """Called after each update, with the number of updates done."""

    def figures(self) -> dict[str, float]:
        """Further figures of the updates since the last call, for the log."""
        return {}

    def finished(self) -> bool:
        """Whether the training ends before its schedule does."""
        return False
