"""The learning rate as a pure function of the iteration, and epochs turned into iterations."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from configs.common import OptimConfig, ScheduleConfig
from configs.errors import counted
from tools.runtime.optimizer import scaled_rate


@dataclass(frozen=True)
class Schedule:
    """Length of a training and its learning rate; iterations count from 0, and iteration i trains with `rate(i)`."""

    base_rate: float
    iterations: int
    """Iterations of the whole training."""
    iterations_per_epoch: float
    unit: float = 1.0
    """Iterations in the unit that lengths are given in: 1, or those of an epoch."""
    policy: str = "constant"
    milestones: tuple[int, ...] = ()
    """Iterations from which on the rate is multiplied by gamma once more."""
    gamma: float = 0.1
    warmup_iterations: int = 0
    warmup_factor: float = 0.001

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration; beyond the last one, that of the end."""
        rate = self.base_rate
        if self.policy == "multistep":
            rate *= self.gamma ** bisect_right(self.milestones, iteration)
        elif self.policy == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(iteration / self.iterations, 1.0)))
        if iteration < self.warmup_iterations:
            share = iteration / self.warmup_iterations
            rate *= self.warmup_factor * (1.0 - share) + share
        return rate

    def epoch(self, iteration: int) -> float:
        """Passes over the training set that are done when `iteration` iterations are."""
        return iteration / self.iterations_per_epoch

    def is_due(self, done: int, every: float | None) -> bool:
        """Whether what happens each `every` units is due after `done` iterations; at the end it always is.

        None: only at the end.
        """
        if done >= self.iterations:
            return True
        if every is None or done == 0:
            return False
        period = every * self.unit
        return round(round(done / period) * period) == done

    def describe(self) -> str:
        """The schedule in words, in iterations and epochs."""
        parts = [
            f"{counted(self.iterations, 'iteration')}, {self.epoch(self.iterations):.4g} epochs of "
            f"{self.iterations_per_epoch:.6g}"
        ]
        parts.append({"multistep": "steps", "cosine": "cosine to 0", "constant": "constant rate"}[self.policy])
        if self.policy == "multistep":
            parts[-1] = "rate " + " -> ".join(
                f"{self.base_rate * self.gamma**i:.4g}" for i in range(len(self.milestones) + 1)
            )
            if self.milestones:
                parts[-1] += f" at {', '.join(map(str, self.milestones))}"
        if self.warmup_iterations:
            parts.append(f"warm-up over {self.warmup_iterations}")
        return ", ".join(parts)


def make_schedule(config: ScheduleConfig, *, rate: float, iterations_per_epoch: float) -> Schedule:
    """The schedule of a config.

    Args:
        config: lengths in iterations or epochs.
        rate: learning rate, already scaled for the batch size.
        iterations_per_epoch: images of the training set / images of a step.
    """
    unit = iterations_per_epoch if config.epochs else 1.0
    length = config.iterations or config.epochs
    assert length is not None, "the config has one of the two"
    return Schedule(
        base_rate=rate,
        iterations=max(1, round(length * unit)),
        iterations_per_epoch=iterations_per_epoch,
        unit=unit,
        policy="constant" if config.policy == "plateau" else config.policy,  # its steps are events, not milestones
        milestones=tuple(round(milestone * unit) for milestone in config.milestones),
        gamma=config.gamma,
        warmup_iterations=config.warmup_iterations,
        warmup_factor=config.warmup_factor,
    )


def scaled_schedule(config: ScheduleConfig, optim: OptimConfig, batch_size: int, images: int) -> Schedule:
    """The schedule of a training whose epochs have so many images, its rate scaled for the batch size."""
    return make_schedule(config, rate=scaled_rate(optim, batch_size), iterations_per_epoch=images / batch_size)
