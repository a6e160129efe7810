"""A task whose every number can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.common import OptimConfig, TrainConfig
from configs.errors import UserError
from tools.runtime.loop import fit
from tools.runtime.plan import State, make_plan
from tools.runtime.run_folder import RunFolder
from tools.runtime.schedule import Schedule
from tools.runtime.task import Task, Validation

CPU = torch.device("cpu")


@dataclass
class Numbers:
    """A batch: one number."""

    value: Tensor
    index: Tensor
    replaced: int = 0


@dataclass
class Recipe:
    seed: int
    optim: OptimConfig
    train: TrainConfig
    data: Any = None


class OneWeight(Task):
    """w starts at 1; the loss of the i-th batch is i * w, so that each batch takes rate * i off w."""

    def __init__(
        self, iterations: int = 4, *, validates: bool = True, figures: tuple[float | None, ...] = (),
        momentum: float = 0.0, **train,
    ) -> None:  # fmt: skip
        self.recipe = Recipe(
            seed=0,
            optim=OptimConfig(lr=0.1, reference_batch_size=1, momentum=momentum, weight_decay=0.0),
            train=TrainConfig(batch_size=1, **{"log_every": 1, "validate_every": 1, **train}),
        )
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.net.weight)
        self.model = self.net
        self.schedule = Schedule(base_rate=0.1, iterations=iterations, iterations_per_epoch=2.0)
        self.validates = validates
        self.values = dict(enumerate(figures, 1))
        self.validated: list[tuple[int, float]] = []
        self.fails_at: int | None = None

    def batches(self, start_iteration):
        number = start_iteration * self.recipe.train.accumulate
        while True:
            if number == self.fails_at:
                raise UserError("image_7.jpg: cannot be read")
            yield Numbers(torch.tensor([float(number)]), torch.tensor([number]))
            number += 1

    def losses(self, batch, iteration):
        return {"linear": (self.model(batch.value[None]) * 1.0).sum()}

    def validate(self, iteration):
        self.validated.append((iteration, self.net.weight.item()))
        value = self.values.get(iteration, 0.0)
        return Validation({"x": value}, {"val": {"x": value}}, value, lower_is_better=False, words=f"x {value}")

    def checkpoint(self):
        return {"kind": "detector", "config": {}, "class_names": []}

    def image_name(self, index):
        return f"image_{index}"


def train(task: OneWeight, path: Path, **options) -> State:
    resumed = options.pop("resumed", False)
    checkpoint = load(path / "last.pt") if resumed else None
    with RunFolder(path) as run:
        return fit(task, make_plan(task, run, CPU, checkpoint=checkpoint, **options))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def weight(path: Path) -> float:
    return load(path)["model"]["weight"].item()


def lines(path: Path) -> list[dict]:
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in read]
